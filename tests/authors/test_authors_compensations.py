"""Compensations, against runs of their authors' code.

The authors fit all tokens alike, and penalise otherwise: `as_the_authors_fit` puts that in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from authors_code import Run, every_run, last_state_normed
from torch import Tensor

from methods.compensation import linear_patch
from methods.compensation.base import BoundaryStates, CompensatedPruner, Compensation
from methods.compensation.ghost import Ghost
from methods.compensation.linear_patch import LinearPatch
from methods.compensation.replaceme import ReplaceMe
from methods.depth.angular import Angular
from methods.depth.layer_drop import Drop
from methods.least_squares import Fitted, LeastSquares
from methods.model.decoder import Decoder
from methods.model.inserted import put_map


def as_the_authors_fit(kind: type[Compensation], monkeypatch: pytest.MonkeyPatch, penalty: float = 0.0, **options: Any):
    """Return the compensation that fits all tokens alike, with one penalty for all channels that draws to zero."""

    def solve(sums: LeastSquares, ridge: float, towards: Tensor, *, intercept: bool = False):
        return torch.linalg.solve(sums.xx + penalty * torch.eye(len(sums.xx), dtype=sums.xx.dtype), sums.xy), None

    monkeypatch.setattr(LeastSquares, "solve", solve)
    return kind(sinks="alike", **options)


def fitted(monkeypatch: pytest.MonkeyPatch, kind: type[Compensation]) -> list[Tensor]:
    """Return what fills with the map of each cut, as the compensation fits it."""
    maps: list[Tensor] = []
    fit = kind.fit

    def noted(mend, *given):
        found = fit(mend, *given)
        maps.append(found.W)
        return found

    monkeypatch.setattr(kind, "fit", noted)
    return maps


def drop(layers: Iterable[int]) -> Drop:
    return Drop("+".join(map(str, layers)))


@every_run("replaceme")
def test_replaceme(run: Run, monkeypatch):
    """The authors choose the layers by the angular distance, with the last state behind the final norm."""
    model, calibration, n = run.model(), run.calibration(), run["skip"]
    last_state_normed(monkeypatch)
    distances = Angular().distances(model, calibration, n)[1:]
    if run["num_A"] == 1:
        assert run["removed"] == [1 + distances.index(min(distances)) + layer for layer in range(n)]
    maps = fitted(monkeypatch, ReplaceMe)
    if run["removed"][-1] == len(model.layers) - 1:
        target_normed(monkeypatch, model)
    mend = as_the_authors_fit(ReplaceMe, monkeypatch, run["alpha"])
    CompensatedPruner(drop(run["removed"]), mend).prune(model, calibration, 0.0)
    assert len(maps) == 1
    run.agrees(model, T=(maps[0], run.tensor("T0")), distances=(distances, run["distances"]))


def target_normed(monkeypatch: pytest.MonkeyPatch, model: Decoder) -> None:
    """Let the fit aim at the state behind the final norm, as the authors' code does where the last layer has gone."""
    fit = ReplaceMe.fit

    def normed(mend: ReplaceMe, seen: list[BoundaryStates]) -> Fitted:
        return fit(mend, [dataclasses.replace(each, z=model.normed(each.z)) for each in seen])

    monkeypatch.setattr(ReplaceMe, "fit", normed)


@every_run("ghost")
def test_ghost(run: Run, monkeypatch):
    """The authors fit each of two cuts on the dense model's states, which a cut that is alone has here too."""
    model, calibration, removed = run.model(), run.calibration(), run["removed"]
    maps = fitted(monkeypatch, Ghost)
    mend = as_the_authors_fit(Ghost, monkeypatch, 1e-6)
    if run.has("W1"):
        for layer in removed:
            CompensatedPruner(drop([layer]), mend).prune(run.model(), calibration, 0.0)
        drop(removed).prune(model, calibration, 0.0)
        for number, layer in enumerate(removed):
            put_map(model, layer - number - 1, maps[number])
    else:
        CompensatedPruner(drop(removed), mend).prune(model, calibration, 0.0)
    whole = [M + torch.eye(len(M)) for M in maps]  # the authors' y = x W is our y = x + x M
    run.agrees(model, **{f"W{number}": (W, run.tensor(f"W{number}")) for number, W in enumerate(whole)})


@every_run("linear_patch")
def test_linear_patch(run: Run, monkeypatch):
    """The authors' Hadamard matrix is put in, where it is another."""
    model, calibration = run.model(), run.calibration()
    H = run.tensor("H").double() if run["rotate"] else torch.eye(model.embed.embedding_dim, dtype=torch.float64)
    monkeypatch.setattr(linear_patch, "make_hadamard", lambda n: H)
    maps = fitted(monkeypatch, LinearPatch)
    mend = as_the_authors_fit(LinearPatch, monkeypatch, rotate=run["rotate"])
    CompensatedPruner(drop(range(run["start"], run["end"])), mend).prune(model, calibration, 0.0)
    c = (H.T @ (maps[0] + torch.eye(len(H))) @ H).diagonal()
    run.agrees(model, c=(c, run.tensor("c")))
