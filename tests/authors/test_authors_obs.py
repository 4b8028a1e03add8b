"""OBS against OSSCAR and Tyr-the-Pruner: which units of one matrix go, and what the rest then misses."""

from __future__ import annotations

import torch
from authors_code import Run, difference, every_run
from torch import Tensor

from methods.width.obs import factor, find_cheapest


def problem(run: Run) -> tuple[Tensor, Tensor]:
    """Return H (C, C) and W (D, C), as both codes were given them."""
    said = Run("obs", run.said.get("of", run.key))
    X, W = (torch.tensor(said[name], dtype=torch.float64) for name in "XW")
    H = X.T @ X
    H.diagonal().add_(0.01 * H.diagonal().mean())
    return H, W


def loss(H: Tensor, W: Tensor, gone: list[int], width: int) -> float:
    """Return 1/2 tr((V-W) H (V-W)^T) of the best V without these units."""
    K = [c for c in range(len(H)) if c // width not in gone]
    V = torch.zeros_like(W)
    V[:, K] = torch.cholesky_solve((H @ W.T)[K], factor(H[K][:, K])).T
    return 0.5 * float((((V - W) @ H) * (V - W)).sum())


@every_run("obs")
def test_obs(run: Run):
    H, W = problem(run)
    of = Run("obs", run.said.get("of", run.key))
    score = "cost" if run.key.startswith("osscar") else "tyr-release"
    gone = find_cheapest(H, W, of["width"], of["count"], score=score, rounds=run.said.get("rounds"))
    assert sorted(gone) == run["removed"]
    assert difference("loss", loss(H, W, gone, of["width"]), run["loss"]) < 1e-12  # both in float64


def test_the_score_of_the_release_is_no_cost():
    """With all its units at once it removes others, and loses more."""
    theirs, exact = Run("obs", "tyr_channels_1"), Run("obs", "osscar_channels")
    assert theirs["removed"] != exact["removed"]
    assert theirs["loss"] > 1.4 * exact["loss"]
