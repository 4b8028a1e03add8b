"""Learn by the loss which heads and channels stay, each step within the budget, then a scale for each: GRASPrune.

Wang, Xiao, Xiao, Li, Mao, Qin 2026, "GRASPrune: Global Gating for Budgeted Structured Pruning of Large Language
Models", ACL, arXiv 2604.19398. Code: ZiY-Wang/GRASPrune.

Each unit i, a channel of an MLP or a key/value head with its query heads, has a score s_i, at first 0, and

    p_i = sigmoid(s_i / tau)

Units are ordered by p, and the longest run of the highest whose parameters are within the budget has the mask m_i = 1,
all others 0. Each step takes one sequence. Its forward pass is that of the masked model, and its loss is differentiated
by the masks as if they were p:

    dL/ds_i = dL/dm_i p_i (1 - p_i) / tau

An Adam step follows (rate `lr`, betas 0.9 and 0.99), and the next mask. All weights are frozen. After `epochs` passes
over the calibration text the last mask stays, and a scale for each unit that is left is learnt in the same way,

    gamma_i = 1 + alpha tanh(s_i),    s_i = 0 at first

in `rescale` passes, and multiplied into the weights. No parameter is added.

`gate` says what a mask multiplies in an attention: the head's output, or as in the code its keys and values. Both give
the same forward pass. A head whose keys are 0 attends to all tokens alike, so that with `kv` the gradient of a masked
head is that of a uniform average, and not of the head that would come back.

Departures from the authors' code. Of equal scores, as all are at first, those are higher that an order drawn once puts
first, which takes the same share of each layer; in the code their order is that of an unstable sort. One head and 16
channels stay in each layer, or an eighth of fewer than 128, within the budget; in the code one of each, beyond it. A
head weighs its parameters with biases. Behind the first unit that does not fit, the last mask takes those that do.
Scales multiply columns of the output matrices, or with `kv` rows of the keys and values with their biases; the code
leaves these biases as they are. Products with masks and scales are in float32, and dropout is off. The code reads
WikiText-2, for the scales its validation part; both read the calibration text here.

Families. All but mixtures of experts, and those whose heads cannot be cut.

Tokens. The code reads 262,144 different ones. Few are learnt by heart: on 4,096 tokens of C4 the last passes have a
lower loss than the dense model has on other text, and the pruned SmolLM2-135M is worse than after one pass over 16,384.

Cost. For each token of each pass two forward passes and a backward pass through the activations. Memory holds what
enters the layers for one sequence, and one layer's gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.base import Holds, Look, Positive, Pruner, Whole, register
from methods.console import make_bar
from methods.errors import Unsupported
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.gradients import compute_gradients
from methods.model.sizes import parameters
from methods.model.structures import MatrixSlice, Structure, cuts_of, structures_of, units_in_order
from methods.width.widths import fewest_of, refuse_beyond_reach

BETAS = (0.9, 0.99)
Gating = Literal["output", "kv"]
Values = Callable[[Tensor], tuple[Tensor, Tensor]]  # scores (U,) -> what multiplies the units, and its slope


@register("grasprune")
@dataclass(frozen=True)
class GRASPrune(Pruner):
    """Learn which heads and channels stay by gates within the budget, then a scale for each (Wang et al. 2026)."""

    epochs: Whole = 4  # passes over the calibration text in which the masks are learnt; 0: the order of ties
    rescale: Whole = 1  # passes in which the scales are learnt; 0: none
    lr: Positive = 0.01  # rate of both
    tau: Positive = 1.5  # temperature of the scores
    alpha: Positive = 0.5  # how far a scale may lie from 1
    gate: Gating = "output"  # what a mask multiplies: the head's output, or as the code its keys and values

    looks_at = "gradients"
    cost = "4 forwards for each of 4 + 1 passes"
    holds = Holds(all_layers=1, logits=3, steps=0.5)  # of a sequence whose length is not known here
    uneven_because = "it chooses the width of each layer"
    axes = ("heads", "channels")
    leaves = ("heads",)
    paper_ratio = "the heads and channels"
    paper_reads = "512 x 512 tokens of WikiText-2; 512 x 512 for its scales"  # config.py, pipeline.py
    look = Look("mixed", "v")
    tiny = "epochs=0"  # a score that is near to 0 changes its sign with the rounding, so that machines differ

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of one sequence, at most 2,048: it reads one at a time."""
        return min(tokens, 2048)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return four forwards for each pass over the text."""
        return 4.0 * (self.epochs + self.rescale)

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left."""
        structures, dense = structures_of(model), parameters(model)
        reach = sum(each.cost * (each.size - fewest_of(each)) for each in structures) / dense
        refuse_beyond_reach(ratio, reach)
        return {"budget": round((1 - ratio) * dense)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Learn the masks and the scales, cut what is masked, and fold the scales into what is left."""
        plan, structures = self.plan(model, ratio), structures_of(model)
        outcome = self.learn(model, structures, calibration, ratio * parameters(model)) if ratio else {}
        return plan | outcome | {"parameters": parameters(model)} | cuts_of(model, structures)

    def learn(
        self, model: Decoder, structures: list[Structure], calibration: Calibration, to_remove: float
    ) -> dict[str, Any]:
        """Prune the structures by `to_remove` parameters, and return what the training says for the record."""
        gates = Gates(structures, self.gate)
        projection = Projection.of(structures, to_remove, calibration.seed)
        training = Training(model, gates, calibration, self.lr)
        noted, outcome = units_in_order(calibration.order), dict[str, Any]()
        if noted:
            mask = gates.without(noted)
        else:
            start = torch.zeros(gates.count)
            values = self.values_of_masks(projection)
            s, losses, moved = training.run(start, values, self.epochs, "learning masks", projection.budget)
            mask = projection.mask(torch.sigmoid(s / self.tau), fill=True)
            outcome |= {"losses": losses, "moved": moved}
        start = torch.zeros(gates.count)
        values, digest = self.values_of_scales(mask), hashlib.sha256(bytes(mask.tolist())).hexdigest()
        s, losses, _ = training.run(start, values, self.rescale, "learning scales", digest)
        gamma = 1 + self.alpha * torch.tanh(s)
        gates.fold(mask, gamma)
        scales = gamma[mask]
        spread = [round(float(value), 4) for value in (scales.min(), scales.mean(), scales.max())]
        tokens = int(calibration.mask.sum()) * (self.rescale + (0 if noted else self.epochs))
        return outcome | {"scale_losses": losses, "scales": spread, "tokens_trained": tokens}

    def values_of_masks(self, projection: Projection) -> Values:
        """Return the function that makes masks of scores, (U,), and the slope of p."""

        def of_scores(s: Tensor) -> tuple[Tensor, Tensor]:
            p = torch.sigmoid(s / self.tau)
            return projection.mask(p).float(), p * (1 - p) / self.tau

        return of_scores

    def values_of_scales(self, mask: Tensor) -> Values:
        """Return the function that makes scales of scores, (U,), and their slope; both are 0 of masked units."""

        def of_scores(s: Tensor) -> tuple[Tensor, Tensor]:
            t = torch.tanh(s)
            return mask * (1 + self.alpha * t), mask * self.alpha * (1 - t.square())

        return of_scores


@dataclass(frozen=True)
class Projection:
    """Turns probabilities of units into a mask within a budget.

    costs   (U,) parameters of each unit
    owner   (U,) number of its structure
    fewest  units that stay of each structure
    ties    (U,) all units, the first of equal ones first
    budget  parameters that may stay, of those that the units hold
    """

    costs: Tensor
    owner: Tensor
    fewest: Sequence[int]
    ties: Tensor
    budget: float

    @classmethod
    def of(cls, structures: Sequence[Structure], to_remove: float, seed: int) -> Projection:
        """Return the projection that removes `to_remove` parameters; the order of ties follows from the seed."""
        sizes = torch.tensor([structure.size for structure in structures])
        owner = torch.arange(len(structures)).repeat_interleave(sizes)
        costs = torch.tensor([structure.cost for structure in structures], dtype=torch.float64)[owner]
        generator = torch.Generator().manual_seed(seed)
        places = [torch.randperm(structure.size, generator=generator) / structure.size for structure in structures]
        fewest = [fewest_of(structure) for structure in structures]
        return cls(costs, owner, fewest, torch.cat(places).argsort(stable=True), float(costs.sum()) - to_remove)

    def mask(self, p: Tensor, *, fill: bool = False) -> Tensor:
        """Return which units stay, (U,) bool, by the longest run of the highest p, (U,), within the budget.

        fill  take those too that stand behind the run and still fit
        """
        order = self.ties[p[self.ties].argsort(descending=True, stable=True)]
        owner = self.owner[order]
        safe = torch.zeros(len(order), dtype=torch.bool)
        for number, count in enumerate(self.fewest):
            safe[(owner == number).nonzero()[:count, 0]] = True
        order = torch.cat([order[safe], order[~safe]])
        sums = self.costs[order].cumsum(0)
        n = max(int((sums <= self.budget).sum()), int(safe.sum()))
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[:n]] = True
        room = self.budget - float(sums[n - 1])
        for unit in order[n:].tolist() if fill else ():
            if self.costs[unit] <= room:
                mask[unit] = True
                room -= float(self.costs[unit])
        return mask


@dataclass(frozen=True)
class GateSpot:
    """Says where numbers of a structure's units multiply what enters a matrix, or what leaves it.

    owner  (C,) the unit of each channel there; of those that are not multiplied the number of units
    """

    matrix: nn.Linear
    enters: bool
    owner: Tensor


class Gates:
    """Multiplies the units of structures by numbers, in a forward pass and then for good.

    z      of each structure, (units,) float32 on the device of its layer
    count  of all units, U
    """

    def __init__(self, structures: Sequence[Structure], gate: Gating) -> None:
        self.structures, self.gate = structures, gate
        self.sizes = [structure.size for structure in structures]
        self.count = sum(self.sizes)
        self.z = [torch.ones(each.size, device=each.layer.device, requires_grad=True) for each in structures]

    def spots(self, structure: Structure) -> list[GateSpot]:
        """Return where the numbers of a structure multiply, for the units that it has now."""
        parts = structure.parts
        if self.gate == "output" or structure.kind != "kv_heads":
            return [spot_of(parts[-1:], structure)]
        _, k, v, _ = parts
        return [spot_of([k, v], structure)] if k.matrix is v.matrix else [spot_of([part], structure) for part in (k, v)]

    def set(self, values: Tensor) -> None:
        """Set the numbers of all units, (U,)."""
        for z, part in zip(self.z, torch.split(values, self.sizes), strict=True):
            z.data.copy_(part)

    def leaves(self) -> dict[int, list[Tensor]]:
        """Return the numbers that are differentiated, by layer."""
        by_layer: dict[int, list[Tensor]] = {}
        for structure, z in zip(self.structures, self.z, strict=True):
            by_layer.setdefault(structure.number, []).append(z)
        return by_layer

    @contextmanager
    def multiplying(self) -> Iterator[None]:
        """Multiply in every forward pass meanwhile."""
        with ExitStack() as stack:
            for structure, z in zip(self.structures, self.z, strict=True):
                for spot in self.spots(structure):
                    stack.callback(put_gate(spot, z))
            yield

    def without(self, units: dict[tuple[int, str], list[int]]) -> Tensor:
        """Return the mask, (U,), that these units are missing in, by layer and kind."""
        masks = []
        for structure in self.structures:
            mask = torch.ones(structure.size, dtype=torch.bool)
            mask[units.get((structure.number, structure.kind), [])] = False
            masks.append(mask)
        return torch.cat(masks)

    @torch.no_grad()
    def fold(self, mask: Tensor, gamma: Tensor) -> None:
        """Cut the units that are masked, and multiply the weights of the others by gamma; both (U,)."""
        for structure, stays, scale in zip(
            self.structures, torch.split(mask, self.sizes), torch.split(gamma, self.sizes), strict=True
        ):
            structure.drop((~stays).nonzero()[:, 0].tolist())
            for spot in self.spots(structure):
                fold_scales(spot, scale[stays])
            structure.layer.settle()


def spot_of(parts: Sequence[MatrixSlice], structure: Structure) -> GateSpot:
    """Return the spot at which the units of slices of one matrix are multiplied."""
    matrix, enters = parts[0].matrix, parts[0].axis == 1
    units = len(structure.units_left)
    owner = torch.full((matrix.in_features if enters else matrix.out_features,), units)
    for part in parts:
        owner[part.index] = torch.arange(units)[:, None].expand_as(part.index)
    return GateSpot(matrix, enters, owner)


def put_gate(spot: GateSpot, z: Tensor) -> Callable[[], None]:
    """Let a matrix multiply by the numbers z, (units,), and return the function that ends it."""
    owner = spot.owner.to(z.device)

    def multiply(x: Tensor) -> Tensor:
        return (x * torch.cat([z, z.new_ones(1)])[owner]).to(x.dtype)

    if spot.enters:
        return spot.matrix.register_forward_pre_hook(lambda _, inputs: (multiply(inputs[0]), *inputs[1:])).remove
    return spot.matrix.register_forward_hook(lambda _, inputs, output: multiply(output)).remove


def fold_scales(spot: GateSpot, scale: Tensor) -> None:
    """Multiply the columns of a matrix, or its rows and its bias, by the scale of their units, (units,)."""
    weight = spot.matrix.weight
    factor = torch.cat([scale, scale.new_ones(1)])[spot.owner].to(weight.device).double()
    scaled = weight.double() * (factor if spot.enters else factor[:, None])
    spot.matrix.weight = nn.Parameter(scaled.to(weight.dtype), weight.requires_grad)
    if not spot.enters and spot.matrix.bias is not None:
        bias = spot.matrix.bias
        spot.matrix.bias = nn.Parameter((bias.double() * factor).to(bias.dtype), bias.requires_grad)


class Training:
    """Learns scores of units on the calibration's sequences, one at a time."""

    def __init__(self, model: Decoder, gates: Gates, calibration: Calibration, lr: float) -> None:
        self.model, self.gates, self.calibration, self.lr = model, gates, calibration, lr
        self.predicts = calibration.mask[:, 1:].any(1).nonzero()[:, 0]
        if not len(self.predicts):
            raise Unsupported("no calibration sequence has two tokens, so there is nothing to predict")

    def run(self, s: Tensor, values: Values, epochs: int, what: str, *of: Any) -> tuple[Tensor, list[float], list[int]]:
        """Return the scores, (U,), after some passes; of each pass its mean loss, and how many masks it moved.

        An interrupted training goes on with the pass at which it stood. `of` says all that `values` depends on.
        """
        log = self.calibration.log([], "grasprune", what, *of)
        state, losses, moved = [s, torch.zeros_like(s), torch.zeros_like(s)], list[float](), list[int]()
        for *kept, of_pass in log.kept():
            state, (loss, count) = kept, of_pass.tolist()
            losses.append(loss)
            moved.append(int(count))
        if not epochs:
            return s, [], []
        total = epochs * len(self.predicts)
        with self.gates.multiplying(), make_bar(total, what, "step", log.done * len(self.predicts)) as bar:
            for epoch in range(log.done, epochs):
                before = values(state[0])[0] > 0
                state, loss = self.run_pass(epoch, state, values, bar)
                losses.append(loss)
                moved.append(int(((values(state[0])[0] > 0) != before).sum()))
                log.add([*state, torch.tensor([losses[-1], moved[-1]], dtype=torch.float64)], [])
        return state[0], losses, moved

    def run_pass(self, epoch: int, state: list[Tensor], values: Values, bar: Any) -> tuple[list[Tensor], float]:
        """Take a step on each sequence, in an order that follows from the seed; return the state and the mean loss.

        state  scores, and the means of their gradients and of the squares of these, (U,) each
        """
        generator = torch.Generator().manual_seed(self.calibration.seed * 1000 + epoch)
        total, steps = 0.0, epoch * len(self.predicts)
        for row in self.predicts[torch.randperm(len(self.predicts), generator=generator)].tolist():
            z, slope = values(state[0])
            self.gates.set(z)
            length = int(self.calibration.mask[row].sum())
            ids, mask = (each[row : row + 1, :length] for each in (self.calibration.ids, self.calibration.mask))
            loss, sums = compute_gradients(self.model, ids, mask, self.gates.leaves(), self.calibration.wait)
            g = slope * torch.cat([sums[z].cpu() for z in self.gates.z])
            steps += 1
            state = make_step(state, g, steps, self.lr)
            total += loss
            bar.update()
        return state, total / len(self.predicts)


def make_step(state: Sequence[Tensor], g: Tensor, steps: int, lr: float) -> list[Tensor]:
    """Return the state of `Training.run_pass` after step number `steps` of Adam with the gradient g, (U,)."""
    s, mean, square = state
    mean = BETAS[0] * mean + (1 - BETAS[0]) * g
    square = BETAS[1] * square + (1 - BETAS[1]) * g.square()
    size = (square / (1 - BETAS[1] ** steps)).sqrt() + 1e-8
    return [s - lr * mean / (1 - BETAS[0] ** steps) / size, mean, square]
