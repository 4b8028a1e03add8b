"""Multiplies what a sub-block adds to the residual, as families do whose configuration has a factor for it."""

from __future__ import annotations

from torch import Tensor, nn


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor
