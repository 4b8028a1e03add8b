"""Computes what the draw of the calibration adds to a value, and how well a value separates models.

Draws. One calibration seed is one draw. Means over draws have intervals, tests and components of variance. Windows are
the same at each draw, so that their part does not shrink with the number of draws. The two parts are independent, and
are added in squares. Documents are the same at each draw where all of a task are measured. Of fewer the seed is the
draw too (bench.runs.datasets), so that they are in both parts, on the safe side.

Separation. A value over documents separates models well where the spread between them is large beside what chance adds.
The value x of model i on document d is taken apart into a mean, what is the model's, what is the document's, and the
rest, whose variance s^2 is that of both together (analysis of variance of two ways, once in each cell):

    signal   sqrt(var(mean of i over d) - s^2 / N), the standard deviation between models on all N documents, without
             what N documents add
    noise    s / sqrt(n), what a draw of n documents adds to the value of a model beside the others'; what a document
             does to all of them is in no comparison

Of several tasks the value is the mean of the tasks' means, so that variances are divided by their number squared.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from bench.stats.intervals import NORMAL_95

SMALLEST = 1e-100  # the smallest p value above 0
LARGEST = math.log(sys.float_info.max)


def exp_of_log(log: float) -> float:
    """Return the number of this logarithm, infinite where a float cannot hold it, as draws may lie far apart."""
    return math.inf if log >= LARGEST else math.exp(log)


def draw_stderr(values: Sequence[float]) -> float:
    """Return the standard error that the draw gives the mean over n draws, s / sqrt(n); 0 of a single draw."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def mean_interval(
    values: Sequence[float], lows: Sequence[float], highs: Sequence[float], confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the mean over n draws, from the figure of each and its own interval over documents.

    To either side it is as long as the root of two squares: Student's t(n - 1) s / sqrt(n) over the draws, and the mean
    length of their own intervals, which is the most that a mean of dependent errors can have. So the limits of two
    parts become those of their sum in G. Y. Zou, A. Donner, "Construction of confidence limits about effect measures",
    Statistics in Medicine 27, 2008.
    """
    mean, margin = fmean(values), _margin(draw_stderr(values), len(values) - 1, (1 - confidence) / 2)
    below, above = (abs(mean - fmean(ends)) for ends in (lows, highs))
    return mean - math.hypot(margin, below), mean + math.hypot(margin, above)


def mean_difference(
    values: Sequence[float], stderr: float, freedom: float = math.inf, confidence: float = 0.95
) -> tuple[float, float, float, float]:
    """Return (mean, low, high, p) of the second model's value minus the first's over n > 1 draws, paired by the draw.

    values  the difference at each draw
    stderr  of their mean, by documents or windows;  freedom  its degrees of freedom

    The interval is mean -+ root of (t(n - 1) s / sqrt(n))^2 + (t(freedom) stderr)^2, as in `mean_interval`, and p is
    one minus the confidence at which it ends at 0. What draw and window do together is in both parts, on the safe side.
    A t of freedoms put together by Satterthwaite finds more, but by accident so too: three draws that happen to lie
    near each other would count as much as many.
    """
    mean, drawn = fmean(values), draw_stderr(values)
    if not (drawn or stderr):
        return mean, mean, mean, float(mean == 0)

    def half(tail: float) -> float:
        return math.hypot(_margin(drawn, len(values) - 1, tail), _margin(stderr, freedom, tail))

    wide = half((1 - confidence) / 2)
    return mean, mean - wide, mean + wide, 2 * _tail(half, abs(mean))


def _margin(stderr: float, freedom: float, tail: float) -> float:
    """Return the distance that Student's t exceeds to either side with the probability `tail`; 0 without an error."""
    if not stderr:
        return 0.0
    return -stderr * float(ndtri(tail) if math.isinf(freedom) else stdtrit(freedom, tail))


def _tail(half: Callable[[float], float], distance: float) -> float:
    """Return the probability at which a falling half length is the distance, down to SMALLEST."""
    from scipy.optimize import brentq

    if half(SMALLEST) <= distance:
        return SMALLEST
    if not distance:
        return 0.5
    return math.exp(brentq(lambda log: half(math.exp(log)) - distance, math.log(SMALLEST), math.log(0.5)))


@dataclass(frozen=True)
class VarianceComponent:
    """Holds an estimated variance and its degrees of freedom. It may be negative; without degrees it is None."""

    variance: float | None
    freedom: int

    @property
    def deviation(self) -> float | None:
        """Return the standard deviation, of a negative estimate 0."""
        return None if self.variance is None else math.sqrt(max(0.0, self.variance))


def variance_components(values: Sequence[float], *levels: Sequence[Hashable]) -> list[VarianceComponent]:
    """Return the variance that each level adds, the outermost first, and at the end that within the innermost.

    levels  for each value the group that it is of; a group of an inner level is within one of the outer level

    The estimates of the analysis of variance, unbiased whatever the numbers in the groups: with T the sum over the
    groups of a level of (sum of y)^2 / n, the differences of T from one level to the next are set equal to their
    expectations and solved (C. R. Henderson, "Estimation of variance and covariance components", Biometrics 9, 1953,
    method 1; S. R. Searle, G. Casella, C. E. McCulloch, Variance Components, 1992, chapter 5).
    """
    y = np.asarray(values, dtype=float)
    y = y - y.mean()
    paths: list[tuple[Hashable, ...]] = [()] * len(y)
    groups = [_number_paths(paths)]
    for level in (*levels, range(len(y))):
        paths = [(*path, group) for path, group in zip(paths, level, strict=True)]
        groups.append(_number_paths(paths))
    freedom = [int(np.max(inner) - np.max(outer)) for outer, inner in pairwise(groups)]
    has_freedom = [at for at, degrees in enumerate(freedom) if degrees]
    squares = [float((np.bincount(g, weights=y) ** 2 / np.bincount(g)).sum()) for g in groups]
    share = np.zeros((len(groups), len(groups) - 1))
    for p, outer in enumerate(groups):
        share[p] = [_expected(outer, inner) for inner in groups[1:]]
    left = np.diff(share, axis=0)[np.ix_(has_freedom, has_freedom)]
    right = np.array([squares[at + 1] - squares[at] for at in has_freedom])
    solved = dict(zip(has_freedom, np.linalg.solve(left, right).tolist() if has_freedom else [], strict=True))
    return [VarianceComponent(solved.get(at), degrees) for at, degrees in enumerate(freedom)]


def _number_paths(paths: Sequence[Hashable]) -> NDArray[np.int64]:
    number = {path: at for at, path in enumerate(dict.fromkeys(paths))}
    return np.array([number[path] for path in paths])


def _expected(outer: NDArray[np.int64], inner: NDArray[np.int64]) -> float:
    """Return how often the variance of the level `inner` stands in the expectation of T of the level `outer`."""
    sizes = np.bincount(outer)
    both = Counter(zip(outer.tolist(), inner.tolist(), strict=True))
    return float(sum(count**2 / sizes[group] for (group, _), count in both.items()))


Figures = NDArray[np.float64]  # (models, documents)
DRAWS, SEED = 200, 0
POWER = 0.8416  # the standard normal's quantile at 80 %


@dataclass(frozen=True)
class Separation:
    """Holds how a figure tells models apart.

    signal     the standard deviation between models, 0 where chance alone explains the differences
    noise      the standard deviation that `drawn` documents of each task add
    agreement  Kendall's tau-b between the order of models on `drawn` documents and on those left, the mean of draws;
               NaN where no document is left
    needed     documents of each task on which a difference as large as the signal is shown in 80 % of draws, by a
               two-sided test at 5 %; infinite where there is no signal
    """

    signal: float
    noise: float
    drawn: int
    agreement: float
    needed: float

    @property
    def ratio(self) -> float:
        """Return signal over noise; infinite where there is none of the latter."""
        return self.signal / self.noise if self.noise else math.inf


def separation_of(tasks: Sequence[Figures], drawn: int) -> Separation:
    """Return how the mean over tasks separates models; of each task (models, documents), at least 2 by 2.

    drawn  documents of each task
    """
    count = len(tasks)
    rest = [_rest(figures) for figures in tasks]
    variance = np.mean([figures.mean(1) for figures in tasks], axis=0).var(ddof=1)
    by_chance = sum(residual / figures.shape[1] for residual, figures in zip(rest, tasks, strict=True)) / count**2
    one_document = sum(rest) / count**2
    signal = math.sqrt(max(0.0, float(variance) - by_chance))
    needed = (NORMAL_95 + POWER) ** 2 * 2 * one_document / signal**2 if signal else math.inf
    return Separation(signal, math.sqrt(one_document / drawn), drawn, _agreement(tasks, drawn), needed)


def _rest(figures: Figures) -> float:
    """Return the variance of the rest, without the effects of models and of documents."""
    models, documents = figures.shape
    rest = figures - figures.mean(1, keepdims=True) - figures.mean(0, keepdims=True) + figures.mean()
    return float((rest**2).sum() / ((models - 1) * (documents - 1)))


def _agreement(tasks: Sequence[Figures], drawn: int) -> float:
    """Return the mean of tau-b between the orders by `drawn` documents of each task and by those left."""
    if any(figures.shape[1] <= drawn for figures in tasks):
        return math.nan
    generator = np.random.default_rng(SEED)
    by_drawn = by_rest = np.zeros((len(tasks[0]), DRAWS))  # sums over tasks of the means of each model in each draw
    for figures in tasks:
        documents = figures.shape[1]
        chosen = generator.random((DRAWS, documents)).argpartition(drawn - 1, axis=1)[:, :drawn]
        sums, every = figures[:, chosen].sum(-1), figures.sum(1, keepdims=True)
        by_drawn, by_rest = by_drawn + sums / drawn, by_rest + (every - sums) / (documents - drawn)
    first, second = np.triu_indices(len(tasks[0]), 1)
    first_signs, second_signs = (np.sign(np.round(side[first] - side[second], 12)) for side in (by_drawn, by_rest))
    pairs = np.sqrt(np.abs(first_signs).sum(0) * np.abs(second_signs).sum(0))
    is_defined = pairs > 0
    return (
        float(((first_signs * second_signs).sum(0)[is_defined] / pairs[is_defined]).mean())
        if is_defined.any()
        else math.nan
    )
