"""The base class of compensations, repairs of a pruned model, and the boundaries at which most work.

`shortgpt+ghost` is ShortGPT, repaired by ghost, and a Pruner like any other. The parameters that a compensation adds
count. So the pruner removes more, until removed less added parameters come nearest to the budget.

To add a compensation, write a file of this folder with `@register_compensation("name")` above a frozen dataclass.

A boundary lies where a run of blocks has been removed, whole layers or single attentions and MLPs: behind the last
block in front of the run. `repair_at_boundaries` takes the calibration tokens through the dense and the pruned model
side by side. At each boundary a compensation gets both models' states, with all earlier boundaries repaired:

    y = r + n    the pruned model's residual, with n the addition of its last block
    z            the dense model's residual behind the run

Attention sinks are a population of their own at each boundary (methods/least_squares.py).

Letters: B = sequences of a micro-batch, T = tokens, D = residual width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from methods.base import Holds, Look, Pruner
from methods.console import show_progress
from methods.decisions import prune
from methods.errors import OutOfReach, Unsupported
from methods.least_squares import Fitted, Sinks, errors_of_fit, find_sinks, states_to_fit
from methods.model.activations import States, enter_all, move_beside, run_step, values_of_a_step
from methods.model.calibration import Calibration, Wait, keep_in_memory, with_known_removals
from methods.model.decoder import Decoder, make_twin
from methods.model.inserted import put_map
from methods.model.sizes import parameters
from methods.model.structures import cut

FITS = ("cuts", "refitted")  # reports on fits, by the names that compensations give them
TRIES = 6  # at meeting a budget that depends on where the cuts fall


@dataclass(frozen=True)
class Compensation(ABC):
    """A repair of a pruned model. A subclass is a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str] = ""  # set by @compensation

    # Where it can follow a method.
    reads_states: ClassVar[bool] = True  # whether it needs states of the residual; a sliced model has none in one basis
    by_layer: ClassVar[bool] = False  # whether it needs one dense layer at a time, so that all others wait on the host
    needs_one_mlp: ClassVar[bool] = False  # whether it changes the matrices of each layer's MLP; a mixture has none
    not_behind: ClassVar[tuple[str, ...]] = ()  # methods that do the same themselves

    # What it takes beside the pruning: read by --plan and by the placement of weights.
    forwards: ClassVar[float] = 1.0  # over all calibration tokens, without the head
    holds: ClassVar[Holds] = Holds(states=9, squares=0.8, steps=0.5)  # beside what the method holds, in its place

    # What lists, figures and the doctor take from it.
    paper_reads: ClassVar[str] = ""  # calibration of its authors' script, named behind it, or of its paper
    leaves: ClassVar[tuple[str, ...]] = ()  # shapes that it adds to the method's, by the names of bench.export.write
    look: ClassVar[Look | None] = (
        None  # of its row where methods stand in one each; None: one that follows from its name
    )
    follows: ClassVar[str] = "shortgpt"  # the method behind which the doctor tries it
    tiny: ClassVar[str] = ""  # parameters for a model of six layers, as those of a method
    revision: ClassVar[int] = 1  # raised by every change that alters the repaired model

    @property
    def uneven_because(self) -> str:
        """Return why stock transformers cannot load the result. Empty where it can."""
        return ""

    @abstractmethod
    def parameters_added(self, pruning: Pruning) -> int:
        """Return the number of parameters that `repair` will add, from shapes alone.

        Raises Unsupported where the compensation cannot serve the pruned model.
        """

    @abstractmethod
    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Refit the pruned model, in place, and return a report for the record, as plain JSON values."""


REGISTRY: dict[str, type[Compensation]] = {}
C = TypeVar("C", bound=type[Compensation])


def register_compensation(name: str) -> Callable[[C], C]:
    """Return a class decorator that registers a frozen dataclass as compensation `name`."""

    def add(cls: C) -> C:
        if not issubclass(cls, Compensation) or "__dataclass_fields__" not in vars(cls):
            raise TypeError(
                f"@register_compensation goes above @dataclass and a subclass of Compensation: {cls.__name__} is none"
            )
        registered = REGISTRY.get(name, cls)
        if (registered.__module__, registered.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"two compensations are called {name!r}: {registered.__module__} and {cls.__module__}")
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


@dataclass(frozen=True)
class CompensatedPruner(Pruner):
    """A pruner and the compensation that follows it. What it says of itself comes from both."""

    pruner: Pruner
    compensation: Compensation

    @property
    def name(self) -> str:  # type: ignore[override]  # it follows from the parts
        """Return 'method+compensation'."""
        return f"{self.pruner.name}+{self.compensation.name}"

    @property
    def fixed(self) -> bool:
        """Say whether the method's own parameters decide what goes."""
        return self.pruner.fixed

    @property
    def uneven_because(self) -> str:
        """Return the reason of the compensation, or else the method's."""
        return self.compensation.uneven_because or self.pruner.uneven_because

    @property
    def alone(self) -> Pruner:
        """Return the method without the compensation."""
        return self.pruner.alone

    @property
    def mlp_solves(self) -> float:
        """Return the number of the method alone; a compensation has none."""
        return self.pruner.mlp_solves

    @property
    def residual_solves(self) -> float:
        """Return the number of the method alone; a compensation has none."""
        return self.pruner.residual_solves

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return the forwards of both parts together."""
        return self.pruner.forwards(layers, removed, tokens) + self.compensation.forwards

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the pruner's plan. How much more it has to remove follows from what it chooses."""
        if self.pruner.name in self.compensation.not_behind:
            raise Unsupported(f"{self.pruner.name} does what {self.compensation.name} does by itself; leave it out")
        if self.compensation.needs_one_mlp:
            model.refuse_experts()
        return self.pruner.plan(model, ratio)

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Prune with the method and repair with the compensation; return the decisions of both."""
        dense = make_twin(model)
        if self.compensation.by_layer and model.store is None:  # what a width method cuts is not on the device twice
            dense.swap_stack(nn.ModuleList(layer.on(torch.device("cpu")).module for layer in dense.layers))
        decisions = self._prune(model, dense, calibration, ratio)
        before = parameters(model)
        if before == parameters(dense):
            return decisions
        done = self.compensation.repair(_pruning_of(decisions, dense, model), calibration)
        added = parameters(model) - before
        if "parameters" in decisions:
            decisions["parameters"] = parameters(model)
        fits = {name: what for name, what in decisions.get("compensation", {}).items() if name in FITS}  # of the pruner
        return decisions | fits | {"compensation": {"name": self.compensation.name, "added_parameters": added} | done}

    def _prune(self, model: Decoder, dense: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Prune `model` so that, with the parameters that will be added, it comes nearest to the budget."""
        requested, missed, total = ratio, dict[float, float](), parameters(dense)
        places = [layer.device for layer in model.layers]
        best, best_decisions = ratio, dict[str, Any]()  # of the tries so far
        for _ in range(TRIES):
            try:
                decisions = prune(self.pruner, model, calibration, requested)
            except OutOfReach:
                if not missed:
                    raise
                break
            added = self._parameters_added(decisions, dense, model)
            missed[requested] = abs(parameters(model) + added - (1 - ratio) * total)
            best = min(missed, key=lambda tried: missed[tried])
            following = ratio + added / total
            if best == requested:
                best_decisions = decisions
            if self.fixed or following in missed or any(self._is_same(dense, tried, following) for tried in missed):
                break
            calibration, requested = with_known_removals(calibration, decisions), following
            _restore(model, dense, places)
        if best != requested:
            _restore(model, dense, places)
            if self.pruner.only_cuts:
                cut(model, best_decisions)  # without a second search
            else:
                best_decisions = prune(self.pruner, model, calibration, best)
        return best_decisions | ({"asked_of_pruner": best} if best != ratio else {})

    def _is_same(self, dense: Decoder, first: float, second: float) -> bool:
        """Say whether the pruner has the same plan for both ratios, as where they round to as many layers."""
        try:
            return self.pruner.plan(dense, first) == self.pruner.plan(dense, second)
        except OutOfReach:
            return False

    def _parameters_added(self, decisions: dict[str, Any], dense: Decoder, pruned: Decoder) -> int:
        if parameters(pruned) == parameters(dense):
            return 0
        if self.compensation.reads_states and (
            pruned.embed.embedding_dim != dense.embed.embedding_dim
            or any(layer.module is not layer.inner for layer in pruned.layers)
        ):
            raise Unsupported(f"{self.pruner.name} cuts the residual itself, so that there is no state to map back to")
        return self.compensation.parameters_added(_pruning_of(decisions, dense, pruned))


def _pruning_of(decisions: dict[str, Any], dense: Decoder, pruned: Decoder) -> Pruning:
    removed = {name: what for name, what in sorted(decisions.items()) if name.startswith("removed")}
    return Pruning(
        dense, pruned, numbers_of_layers_left(decisions, dense, pruned), removed, decisions.get("windows", [])
    )


def _restore(model: Decoder, dense: Decoder, places: list[torch.device]) -> None:
    """Give `model` the dense layers again, each on its device."""
    model.copy_lists(dense)
    layers = make_twin(dense, model.config).layers
    model.set_layers([layer.on(place) for layer, place in zip(layers, places, strict=True)])


class ResidualMap(Compensation):
    """A compensation that puts a map M (D, D) of the residual at each boundary, y = x + x M; a subclass fits M."""

    sinks: Sinks
    tokens: int | None
    uneven_because = "it adds maps of the residual"
    leaves = ("maps",)

    @abstractmethod
    def fit(self, batches: list[BoundaryStates]) -> Fitted:
        """Return M (D, D), in float64, as the fit's W."""

    def parameters_added(self, pruning: Pruning) -> int:
        """Return the parameters of a D x D matrix for each boundary."""
        D: int = pruning.dense.embed.embedding_dim
        return len(require_boundaries(pruning)) * D * D

    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Fit a map at each boundary, put it behind the layer in front, and return the fits."""

        def at(cut: Boundary, batches: list[BoundaryStates]) -> Repair:
            fitted = self.fit(batches)
            put_map(pruning.pruned, cut.behind, fitted.W)
            M = fitted.W.to(batches[0].y.dtype)
            return Repair(lambda each: each.y + each.y @ M, fitted=fitted)

        return repair_at_boundaries(pruning, calibration.first(self.tokens), self.sinks, at)


@dataclass(frozen=True)
class Pruning:
    """Holds a dense and a pruned model, and what the pruner removed.

    kept     the dense model's numbers of the pruned model's layers
    removed  the decisions that begin with `removed`: layers, sublayers and units
    windows  first and last layer of each run whose work its first layer has been refitted to do
    """

    dense: Decoder
    pruned: Decoder
    kept: Sequence[int]
    removed: Mapping[str, Any] = field(default_factory=dict)
    windows: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Boundary:
    """Says where a boundary lies.

    behind   number of the pruned model's layer whose end it is; -1: it lies in front of the first layer
    removed  the run of removed blocks, by the dense model's numbers: "layer 3", "attention 5"
    until    half layers of the dense model up to the end of the removed run
    """

    behind: int
    removed: tuple[str, ...]
    until: int


def boundaries_of(pruning: Pruning) -> list[Boundary]:
    """Return the boundaries of a pruned model, from front to rear."""
    kept, dense = pruning.kept, pruning.dense
    layers, cuts, run, behind = pruning.pruned.layers, list[Boundary](), list[str](), -1
    until = 0
    for number, layer in enumerate(dense.layers):
        place = kept.index(number) if number in kept else None
        has = {"attention": layer.has_attention, "mlp": layer.has_mlp}
        if place is None:
            run.append(f"layer {number}")
            until = 2 * number + 2
            continue
        still_has = {"attention": layers[place].has_attention, "mlp": layers[place].has_mlp}
        lost = [part for part in has if has[part] and not still_has[part]]
        if run and (layer.parallel or still_has["attention"] or not has["attention"]):
            cuts.append(Boundary(behind, tuple(run), until))
            run = []
        if layer.parallel:
            behind, run, until = place, [f"{part} {number}" for part in lost], 2 * number + 2
        elif "attention" in lost:
            run.append(f"attention {number}")
            cuts.append(Boundary(behind, tuple(run), 2 * number + 1))
            behind, run = place, []
        else:
            behind = place
            if "mlp" in lost:
                run, until = [f"mlp {number}"], 2 * number + 2
    return [*cuts, Boundary(behind, tuple(run), until)] if run else cuts


@dataclass(frozen=True)
class BoundaryStates:
    """Holds the states of one micro-batch at a boundary.

    y, n, z  (B, T, D)
    where    (B, T) true at real tokens
    sink     (B, T) true at real tokens that are attention sinks
    wait     keeps tensors until all micro-batches are fitted, as `Calibration.wait` does
    """

    y: Tensor
    n: Tensor
    z: Tensor
    where: Tensor
    sink: Tensor
    wait: Wait = keep_in_memory

    def measured(self, sinks: Sinks) -> Tensor:
        """Return (B, T), true at the tokens whose sizes are compared: the real ones, with `apart` without sinks."""
        return self.where & ~self.sink if sinks == "apart" else self.where


@dataclass(frozen=True)
class Repair:
    """Says how a compensation has repaired a boundary.

    state   gives the pruned model's residual at the boundary after the repair, (B, T, D) of a micro-batch
    gain    factor by which the residual behind the boundary is larger in effect, since norms do not see its size
    fitted  the fit, where there is one, with its error on held-out sequences
    """

    state: Callable[[BoundaryStates], Tensor]
    gain: float = 1.0
    fitted: Fitted | None = None


Compensate = Callable[[Boundary, list[BoundaryStates]], Repair]


@torch.no_grad()
def repair_at_boundaries(
    pruning: Pruning, calibration: Calibration, sinks: Sinks, repair: Compensate
) -> dict[str, Any]:
    """Call `repair` at each boundary, from front to rear, and go on with the states that follow from it.

    Returns for the record the number of tokens that were read, and under `cuts` for each boundary the removed blocks
    and the errors (`errors_of_fit`).
    """
    cuts, dense = {cut.behind: cut for cut in require_boundaries(pruning)}, pruning.dense
    entries, masks = enter_all(dense, calibration, values_of_a_step(dense) + 3 * dense.embed.embedding_dim)
    where = [mask.to(dense.embed.weight.device) for mask in masks]
    x, report, gain, wait = [entry.x for entry in entries], list[dict[str, Any]](), 1.0, calibration.wait
    states, layers = States(dense, entries, wait), pruning.pruned.layers[: max(cuts) + 1]  # still without maps

    def at(cut: Boundary, y: list[Tensor], n: list[Tensor]) -> list[Tensor]:
        nonlocal gain
        own, tokens = move_beside(y, states.advance(cut.until), where)
        z = states_to_fit(tokens, y, own, sinks, wait)
        masks_of_sinks = find_sinks(tokens, y, z)
        batches = [BoundaryStates(*five, wait) for five in zip(y, n, z, tokens, masks_of_sinks, strict=True)]
        outcome = repair(cut, batches)
        pruning.pruned.layers[max(0, cut.behind)].settle()
        after = [wait(outcome.state(each)) for each in batches]
        both = [wait(gain * state) for state in y], [wait(outcome.gain * state) for state in after]
        missed = errors_of_fit(masks_of_sinks, tokens, z, *both, fitted=outcome.fitted)
        if outcome.gain != 1.0 and "sinks" in missed:  # each is wanted in the size that it has with the gain
            for name, with_gain in zip(("error_before", "error_after"), both, strict=True):
                sized = states_to_fit(tokens, with_gain, own, sinks, wait)
                missed["sinks"][name] = errors_of_fit(masks_of_sinks, tokens, sized, with_gain, with_gain)["sinks"][
                    "error_after"
                ]
        report.append({"behind_layer": cut.behind, "removed": list(cut.removed)} | missed)
        gain = outcome.gain
        return after

    if -1 in cuts:
        x = at(cuts[-1], x, [wait(torch.zeros_like(state)) for state in x])
    for number, layer in enumerate(show_progress(layers, "mending", "layer")):
        arguments = [entry.arguments[layer.kind] for entry in entries]
        pruning.pruned.read_ahead(number + 1)
        with layer.visiting():
            if number not in cuts:
                x = [wait(layer(state, given)) for state, given in zip(x, arguments, strict=True)]
                continue
            y, n = list[Tensor](), list[Tensor]()
            for state, given, mask in zip(x, arguments, masks, strict=True):
                step = run_step(layer, state, given, mask)
                y.append(wait(step.y))
                n.append(wait(step.m if layer.has_mlp else step.a))
            del step
        x = at(cuts[number], y, n)
    return {"cuts": report, "tokens": int(calibration.mask.sum())}


def numbers_of_layers_left(decisions: dict[str, Any], dense: Decoder, pruned: Decoder) -> list[int]:
    """Return the dense model's numbers of the layers that are left.

    Raises Unsupported where the decisions do not name the removed layers.
    """
    removed = set(decisions.get("removed_layers", []))
    kept = [number for number in range(len(dense.layers)) if number not in removed]
    if len(kept) != len(pruned.layers):
        raise Unsupported("the method's decisions do not say which layers it has removed (removed_layers)")
    return kept


def require_boundaries(pruning: Pruning) -> list[Boundary]:
    """Return the boundaries. Raises Unsupported where the pruner has removed no whole block."""
    cuts = boundaries_of(pruning)
    if not cuts:
        raise Unsupported(
            "the method removes heads, channels or experts, nothing whole, so there is no cut; refit serves heads and "
            "channels"
        )
    return cuts
