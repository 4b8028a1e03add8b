"""Rescale the residual at each cut, channel by channel, in a basis that spreads its outliers: LinearPatch.

Chen, Bai, Yuan, Liu, Zhao, Yu, Hou, Guan, He, Yuan 2025, "A Simple Linear Patch Revives Layer-Pruned Large Language
Models", NeurIPS, arXiv 2505.24680. Code: chenxinrui-tsinghua/LinearPatch.

With an orthonormal Hadamard matrix H of the residual's width, X what the pruned model has at a cut and Z what the dense
model has behind the removed blocks,

    c_k = mean over sequences of  mean_t |(Z H)_k| / mean_t |(X H)_k|,    y = x H diag(c) H^T

The map stays in the model, D^2 parameters for each cut, which are counted. `rotate=no` takes H = I. H is a Kronecker
product of a Sylvester matrix and one of Paley's, which exists for the widths that models have; for any other width it
is a random orthogonal matrix with a fixed seed. D = residual width, k = a channel, t = a token.

Departures from the authors' code. The code chooses the layers too, by a cosine along the wrong axis; here any method
does. Its tabulated Hadamard matrix of 12, 20 or 36 times a power of two is another one; neither is better. The states
are taken from the pruned model with its earlier cuts repaired. Attention sinks (methods/least_squares.py) are left out
of the means, unless `linearpatch.sinks=alike`. The training of the map that the paper also offers is not built.

Families. Methods that remove layers, attentions or MLPs, in every family. The model loads with `methods.checkpoint`.

Cost. Two forward passes over the calibration text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Look, Tokens
from methods.compensation.base import BoundaryStates, ResidualMap, register_compensation
from methods.least_squares import Fitted, Sinks
from methods.model.precision import widen


@register_compensation("linearpatch")
@dataclass(frozen=True)
class LinearPatch(ResidualMap):
    """The residual rescaled in a Hadamard basis at each cut (Chen et al. 2025)."""

    rotate: bool = True  # rescale in a Hadamard basis; no: channel by channel
    sinks: Sinks = "apart"  # attention sinks are left out of the means, or alike, as all other tokens in them
    tokens: Tokens | None = None  # calibration tokens that are read; None: all

    forwards = 0.81
    paper_reads = "128 x 2,048 tokens of WikiText-2"  # layer_select.py
    look = Look("solid", "s", "orange")

    def fit(self, batches: list[BoundaryStates]) -> Fitted:
        """Return M (D, D) of y = x + x M, in float64."""
        D, device = batches[0].y.shape[-1], batches[0].y.device
        H = (make_hadamard(D) if self.rotate else torch.eye(D, dtype=torch.float64)).to(device)
        where = [each.measured(self.sinks) for each in batches]
        ratios = [(_size(batch.z, w, H) / _size(batch.y, w, H)).sum(0) for batch, w in zip(batches, where, strict=True)]
        c = torch.stack(ratios).sum(0) / sum(int(mask.any(1).sum()) for mask in where)
        return Fitted((H * (c - 1)) @ H.T, None)


def _size(x: Tensor, where: Tensor, H: Tensor) -> Tensor:
    """Return the sum over tokens of |(x H)_k|, (B, D); sequences without a fitted token are left out."""
    x = widen(x)
    sizes = (x @ H.to(x.dtype)).double().abs() * where[..., None]
    return sizes.sum(1)[where.any(1)].clamp_min(torch.finfo(torch.float64).tiny)


def make_hadamard(n: int) -> Tensor:
    """Return an orthonormal matrix (n, n), in float64, with entries of one size where the construction gives it."""
    core = n & -n  # the largest power of two in n
    while core >= 1:
        base = _paley(n // core)
        if base is not None:
            H = base
            for _ in range(core.bit_length() - 1):
                H = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), H)
            return H / n**0.5
        core //= 2
    draw = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(draw)[0]


def _paley(n: int) -> Tensor | None:
    """Return 1 and -1, (n, n), with orthogonal rows, by Paley 1933: n = 1, q + 1 or 2 (q + 1), q prime; else None."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if n % 4:
        return None
    if _is_prime(n - 1):  # q = 3 (mod 4)
        S = _conference(n - 1, -1.0)
        return S + torch.eye(n, dtype=torch.float64)
    if n % 8 == 4 and _is_prime(n // 2 - 1):  # q = 1 (mod 4)
        S, identity = _conference(n // 2 - 1, 1.0), torch.eye(n // 2, dtype=torch.float64)
        return torch.cat([torch.cat([S + identity, S - identity], 1), torch.cat([S - identity, -S - identity], 1)])
    return None


def _conference(q: int, sign: float) -> Tensor:
    """Return S (q + 1, q + 1), 0 on the diagonal, 1 and -1 elsewhere, S S^T = q I; symmetric where sign is 1."""
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0, *(1.0 if i in squares else -1.0 for i in range(1, q))], dtype=torch.float64)
    S = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    S[0, 1:], S[1:, 0] = 1.0, sign
    S[1:, 1:] = character[(torch.arange(q)[:, None] - torch.arange(q)) % q]
    return S


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
