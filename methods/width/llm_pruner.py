"""Remove the attention heads and MLP channels whose loss a Taylor estimate says is cheapest: LLM-Pruner.

Ma, Fang, Wang 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models", NeurIPS, arXiv 2305.11627.
Code: horseee/LLM-Pruner.

Weights that depend on each other form a coupled structure and go together: a key/value head with its query heads (rows
of q, k, v, columns of the output matrix), or an MLP channel (a row of gate and up, a column of down). What the loss L
would change without a weight w is estimated by Taylor's formula, with the squared gradients of the N calibration
sequences for the Hessian (equations 3 to 5):

    s = w g - w^2 a / 2,    g = dL/dw,    a = mean over sequences j of (dL_j/dw)^2

    element1  |w g|            element2  |w^2 a|            mix  |s|
    vector    |sum of w g| over a whole row or column
    controls  l1 |w|, l2 w^2, random

Summed along each row or column this gives one number for every matrix and channel; the matrices of a structure are
aggregated channel by channel, and a head's importance is the sum over its channels. In each layer the same share r of
heads and of channels goes, the least important first (`ranking="global"`: one order over all layers and both kinds).
The first 4 layers, at most a quarter of all, and the last 2, at most an eighth, stay whole. Where a ratio would need
more than 0.9 of what the others can lose, as in models with one key/value head, which stays in every layer, fewer do:
both ends shrink in proportion, and the record has `protected_layers` and, beside it, `protected_by_default`.

    heads removed = floor((G E - int(G E (1 - r))) / E),    channels removed = I - int(I (1 - r))

G = key/value heads, R = query heads for each of them, E = head width, I = MLP width, N, T = sequences, their tokens.
A unit is a key/value head with its query heads, or a channel; it has E or 1 channels.

The ratio is met by bisection on r over the exact parameter count. Where heads are so coarse that the nearest count
misses the budget by more than 0.5 % of the model (three key/value heads in SmolLM2-135M), floor(r G) heads go and the
channels alone close the gap; the record then says `closed_by_channels`. `llm-pruner:r=0.25,keep_first=4,keep_last=2` is
the published setting for LLaMA-7B, which removes 19.5 %: r is not the ratio.

Departures from the authors' code. A key/value head is scored with the query heads that go with it; the code reshapes so
that head k meets query heads k, k + G, k + 2 G, ..., which is right only without grouped queries (`gqa="released"`
restores it). One backward pass gives both g and a, summed in float32 whatever the model's dtype, and padding is left
out of the loss. Aggregation is in float64, where products do not underflow. Where a structure would lose everything,
its best unit stays; the code skips the structure. Under `steps` gradients start afresh. Global ranking removes the
lowest units until the budget is met; with an explicit r it removes that share of all units, as the code does. `uniform`
cuts all layers alike, the first and last ones too. Channels of the residual (`channel-wise`) are not pruned.

Cost. Two forward passes and one backward pass over 10 x 64 tokens in short pieces. Memory holds the model, what enters
its layers, one piece, and one layer's gradient in float32 (g or a; both for `mix`).

Measured. docs/studies/departures.md compares both pairings of the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.base import Count, Holds, Layers, Look, Share, Tokens, WidthPruner, register
from methods.errors import OutOfReach, Unsupported
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.gradients import Sums, collect_gradients
from methods.model.sizes import parameters
from methods.model.structures import HEADS_AND_CHANNELS, ROWS_BESIDE, Structure, cuts_of, structures_of
from methods.width.widths import find_equal_widths

FULL = 0.9  # share of the removable parameters from which on fewer layers are protected, unless the user names them
TOLERANCE = 0.005  # share of the dense model by which heads may miss the budget before channels close the gap
TAYLOR = ("element1", "element2", "mix", "vector")
Importance = Literal["element1", "element2", "mix", "vector", "l1", "l2", "random"]
Ranking = Literal["local", "global"]
Heads = Literal["paired", "released"]
Aggregate = Literal["sum", "mean", "max", "prod", "first", "second"]
AGGREGATION: dict[Aggregate, Callable[[Tensor], Tensor]] = {  # (matrices, units, channels) -> (units, channels)
    "sum": lambda scores: scores.sum(0),
    "mean": lambda scores: scores.mean(0),
    "max": lambda scores: scores.amax(0),
    "prod": lambda scores: scores.prod(0),
    "first": lambda scores: scores[0],
    "second": lambda scores: scores[1],
}


@register("llm-pruner")
@dataclass(frozen=True)
class LLMPruner(WidthPruner):
    """Remove the heads and MLP channels of least importance by a Taylor estimate of the loss (Ma et al. 2023)."""

    r: Share | None = None  # the authors' knob, share of heads and channels to remove in each layer; None: solved
    importance: Importance = "element1"  # element1, element2, mix or vector; controls: l1, l2 or random
    aggregation: Aggregate = "sum"  # over the matrices: sum, mean, max, prod, first (q or k, gate), second (o, up)
    ranking: Ranking = "local"  # local: the same share in every layer; global: one order over all layers
    gqa: Heads = "paired"  # paired: a KV head counts with its own query heads; released: as in the authors' code
    keep_first: Layers | None = None  # layers left whole at the front; None: 4, at most a quarter of all
    keep_last: Layers | None = None  # layers left whole at the end; None: 2, at most an eighth of all
    steps: Count = 1  # rounds of scoring and removing, each on the calibration's next sequences
    sequences: Count = 10  # calibration sequences of a round
    tokens: Tokens = 64  # leading tokens of each that are used
    seed: int | None = None  # of importance=random; None: the seed of the run
    uniform: bool = False  # equal widths in all layers that stock transformers loads; no layer is protected
    states: bool = False  # channels of the states of Mamba-2 mixers may go too, in the share of the MLP's channels

    looks_at = "gradients"
    cost = "4 forwards over 10 x 64 tokens per step"
    holds = Holds(all_layers=1, layers=1, logits=9)
    only_cuts = True
    axes = ("heads", "channels")
    leaves = ("heads",)
    paper_ratio = "the heads and channels of the layers that are not protected"
    paper_reads = "10 x 64 tokens of BookCorpus; 10 x 128 in the paper"  # hf_prune.py
    look = Look("solid", "o")
    tiny = "sequences=4,tokens=16"

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of the sequences that give gradients."""
        return min(tokens, self.sequences * self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return the forwards of a gradient for each step."""
        return 4 * self.steps * self.tokens_read(tokens) / tokens

    def __post_init__(self) -> None:
        if self.uniform and (self.r is not None or self.ranking == "global" or self.keep_first or self.keep_last):
            raise ValueError(
                "uniform cuts every layer alike, so that r, ranking=global, keep_first and keep_last have no place"
            )
        if self.uniform and self.states:
            raise ValueError("uniform leaves states of mixers as they are, so that states=true has no place")

    @property
    def fixed(self) -> bool:
        """Say whether the share r is given, which alone decides."""
        return self.r is not None

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the layers that are protected, and the parameters that are left."""
        structures, dense = self.structures(model, ratio), parameters(model)
        cut = self.cut(model, structures, ratio)
        protected, usual = self.layers_to_protect(model, ratio), self.protected_by_default(len(model.layers))
        plan: dict[str, Any] = {"protected_layers": protected}
        plan |= {"protected_by_default": usual} if protected != usual else {}
        if self.ranking == "global":
            return plan | ({"r": self.r} if self.fixed else {"parameters": round((1 - ratio) * dense)})
        count = dense - cut.parameters(structures)
        if isinstance(cut, EqualWidthCut):
            return plan | {"removed_per_layer": cut.counts, "parameters": count}
        return plan | {"r": cut.channels, "closed_by_channels": cut.heads != cut.channels, "parameters": count}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut the units with the least Taylor scores, in steps."""
        plan, structures, dense = self.plan(model, ratio), self.structures(model, ratio), parameters(model)
        cut = self.cut(model, structures, ratio)
        share = ratio if self.r is None else self.r
        chosen = [s for s in structures if (cut.units(s) if self.ranking == "local" else share)]
        for step in range(1, self.steps + 1) if chosen else ():
            scores = self.scores(model, chosen, calibration, step)
            if self.ranking == "local":
                counts = [cut.units(structure, step / self.steps) - len(structure.removed) for structure in chosen]
            else:
                counts = self.counts_overall(chosen, scores, ratio * dense, step / self.steps)
            for structure, score, count in zip(chosen, scores, counts, strict=True):
                structure.remove(score, count)
        count = dense - sum(structure.cost * len(structure.removed) for structure in structures)
        return plan | {"parameters": count} | cuts_of(model, structures)

    def layers_to_protect(self, model: Decoder, ratio: float) -> list[int]:
        """Return the numbers of the layers that stay whole where `ratio` of all parameters goes."""
        L = len(model.layers)
        usual = self.protected_by_default(L)
        if self.fixed or self.keep_first is not None or self.keep_last is not None:
            return usual
        last = sum(number >= L // 2 for number in usual)
        for stay in range(len(usual), 0, -1):
            at_the_end = last * stay // len(usual)
            protected = [*range(stay - at_the_end), *range(L - at_the_end, L)]
            if ratio * parameters(model) <= FULL * parameters_at_most(self.structures_without(model, protected)):
                return protected
        return []

    def protected_by_default(self, count: int) -> list[int]:
        """Return the numbers of the layers that stay whole where the others can lose enough, of `count`."""
        if self.uniform:
            return []
        first = min(4, count // 4) if self.keep_first is None else self.keep_first
        last = min(2, count // 8) if self.keep_last is None else self.keep_last
        if first + last >= count:
            raise OutOfReach(f"keep_first={first} and keep_last={last} protect all of the {count} layers")
        return [*range(first), *range(count - last, count)]

    def structures(self, model: Decoder, ratio: float) -> list[Structure]:
        """Return attention and MLP of each unprotected layer, where there is more than one unit.

        Raises Unsupported where channels of states are to go and there are none.
        """
        if self.states and model.family.never("states"):
            raise Unsupported(
                f"states=true removes channels of the states of Mamba-2 mixers, and no layer of this "
                f"{model.whole_config.model_type} has any that can go"
            )
        return self.structures_without(model, self.layers_to_protect(model, ratio))

    def structures_without(self, model: Decoder, protected: Collection[int]) -> list[Structure]:
        """Return attention and MLP, and states if they may go, of each layer that is not protected."""
        every = structures_of(model, *HEADS_AND_CHANNELS, *(["state_channels"] if self.states else []))
        return [structure for structure in every if structure.number not in protected and structure.size > 1]

    def cut(self, model: Decoder, structures: list[Structure], ratio: float) -> WidthCut | EqualWidthCut:
        """Return the cut that meets the ratio. Raises OutOfReach where a single unit of each structure is too much."""
        if self.uniform:
            return EqualWidthCut(find_equal_widths(model, structures, ratio, uniform=True))
        dense = parameters(model)
        if self.r is not None:
            return WidthCut(self.r, self.r)
        reach = parameters_at_most(structures) / dense
        if ratio > reach:
            raise OutOfReach(
                f"ratio {ratio:g} is out of reach: with one head and one channel left in each layer that is not "
                f"protected, {reach:.3f} of the parameters are gone"
            )
        return solve(structures, ratio * dense, TOLERANCE * dense)

    def counts_overall(
        self, structures: list[Structure], scores: list[Tensor], target: float, part: float
    ) -> list[int]:
        """Return how many of each structure's units are among the least important of all. The best of each stays.

        Together with the units that are removed already they come nearest to `part` of `target` parameters. Where r is
        given, they are that part of the share r of all units.
        """
        owner = torch.cat([torch.full((len(score),), slot) for slot, score in enumerate(scores)])
        pooled = torch.cat([score.index_fill(0, score.argmax(), torch.inf) for score in scores])
        order = owner[pooled.argsort(stable=True)[: len(pooled) - len(scores)]]
        if self.r is not None:
            units = sum(structure.size for structure in structures)
            n = units - int(units * (1 - self.r * part)) - sum(len(structure.removed) for structure in structures)
        else:
            costs = torch.tensor([structure.cost for structure in structures], dtype=torch.float64)[order]
            before = sum(structure.cost * len(structure.removed) for structure in structures)
            removed = before + nn.functional.pad(costs.cumsum(0), (1, 0))
            n = int((removed - target * part).abs().argmin())
        return torch.bincount(order[:n], minlength=len(scores)).tolist()

    def scores(self, model: Decoder, structures: list[Structure], calibration: Calibration, step: int) -> list[Tensor]:
        """Return the importance of every unit that is left, (units,) for each structure."""
        if self.importance == "random":
            seed = calibration.seed if self.seed is None else self.seed
            draw = torch.Generator().manual_seed(seed + 1000 * (step - 1))
            return [torch.rand(len(structure.units_left), generator=draw) for structure in structures]
        if self.importance not in TAYLOR:
            return [self.score(structure, {}, {}) for structure in structures]
        if step == 1:  # of the dense model
            return shared_statistics(
                scores_in_first_round, model, calibration, self, [(each.number, each.kind) for each in structures]
            )
        return self.taylor(model, structures, calibration, step)

    def taylor(self, model: Decoder, structures: list[Structure], calibration: Calibration, step: int) -> list[Tensor]:
        """Return the importance by the gradients of the loss of every unit that is left, as `scores` does."""
        weights = {part.matrix.weight for structure in structures for part in structure.parts}
        first, second = self.importance != "element2", self.importance in ("element2", "mix")

        def of_layer(number: int, g: Sums, a: Sums) -> list[Tensor]:
            return [self.score(structure, g, a) for structure in structures if structure.number == number]

        removed = [(structure.number, structure.kind, structure.removed) for structure in structures]
        scores_by_layer = collect_gradients(
            model, self.block(calibration, step), weights, of_layer, removed, step, g=first, a=second
        )
        # structures are in the order of layers
        return [score for number in sorted(scores_by_layer) for score in scores_by_layer[number]]

    def block(self, calibration: Calibration, step: int) -> Calibration:
        """Return the sequences whose turn it is; after the last comes the first again."""
        count = len(calibration.ids)
        rows = (torch.arange(min(self.sequences, count)) + (step - 1) * self.sequences) % count
        ids, mask = (tensor[rows.to(tensor.device), : self.tokens] for tensor in (calibration.ids, calibration.mask))
        predicts = mask[:, 1:].any(1)
        if not predicts.any():
            raise Unsupported("no calibration sequence has two tokens, so there is nothing to predict")
        return replace(calibration, ids=ids[predicts], mask=mask[predicts])

    @torch.no_grad()
    def score(self, structure: Structure, g: Sums, a: Sums) -> Tensor:
        """Return the importance of every unit, (units,), in float64 on the CPU."""
        scores = []
        for part in structure.parts:
            s, across = self.salience(part.matrix.weight, g, a), 1 - part.axis
            s = s.sum(across).abs() if self.importance == "vector" else s.abs().sum(across)
            of_unit = s.double().cpu()[part.index]
            is_mixer = structure.kind in ROWS_BESIDE  # whose matrices have different widths of a unit
            scores.append(of_unit.sum(1, keepdim=True) if is_mixer else self.align_heads(of_unit, structure.width))
        if structure.kind == "kv_heads":  # in the order of the authors' groups, for "first" and "second"
            q, k, v, out = scores
            scores = [q, out, v, k] if structure.layer.group == 1 else [k, out, v, q]
        importance = AGGREGATION[self.aggregation](torch.stack(scores)).sum(1)
        if not importance.isfinite().all():
            raise Unsupported(f"gradients of layer {structure.number} overflow; load the model in bfloat16 or float32")
        return importance

    def salience(self, weight: Tensor, g: Sums, a: Sums) -> Tensor:
        """Return the salience s of every weight of a matrix, from the sums g of its gradients, a of their squares."""
        w = weight.float()
        match self.importance:
            case "l1":
                return w
            case "l2":
                return w.square()
            case "element2":
                return w.square().mul_(a[weight])
            case "mix":
                return (w * g[weight]).addcmul_(w.square(), a[weight], value=-0.5)
        return w * g[weight]

    def align_heads(self, scores: Tensor, E: int) -> Tensor:
        """Sum over the query heads that are paired with each key/value head, (units, R * E) -> (units, E)."""
        units = len(scores)
        return scores.view(-1, units, E).sum(0) if self.gqa == "released" else scores.view(units, -1, E).sum(1)


def scores_in_first_round(
    model: Decoder, calibration: Calibration, method: LLMPruner, places: list[tuple[int, str]]
) -> list[Tensor]:
    """Return the importance in the first round of every unit of the structures (layer, kind), (units,) for each."""
    layers = model.layers
    return method.taylor(model, [Structure(number, kind, layers[number]) for number, kind in places], calibration, 1)


def parameters_at_most(structures: list[Structure]) -> int:
    """Return the number of parameters that go where a single unit is left in each structure."""
    return sum(structure.cost * (structure.size - 1) for structure in structures)


@dataclass(frozen=True)
class WidthCut:
    """Holds the shares of the heads and of the channels to remove from every structure."""

    heads: float
    channels: float

    def units(self, structure: Structure, part: float = 1.0) -> int:
        """Return the number of units that a `part` of the cut removes, with the authors' rounding. One unit stays."""
        r = part * (self.heads if structure.is_of_heads else self.channels)
        n = structure.size * structure.width
        return min((n - int(n * (1 - r))) // structure.width, structure.size - 1)

    def parameters(self, structures: list[Structure]) -> int:
        """Return the parameters that go with the cut of the structures."""
        return sum(structure.cost * self.units(structure) for structure in structures)


@dataclass(frozen=True)
class EqualWidthCut:
    """Holds how many heads (kv_heads, mixer_heads) and channels go from every layer."""

    counts: dict[str, int]

    def units(self, structure: Structure, part: float = 1.0) -> int:
        """Return the units of its kind that go from a structure, or a part of them."""
        return round(part * self.counts[structure.kind])

    def parameters(self, structures: list[Structure]) -> int:
        """Return the parameters that go with the cut of the structures."""
        return sum(structure.cost * self.units(structure) for structure in structures)


def solve(structures: list[Structure], target: float, slack: float) -> WidthCut:
    """Return the cut by one r that comes nearest to `target` parameters.

    Where it misses them by more than `slack`, channels close the gap that whole heads leave.
    """

    def miss(cut: WidthCut) -> float:
        return abs(cut.parameters(structures) - target)

    def nearest(heads: float | None = None) -> WidthCut:
        low, high = (WidthCut(r if heads is None else heads, r) for r in (0.0, 1.0))
        for _ in range(50):
            r = (low.channels + high.channels) / 2
            middle = WidthCut(r if heads is None else heads, r)
            low, high = (middle, high) if middle.parameters(structures) <= target else (low, middle)
        return min(low, high, key=miss)

    even = nearest()
    if miss(even) <= slack:
        return even
    G = max((structure.size for structure in structures if structure.is_of_heads), default=1)
    heads = int(even.channels * G)
    closed = [nearest(heads / G), nearest((heads + 1) / G)]
    return next((cut for cut in closed if miss(cut) <= slack), min(even, *closed, key=miss))
