"""DarwinLM against its authors' code: the matrices of all levels, and a candidate's loss after a little training."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from authors_code import Run, every_run
from torch import nn

from methods.model.calibration import Calibration
from methods.search.darwinlm import divergence_of, fit_layers
from methods.width.obs import Problem


def levels_of(run: Run) -> list[torch.Tensor]:
    """Return our matrix of each of the run's levels, whose columns are those of the units that stay."""
    given = Run("obs", run["of"])
    X, W = (torch.tensor(given[name], dtype=torch.float64) for name in "XW")
    writer = nn.Linear(*reversed(W.shape), bias=False, dtype=torch.float64)
    writer.weight = nn.Parameter(W, requires_grad=False)
    size = W.shape[1] // given["width"]
    problem = Problem(SimpleNamespace(size=size, writer=writer), X.T @ X, 0.01)
    order = problem.cheapest(run["counts"][-1])
    assert [sorted(order[:count]) for count in run["counts"]] == run["removed"]
    fewest_first = list(problem.nested(order, [size - count for count in reversed(run["counts"])]))
    return fewest_first[::-1]


@every_run("darwinlm")
def test_darwinlm(run: Run):
    if run.key.startswith("levels"):
        theirs = (torch.tensor(each, dtype=torch.float64) for each in run["matrices"])
        run.agrees(None, **{f"level_{at}": pair for at, pair in enumerate(zip(levels_of(run), theirs, strict=True))})
        return
    dense, candidate = run.model(), run.model()
    dense.model.double()
    candidate.model.double()
    ids = torch.tensor(run["ids"])
    text = Calibration(ids, torch.ones_like(ids, dtype=torch.bool))
    first, rest = (Calibration(text.ids[rows], text.mask[rows]) for rows in (slice(0, 3), slice(3, None)))
    fit_layers(candidate, first, run["lr"])
    run.agrees(None, kl=(divergence_of(dense, candidate, rest), run["kl"]))
