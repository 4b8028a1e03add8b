"""A matrix that is the product of two thinner ones, where a layer had one matrix.

    y = up(down(x)) + b

Letters: m = outputs, n = inputs, k = rank.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from methods.errors import Unsupported
from methods.model.layer import linear_like


class FactoredMatrix(Unsupported, AttributeError):
    """Says that a matrix is two factors. `hasattr` takes it for an attribute that is missing."""


class LowRank(nn.Module):
    """Multiplies by two factors, down (k, n) and up (m, k), and adds the bias (m,) that the matrix had.

    It has the widths and the bias of the matrix whose place it takes, and no weight: what reads one is refused.
    """

    def __init__(self, down: Tensor, up: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.down, self.up = linear_like(down, None), linear_like(up, bias)

    @property
    def in_features(self) -> int:
        return self.down.in_features

    @property
    def out_features(self) -> int:
        return self.up.out_features

    @property
    def rank(self) -> int:
        return self.down.out_features

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise FactoredMatrix(
                "a matrix has been factored into two of low rank, and this reads or cuts whole ones; methods that "
                "remove layers, attentions or MLPs without a look at weights serve such a model"
            )
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return y


def factored(matrix: nn.Linear, down: Tensor, up: Tensor) -> LowRank:
    """Return what stands for a matrix when its weight is up @ down, in the matrix's dtype and where it lies."""
    weight = matrix.weight
    thin = [factor.to(weight.device, weight.dtype).contiguous() for factor in (down, up)]
    bias = None if matrix.bias is None else matrix.bias.detach()
    return LowRank(thin[0], thin[1], bias).requires_grad_(weight.requires_grad)


def ranks_of(matrices: dict[str, nn.Linear]) -> dict[str, int]:
    """Return the ranks of the matrices that have been factored, by the names that they are given."""
    return {name: matrix.rank for name, matrix in matrices.items() if isinstance(matrix, LowRank)}


def linears(matrices: list[nn.Linear]) -> list[nn.Linear]:
    """Return what is multiplied by: each matrix, or its two factors."""
    return [one for matrix in matrices for one in matrix.modules() if isinstance(one, nn.Linear)]
