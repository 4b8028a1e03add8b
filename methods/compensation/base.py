"""Compensations: what is left of a pruned model is refitted in closed form to make up for what has gone.

A compensation is an axis of its own: `shortgpt+ghost` is ShortGPT, repaired by ghost, and a Pruner like any other. What
it adds to the model counts: the pruner is asked for so much more that removed less added parameters come nearest to the
budget.

To add one, write a file of this folder with `@compensation("name")` above a frozen dataclass.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from methods.base import Holds, Look, Pruner
from methods.compensation.boundaries import (
    Boundary,
    BoundaryStates,
    Compensated,
    Pruning,
    at_boundaries,
    kept_layers,
    some_boundaries,
)
from methods.decisions import prune
from methods.errors import OutOfReach, Unsupported
from methods.least_squares import Fitted
from methods.model.architectures import LISTS
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, twin
from methods.model.residual_map import put_map
from methods.model.sinks import Sinks
from methods.model.sizes import parameters
from methods.model.structures import cut

FITS = ("cuts", "refitted")  # reports on fits, by the names that compensations give them
TRIES = 6  # at meeting a budget that depends on where the cuts fall


@dataclass(frozen=True)
class Compensation(ABC):
    """A repair of a pruned model. A subclass is a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str] = ""  # set by @compensation

    # Where it can follow a method.
    reads_states: ClassVar[bool] = True  # whether it needs states of the residual, which a sliced model has in no basis
    by_layer: ClassVar[bool] = False  # whether it needs one dense layer at a time: the others wait on the host
    needs_one_mlp: ClassVar[bool] = False  # whether it changes the matrices of each layer's MLP, which no mixture has
    not_behind: ClassVar[tuple[str, ...]] = ()  # methods that do so themselves

    # What it takes beside the pruning: read by --plan and by the placement of weights.
    forwards: ClassVar[float] = 1.0  # over all calibration tokens, without the head
    holds: ClassVar[Holds] = Holds(states=9, squares=0.8, steps=0.5)  # beside what the method holds, in its place

    # What lists, figures and the doctor take from it.
    leaves: ClassVar[tuple[str, ...]] = ()  # shapes that it adds to the method's, by the names of bench.export.formats
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
        """Return how many parameters `repair` will add, from shapes alone.

        Raises Unsupported where the compensation has no way to serve what the pruner has done.
        """

    @abstractmethod
    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Refit the pruned model, in place, and return what was done, as plain JSON values."""


REGISTRY: dict[str, type[Compensation]] = {}
C = TypeVar("C", bound=type[Compensation])


def compensation(name: str) -> Callable[[C], C]:
    """Return a class decorator that makes a frozen dataclass available as compensation `name`."""

    def add(cls: C) -> C:
        if not issubclass(cls, Compensation) or "__dataclass_fields__" not in vars(cls):
            raise TypeError(
                f"@compensation goes above @dataclass and a subclass of Compensation: {cls.__name__} is none"
            )
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
        return f"{self.pruner.name}+{self.compensation.name}"

    @property
    def fixed(self) -> bool:
        return self.pruner.fixed

    @property
    def uneven_because(self) -> str:
        return self.compensation.uneven_because or self.pruner.uneven_because

    @property
    def alone(self) -> Pruner:
        return self.pruner.alone

    @property
    def mlp_solves(self) -> float:
        return self.pruner.mlp_solves

    @property
    def residual_solves(self) -> float:
        return self.pruner.residual_solves

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        return self.pruner.forwards(layers, removed, tokens) + self.compensation.forwards

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the pruner's plan; how much more it has to remove is known when it has chosen."""
        if self.pruner.name in self.compensation.not_behind:
            raise Unsupported(f"{self.pruner.name} does what {self.compensation.name} does by itself; leave it out")
        if self.compensation.needs_one_mlp:
            model.refuse_experts()
        return self.pruner.plan(model, ratio)

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        dense = twin(model)
        if self.compensation.by_layer and model.store is None:  # what a width method cuts is not on the device twice
            dense.swap_stack(nn.ModuleList(layer.on(torch.device("cpu")).module for layer in dense.layers))
        decisions = self._pruned(model, dense, calibration, ratio)
        before = parameters(model)
        if before == parameters(dense):
            return decisions
        done = self.compensation.repair(_done(decisions, dense, model), calibration)
        added = parameters(model) - before
        if "parameters" in decisions:
            decisions["parameters"] = parameters(model)
        fits = {name: what for name, what in decisions.get("compensation", {}).items() if name in FITS}  # of the pruner
        return decisions | fits | {"compensation": {"name": self.compensation.name, "added_parameters": added} | done}

    def _pruned(self, model: Decoder, dense: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Prune `model` so that with what will be added the budget is met as nearly as the pruner can."""
        asked, missed, total = ratio, dict[float, float](), parameters(dense)
        places = [layer.device for layer in model.layers]
        best, found = ratio, dict[str, Any]()  # of the tries so far
        for _ in range(TRIES):
            try:
                decisions = prune(self.pruner, model, calibration, asked)
            except OutOfReach:
                if not missed:
                    raise
                break
            added = self._added(decisions, dense, model)
            missed[asked] = abs(parameters(model) + added - (1 - ratio) * total)
            best = min(missed, key=lambda one: missed[one])
            following = ratio + added / total
            if best == asked:
                found = decisions
            if self.fixed or following in missed or any(self._same(dense, one, following) for one in missed):
                break
            calibration, asked = knowing(calibration, decisions), following
            _restore(model, dense, places)
        if best != asked:
            _restore(model, dense, places)
            if self.pruner.only_cuts:
                cut(model, found)  # what was found, which a search would have to find again
            else:
                found = prune(self.pruner, model, calibration, best)
        return found | ({"asked_of_pruner": best} if best != ratio else {})

    def _same(self, dense: Decoder, one: float, other: float) -> bool:
        """Say whether both ratios ask the same of the pruner, as they do where they round to as many layers."""
        try:
            return self.pruner.plan(dense, one) == self.pruner.plan(dense, other)
        except OutOfReach:
            return False

    def _added(self, decisions: dict[str, Any], dense: Decoder, pruned: Decoder) -> int:
        if parameters(pruned) == parameters(dense):
            return 0
        if self.compensation.reads_states and (
            pruned.embed.embedding_dim != dense.embed.embedding_dim
            or any(layer.module is not layer.inner for layer in pruned.layers)
        ):
            raise Unsupported(f"{self.pruner.name} cuts the residual itself, so that there is no state to map back to")
        return self.compensation.parameters_added(_done(decisions, dense, pruned))


def _done(decisions: dict[str, Any], dense: Decoder, pruned: Decoder) -> Pruning:
    removed = {name: what for name, what in sorted(decisions.items()) if name.startswith("removed")}
    return Pruning(dense, pruned, kept_layers(decisions, dense, pruned), removed, decisions.get("windows", []))


def _restore(model: Decoder, dense: Decoder, places: list[torch.device]) -> None:
    """Give `model` the dense layers again, each on its device."""
    for name in LISTS:
        if getattr(dense.config, name, None):
            setattr(model.config, name, list(getattr(dense.config, name)))
    layers = twin(dense, model.config).layers
    model.set_layers([layer.on(place) for layer, place in zip(layers, places, strict=True)])


def knowing(calibration: Calibration, decisions: dict[str, Any]) -> Calibration:
    """Return the calibration with what a greedy search has found out, which serves the next."""
    order = decisions.get("removal_order", [])[: decisions.get("free_removals", 0)]
    return dataclasses.replace(calibration, order=max(calibration.order, tuple(order), key=len))


class ResidualMap(Compensation):
    """A compensation that puts a map M (D, D) of the residual at each cut, y = x + x M; a subclass fits M."""

    sinks: Sinks
    tokens: int | None
    uneven_because = "it adds maps of the residual"
    leaves = ("maps",)

    @abstractmethod
    def fit(self, seen: list[BoundaryStates]) -> Fitted:
        """Return M (D, D), in float64, as the fit's W."""

    def parameters_added(self, pruning: Pruning) -> int:
        D: int = pruning.dense.embed.embedding_dim
        return len(some_boundaries(pruning)) * D * D

    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        def at(cut: Boundary, seen: list[BoundaryStates]) -> Compensated:
            fitted = self.fit(seen)
            put_map(pruning.pruned, cut.behind, fitted.W)
            M = fitted.W.to(seen[0].y.dtype)
            return Compensated(lambda each: each.y + each.y @ M, fitted=fitted)

        return at_boundaries(pruning, calibration.first(self.tokens), self.sinks, at)
