"""Counts what pruning computes, from what the method says of itself and the shapes of the model.

A method counts forwards over the calibration, and products in float64 (methods.base). They are coarse: an estimate for
which there is no record of like work (bench.schedule.estimator) is right to about a factor of two.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import methods
from bench.schedule.shape import Shape
from methods.base import Pruner, Reuses

ALMOST_NOTHING = 1e-9  # layers that go, at which a search costs what it costs whatever goes


@dataclass(frozen=True)
class PruningWork:
    """Holds multiply-accumulates of forwards, and those in float64."""

    macs: float = 0.0
    exact: float = 0.0


def make_pruner(method: str, parameters: Mapping[str, Any]) -> Pruner:
    """Return the pruner of a cell; equal cells share one. Raises ValueError for an unknown method or parameter."""
    return _make_pruner(method, json.dumps(dict(parameters), sort_keys=True, default=str))


@functools.lru_cache(1024)
def _make_pruner(method: str, parameters: str) -> Pruner:
    return methods.make(method, json.loads(parameters))


def reuses(method: str) -> Reuses:
    """Return what a cell of a method reuses of one at another ratio."""
    return methods.load()[method.partition("+")[0]].reuses


def count_work(
    pruner: Pruner, shape: Shape, ratio: float, tokens: int, length: int, *, known: float = 0.0
) -> PruningWork:
    """Return what pruning computes.

    ratio   to remove of the dense model
    tokens  of the calibration, in sequences of `length`
    known   the ratio up to which an earlier search's removals are known; of a method that reuses statistics, more than
            0 says that another cell has computed them
    """
    layers = shape.layers
    method, reused = pruner.alone, pruner.alone.reuses
    removed, removed_before = (share * shape.parameters / max(1.0, shape.layer) for share in (ratio, known))
    forwards = method.forwards(layers, removed, tokens)
    of_compensation = pruner.forwards(layers, removed, tokens) - forwards
    solves = pruner.mlp_solves * shape.mlp**3 + pruner.residual_solves * shape.width**3
    if known and reused == "removals":
        search_before = method.forwards(layers, removed_before, tokens) - method.forwards(
            layers, ALMOST_NOTHING, tokens
        )
        forwards = max(0.0, forwards - search_before)
    if known and reused == "statistics":
        forwards, solves = 0.0, 0.0
    forward = shape.body(tokens, length)
    with_head = forward + (tokens * shape.head if method.holds.logits else 0.0)
    return PruningWork(forwards * with_head + of_compensation * forward, layers * solves)
