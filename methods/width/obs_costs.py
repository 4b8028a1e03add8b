"""Says what the removal of columns of a matrix costs its output, as one unit after another goes: optimal brain surgery.

W (D, C) is the matrix, H (C, C) the second moments of its inputs, V what W has become: zero at what has been removed,
and such that the loss 1/2 tr((V - W) H (V - W)^T) is least. With P = H^-1 over the columns that are left, the removal
of the columns u costs

    c(u) = 1/2 tr(V_u (P_uu)^-1 V_u^T)

(Kurtic, Frantar, Alistarh 2023, arXiv 2302.04089; Meng et al. 2024, arXiv 2403.12983). That needs Z = V^T V alone, so
that D drops out. With L L^T = P_uu a removal leaves

    P <- P - G G^T               G = P_:u L^-T
    Z <- Z - Y G^T - G Y^T       Y = Z_:u L^-T - 1/2 G L^-1 Z_uu L^-T

The costs need the blocks of both on the diagonal, which are always up to date; the rest is updated for LATER columns in
one product of matrices. What goes does not depend on that.

The code of Tyr-the-Pruner (arXiv 2503.09657) adds tr(V_u (H W^T)_u) to c(u). That is a block on the diagonal of
F = H W^T V, which a removal leaves as F - F_:u L^-T G^T.

Letters: U = units that are left, w = columns of a unit, C = U w.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from methods.errors import Unsupported
from methods.model.structures import lowest

Score = Literal["cost", "tyr-release"]

LATER = 128  # columns whose updates are made in one product


def cheapest(
    H: Tensor, W: Tensor, width: int, count: int, *, score: Score = "cost", rounds: int | None = None
) -> list[int]:
    """Return the `count` units whose removal costs least, in the order in which they go.

    H (C, C) and W (D, C) are in float64; a unit is `width` columns that stand together.

    rounds  in which they go, those of a round at once; None: one after another

    Raises Unsupported where H is not positive definite.
    """
    left, gone = RemovalCosts(H, W, width, score), list[int]()
    rounds = min(rounds or count, count)
    for number in range(rounds):
        for unit in left.cheapest(-(-(count - len(gone)) // (rounds - number))):
            gone.append(unit)
            left.remove(unit)
    return gone


class RemovalCosts:
    """Holds what the removal of each unit that is left would cost.

    P, Z and F (C, C) lack the updates of the last removals, whose G, Y and E = F_:u L^-T wait as columns of (C, n). The
    blocks on their diagonals, (U, w, w), lack none.
    """

    def __init__(self, H: Tensor, W: Tensor, width: int, score: Score = "cost") -> None:
        self.w, self.numbers = width, torch.arange(len(H) // width, device=H.device)
        self.P, self.Z = torch.cholesky_inverse(factor(H)), W.T @ W
        self.F = (H @ W.T) @ W if score == "tyr-release" else None
        self._start()

    def _start(self) -> None:
        self.gone = torch.zeros_like(self.numbers, dtype=torch.bool)
        self.G, self.Y, self.E = (self.P.new_zeros(len(self.P), 0) for _ in range(3))
        self.P_uu, self.Z_uu = self._diagonal(self.P), self._diagonal(self.Z)
        self.F_uu = None if self.F is None else self._diagonal(self.F)

    def _diagonal(self, matrix: Tensor) -> Tensor:
        """Return the blocks on the diagonal, (U, w, w)."""
        U, w = len(self.numbers), self.w
        return matrix.view(U, w, U, w).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def costs(self) -> Tensor:
        """Return c of each unit, (U,), infinite for those that are gone."""
        P_uu = torch.where(self.gone[:, None, None], torch.eye(self.w).to(self.P), self.P_uu)
        c = 0.5 * _trace(self.Z_uu / P_uu if self.w == 1 else torch.linalg.solve(P_uu, self.Z_uu))
        if self.F_uu is not None:
            c += _trace(self.F_uu)
        return c.masked_fill(self.gone, torch.inf)

    def cheapest(self, count: int) -> list[int]:
        """Return the `count` units that cost least, by the numbers that they had at first."""
        if self.G.shape[1] >= LATER:
            self._update()
        found: list[int] = self.numbers[lowest(self.costs(), count)].tolist()
        return found

    def remove(self, unit: int) -> None:
        """Remove a unit, by the number that it had at first."""
        u = int((self.numbers == unit).nonzero())
        at = slice(u * self.w, (u + 1) * self.w)
        P_u = self.P[:, at] - self.G @ self.G[at].T
        Z_u = self.Z[:, at] - self.Y @ self.G[at].T - self.G @ self.Y[at].T
        L = factor(P_u[at])
        G = _over(P_u, L)
        Y = _over(Z_u, L)
        Y -= 0.5 * G @ torch.linalg.solve_triangular(L, Y[at], upper=False)
        g, y = G.view(-1, self.w, self.w), Y.view(-1, self.w, self.w)
        self.P_uu -= g @ g.mT
        self.Z_uu -= y @ g.mT + g @ y.mT
        if self.F is not None and self.F_uu is not None:
            E = _over(self.F[:, at] - self.E @ self.G[at].T, L)
            self.F_uu -= E.view(-1, self.w, self.w) @ g.mT
            self.E = torch.cat([self.E, E], 1)
        self.G, self.Y = torch.cat([self.G, G], 1), torch.cat([self.Y, Y], 1)
        self.gone[u] = True

    def _update(self) -> None:
        """Make the updates that wait, and let go of the rows and columns of units that are gone."""
        K = (~self.gone).repeat_interleave(self.w).nonzero()
        G, Y, pairs = self.G[K[:, 0]], self.Y[K[:, 0]], (K, K.T)
        self.P = self.P[pairs].addmm_(G, G.T, alpha=-1)
        self.Z = self.Z[pairs].addmm_(Y, G.T, alpha=-1).addmm_(G, Y.T, alpha=-1)
        if self.F is not None:
            self.F = self.F[pairs].addmm_(self.E[K[:, 0]], G.T, alpha=-1)
        self.numbers = self.numbers[~self.gone]
        self._start()


def _trace(blocks: Tensor) -> Tensor:
    return blocks.diagonal(dim1=1, dim2=2).sum(1)


def _over(x: Tensor, L: Tensor) -> Tensor:
    """Return x L^-T, (C, w)."""
    return torch.linalg.solve_triangular(L, x.T, upper=False).T


def factor(H: Tensor) -> Tensor:
    """Return L of H = L L^T. Raises Unsupported where H is not positive definite."""
    L, failed = torch.linalg.cholesky_ex(H)
    if int(failed):
        raise Unsupported(
            "the calibration tokens do not determine what the loss of each unit would cost; give more tokens, or obs a "
            "larger damping"
        )
    return L
