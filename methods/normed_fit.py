"""Least squares for an output matrix whose result is normed before it joins the residual, as in Gemma 2 and OLMo 2.

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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.least_squares import Fitted, LeastSquares, Rows, held_apart, relative_error, sink_weight
from methods.model.layer import Layer, norm_eps
from methods.model.sinks import Sinks

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
        return cls(norm.weight.detach().to(layer.device).double() + layer.family.gain_offset, norm_eps(norm))

    def put_behind(self, layer: Layer, which: int) -> None:
        """Give the norm of a layer these gains."""
        norm: Any = layer.post_norm(which)
        old = norm.weight
        norm.weight = nn.Parameter((self.g - layer.family.gain_offset).to(old.device, old.dtype), old.requires_grad)

    def size(self, o: Tensor) -> Tensor:
        """Return rms(o) at each token, (..., 1)."""
        return (o.square().mean(-1, keepdim=True) + self.epsilon).sqrt()

    def undone(self, m: Tensor) -> Tensor:
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
    weights = (1.0, sink_weight(batches) if sinks == "apart" else 1.0)
    known, held = held_apart(batches) if hold_out else (list(batches), [])
    missed: list[float | None] = [None, None]
    if known and held:
        found = _rounds(known, weights, ridge, towards, norm)
        for i in (0, 1):
            if any(bool(each.populations[i].any()) for each in held):
                missed[i] = relative_error(_missed(held, i, found))
    found = _rounds(batches, weights, ridge, towards, norm)
    return found, Fitted(found.W, None, *missed)


def _rounds(
    batches: Sequence[Rows], weights: tuple[float, float], ridge: float, towards: Tensor, norm: Norm
) -> NormedMap:
    W = towards.detach().double()
    best, least = NormedMap(W, norm), _error(batches, weights, NormedMap(W, norm))
    for _ in range(ROUNDS):
        scaled = Norm(norm.g * _factor(batches, weights, NormedMap(W, norm)), norm.epsilon)
        W = _solved(batches, weights, ridge, towards, NormedMap(W, scaled))
        found = NormedMap(W, Norm(norm.g * _factor(batches, weights, NormedMap(W, norm)), norm.epsilon))
        if (error := _error(batches, weights, found)) < least:
            best, least = found, error
    return NormedMap(best.W, Norm(_gains(batches, weights, best), norm.epsilon))


def _solved(
    batches: Sequence[Rows], weights: tuple[float, float], ridge: float, towards: Tensor, now: NormedMap
) -> Tensor:
    """Return W with the size of each token as it is now."""
    sums, divisor = LeastSquares(towards.shape[0], towards.shape[1], towards.device), now.norm.divisor
    for x, t, w in _pieces(batches, weights):
        sums.add(x / now.norm.size(x @ now.W), t / divisor, w)
    return sums.solve(ridge, towards)[0]


def _factor(batches: Sequence[Rows], weights: tuple[float, float], found: NormedMap) -> float:
    """Return k, by which all that is added is multiplied to come nearest to what is wanted; 1 where it points away."""
    both = own = 0.0
    for x, t, w in _pieces(batches, weights):
        m = found(x)
        both, own = both + w * float((m * t).sum()), own + w * float(m.square().sum())
    return both / own if both > 0 else 1.0


def _gains(batches: Sequence[Rows], weights: tuple[float, float], found: NormedMap) -> Tensor:
    """Return g (D,); a channel that is never given anything keeps its gain."""
    both, own = torch.zeros_like(found.norm.g), torch.zeros_like(found.norm.g)
    for x, t, w in _pieces(batches, weights):
        o = x @ found.W
        u = o / found.norm.size(o)
        both, own = both + w * (u * t).sum(0), own + w * u.square().sum(0)
    return torch.where(own > 0, both / own.clamp_min(torch.finfo(own.dtype).tiny), found.norm.g)


def _error(batches: Sequence[Rows], weights: tuple[float, float], found: NormedMap) -> float:
    return sum(w * float((found(x) - t).square().sum()) for x, t, w in _pieces(batches, weights))


def _pieces(batches: Sequence[Rows], weights: tuple[float, float]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield x (M, I), t (M, D) and the weight of each population of each micro-batch, in float64."""
    for each in batches:
        for tokens, w in zip(each.populations, weights, strict=True):
            yield each.x[tokens].double(), each.y[tokens].double(), w


def _missed(batches: Sequence[Rows], i: int, found: NormedMap) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what the map misses at the tokens of population i, and their z, for each micro-batch."""
    for each in batches:
        tokens = each.populations[i]
        yield found(each.x[tokens].double()) - each.y[tokens].double(), each.z[tokens]
