"""Linear least squares over more rows than fit in memory, drawn towards a known solution.

    W* = argmin over W of  sum over rows of w ||x W + b - y||^2  +  ridge * sum_i A_ii ||W_i - W0_i||^2

    (A + ridge diag(A)) W* = B + ridge diag(A) W0,    A = sum of w x^T x,    B = sum of w x^T y

With an intercept x and y are taken from their means, and b = mean(y) - mean(x) W*, which is not drawn anywhere. Each
channel i of x is penalised by its own energy A_ii, so that the ridge means the same for a channel of any scale: it is
the share by which noise of the channel's own spectrum would blur it. The usual penalty, one for all channels, leaves
weak channels unbounded beside the few huge ones that language models have.

Sums and solutions are in float64. Rows of x in half precision are multiplied in float32, a micro-batch at a time
(methods/model/precision.py).

The weight w of a row is 1, but for attention sinks, which are a population of their own (methods/model/sinks.py).

I = columns of x, O = columns of y, M = rows of one piece, B = sequences of a micro-batch, T = tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from methods.errors import Unsupported
from methods.model.precision import add_product, widened
from methods.model.sinks import Sinks

HELD_OUT = 4  # one sequence in so many is left out of the fit that is judged by it


def relative_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return ||d||^2 / ||z||^2, summed in float64 over pairs of what a fit misses, d, and what was wanted, z.

    0 where there is nothing.
    """
    missed = whole = 0.0
    for d, z in pairs:
        missed += squared(d)
        whole += squared(z)
    return missed / whole if whole else 0.0


def squared(x: Tensor) -> float:
    """Return ||x||^2, summed in float64."""
    return float(x.double().square().sum())


class LeastSquares:
    """Sums up the normal equations, piece by piece, and solves them."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.rows, self.weight = 0, 0.0
        self.xx, self.xy = zero.new_zeros(inputs, inputs), zero.new_zeros(inputs, outputs)
        self.x, self.y = zero.new_zeros(inputs), zero.new_zeros(outputs)

    def add(self, x: Tensor, y: Tensor, w: float = 1.0) -> None:
        """Add rows of x (M, I) and y (M, O), each of weight w."""
        x = widened(x)
        y = y.to(x.dtype)
        self.rows += len(x)
        self.weight += w * len(x)
        add_product(self.xx, x, x, w)
        add_product(self.xy, x, y, w)
        self.x.add_(x.sum(0, dtype=self.x.dtype), alpha=w)
        self.y.add_(y.sum(0, dtype=self.y.dtype), alpha=w)

    def solve(self, ridge: float, towards: Tensor, *, intercept: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return W* (I, O) and b (O,) or None, in float64; `towards` is W0 (I, O).

        Raises Unsupported where the ridge is too small for the rows that there are.
        """
        A, B = torch.empty_like(self.xx).T.copy_(self.xx), self.xy  # A by columns, so that L can take its place
        if intercept:
            A -= torch.outer(self.x, self.x).div_(self.weight)
            B = B - torch.outer(self.x, self.y).div_(self.weight)
        energy = A.diagonal().clamp_min(torch.finfo(A.dtype).eps * A.diagonal().max())  # a channel may be silent
        penalty = ridge * energy.clamp_min(torch.finfo(A.dtype).tiny)
        A.diagonal().add_(penalty)
        L, failed = torch.linalg.cholesky_ex(A, out=(A, torch.empty((), dtype=torch.int32, device=A.device)))
        if int(failed):
            raise Unsupported(
                f"{self.rows} calibration tokens do not determine a map of {len(A)} channels at ridge={ridge:g}; "
                "give more tokens or a larger ridge"
            )
        W = torch.empty_like(B.T, memory_format=torch.contiguous_format).T.copy_(towards)  # by columns too
        W.mul_(penalty[:, None]).add_(B)
        torch.linalg.solve_triangular(L, W, upper=False, out=W)  # where cholesky_solve would copy both
        torch.linalg.solve_triangular(L.T, W, upper=True, out=W)
        return W, (self.y - self.x @ W) / self.weight if intercept else None


@dataclass(frozen=True)
class Rows:
    """Holds what one micro-batch gives to a fit of x W + b to y.

    x      (B, T, I)
    y      (B, T, O)
    z      (B, T, D) the state whose size an error is held against
    where  (B, T) true at the tokens that are fitted
    sink   (B, T) true at attention sinks
    """

    x: Tensor
    y: Tensor
    z: Tensor
    where: Tensor
    sink: Tensor

    @property
    def populations(self) -> tuple[Tensor, Tensor]:
        """Return (B, T) twice, true at the fitted tokens that are no sinks, and at those that are."""
        return self.where & ~self.sink, self.where & self.sink


@dataclass(frozen=True)
class Fitted:
    """Holds a solution, W (I, O) and b (O,) or None, in float64, and what it was found to miss.

    held_out        ||x W + b - y||^2 / ||z||^2 over every fourth sequence's tokens but its sinks, by a solution of the
                    other sequences; None where there is but one sequence
    held_out_sinks  the same over their sinks; None where there is none
    """

    W: Tensor
    b: Tensor | None
    held_out: float | None = None
    held_out_sinks: float | None = None


def errors(
    sinks: Sequence[Tensor],
    where: Sequence[Tensor],
    z: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    *,
    fitted: Fitted | None = None,
) -> dict[str, Any]:
    """Return, for the record, ||y - z||^2 / ||z||^2 before and after a fit, and by it of sequences it has not seen.

    Over the tokens that are no sinks; over the sinks, and how many there are, under "sinks". Of `sinks` and `where`
    there is (B, T) for each micro-batch, of z and of y `before` and `after` (B, T, D).
    """

    def missed(y: Sequence[Tensor], tokens: Sequence[Tensor]) -> float:
        rows = ((a[t].double(), b[t].double()) for a, b, t in zip(y, z, tokens, strict=True))
        return relative_error((a - b, b) for a, b in rows)

    def of(tokens: Sequence[Tensor], held_out: float | None) -> dict[str, Any]:
        found = {"error_before": missed(before, tokens), "error_after": missed(after, tokens)}
        return found if held_out is None else found | {"error_held_out": held_out}

    others = [real & ~sink for real, sink in zip(where, sinks, strict=True)]
    found, count = of(others, fitted.held_out if fitted else None), sum(int(sink.sum()) for sink in sinks)
    if count:
        found["sinks"] = {"tokens": count} | of(sinks, fitted.held_out_sinks if fitted else None)
    return found


def total_error(sinks: Sequence[Tensor], where: Sequence[Tensor], z: Sequence[Tensor], y: Sequence[Tensor]) -> float:
    """Return ||y - z||^2 / ||z||^2 over the sinks, added to that over all other tokens; arguments as of `errors`."""
    missed = errors(sinks, where, z, y, y)
    return float(missed["error_after"] + missed.get("sinks", {}).get("error_after", 0.0))


def sink_weight(batches: Sequence[Rows]) -> float:
    """Return the weight of a sink's row, s sum_others ||z||^2 / sum_sinks ||z||^2 (methods/model/sinks.py)."""
    others, sinks = (sum(squared(each.z[each.populations[i]]) for each in batches) for i in (0, 1))
    count = sum(int(each.populations[1].sum()) for each in batches)
    return min(1.0, count / sum(len(each.where) for each in batches)) * others / sinks if sinks and others else 1.0


def fit(
    batches: Sequence[Rows],
    ridge: float,
    towards: Tensor,
    sinks: Sinks,
    *,
    intercept: bool = False,
    hold_out: bool = True,
) -> Fitted:
    """Fit x W + b to y over all micro-batches; `towards` is W0 (I, O). `hold_out` judges it too, by one more solve.

    `sinks` says whether attention sinks weigh as a population of their own. Raises Unsupported where the ridge is too
    small for the rows that there are.
    """
    weights = (1.0, sink_weight(batches) if sinks == "apart" else 1.0)
    known, held = held_apart(batches) if hold_out else (list(batches), [])
    sums = LeastSquares(towards.shape[0], towards.shape[1], towards.device)
    _add(sums, known, weights)
    missed = _judged(held, *sums.solve(ridge, towards, intercept=intercept)) if known and held else [None, None]
    _add(sums, held, weights)
    W, b = sums.solve(ridge, towards, intercept=intercept)
    return Fitted(W, b, *missed)


def _judged(held: Sequence[Rows], W: Tensor, b: Tensor | None) -> list[float | None]:
    """Return what a solution misses of other sequences, and of the sinks in them; None where there are none."""
    there = [any(bool(each.populations[i].any()) for each in held) for i in (0, 1)]
    return [relative_error(_missed(held, i, W, b)) if there[i] else None for i in (0, 1)]


def _add(sums: LeastSquares, batches: Sequence[Rows], weights: tuple[float, float]) -> None:
    for each in batches:
        for tokens, w in zip(each.populations, weights, strict=True):
            sums.add(each.x[tokens], each.y[tokens], w)


def _missed(batches: Sequence[Rows], i: int, W: Tensor, b: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what W and b miss at the tokens of population i, and their z, for each micro-batch."""
    for each in batches:
        tokens = each.populations[i]
        x = widened(each.x[tokens])
        missed = x @ W.to(x.dtype) - each.y[tokens].double()
        yield missed if b is None else missed + b, each.z[tokens]


def held_apart(batches: Sequence[Rows]) -> tuple[list[Rows], list[Rows]]:
    """Return the micro-batches without every fourth sequence, and with it alone; of fewer, without the last."""
    total, known, held, number = sum(len(each.where) for each in batches), list[Rows](), list[Rows](), 0
    if total == 1:
        return list(batches), []
    for each in batches:
        numbers = torch.arange(number + 1, number + 1 + len(each.where), device=each.where.device)
        out = (numbers % min(HELD_OUT, total) == 0)[:, None]
        known.append(replace(each, where=each.where & ~out))
        held.append(replace(each, where=each.where & out))
        number += len(each.where)
    return known, held
