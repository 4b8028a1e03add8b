"""Linear least squares over more rows than fit in memory, drawn towards a known solution.

    W* = argmin over W of  sum over rows of w ||x W + b - y||^2  +  ridge * sum_i A_ii ||W_i - W0_i||^2

    (A + ridge diag(A)) W* = B + ridge diag(A) W0,    A = sum of w x^T x,    B = sum of w x^T y

With an intercept x and y are taken from their means, and b = mean(y) - mean(x) W*, which is not drawn anywhere. Each
channel i of x is penalised by its own energy A_ii, so that the ridge means the same for a channel of any scale: it is
the share by which noise of the channel's own spectrum would blur it. The usual penalty, one for all channels, leaves
weak channels unbounded beside the few huge ones that language models have.

Sums and solutions are in float64. Rows of x in half precision are multiplied in float32, a micro-batch at a time
(methods/model/precision.py).

The weight w of a row is 1, but for attention sinks, which are a population of their own (methods/least_squares.py).

I = columns of x, O = columns of y, M = rows of one piece, B = sequences of a micro-batch, T = tokens.

Tells attention sinks from the other tokens, by the size of their states, for fits that sum squares over tokens.

Many language models hold a state of huge norm at the first position of a sequence, and at few others, on which heads
that have nothing to do spend their attention: Xiao, Tian, Chen, Han, Lewis 2024, "Efficient Streaming Language Models
with Attention Sinks", ICLR, arXiv 2309.17453; Sun, Chen, Kolter, Liu 2024, "Massive Activations in Large Language
Models", COLM, arXiv 2402.17762. In SmolLM2-135M such a state is a hundred times as long as the others behind layer 11.
A sum of squares over all tokens is then decided by the sinks, and one that leaves them out loses them where they first
appear inside the removed layers. So they are a population of their own: a fit minimises

    J = sum_others ||e||^2 / sum_others ||z||^2  +  s sum_sinks ||e||^2 / sum_sinks ||z||^2

e what is missed at a token, z the state that is wanted there, s = 1, or, where there are fewer sinks than sequences,
their number by that of the sequences. A token is a sink where its norm is more than TIMES the median, in any of the
states that a fit sees. Where there is none, J is the usual sum of squares but for a factor.

What a sink needs is to be one: the norm in front of every block does not see its size. So a sink that is there already
is wanted in the size that it has, in the direction of z (`wanted_states`). To shrink one, as the last layers of
SmolLM2-135M do, would cost the other tokens much.

B = sequences of a micro-batch, T = tokens, D = residual width.

Least squares for an output matrix whose result is normed before it joins the residual, as in Gemma 2 and OLMo 2.

A block adds m = g * u, u = o / rms(o), with o = x W at each token and a gain g for each channel. What it adds is not
linear in W, since the norm divides by the size of o. With s = 1 / rms(o) held fixed at each token, at what the matrix
before gives, it is, and with t what the block ought to add,

    W = argmin  sum over tokens of ||s x W - t / (k g)||^2  +  the penalty of methods/least_squares.py

Each channel's gain is a factor of its whole equation, and falls out. s follows from the new W, and the number k, by
which all gains are multiplied, from the least squares of t by k g u: several removed blocks add more than one, and a
norm gives no more than its gains. Of a few rounds the one that misses least is taken. At last each gain is the least
squares of its own channel,

    g_i = sum over tokens of u_i t_i  /  sum over tokens of u_i^2

so that on the tokens it is fitted on the block never misses more than before. No parameter is added.

I = columns of x, D = residual width, M = rows of one piece.
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

HELD_OUT = 4  # one sequence in so many is left out of the fit that is judged by it


def relative_error_of(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return ||d||^2 / ||z||^2, summed in float64 over pairs of what a fit misses, d, and what was wanted, z.

    0 where there is nothing.
    """
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


def errors_of_fit(
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
    """Return ||y - z||^2 / ||z||^2 over the sinks, added to that over all other tokens; arguments as of `errors`."""
    missed = errors_of_fit(sinks, where, z, y, y)
    return float(missed["error_after"] + missed.get("sinks", {}).get("error_after", 0.0))


def weight_of_sinks(batches: Sequence[Rows]) -> float:
    """Return the weight of a sink's row, s sum_others ||z||^2 / sum_sinks ||z||^2 (methods/least_squares.py)."""
    ordinary, sinks = (sum(sum_of_squares(each.z[each.populations[i]]) for each in batches) for i in (0, 1))
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
    """Fit x W + b to y over all micro-batches; `towards` is W0 (I, O). `hold_out` judges it too, by one more solve.

    `sinks` says whether attention sinks weigh as a population of their own. Raises Unsupported where the ridge is too
    small for the rows that there are.
    """
    weights = (1.0, weight_of_sinks(batches) if sinks == "apart" else 1.0)
    known, held = split_held_out(batches) if hold_out else (list(batches), [])
    sums = LeastSquares(towards.shape[0], towards.shape[1], towards.device)
    _add(sums, known, weights)
    missed = (
        _errors_of_held_out(held, *sums.solve(ridge, towards, intercept=intercept)) if known and held else [None, None]
    )
    _add(sums, held, weights)
    W, b = sums.solve(ridge, towards, intercept=intercept)
    return Fitted(W, b, *missed)


def _errors_of_held_out(held: Sequence[Rows], W: Tensor, b: Tensor | None) -> list[float | None]:
    """Return what a solution misses of other sequences, and of the sinks in them; None where there are none."""
    is_present = [any(bool(each.populations[i].any()) for each in held) for i in (0, 1)]
    return [relative_error_of(_residuals(held, i, W, b)) if is_present[i] else None for i in (0, 1)]


def _add(sums: LeastSquares, batches: Sequence[Rows], weights: tuple[float, float]) -> None:
    for each in batches:
        for tokens, w in zip(each.populations, weights, strict=True):
            sums.add(each.x[tokens], each.y[tokens], w)


def _residuals(batches: Sequence[Rows], i: int, W: Tensor, b: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what W and b miss at the tokens of population i, and their z, for each micro-batch."""
    for each in batches:
        tokens = each.populations[i]
        x = widen(each.x[tokens])
        missed = x @ W.to(x.dtype) - each.y[tokens].double()
        yield missed if b is None else missed + b, each.z[tokens]


def split_held_out(batches: Sequence[Rows]) -> tuple[list[Rows], list[Rows]]:
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


Sinks = Literal["apart", "alike"]  # a population of their own, or tokens as all others

TIMES = 5.0  # the median norm; in SmolLM2-135M sinks have 5 to 11 times it in layers 2 to 7, 28 or more from 11 to 27


def find_sinks(where: Sequence[Tensor], *states: Sequence[Tensor]) -> list[Tensor]:
    """Return (B, T) for each micro-batch, true at what is a sink in any of the states.

    `where` (B, T) is true at real tokens; of each of `states` there is (B, T, D) for each micro-batch.
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
    """Return z, (B, T, D) for each micro-batch; with sinks `apart`, where y is one as well as z, in the size of y."""
    if sinks == "alike":
        return list(z)
    wanted = []
    for current, target, in_y, in_z in zip(y, z, find_sinks(where, y), find_sinks(where, z), strict=True):
        size = torch.where(in_y & in_z, current.float().norm(dim=-1) / target.float().norm(dim=-1), 1.0)
        wanted.append(wait(target * size[..., None].to(target.dtype)))
    return wanted


ROUNDS = 3  # of s and W
SMALL = 0.05  # of the median gain: a smaller one counts as that much where it is divided by


@dataclass(frozen=True)
class Norm:
    """Holds what stands between a block and the residual: gains g (D,) in float64, and epsilon."""

    g: Tensor
    epsilon: float

    @classmethod
    def behind(cls, layer: Layer, which: int) -> Norm:
        """Return the norm behind the attention (0) or the MLP (1) of a layer."""
        norm: Any = layer.post_norm(which)
        return cls(norm.weight.detach().to(layer.device).double() + layer.family.gain_offset, epsilon_of(norm))

    def put_behind(self, layer: Layer, which: int) -> None:
        """Give the norm of a layer these gains."""
        norm: Any = layer.post_norm(which)
        old = norm.weight
        norm.weight = nn.Parameter((self.g - layer.family.gain_offset).to(old.device, old.dtype), old.requires_grad)

    def size(self, o: Tensor) -> Tensor:
        """Return rms(o) at each token, (..., 1)."""
        return (o.square().mean(-1, keepdim=True) + self.epsilon).sqrt()

    def undo(self, m: Tensor) -> Tensor:
        """Return m / g, (..., D): what the norm was given, but for its size at each token."""
        return m / self.divisor.to(m.dtype)

    @property
    def divisor(self) -> Tensor:
        """Return g with those near zero moved away from it."""
        least = SMALL * self.g.abs().median()
        return torch.where(self.g.abs() < least, least * torch.where(self.g < 0, -1.0, 1.0), self.g)


@dataclass(frozen=True)
class NormedMap:
    """Maps what enters an output matrix to what its block adds: g * x W / rms(x W)."""

    W: Tensor
    norm: Norm

    def __call__(self, x: Tensor) -> Tensor:
        """Return what is added for x (..., I), in the dtype of x."""
        o = x.double() @ self.W
        return (self.norm.g * o / self.norm.size(o)).to(x.dtype)


def fit_normed(
    batches: Sequence[Rows], ridge: float, towards: Tensor, sinks: Sinks, norm: Norm, *, hold_out: bool = True
) -> tuple[NormedMap, Fitted]:
    """Fit what a block adds to y over all micro-batches; `towards` is W0 (I, D), `norm` what stands behind it.

    Returns the map, and the fit as methods/least_squares.py has it, judged by sequences that it has not seen.
    """
    weights = (1.0, weight_of_sinks(batches) if sinks == "apart" else 1.0)
    known, held = split_held_out(batches) if hold_out else (list(batches), [])
    missed: list[float | None] = [None, None]
    if known and held:
        fitted_map = _rounds(known, weights, ridge, towards, norm)
        for i in (0, 1):
            if any(bool(each.populations[i].any()) for each in held):
                missed[i] = relative_error_of(_normed_residuals(held, i, fitted_map))
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
    """Return W with the size of each token as it is now."""
    sums, divisor = LeastSquares(towards.shape[0], towards.shape[1], towards.device), now.norm.divisor
    for x, t, w in _pieces(batches, weights):
        sums.add(x / now.norm.size(x @ now.W), t / divisor, w)
    return sums.solve(ridge, towards)[0]


def _factor(batches: Sequence[Rows], weights: tuple[float, float], fit: NormedMap) -> float:
    """Return k, by which all that is added is multiplied to come nearest to what is wanted; 1 where it points away."""
    both = own = 0.0
    for x, t, w in _pieces(batches, weights):
        m = fit(x)
        both, own = both + w * float((m * t).sum()), own + w * float(m.square().sum())
    return both / own if both > 0 else 1.0


def _gains(batches: Sequence[Rows], weights: tuple[float, float], fit: NormedMap) -> Tensor:
    """Return g (D,); a channel that is never given anything keeps its gain."""
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
    """Yield what the map misses at the tokens of population i, and their z, for each micro-batch."""
    for each in batches:
        tokens = each.populations[i]
        yield fit(each.x[tokens].double()) - each.y[tokens].double(), each.z[tokens]
