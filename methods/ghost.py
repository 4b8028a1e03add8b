"""Ghost: at each cut a linear map of the residual stands in for the blocks that have gone.

Yun, Jo, Karimireddy, Lee 2026, "Ghosted Layers: Unconstrained Activation Alignment for Recovering Layer-Pruned LLMs",
arXiv 2605.15491. Code: daniel-eai/ghosted_layers_official_repository.

X is the residual that the pruned model has at a cut, Z what the dense model has behind the removed blocks. The map is
the unconstrained least squares of the gap between them,

    M = argmin ||X + X M - Z||^2,    y = x + x M

and stays in the model: D^2 parameters and one product for each cut, which no norm lets one fold into a matrix.
Neighbouring blocks share one cut.

D = residual width.

Departures from the paper. The states are taken from the pruned model as it has been mended so far, cut after cut from
the front; the paper takes them from the dense one. The first position is left out of the fit, where many models hold a
state of huge norm that would decide the squares. Each channel is penalised in proportion to its energy (see
methods/least_squares.py) instead of by an absolute 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from methods.compensation import compensation
from methods.cuts import Cut, Mended, Pruning, Seen, at_cuts, some_cuts
from methods.least_squares import LeastSquares
from methods.mapped import put_map
from methods.pruner import Calibration


class ResidualMap:
    """What ghost and linearpatch share: a map M (D, D) of the residual at each cut, y = x + x M."""

    leave_first: bool
    tokens: int | None
    uneven = "it adds maps of the residual"

    def fit(self, seen: list[Seen]) -> Tensor:
        raise NotImplementedError

    def added(self, pruning: Pruning) -> int:
        D: int = pruning.dense.embed.embedding_dim
        return len(some_cuts(pruning)) * D * D

    def mend(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        def at(cut: Cut, seen: list[Seen]) -> Mended:
            M = self.fit(seen)
            put_map(pruning.pruned, cut.behind, M)
            M = M.to(seen[0].y.dtype)
            return Mended(lambda each: each.y + each.y @ M)

        read = calibration if self.tokens is None else calibration.first(self.tokens)
        return {"cuts": at_cuts(pruning, read, self.leave_first, at), "tokens": int(read.mask.sum())}


@compensation("ghost")
@dataclass(frozen=True)
class Ghost(ResidualMap):
    """A linear map of the residual at each cut, by least squares (Yun et al. 2026)."""

    ridge: float = 1.0  # penalty of each channel, as a share of its energy
    leave_first: bool = True  # leave the first position of each sequence out of the fit
    tokens: int | None = None  # calibration tokens that are read; None: all

    def __post_init__(self) -> None:
        check(self.ridge, self.tokens)

    def fit(self, seen: list[Seen]) -> Tensor:
        """M (D, D), in float64"""
        D = seen[0].y.shape[-1]
        sums = LeastSquares(D, D, seen[0].y.device)
        for each in seen:
            x, _, z = each.rows()
            sums.add(x, z - x)
        return sums.solve(self.ridge, sums.xy.new_zeros(D, D))[0]


def check(ridge: float, tokens: int | None) -> None:
    """The parameters that every fit has. Raises ValueError."""
    if not ridge > 0:
        raise ValueError(f"ridge is positive, so that the fit is unique where tokens are few; got {ridge:g}")
    if tokens is not None and tokens < 2:
        raise ValueError(f"tokens is at least 2; got {tokens}")
