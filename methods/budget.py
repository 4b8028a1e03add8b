"""Turns a ratio into layers and parameters, and finds the ratio at which a method meets a budget.

A ratio is the share of all stored parameters that is removed. Each tensor counts once, also where it is tied, and what
a method adds is counted back in. The requested ratio is rounded to whole decoder layers, the coarsest step of any
method. The resulting count is the budget of every method of the run.

A budget such as --budget macs=0.8 is a share of another quantity. Methods take shares of all parameters, and how much
of the quantity goes with them depends on what a method chooses. `prune_to_budget` prunes copies of the dense model at
one ratio after another, and keeps the nearest result. A method that sets `takes_budget` prunes once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from methods.base import Pruner
from methods.counted import MISSED, QUANTITIES, Budget
from methods.decisions import prune
from methods.errors import OutOfReach
from methods.model.calibration import Calibration, with_known_removals
from methods.model.decoder import Decoder, make_twin
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import Sublayer, sizes_of_sublayers


def whole_layers(model: Decoder, ratio: float, stay: int = 1) -> int:
    """Return the number of layers whose parameters come nearest to `ratio` of all.

    At least `stay` layers stay, and never fewer than one. Raises OutOfReach where the other layers hold less.
    """
    layers, stay = model.layers, max(1, stay, model.fixed_layers)
    total, each = parameters(model), sum(map(layer_parameters, layers)) / len(layers)
    count, most = round(ratio * total / each), max(0, len(layers) - stay)
    if count > most:
        kept, reach = "one" if stay == 1 else stay, most * each / total
        raise OutOfReach(
            f"ratio {ratio:g} is out of reach: all but {kept} of the {len(layers)} layers hold {reach:.3f} of the model"
        )
    return count


def parameters_of_blocks(model: Decoder, ratio: float, blocks: Collection[Sublayer]) -> int:
    """Return the number of parameters of `blocks` that go at `ratio`.

    Raises OutOfReach where the blocks hold less, or where no layer would stay.
    """
    whole_layers(model, ratio)
    total, removable = parameters(model), sum(sizes_of_sublayers(model, blocks).values())
    to_remove = round(ratio * total)
    if to_remove > removable:
        kinds = " and ".join(sorted({block.part for block in blocks}))
        raise OutOfReach(
            f"ratio {ratio:g} is out of reach: all {kinds} blocks that may go hold {removable / total:.3f} of the model"
        )
    return to_remove


def round_to_layers(model: Decoder, ratio: float) -> float:
    """Return `ratio` rounded to whole layers: the budget that every method of a run must meet."""
    each = sum(map(layer_parameters, model.layers)) / len(model.layers)
    return whole_layers(model, ratio) * each / parameters(model)


MET = 0.001  # of the dense model's quantity: how near a method has to come for the search to end
TRIES = 6  # prunings of one search
FINEST = 1e-6  # between ratios that are told apart


@dataclass(frozen=True)
class MetBudget:
    """Says how a budget was met: the share of a quantity that may stay and does stay, and the ratio that gave that.

    tried  [ratio, share that stays] of each pruning
    """

    of: str
    share: float
    stays: float
    ratio: float
    tried: list[list[float]]


def prune_to_budget(
    target: float | Budget, pruner: Pruner, model: Decoder, calibration: Calibration
) -> tuple[Decoder, dict[str, Any], MetBudget | None]:
    """Return the pruned model, the decisions, and how the budget was met, None for a ratio.

    A ratio is removed in place. For a budget, copies around the same weights are pruned until one meets it. The nearest
    copy is returned, and the model itself does not change. The first ratio is the one at which all layers lose alike;
    it is the answer for whole layers. The next ones lie between ratios that left too much and too little. No ratio is
    tried at which the method plans what it plans at another one.

    Raises what `prune` raises, and OutOfReach where too much stays at every ratio or where nothing goes.
    """
    if not isinstance(target, Budget):
        return model, prune(pruner, model, calibration, target), None
    search = BudgetSearch(pruner, model, target)
    nearest = search.run(calibration)
    met = MetBudget(target.of, target.share, nearest.stays, nearest.ratio, search.tried)
    return nearest.model, nearest.decisions, met


def refuse_unmet(pruner: Pruner, dense: Decoder, budget: Budget) -> None:
    """Raise OutOfReach for a budget that the method cannot meet by its plans. These follow from shapes alone.

    dense  may be without weights
    """
    search = BudgetSearch(pruner, dense, budget)
    plan, to_remove = search.plan(search.reachable(1.0)) or {}, 1 - budget.share
    goes = not {"layers", "heads"}.isdisjoint(pruner.alone.axes)  # narrower heads leave the cache as it is
    heads = plan.get("removed_per_layer", {"kv_heads": goes}).get("kv_heads", 0)
    if budget.of == "kv" and to_remove and not heads and not plan.get("attentions"):
        raise OutOfReach(f"{budget} is out of reach: it removes no key/value heads, whatever the ratio")
    layers = plan.get("layers")
    if isinstance(layers, int) and layers * budget.layer < to_remove - MISSED:
        most = f"{layers * budget.layer:.3f} of {QUANTITIES[budget.of]}"
        raise OutOfReach(f"{budget} is out of reach: the {layers} layers that may go hold {most}")


@dataclass(frozen=True)
class _PrunedModel:
    """Holds a pruned model, the share of all parameters that was to go, and the share of a quantity that stays."""

    model: Decoder
    decisions: dict[str, Any]
    ratio: float
    stays: float


class BudgetSearch:
    """Looks for the ratio at which a method meets a budget.

    low, high  the nearest ratios that left too much and too little, each with the share of the quantity that goes
    tried      [ratio, share of the quantity that stays] of each pruning
    limit      a ratio that has turned out to be out of reach
    """

    def __init__(self, pruner: Pruner, dense: Decoder, budget: Budget) -> None:
        self.pruner, self.dense, self.budget = pruner, dense, budget
        self.target = 1 - budget.share
        self.low: tuple[float, float] = (0.0, 0.0)
        self.high: tuple[float, float] | None = None
        self.tried: list[list[float]] = []
        self.limit, self.refusal = math.inf, OutOfReach(f"{budget} is out of reach")
        self.best: _PrunedModel | None = None

    def run(self, calibration: Calibration) -> _PrunedModel:
        """Prune until the budget is met, no ratio is left to try, or there have been TRIES prunings."""
        if self.pruner.takes_budget:
            model = make_twin(self.dense)
            decisions = prune(self.pruner, model, calibration, self.budget)
            self.keep(model, decisions, 1 - parameters(model) / parameters(self.dense))
            self.high = self.high or (1.0, 1.0)  # it comes as near as its choices allow, and reach is no matter
            return self.result()
        ratio: float | None = self.reachable(self.budget.start)
        for _ in range(TRIES):
            if ratio is None:
                break
            try:
                calibration = self.prune(ratio, calibration)
            except OutOfReach as reason:
                self.limit, self.refusal = ratio, reason
            ratio = self.next_ratio()
        return self.result()

    def prune(self, ratio: float, calibration: Calibration) -> Calibration:
        """Prune a copy of the dense model; return the calibration with the removals that a greedy search made."""
        model = make_twin(self.dense)
        decisions = prune(self.pruner, model, calibration, ratio)
        self.keep(model, decisions, ratio)
        return with_known_removals(calibration, decisions)

    def keep(self, model: Decoder, decisions: dict[str, Any], ratio: float) -> None:
        """Note the share that stays after a pruning, and keep its model where none has come as near."""
        stays = self.budget.stays(model)
        self.tried.append([ratio, stays])
        if self.best is None or (abs(stays - self.budget.share), ratio) < (self.miss, self.best.ratio):
            self.best = _PrunedModel(model, decisions, ratio, stays)
        if stays > self.budget.share:
            self.low = max(self.low, (ratio, 1 - stays))
        else:
            self.high = min(self.high or (math.inf, 0.0), (ratio, 1 - stays))

    @property
    def miss(self) -> float:
        """Return the share of the quantity by which the nearest model misses the budget."""
        return math.inf if self.best is None else abs(self.best.stays - self.budget.share)

    def next_ratio(self) -> float | None:
        """Return the ratio to try next; None where the budget is met, or where no ratio changes the plan."""
        if self.miss <= MET:
            return None
        low, less = self.low
        if self.high is None:
            far = self.reachable(1.0)
            return self.unlike(min(far, low * self.target / less) if less else far, far)
        high, more = self.high
        sides = [stays > self.budget.share for _, stays in self.tried]
        halved = len(sides) > 1 and sides[-1] == sides[-2]  # since else one end may stay where it is
        return self.unlike(low + (high - low) * (0.5 if halved else (self.target - less) / (more - less)), high)

    def unlike(self, ratio: float, high: float) -> float | None:
        """Return the ratio, or the nearest one at which the plan differs from those at both ends; None without one."""
        ends = [self.plan(self.low[0]), *([] if self.high is None else [self.plan(high)])]
        planned = self.plan(ratio)
        if planned not in ends:
            return ratio
        near, far = ratio, high if planned == ends[0] else self.low[0]
        while abs(far - near) > FINEST:
            middle = (near + far) / 2
            near, far = (middle, far) if self.plan(middle) == planned else (near, middle)
        return None if self.plan(far) in [planned, *ends] else far

    def plan(self, ratio: float) -> Mapping[str, Any] | None:
        """Return what the method plans at a ratio; None where that is out of its reach."""
        try:
            return self.pruner.plan(self.dense, ratio) if ratio < self.limit else None
        except OutOfReach:
            return None

    def reachable(self, ratio: float) -> float:
        """Return the ratio, or the highest one below it that is in reach."""
        low, high = self.low[0], ratio
        if self.plan(ratio) is not None:
            return ratio
        while high - low > FINEST:
            middle = (low + high) / 2
            low, high = (low, middle) if self.plan(middle) is None else (middle, high)
        return low

    def result(self) -> _PrunedModel:
        """Return the nearest model. Raises OutOfReach where nothing of the quantity goes, or never enough."""
        if self.best is None:
            raise self.refusal
        where, words = f"{self.budget} is out of reach", QUANTITIES[self.budget.of]
        if self.target and self.best.stays >= 1:
            raise OutOfReach(f"{where}: what comes nearest to it leaves {words} as they are")
        if self.high is None and self.best.stays - self.budget.share > MISSED:
            stays = f"{self.best.stays:.3f} of {words} stay"
            raise OutOfReach(f"{where}: where the method has removed {self.best.ratio:.3f} of all parameters, {stays}")
        return self.best
