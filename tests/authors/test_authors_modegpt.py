"""MoDeGPT against a code of others: channels that stay, the fitted matrix, pairs and values of heads, shares."""

from __future__ import annotations

import torch
from authors_code import Run, every_run
from torch import Tensor

from methods.model.structures import Structure
from methods.width.modegpt import LayerMoments, find_shares, fit_values, leverage_of_channels, score_pairs
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
    if run.key.startswith("heads"):
        products = keep_pairs_and_fit_values(run)
        run.agrees(None, products=(products, run["products"]))
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


def keep_pairs_and_fit_values(run: Run) -> Tensor:
    """Assert that the same pairs of queries and keys stay; return W_j write read^T W_v of each head j, (H, D, D)."""
    q, k, x, W_v, W_o = (torch.tensor(run[name], dtype=torch.float64) for name in ("q", "k", "x", "W_v", "W_o"))
    T, G, E = k.shape
    R = q.shape[1] // G
    of_q, of_k = q.square().mean(0).view(G, R, E) + 1e-4, k.square().mean(0) + (run["lam"] if R > 1 else 1e-4)
    empty = torch.zeros(0)
    moments = LayerMoments(empty, empty, torch.stack([of_q, of_q]), torch.stack([of_k, of_k]), empty)
    pairs = torch.arange(E).view(2, -1).T
    kept = score_pairs(moments, pairs).argsort(1, descending=True)[:, : run["rank"] // 2].sort(1).values
    assert kept.tolist() == run["kept"]
    C = x.T @ x / T + run["lam"] * torch.eye(x.shape[1], dtype=torch.float64)
    W_v, W_j = W_v.view(G, E, -1), W_o.view(-1, G, R, E)
    S = torch.einsum("dgri,dgrj->gij", W_j, W_j) if R == 1 else torch.eye(E, dtype=torch.float64).expand(G, E, E)
    read, write, _ = fit_values(W_v @ C @ W_v.mT, S, run["rank"], 0.0)
    return torch.einsum("dgri,gik,gjk,gje->grde", W_j, write, read, W_v).flatten(0, 1)
