"""MoDeGPT against a code of others: which channels stay, the fitted matrix, and the shares of layers."""

from __future__ import annotations

import torch
from authors_code import Run, every_run

from methods.model.structures import Structure
from methods.width.modegpt import find_shares, leverage_of_channels
from methods.width.obs import Problem


class OneMatrix(Structure):
    """A structure of a single matrix."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.size, self.weight = weight.shape[1], weight

    @property
    def writer(self) -> OneMatrix:
        return self


@every_run("modegpt")
def test_modegpt(run: Run):
    if run.key.startswith("shares"):
        weights = torch.softmax(-torch.tensor(run["influences"], dtype=torch.float64) / run["smoothing"], 0)
        ones = torch.ones_like(weights)
        shares = find_shares(weights, ones, run["most"] * ones, run["share"] * len(ones))
        run.agrees(None, shares=(shares, run["shares"]))
        return
    Z, W = (torch.tensor(run[name], dtype=torch.float64) for name in ("z", "down"))
    C = Z.T @ Z / len(Z)
    mean = float(C.diagonal().mean())
    leverage = leverage_of_channels(C.clone(), run["lam"] / mean)
    removed = sorted(leverage.argsort(stable=True)[: len(C) - len(run["kept"])].tolist())
    assert sorted(set(range(len(C))) - set(removed)) == run["kept"]
    fitted = Problem(OneMatrix(W), C, 1e-6 / mean).without(removed).V
    inverse = (1 - leverage) / run["lam"]
    run.agrees(None, fitted=(fitted, run["fitted"]), inverse=(inverse, run["inverse"]))
