"""Linear least squares over more rows than fit in memory, in float64, drawn towards a known solution.

    W* = argmin over W of  sum over rows of ||x W + b - y||^2  +  ridge * sum_i A_ii ||W_i - W0_i||^2

    (A + ridge diag(A)) W* = B + ridge diag(A) W0,    A = sum of x^T x,    B = sum of x^T y

With an intercept x and y are taken from their means, and b = mean(y) - mean(x) W*, which is not drawn anywhere. Each
channel i of x is penalised by its own energy A_ii, so that the ridge means the same for a channel of any scale: it is
the share by which noise of the channel's own spectrum would blur it. The usual penalty, one for all channels, leaves
weak channels unbounded beside the few huge ones that language models have.

I = columns of x, O = columns of y, M = rows of one piece.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from methods.errors import Unsupported


def relative_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return ||d||^2 / ||z||^2, summed in float64 over pairs of what a fit misses, d, and what was wanted, z."""
    missed = whole = 0.0
    for d, z in pairs:
        missed += squared(d)
        whole += squared(z)
    return missed / whole


def squared(x: Tensor) -> float:
    """Return ||x||^2, summed in float64."""
    return float(x.double().square().sum())


class LeastSquares:
    """Sums up the normal equations, piece by piece, and solves them."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.rows = 0
        self.xx, self.xy = zero.new_zeros(inputs, inputs), zero.new_zeros(inputs, outputs)
        self.x, self.y = zero.new_zeros(inputs), zero.new_zeros(outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows of x (M, I) and y (M, O)."""
        x, y = x.double(), y.double()
        self.rows += len(x)
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)
        self.x += x.sum(0)
        self.y += y.sum(0)

    def solve(self, ridge: float, towards: Tensor, *, intercept: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return W* (I, O) and b (O,) or None, in float64; `towards` is W0 (I, O).

        Raises Unsupported where the ridge is too small for the rows that there are.
        """
        A, B = self.xx, self.xy
        if intercept:
            A = A - torch.outer(self.x, self.x) / self.rows
            B = B - torch.outer(self.x, self.y) / self.rows
        energy = A.diagonal().clamp_min(torch.finfo(A.dtype).eps * A.diagonal().max())  # a channel may be silent
        penalty = ridge * energy.clamp_min(torch.finfo(A.dtype).tiny)
        L, failed = torch.linalg.cholesky_ex(A + torch.diag(penalty))
        if int(failed):
            raise Unsupported(
                f"{self.rows} calibration tokens do not determine a map of {len(A)} channels at ridge={ridge:g}; "
                "give more tokens or a larger ridge"
            )
        W = torch.cholesky_solve(B + penalty[:, None] * towards.double(), L)
        return W, (self.y - self.x @ W) / self.rows if intercept else None
