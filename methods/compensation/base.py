"""Compensations: what is left of a pruned model is refitted in closed form to make up for what has gone.

A compensation is an axis of its own: `shortgpt+ghost` is ShortGPT, mended by ghost, and a Pruner like any other. What
it adds to the model counts: the pruner is asked for so much more that removed less added parameters come nearest to the
budget.

To add one, write a file with `@compensation("name")` above a frozen dataclass and put the file's name into
COMPENSATIONS of methods/registry.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from methods.base import Pruner
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


class Compensation(Protocol):
    """Is a frozen dataclass whose fields are the compensation's parameters."""

    name: ClassVar[str]

    reads_states: ClassVar[bool]  # whether it needs states of the residual, which a sliced model has in no one basis
    by_layer: ClassVar[bool]  # whether it needs one dense layer at a time, so that the others can wait on the host
    one_mlp: ClassVar[bool]  # whether it changes the matrices of each layer's MLP, which no mixture of experts has
    part_of: ClassVar[tuple[str, ...]]  # methods that do so themselves, behind which it does not go

    @property
    def uneven(self) -> str:
        """Say why stock transformers cannot load the result, or nothing."""

    def added(self, pruning: Pruning) -> int:
        """Return how many parameters `mend` will add, from shapes alone.

        Raises Unsupported where the compensation has no way to serve what the pruner has done.
        """

    def mend(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Refit the pruned model, in place, and say what was done, as plain JSON values."""


REGISTRY: dict[str, type[Compensation]] = {}
C = TypeVar("C", bound=type)


def compensation(name: str) -> Callable[[C], C]:
    """Return a class decorator that makes a frozen dataclass available as compensation `name`."""

    def add(cls: C) -> C:
        cls.name = name  # type: ignore[attr-defined]
        cls.reads_states = getattr(cls, "reads_states", True)  # type: ignore[attr-defined]
        cls.by_layer = getattr(cls, "by_layer", False)  # type: ignore[attr-defined]
        cls.one_mlp = getattr(cls, "one_mlp", False)  # type: ignore[attr-defined]
        cls.part_of = getattr(cls, "part_of", ())  # type: ignore[attr-defined]
        REGISTRY[name] = cls
        return cls

    return add


@dataclass(frozen=True)
class CompensatedPruner:
    """Is a pruner and the compensation that follows it."""

    pruner: Pruner
    compensation: Compensation

    @property
    def name(self) -> str:
        return f"{self.pruner.name}+{self.compensation.name}"

    @property
    def fixed(self) -> bool:
        return self.pruner.fixed

    @property
    def uneven(self) -> str:
        return self.compensation.uneven or getattr(self.pruner, "uneven", "")

    def __getattr__(self, name: str) -> Any:
        """Return what the pruner says of itself beyond the protocol: draws, seed, uniform."""
        if name in ("draws", "seed", "uniform"):
            return getattr(self.pruner, name)
        raise AttributeError(name)

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the pruner's plan; how much more it has to remove is known when it has chosen."""
        if self.pruner.name in self.compensation.part_of:
            raise Unsupported(f"{self.pruner.name} does what {self.compensation.name} does by itself; leave it out")
        if self.compensation.one_mlp:
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
        done = self.compensation.mend(_done(decisions, dense, model), calibration)
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
            if getattr(self.pruner, "only_cuts", False):
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
        return self.compensation.added(_done(decisions, dense, pruned))


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


class ResidualMap:
    """A compensation that puts a map M (D, D) of the residual at each cut, y = x + x M; a subclass fits M."""

    sinks: Sinks
    tokens: int | None
    uneven = "it adds maps of the residual"

    def fit(self, seen: list[BoundaryStates]) -> Fitted:
        """Return M (D, D), in float64, as the fit's W."""
        raise NotImplementedError

    def added(self, pruning: Pruning) -> int:
        D: int = pruning.dense.embed.embedding_dim
        return len(some_boundaries(pruning)) * D * D

    def mend(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        def at(cut: Boundary, seen: list[BoundaryStates]) -> Compensated:
            fitted = self.fit(seen)
            put_map(pruning.pruned, cut.behind, fitted.W)
            M = fitted.W.to(seen[0].y.dtype)
            return Compensated(lambda each: each.y + each.y @ M, fitted=fitted)

        return at_boundaries(pruning, calibration.first(self.tokens), self.sinks, at)
