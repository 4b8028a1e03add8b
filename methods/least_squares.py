"""Linear least squares over more rows than fit in memory, drawn towards a known solution.

First stands the fit itself, then the sinks that it weighs apart, and then the fit of a matrix in front of a norm.

    W* = argmin over W of  sum over rows of w ||x W + b - y||^2  +  ridge * sum_i A_ii ||W_i - W0_i||^2

    (A + ridge diag(A)) W* = B + ridge diag(A) W0,    A = sum of w x^T x,    B = sum of w x^T y

With an intercept x and y are taken from their means, and b = mean(y) - mean(x) W*, which is not drawn anywhere. Each
channel i of x is penalised by its own energy A_ii, so that the ridge means the same for a channel of any scale: it is
the share by which noise of the channel's own spectrum would blur it. The usual penalty, one for all channels, leaves
weak channels unbounded beside the few huge ones that language models have.

Sums and solutions are in float64. Rows of x in half precision are multiplied in float32, a micro-batch at a time
(methods/model/precision.py). The weight w of a row is 1, except for attention sinks.

Attention sinks. Many language models hold a state of huge norm at the first position of a sequence, and at few others.
Heads that have nothing to do spend their attention on it: Xiao, Tian, Chen, Han, Lewis 2024, "Efficient Streaming
Language Models with Attention Sinks", ICLR, arXiv 2309.17453; Sun, Chen, Kolter, Liu 2024, "Massive Activations in
Large Language Models", COLM, arXiv 2402.17762. In SmolLM2-135M such a state is a hundred times as long as the others
behind layer 11. Sinks decide a sum of squares over all tokens. A sum without them loses them where they first appear
inside the removed layers. So they are a population of their own: a fit minimises

    J = sum_others ||e||^2 / sum_others ||z||^2  +  s sum_sinks ||e||^2 / sum_sinks ||z||^2

e is the error at a token and z its target state. s is 1 or, where there are fewer sinks than sequences, their number
divided by that of the sequences. A token is a sink where its norm is more than TIMES the median, in any of the states
of a fit. Without sinks J is the usual sum of squares up to a factor.

The size of a sink does not matter, since every block reads it through a norm. So the target of a token that is a sink
already has the sink's size and the direction of z (`states_to_fit`). To shrink a sink, as the last layers of
SmolLM2-135M do, would cost the other tokens much.

A norm behind the matrix. In Gemma 2 and OLMo 2 a norm stands between the output matrix and the residual. A block adds
m = g * u, u = o / rms(o), with o = x W at each token and a gain g for each channel. This is not linear in W, since the
norm divides by the size of o. It is linear where s = 1 / rms(o) is held fixed at each token, at the value that the
matrix gave before. With t the target of the block's addition,

    W = argmin  sum over tokens of ||s x W - t / (k g)||^2  +  the penalty above

Each channel's gain is a factor of its whole equation, and falls out. s follows from the new W. The number k multiplies
all gains and follows from the least squares of t by k g u: several removed blocks add more than a single one, and a
norm gives no more than its gains. The round with the least error counts, of a few rounds. At last each gain is the
least squares of its own channel,

    g_i = sum over tokens of u_i t_i  /  sum over tokens of u_i^2

so that on the fitted tokens the block never has a larger error than before. No parameter is added.

I = columns of x, O = columns of y, M = rows of one piece, B = sequences of a micro-batch, T = tokens, D = residual
width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.errors import Unsupported
from methods.model.calibration import Wait, keep_in_memory
from methods.model.layer import Layer, epsilon_of
from methods.model.precision import add_product, widen

HELD_OUT = 4  # every fourth sequence is left out of a fit, and judges it


def relative_error_of(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return ||d||^2 / ||z||^2, summed in float64 over pairs of an error d and a target z; 0 where all z are 0."""
    missed = whole = 0.0
    for d, z in pairs:
        missed += sum_of_squares(d)
        whole += sum_of_squares(z)
    return missed / whole if whole else 0.0


def sum_of_squares(x: Tensor) -> float:
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
        x = widen(x)
        y = y.to(x.dtype)
        self.rows += len(x)
        self.weight += w * len(x)
        add_product(self.xx, x, x, w)
        add_product(self.xy, x, y, w)
        self.x.add_(x.sum(0, dtype=self.x.dtype), alpha=w)
        self.y.add_(y.sum(0, dtype=self.y.dtype), alpha=w)

    def solve(self, ridge: float, towards: Tensor, *, intercept: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return W* (I, O) and b (O,) or None, in float64; `towards` is W0 (I, O).

        Raises Unsupported where the ridge is too small for the number of rows.
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
    """Holds the rows of one micro-batch for a fit of x W + b to y.

    x      (B, T, I)
    y      (B, T, O)
    z      (B, T, D) the state by whose size an error is divided
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
        """Return two masks (B, T) of fitted tokens: of all that are no sinks, and of the sinks."""
        return self.where & ~self.sink, self.where & self.sink


@dataclass(frozen=True)
class Fitted:
    """Holds a solution, W (I, O) and b (O,) or None, in float64, and its error on held-out sequences.

    held_out        ||x W + b - y||^2 / ||z||^2 over the tokens of every fourth sequence that are no sinks, by a
                    solution of the other sequences; None where there is a single sequence
    held_out_sinks  the same over the sinks of these sequences; None where there is none
    """

    W: Tensor
    b: Tensor | None
    held_out: float | None = None
    held_out_sinks: float | None = None


def errors_of_fit(
    sinks: Sequence[Tensor],
    where: Sequence[Tensor],
    z: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    *,
    fitted: Fitted | None = None,
) -> dict[str, Any]:
    """Return for the record the error ||y - z||^2 / ||z||^2 before and after a fit, and on held-out sequences.

    The errors are over the tokens that are no sinks. The entry "sinks" has those over the sinks, and their number.

    sinks, where      (B, T) for each micro-batch
    z, before, after  (B, T, D) for each micro-batch: the target, and y before and after the fit
    """

    def missed(y: Sequence[Tensor], tokens: Sequence[Tensor]) -> float:
        rows = ((a[t].double(), b[t].double()) for a, b, t in zip(y, z, tokens, strict=True))
        return relative_error_of((a - b, b) for a, b in rows)

    def of(tokens: Sequence[Tensor], held_out: float | None) -> dict[str, Any]:
        errors = {"error_before": missed(before, tokens), "error_after": missed(after, tokens)}
        return errors if held_out is None else errors | {"error_held_out": held_out}

    ordinary = [real & ~sink for real, sink in zip(where, sinks, strict=True)]
    errors, count = of(ordinary, fitted.held_out if fitted else None), sum(int(sink.sum()) for sink in sinks)
    if count:
        errors["sinks"] = {"tokens": count} | of(sinks, fitted.held_out_sinks if fitted else None)
    return errors


def total_error_of_fit(
    sinks: Sequence[Tensor], where: Sequence[Tensor], z: Sequence[Tensor], y: Sequence[Tensor]
) -> float:
    """Return ||y - z||^2 / ||z||^2 over the sinks plus that over all other tokens; see `errors_of_fit`."""
    missed = errors_of_fit(sinks, where, z, y, y)
    return float(missed["error_after"] + missed.get("sinks", {}).get("error_after", 0.0))


def weight_of_sinks(batches: Sequence[Rows]) -> float:
    """Return the weight of a sink's row, s sum_others ||z||^2 / sum_sinks ||z||^2; 1 where there is no sink."""
    ordinary = sum(sum_of_squares(each.z[each.populations[0]]) for each in batches)
    sinks = sum(sum_of_squares(each.z[each.populations[1]]) for each in batches)
    count = sum(int(each.populations[1].sum()) for each in batches)
    return min(1.0, count / sum(len(each.where) for each in batches)) * ordinary / sinks if sinks and ordinary else 1.0


def fit(
    batches: Sequence[Rows],
    ridge: float,
    towards: Tensor,
    sinks: Sinks,
    *,
    intercept: bool = False,
    hold_out: bool = True,
) -> Fitted:
    """Return the fit of x W + b to y over all micro-batches.

    towards   W0 (I, O)
    sinks     whether attention sinks weigh as a population of their own
    hold_out  judge the fit too, by one more solve

    Raises Unsupported where the ridge is too small for the number of rows.
    """
    weights = (1.0, weight_of_sinks(batches) if sinks == "apart" else 1.0)
    fitted, held_out = split_held_out(batches) if hold_out else (list(batches), [])
    sums = LeastSquares(towards.shape[0], towards.shape[1], towards.device)
    _add(sums, fitted, weights)
    missed = (
        _errors_of_held_out(held_out, *sums.solve(ridge, towards, intercept=intercept))
        if fitted and held_out
        else [None, None]
    )
    _add(sums, held_out, weights)
    W, b = sums.solve(ridge, towards, intercept=intercept)
    return Fitted(W, b, *missed)


def _errors_of_held_out(held_out: Sequence[Rows], W: Tensor, b: Tensor | None) -> list[float | None]:
    """Return the error of a solution on held-out tokens that are no sinks, and on sinks; None where there are none."""
    errors: list[float | None] = []
    for i in (0, 1):
        is_present = any(bool(each.populations[i].any()) for each in held_out)
        errors.append(relative_error_of(_residuals(held_out, i, W, b)) if is_present else None)
    return errors


def _add(sums: LeastSquares, batches: Sequence[Rows], weights: tuple[float, float]) -> None:
    for each in batches:
        for tokens, w in zip(each.populations, weights, strict=True):
            sums.add(each.x[tokens], each.y[tokens], w)


def _residuals(batches: Sequence[Rows], i: int, W: Tensor, b: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the errors of W and b at the tokens of population i, and their z, for each micro-batch."""
    for each in batches:
        tokens = each.populations[i]
        x = widen(each.x[tokens])
        missed = x @ W.to(x.dtype) - each.y[tokens].double()
        yield missed if b is None else missed + b, each.z[tokens]


def split_held_out(batches: Sequence[Rows]) -> tuple[list[Rows], list[Rows]]:
    """Return the micro-batches without every fourth sequence, and with these alone.

    Of two or three sequences the last one is held out, and of a single one none.
    """
    total, fitted, held_out, number = sum(len(each.where) for each in batches), list[Rows](), list[Rows](), 0
    if total == 1:
        return list(batches), []
    for each in batches:
        numbers = torch.arange(number + 1, number + 1 + len(each.where), device=each.where.device)
        out = (numbers % min(HELD_OUT, total) == 0)[:, None]
        fitted.append(replace(each, where=each.where & ~out))
        held_out.append(replace(each, where=each.where & out))
        number += len(each.where)
    return fitted, held_out


Sinks = Literal["apart", "alike"]  # a population of their own, or tokens like all others

TIMES = 5.0  # the median norm; in SmolLM2-135M sinks have 5 to 11 times it in layers 2 to 7, 28 or more from 11 to 27


def find_sinks(where: Sequence[Tensor], *states: Sequence[Tensor]) -> list[Tensor]:
    """Return (B, T) for each micro-batch, true at tokens that are a sink in any of the states.

    where   (B, T) for each micro-batch, true at real tokens
    states  (B, T, D) for each micro-batch, of one state or several
    """
    masks = [torch.zeros_like(real) for real in where]
    for each in states:
        norms = [state.float().norm(dim=-1) for state in each]
        median = torch.cat([norm[real] for norm, real in zip(norms, where, strict=True)]).median()
        masks = [sink | (real & (norm > TIMES * median)) for sink, norm, real in zip(masks, norms, where, strict=True)]
    return masks


def states_to_fit(
    where: Sequence[Tensor], y: Sequence[Tensor], z: Sequence[Tensor], sinks: Sinks, wait: Wait = keep_in_memory
) -> list[Tensor]:
    """Return the target states, (B, T, D) for each micro-batch: z, in the size of y at tokens that are a sink in both.

    With sinks `alike` they are z itself.
    """
    if sinks == "alike":
        return list(z)
    targets = []
    for current, target, in_y, in_z in zip(y, z, find_sinks(where, y), find_sinks(where, z), strict=True):
        size = torch.where(in_y & in_z, current.float().norm(dim=-1) / target.float().norm(dim=-1), 1.0)
        targets.append(wait(target * size[..., None].to(target.dtype)))
    return targets


ROUNDS = 3  # in which s and W are solved for
SMALL = 0.05  # of the median gain: the least gain that is divided by


@dataclass(frozen=True)
class Norm:
    """Holds a norm between a block and the residual: gains g (D,) in float64, and epsilon."""

    g: Tensor
    epsilon: float

    @classmethod
    def behind(cls, layer: Layer, which: int) -> Norm:
        """Return the norm behind the attention (0) or the MLP (1) of a layer."""
        norm: Any = layer.post_norm(which)
        return cls(norm.weight.detach().to(layer.device).double() + layer.family.gain_offset, epsilon_of(norm))

    def write_gains(self, layer: Layer, which: int) -> None:
        """Give the norm of a layer these gains."""
        norm: Any = layer.post_norm(which)
        old = norm.weight
        norm.weight = nn.Parameter((self.g - layer.family.gain_offset).to(old.device, old.dtype), old.requires_grad)

    def size(self, o: Tensor) -> Tensor:
        """Return rms(o) at each token, (..., 1)."""
        return (o.square().mean(-1, keepdim=True) + self.epsilon).sqrt()

    def undo(self, m: Tensor) -> Tensor:
        """Return m / g, (..., D): the input of the norm up to its size at each token."""
        return m / self.divisor.to(m.dtype)

    @property
    def divisor(self) -> Tensor:
        """Return g, with gains near zero moved away from it."""
        least = SMALL * self.g.abs().median()
        return torch.where(self.g.abs() < least, least * torch.where(self.g < 0, -1.0, 1.0), self.g)


@dataclass(frozen=True)
class NormedMap:
    """Maps the input of an output matrix to the addition of its block: g * x W / rms(x W)."""

    W: Tensor
    norm: Norm

    def __call__(self, x: Tensor) -> Tensor:
        """Return the addition for x (..., I), in the dtype of x."""
        o = x.double() @ self.W
        return (self.norm.g * o / self.norm.size(o)).to(x.dtype)


def fit_normed(
    batches: Sequence[Rows], ridge: float, towards: Tensor, sinks: Sinks, norm: Norm, *, hold_out: bool = True
) -> tuple[NormedMap, Fitted]:
    """Return the map that fits the addition of a block to y over all micro-batches, and the fit with its errors.

    towards  W0 (I, D)
    norm     the norm behind the matrix
    """
    weights = (1.0, weight_of_sinks(batches) if sinks == "apart" else 1.0)
    fitted, held_out = split_held_out(batches) if hold_out else (list(batches), [])
    missed: list[float | None] = [None, None]
    if fitted and held_out:
        fitted_map = _rounds(fitted, weights, ridge, towards, norm)
        for i in (0, 1):
            if any(bool(each.populations[i].any()) for each in held_out):
                missed[i] = relative_error_of(_normed_residuals(held_out, i, fitted_map))
    fitted_map = _rounds(batches, weights, ridge, towards, norm)
    return fitted_map, Fitted(fitted_map.W, None, *missed)


def _rounds(
    batches: Sequence[Rows], weights: tuple[float, float], ridge: float, towards: Tensor, norm: Norm
) -> NormedMap:
    W = towards.detach().double()
    best, least = NormedMap(W, norm), _error(batches, weights, NormedMap(W, norm))
    for _ in range(ROUNDS):
        scaled = Norm(norm.g * _factor(batches, weights, NormedMap(W, norm)), norm.epsilon)
        W = _solve(batches, weights, ridge, towards, NormedMap(W, scaled))
        candidate = NormedMap(W, Norm(norm.g * _factor(batches, weights, NormedMap(W, norm)), norm.epsilon))
        if (error := _error(batches, weights, candidate)) < least:
            best, least = candidate, error
    return NormedMap(best.W, Norm(_gains(batches, weights, best), norm.epsilon))


def _solve(
    batches: Sequence[Rows], weights: tuple[float, float], ridge: float, towards: Tensor, now: NormedMap
) -> Tensor:
    """Return W, with the size of each token that the map `now` gives."""
    sums, divisor = LeastSquares(towards.shape[0], towards.shape[1], towards.device), now.norm.divisor
    for x, t, w in _pieces(batches, weights):
        sums.add(x / now.norm.size(x @ now.W), t / divisor, w)
    return sums.solve(ridge, towards)[0]


def _factor(batches: Sequence[Rows], weights: tuple[float, float], fit: NormedMap) -> float:
    """Return k, the factor that brings the additions nearest to their targets; 1 where they point away."""
    both = own = 0.0
    for x, t, w in _pieces(batches, weights):
        m = fit(x)
        both, own = both + w * float((m * t).sum()), own + w * float(m.square().sum())
    return both / own if both > 0 else 1.0


def _gains(batches: Sequence[Rows], weights: tuple[float, float], fit: NormedMap) -> Tensor:
    """Return g (D,); a channel whose input is always 0 keeps its gain."""
    both, own = torch.zeros_like(fit.norm.g), torch.zeros_like(fit.norm.g)
    for x, t, w in _pieces(batches, weights):
        o = x @ fit.W
        u = o / fit.norm.size(o)
        both, own = both + w * (u * t).sum(0), own + w * u.square().sum(0)
    return torch.where(own > 0, both / own.clamp_min(torch.finfo(own.dtype).tiny), fit.norm.g)


def _error(batches: Sequence[Rows], weights: tuple[float, float], fit: NormedMap) -> float:
    return sum(w * float((fit(x) - t).square().sum()) for x, t, w in _pieces(batches, weights))


def _pieces(batches: Sequence[Rows], weights: tuple[float, float]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield x (M, I), t (M, D) and the weight of each population of each micro-batch, in float64."""
    for each in batches:
        for tokens, w in zip(each.populations, weights, strict=True):
            yield each.x[tokens].double(), each.y[tokens].double(), w


def _normed_residuals(batches: Sequence[Rows], i: int, fit: NormedMap) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the errors of the map at the tokens of population i, and their z, for each micro-batch."""
    for each in batches:
        tokens = each.populations[i]
        yield fit(each.x[tokens].double()) - each.y[tokens].double(), each.z[tokens]
