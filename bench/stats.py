"""Intervals and standard errors.

Letters: n = observations, p = share of successes, z = quantile of the standard normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

import numpy as np
from scipy.stats import t as student


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, (low, high) in [0, 1].

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.  Unlike p +- z stderr
    it stays within [0, 1] and keeps its coverage for tens of observations and for shares near 0 or 1.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes lie between 0 and n, and n is positive; got {successes} of {n}")
    p = successes / n
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, s / sqrt(n) with s the sample's standard deviation (n - 1 below the line).

    One value has a mean but no standard error: None.
    """
    if not values:
        raise ValueError("the mean of no values is not defined")
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def average_stderr(stderrs: Sequence[float]) -> float:
    """The standard error of the plain average of independent means: sqrt(sum se^2) / n."""
    if not stderrs:
        raise ValueError("the average of no means is not defined")
    return math.hypot(*stderrs) / len(stderrs)


def ratio_interval(y: Sequence[float], x: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of r = sum(y) / sum(x) over n clusters, such as windows of a text, of x tokens and y nats each.

        v(r) = n / (n - 1) * sum((y - r x)^2) / sum(x)^2      Cochran, Sampling Techniques, 3rd ed. 1977, eq. 6.13

    and the interval is r -+ t(n - 1) sqrt(v).
    """
    n = len(y)
    if n < 2 or len(x) != n:
        raise ValueError(f"an interval needs two clusters with both figures; got {n} and {len(x)}")
    ys, xs = np.asarray(y, dtype=float), np.asarray(x, dtype=float)
    r = ys.sum() / xs.sum()
    variance = n / (n - 1) * np.square(ys - r * xs).sum() / xs.sum() ** 2
    margin = student.ppf((1 + confidence) / 2, n - 1) * math.sqrt(variance)
    return float(r - margin), float(r + margin)


def paired_ratio(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(ratio, low, high) of a to b, both positive and taken in pairs, such as milliseconds of the same round.

    On x_i = log(a_i / b_i): the ratio is exp of the median of the Walsh averages (x_i + x_j) / 2, i <= j
        (J. L. Hodges, E. L. Lehmann, "Estimates of location based on rank tests", 1963),
    and its interval is exp of those averages that the signed-rank test does not reject
        (M. Hollander, D. A. Wolfe, Nonparametric Statistical Methods, 2nd ed. 1999, section 3.3).
    Holds its level for any symmetric distribution of x, so that a few disturbed pairs widen it little; under a normal
    one it is about 2 % wider than Student's. Raises ValueError for too few pairs, at 95 % fewer than 6.
    """
    if len(a) != len(b) or min(*a, *b) <= 0:
        raise ValueError("a ratio needs pairs of positive figures")
    x = np.log(np.asarray(a, dtype=float)) - np.log(np.asarray(b, dtype=float))
    rank = _rejected_ranks(len(x), (1 - confidence) / 2)
    if not rank:
        raise ValueError(f"{len(x)} pairs have no interval of {confidence:.0%}")
    i, j = np.triu_indices(len(x))
    averages = np.sort((x[i] + x[j]) / 2)
    low, high = averages[rank - 1], averages[-rank]
    return math.exp(np.median(averages)), math.exp(low), math.exp(high)


def _rejected_ranks(n: int, tail: float) -> int:
    """How many values of the signed-rank statistic, from 0 up, have together at most the probability `tail`."""
    probability = np.ones(1)  # of each sum of a random subset of the ranks 1 .. n
    for rank in range(1, n + 1):
        without = np.pad(probability, (0, rank))
        probability = (without + np.pad(probability, (rank, 0))) / 2
    return int(np.searchsorted(np.cumsum(probability), tail, side="right"))
