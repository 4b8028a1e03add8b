"""Greedy removal of blocks: try each one that is left, remove the one that is missed least, and again.

The states in front of every layer are kept while only what is behind them changes, so that a candidate in layer l runs
the layers from l on and no others: half of a forward on average. A loss is a sum over tokens of what is never negative,
so that a candidate is given up as soon as its sum is above the best one's; those that were missed least the last time
are tried first. Neither changes a choice. The order of removal is that of any larger budget, as long as no budget has
bound a choice; it is returned, so that one search serves every ratio of a run.

Letters: N = sequences, T = tokens, D = residual width, V = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.budget import block_parameters
from methods.model.activations import Entry, enter
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Sublayer, remove_sublayers, sublayer_sizes, sublayers_of
from methods.progress import over

TOKENS_AT_ONCE = 128  # whose logits are held at once: fewer make slow products, more do not fit a cache
ROUNDING = 1e-4  # by which a loss has to be above the best to be given up: a sum of zeros can round to below zero

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def nll(logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target), summed over M tokens: (M, V), anything, (M,) -> (). It needs no dense model."""
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


def kl(logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return KL(dense || pruned) of the next token, summed over M tokens: (M, V), (M, V) dense log-probabilities."""
    return nn.functional.kl_div(logits.log_softmax(-1), p, reduction="sum", log_target=True)


def js(logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of the next token, summed over M tokens: (M, V), (M, V), p as in `kl`."""
    q = logits.log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    halves = [nn.functional.kl_div(m, one, reduction="sum", log_target=True) for one in (p, q)]
    return (halves[0] + halves[1]) / 2


def js_released(logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return (KL(m || p) + KL(m || q)) / 2, summed over M tokens, as FinerCut's code has it: shapes as in `js`."""
    q = logits.log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    halves = [nn.functional.kl_div(one, m, reduction="sum", log_target=True) for one in (p, q)]
    return (halves[0] + halves[1]) / 2


LOSSES: dict[str, Loss] = {"nll": nll, "kl": kl, "js": js, "js-released": js_released}
Positions = Literal["followed", "all"]


@dataclass(frozen=True)
class _Batch:
    """Holds one micro-batch: the places (M,), row by row, of the positions that are compared, and what follows (M,)."""

    entry: Entry
    wanted: Tensor
    targets: Tensor
    dense: Tensor  # (M, V), the dense model's log-probabilities there; (M, D), its last layer's output, where too large
    states: list[Tensor]  # (B, T, D) in front of each layer, and behind the last


class Trial:
    """Runs the model on the calibration tokens with any blocks left out. It changes no module.

    A loss is that of the positions with a successor, or, with `positions` "all", also of the last of each sequence,
    which is no place for `nll`.

    runs  layers that have been run, for all tokens; divided by the number of layers, forwards
    """

    @torch.no_grad()
    def __init__(self, model: Decoder, calibration: Calibration, loss: str, positions: Positions = "followed") -> None:
        self.model, self.layers, self.loss = model, model.layers, LOSSES[loss]
        self.gone: set[Sublayer] = set()
        self.runs = 0.0
        self.share = 1 / len(calibration.ids)
        self.batches = []
        end = model.head.weight.device  # where logits are
        beyond = 0 if positions == "all" else 1
        kept = 4 * int(calibration.mask[:, beyond:].sum()) * model.config.vocab_size <= calibration.memory
        self.keeps_dense = kept and self.loss is not nll
        values, dtype = model.config.hidden_size * (len(self.layers) + 8), model.embed.weight.dtype
        for ids, mask in calibration.batches(values, dtype):
            entry = enter(model, ids)
            compared = nn.functional.pad(mask[:, beyond:], (0, beyond))  # (B, T)
            states = self._states(entry, entry.x, 0)
            wanted = compared.flatten().nonzero()[:, 0].to(states[-1].device)
            dense = states[-1].flatten(0, 1)[wanted].to(end)
            if self.keeps_dense:
                dense = torch.cat([self._log_probabilities(piece) for piece in torch.split(dense, TOKENS_AT_ONCE)])
            targets = ids.to(wanted.device).roll(-1, 1).flatten()[wanted]
            self.batches.append(_Batch(entry, wanted, targets.to(end), dense, states))

    @torch.no_grad()
    def without(self, block: Sublayer | None = None, limit: float = math.inf) -> float:
        """Return the loss per token when `block` goes as well, or anything above `limit` where it is sure to be."""
        gone = self.gone | ({block} if block else set())
        first = block.layer if block else len(self.layers)
        tokens, total = sum(len(batch.targets) for batch in self.batches), 0.0
        for batch in self.batches:
            for loss in self._losses(batch, self._last(batch, first, gone)):
                total += loss
                if total > (1 + ROUNDING) * limit * tokens:
                    return total / tokens
        return total / tokens

    @torch.no_grad()
    def remove(self, block: Sublayer) -> None:
        """Leave `block` out from now on."""
        self.gone.add(block)
        for batch in self.batches:
            batch.states[block.layer :] = self._states(batch.entry, batch.states[block.layer], block.layer)

    def _states(self, entry: Entry, x: Tensor, first: int) -> list[Tensor]:
        states = [x]
        for number in range(first, len(self.layers)):
            states.append(self._run(entry, number, states[-1], self.gone))
        return states

    def _last(self, batch: _Batch, first: int, gone: set[Sublayer]) -> Tensor:
        x = batch.states[first]
        for number in range(first, len(self.layers)):
            x = self._run(batch.entry, number, x, gone)
        return x

    def _run(self, entry: Entry, number: int, x: Tensor, gone: set[Sublayer]) -> Tensor:
        layer = self.layers[number]
        parts = {part for part in ("layer", "attention", "mlp") if Sublayer(part, number) in gone}
        self.runs += 0.0 if "layer" in parts or len(parts) == 2 else len(x) * self.share
        return layer.run(x, entry.arguments[layer.kind], parts)

    def _losses(self, batch: _Batch, x: Tensor) -> Iterable[float]:
        """Return the loss summed over some tokens at a time; from a GPU all at once, since the host waits for each."""
        x = x.flatten(0, 1)[batch.wanted.to(x.device)].to(batch.targets.device)
        losses = self._pieces(batch, x)
        return map(float, losses) if x.device.type == "cpu" else torch.stack(list(losses)).tolist()

    def _pieces(self, batch: _Batch, x: Tensor) -> Iterator[Tensor]:
        for piece in torch.split(torch.arange(len(x), device=x.device), TOKENS_AT_ONCE):
            dense = batch.dense[piece]
            p = dense if self.keeps_dense or self.loss is nll else self._log_probabilities(dense)
            yield self.loss(self.model.logits(x[piece]).float(), p, batch.targets[piece])

    def _log_probabilities(self, x: Tensor) -> Tensor:
        """Return those of the next token from the last layer's output: (M, D) -> (M, V)."""
        return self.model.logits(x).float().log_softmax(-1)


@dataclass
class Found:
    """Holds what a search has found.

    order   the blocks in the order of their removal
    losses  the loss per token after each removal; None where the removal was known, and in the record where it is
            no finite number
    free    how many of them would be the same for any larger budget
    runs    forwards over the calibration tokens that the search has cost
    """

    order: list[Sublayer] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    free: int = 0
    runs: float = 0.0

    def decisions(self) -> dict[str, Any]:
        """Return it for the record; `removal_order` and `free_removals` serve the other ratios of a run."""
        return {
            "removal_order": [str(block) for block in self.order],
            "free_removals": self.free,
            "losses": [loss if loss is not None and math.isfinite(loss) else None for loss in self.losses],
            "forwards": round(self.runs, 2),
        }


def affordable(left: Sequence[Sublayer], size: Mapping[Sublayer, int], rest: float) -> list[Sublayer]:
    """Return the blocks that overshoot the `rest` of a budget by no more than half the smallest that is left.

    Removing them one by one until there is none ends within half of the smallest.
    """
    smallest = min((size[block] for block in left), default=0)
    return [block for block in left if size[block] - rest <= smallest / 2]


def search(trial: Trial, candidates: Sequence[Sublayer], budget: float, known: Sequence[Sublayer] = ()) -> Found:
    """Remove the candidates that are missed least, one at a time, until `budget` parameters have gone.

    known are the first removals, where an earlier search with the same tokens has found them.
    """
    size = sublayer_sizes(trial.model, candidates)
    left, found, rest = list(candidates), Found(), budget
    losses = dict.fromkeys(left, 0.0)  # of the last trial of each
    follows = free = True  # what earlier searches found; whether no choice has been bound by the budget
    while allowed := affordable(left, size, rest):
        step = len(found.order)
        if follows and step < len(known) and known[step] in allowed:
            chosen, loss = known[step], None
        else:
            follows, free = False, free and len(allowed) == len(left)
            best = math.inf
            shown = f"removal {step + 1}, {100 * (1 - rest / budget):.0f} % of the budget gone"
            for block in over(sorted(allowed, key=losses.__getitem__), shown, "trial"):
                loss = trial.without(block, best)
                losses[block] = math.inf if math.isnan(loss) else loss
                best = min(best, losses[block])
            chosen = min(allowed, key=losses.__getitem__)
            loss = losses[chosen]
        trial.remove(chosen)
        left.remove(chosen)
        found.order.append(chosen)
        found.losses.append(loss)
        found.free += free
        rest -= size[chosen]
    found.runs = trial.runs / len(trial.layers)
    return found


def searched(trial: Trial, candidates: Sequence[Sublayer], budget: float, order: Sequence[str]) -> dict[str, Any]:
    """Remove what `search` finds from the trial's model, in place, and return what was decided for the record.

    order  the first removals, as an earlier search with the same tokens has found them ("mlp 3")
    """
    found = search(trial, candidates, budget, known=[Sublayer.parse(text) for text in order])
    return remove_sublayers(trial.model, found.order) | found.decisions()


class GreedyBlocks:
    """A method that removes single attentions and MLPs, each time the one without which the loss is lowest."""

    tokens: int  # calibration tokens that are read
    positions: Positions = "followed"  # of these, where the loss is taken
    fixed = False
    only_cuts = True
    uneven = "it removes single attentions and MLPs"

    @property
    def loss(self) -> str:
        """Return the name of the loss, one of LOSSES."""
        return "nll"

    def blocks(self, model: Decoder) -> list[Sublayer]:
        """Return the blocks that may go."""
        return sublayers_of(model, "attention", "mlp")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        return {"parameters": parameters(model) - block_parameters(model, ratio, self.blocks(model))}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        blocks = self.blocks(model)
        budget = block_parameters(model, ratio, blocks)
        if not budget:
            return {"removed_layers": [], "removed_attention": [], "removed_mlp": []}
        trial = Trial(model, calibration.first(self.tokens), self.loss, self.positions)
        return searched(trial, blocks, budget, calibration.order)
