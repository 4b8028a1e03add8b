"""Removes blocks greedily, one after the other, or layers by one score each.

A greedy search tries each block that is left, removes the one that is missed least, and goes on. A candidate is given
up as soon as it is sure to be missed more than the best one (methods.trials.blocks). Blocks that were missed least the
last time come first. Neither changes a choice. As long as no budget has bound a choice, a larger budget has the same
order of removal. It is returned, so that one search serves every ratio of a run. An interrupted search goes on behind
the last removal in its log, with the same result.

A one-shot depth method scores every layer of the dense model once, and drops the layers with the lowest scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from methods.base import Holds, Pruner
from methods.budget import parameters_of_blocks, whole_layers
from methods.model.calibration import Calibration, SweepLog
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Sublayer, drop_lowest, remove_sublayers, sizes_of_sublayers, sublayers_of
from methods.trials.blocks import Positions, Trial

BLOCKS = 2.9  # removed for a layer's worth of parameters: 12, 22, 32 for 4, 8, 11 of 30 layers (smollm2-135m)


@dataclass
class Removals:
    """Holds the removals of a greedy search.

    order   the blocks in the order of their removal
    losses  the loss per token after each removal; None where the removal was known, and in the record where it is
            no finite number
    free    how many of the removals would be the same for any larger budget
    runs    forwards over the calibration tokens that the search has cost
    """

    order: list[Sublayer] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    free: int = 0
    runs: float = 0.0

    def decisions(self) -> dict[str, Any]:
        """Return the search's part of the decisions; `removal_order` and `free_removals` serve further ratios."""
        return {
            "removal_order": [str(block) for block in self.order],
            "free_removals": self.free,
            "losses": [loss if loss is not None and math.isfinite(loss) else None for loss in self.losses],
            "forwards": round(self.runs, 2),
        }


def find_affordable(candidates: Sequence[Sublayer], size: Mapping[Sublayer, int], rest: float) -> list[Sublayer]:
    """Return the blocks that exceed the `rest` of a budget by at most half the smallest block that is left.

    Removing them one by one until there is none ends within half of the smallest block from the budget.
    """
    smallest = min((size[block] for block in candidates), default=0)
    return [block for block in candidates if size[block] - rest <= smallest / 2]


def search(
    trial: Trial,
    candidates: Sequence[Sublayer],
    budget: float,
    first_removals: Sequence[Sublayer] = (),
    *,
    note: Callable[[list[str]], object] | None = None,
    log: SweepLog | None = None,
) -> Removals:
    """Return the removals of the candidates that are missed least, one at a time, until `budget` parameters have gone.

    first_removals  the first removals, where an earlier search on the same tokens has made them
    note   that of methods.model.calibration.Calibration
    log    keeps each further removal, and may have those of an interrupted attempt; None: nothing is kept
    """
    size, log = sizes_of_sublayers(trial.model, candidates), log or SweepLog(None, [])
    kept = log.kept()
    remaining, removals, rest = list(candidates), Removals(), budget
    losses = dict.fromkeys(remaining, 0.0)  # of the last trial of each
    follows = free = True  # whether removals are still the known ones, and whether no budget has bound a choice
    while allowed := find_affordable(remaining, size, rest):
        step = len(removals.order)
        if follows and step < len(first_removals) and first_removals[step] in allowed:
            chosen, loss = first_removals[step], None
        else:
            follows, free = False, free and len(allowed) == len(remaining)
            if (entry := next(kept, None)) is not None:
                at, runs, latest = entry
                chosen, trial.runs, losses = candidates[int(at)], float(runs), _losses_by_candidate(candidates, latest)
                loss = losses[chosen]
            else:
                title = f"removal {step + 1}, {100 * (1 - rest / budget):.0f} % of the budget gone"
                promising = sorted(allowed, key=losses.__getitem__)
                for block, tried in zip(promising, trial.losses_without(promising, title, lowest=1), strict=True):
                    losses[block] = math.inf if math.isnan(tried) else tried
                chosen = min(allowed, key=losses.__getitem__)
                loss = losses[chosen]
                log.add(_entry(candidates, chosen, trial.runs, losses), [])
        trial.remove(chosen)
        remaining.remove(chosen)
        removals.order.append(chosen)
        removals.losses.append(loss)
        removals.free += free
        if note is not None and free and not follows:
            note([str(block) for block in removals.order])
        rest -= size[chosen]
    removals.runs = trial.runs / len(trial.layers)
    return removals


def _entry(
    candidates: Sequence[Sublayer], chosen: Sublayer, runs: float, losses: Mapping[Sublayer, float]
) -> list[Tensor]:
    """Return a log's tensors for one removal: its candidate, the trial's runs, and the latest losses."""
    latest = [losses[block] for block in candidates]
    return [
        torch.tensor(candidates.index(chosen)),
        torch.tensor(runs, dtype=torch.float64),
        torch.tensor(latest, dtype=torch.float64),
    ]


def _losses_by_candidate(candidates: Sequence[Sublayer], latest: Tensor) -> dict[Sublayer, float]:
    """Return the latest losses, (candidates,), by candidate."""
    return dict(zip(candidates, latest.tolist(), strict=True))


def search_and_remove(
    trial: Trial, candidates: Sequence[Sublayer], budget: float, calibration: Calibration
) -> dict[str, Any]:
    """Remove the blocks that `search` chooses from the trial's model, in place, and return the decisions.

    The first removals are those of `calibration.order`, and `calibration.note` takes all further ones.
    """
    noted = [Sublayer.parse(text) for text in calibration.order]
    log = calibration.log([], "greedy search", list(map(str, candidates)), budget, calibration.order)
    removals = search(trial, candidates, budget, noted, note=calibration.note, log=log)
    return remove_sublayers(trial.model, removals.order) | removals.decisions()


class GreedyBlocks(Pruner):
    """A method that removes single attentions and MLPs, each time the one without which the loss is lowest."""

    tokens: int  # calibration tokens that are read
    positions: Positions = "followed"  # of these, where the loss is taken
    reuses = "removals"
    only_cuts = True
    uneven_because = "it removes single attentions and MLPs"
    leaves = ("attentions", "mlps")
    paper_ratio = "attentions and MLPs, by their number"

    @property
    def holds(self) -> Holds:
        """Return the memory of states in front of every layer and of the logits that the loss needs."""
        return Holds(all_layers=1.5, steps=2, logits=3 if self.loss == "nll" else 8)

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of its parameter at most."""
        return min(tokens, self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return half a model for each sublayer that is left out in each step."""
        blocks = BLOCKS * removed
        tried = blocks * layers * (1 - blocks / (4 * layers)) ** 2  # half of a model for each of both kinds of block
        return 1.3 * (1 + tried) * self.tokens_read(tokens) / tokens

    @property
    def loss(self) -> str:
        """Return the name of the loss, one of LOSSES."""
        return "nll"

    def blocks(self, model: Decoder) -> list[Sublayer]:
        """Return the blocks that may go."""
        return sublayers_of(model, "attention", "mlp")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left."""
        return {"parameters": parameters(model) - parameters_of_blocks(model, ratio, self.blocks(model))}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Remove one sublayer after the other, each time that without which the loss is lowest."""
        blocks = self.blocks(model)
        budget = parameters_of_blocks(model, ratio, blocks)
        if not budget:
            return {"removed_layers": [], "removed_attention": [], "removed_mlp": []}
        trial = Trial(model, calibration.first(self.tokens), self.loss, self.positions)
        return search_and_remove(trial, blocks, budget, calibration)


class OneShot(Pruner):
    """A depth method that is a score; a subclass gives `scores`."""

    only_cuts = True
    paper_ratio = "layers, by their number"
    keep_first = 0  # layers at the front that stay; a field where the method lets a user choose
    keep_last = 0  # layers at the end that stay

    def scores(self, model: Decoder, calibration: Calibration) -> list[float]:
        """Return the importance of every layer."""
        raise NotImplementedError

    def candidates(self, L: int, n: int) -> Sequence[int]:
        """Return the numbers of the layers, of L, that may go; n of them will."""
        return range(self.keep_first, L - self.keep_last)

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers to remove; the first and last ones are protected."""
        return {"layers": whole_layers(model, ratio, stay=max(self.keep_first, model.fixed_layers) + self.keep_last)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop the layers with the lowest scores at once; return the scores too."""
        plan = self.plan(model, ratio)
        n = plan.pop("layers")
        if not n:
            return {"removed_layers": []}
        scores = self.scores(model, calibration)
        removed = drop_lowest(model, scores, self.candidates(len(scores), n), n)
        return {"removed_layers": removed, "scores": scores} | plan
