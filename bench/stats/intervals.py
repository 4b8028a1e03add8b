"""Computes intervals, standard errors, and tests of differences between two models on the same documents.

Letters: n = observations, p = share of successes, z = quantile of the standard normal distribution. A paired difference
is b - a: the second model's value minus the first's. Every p value is two-sided.

scipy.stats and scipy.optimize take longer to import than many a report to make. Tests that need scipy.stats are in
bench.stats.clusters, and scipy.optimize is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, stdtrit

NORMAL_95 = 1.96  # standard errors on either side of a mean that make a 95 % interval
NORMAL = NormalDist()
POWER = 0.8  # the probability with which a test shows a difference that is called detectable
Values = Sequence[float] | NDArray[Any]
Floats = NDArray[np.float64]


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a share, (low, high) in [0, 1].

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
    """Return the mean and its standard error, s / sqrt(n), s having n - 1 below the line.

    One value has a mean but no standard error: None.
    """
    if not values:
        raise ValueError("the mean of no values is not defined")
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def average_stderr(stderrs: Sequence[float]) -> float:
    """Return the standard error of the plain average of independent means: sqrt(sum se^2) / n."""
    if not stderrs:
        raise ValueError("the average of no means is not defined")
    return math.hypot(*stderrs) / len(stderrs)


def paired_ratio(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (ratio, low, high) of a to b, positive and taken in pairs, such as milliseconds of the same round.

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


def join_ratios(ratios: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return (ratio, low, high) of a ratio that was measured several times anew, each time with its interval.

    It is the geometric mean, and the range that all intervals cover together, since an interval within one measurement
    knows nothing of what differs from one to the next. Where that is nearly all, the range of k measurements holds the
    median one with probability 1 - 2^(1 - k), as order statistics do: 0.5 for 2, 0.97 for 6.
    """
    values, lows, highs = zip(*ratios, strict=True)
    return math.exp(fmean(map(math.log, values))), min(lows), max(highs)


def is_inconsistent(ratios: Sequence[tuple[float, float, float]]) -> bool:
    """Say whether intervals (ratio, low, high) have no point that all share."""
    return max(low for _, low, _ in ratios) > min(high for _, _, high in ratios)


def _rejected_ranks(n: int, tail: float) -> int:
    """Return the count of signed-rank statistics, from 0 up, whose probabilities sum to at most `tail`."""
    probability = np.ones(1)  # of each sum of a random subset of the ranks 1 .. n
    for rank in range(1, n + 1):
        without = np.pad(probability, (0, rank))
        probability = (without + np.pad(probability, (rank, 0))) / 2
    return int(np.searchsorted(np.cumsum(probability), tail, side="right"))


@dataclass(frozen=True)
class Contrast:
    """Holds the test of two models: the second's value minus the first's, or as a ratio the second over the first.

    low, high     the 95 % interval of the estimate, never adjusted; NaN if it is not computed
    p             two-sided p value of no difference; in a table adjusted for all its pairs
    stderr        of the estimate, or of its logarithm, with its degrees of freedom, where the test goes by one
    test          "student" on windows, "mcnemar" or "normal" on documents, "draws" by several seeds beside these, or
                  "intervals" by the two values' own
    lost, gained  the documents that only the first, only the second model gets right, where the test counts them
    """

    estimate: float
    low: float
    high: float
    p: float
    stderr: float | None = None
    freedom: int = 0
    test: str = ""
    lost: int | None = None
    gained: int | None = None

    @property
    def paired(self) -> bool:
        """Return whether the test pairs both models on the same windows or documents."""
        return self.test != "intervals"


def normal_p(estimate: float, stderr: float) -> float:
    """Return the two-sided p value of no difference by a normal distribution."""
    return 2 * NORMAL.cdf(-abs(estimate) / stderr) if stderr else float(estimate == 0)


def mcnemars(lost: Floats | NDArray[np.int64], gained: Floats | NDArray[np.int64]) -> Floats:
    """Return the exact p values for equal shares of pairs of models, from the documents that only one gets right.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions", 1947: if both models are
    as good, each of these documents falls to either side like a coin. p is twice the chance of no more heads than the
    smaller side in as many throws. It holds over several tasks together too, whatever their difficulty. Its real level
    is below the nominal one: with about 60 such documents 3.7 % instead of 5 %.
    """
    fewer, n = np.minimum(lost, gained), lost + gained
    below = betainc(np.maximum(n - fewer, 1), fewer + 1, 0.5)  # the binomial distribution's P(X <= fewer), p = 1/2
    return np.where(n > 0, np.minimum(1.0, 2 * below), 1.0)


def paired_share_interval(lost: int, gained: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a difference of two shares over the same n documents, (gained - lost) / n.

    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17, 1998: every d is in it that

        z(d) = (gained - lost - n d) / sqrt(n (2 q + d (1 - d)))

    does not reject, q being the likeliest share of lost documents under d. Without any it is -+ z^2 / (n + z^2).
    """
    if min(lost, gained) < 0 or lost + gained > n or n == 0:
        raise ValueError(f"lost and gained documents are among all; got {lost} and {gained} of {n}")
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def score(d: float) -> float:
        b = (2 * n - gained + lost) * d - lost - gained
        q = (math.sqrt(b * b + 8 * n * lost * d * (1 - d)) - b) / (4 * n)
        above, variance = gained - lost - n * d, n * (2 * q + d * (1 - d))
        if variance > 0:
            return above / math.sqrt(variance)
        return math.copysign(math.inf, above) if above else 0.0

    estimate, edge = (gained - lost) / n, 1 - 1e-12
    low = -1.0 if estimate <= -edge else brentq(lambda d: min(score(d), 1e9) - z, -edge, estimate)
    high = 1.0 if estimate >= edge else brentq(lambda d: max(score(d), -1e9) + z, estimate, edge)
    return float(low), float(high)


def detectable_share(
    n: int, discordance: float, alpha: float = 0.05, power: float = POWER, margin: float = 0.0
) -> float | None:
    """Return the difference of two shares that McNemar's test finds with `power`; `discordance` is the flipping share.

    margin  the least measured difference that counts

    The d with n d^2 = (z(alpha / 2) sqrt(discordance) + z(1 - power) sqrt(discordance - d^2))^2: R. J. Connor, "Sample
    size for testing differences in proportions for the paired-sample design", Biometrics 43, 1987. None where even
    flips all in one direction would not do, or where nothing flips and so nothing is known.
    """
    from scipy.optimize import brentq

    reject, find = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)

    def excess(d: float) -> float:
        tested, reached = reject * math.sqrt(discordance), margin * math.sqrt(n)
        return math.sqrt(n) * d - max(tested, reached) - find * math.sqrt(max(0.0, discordance - d * d))

    return float(brentq(excess, 0, discordance)) if discordance and excess(discordance) > 0 else None


def detectable_effect(stderr: float, freedom: int, alpha: float = 0.05, margin: float = 0.0) -> float | None:
    """Return (t(alpha / 2) + t(1 - power)) stderr, the smallest effect that a test finds with that power.

    H. S. Bloom, "Minimum detectable effects", Evaluation Review 19, 1995.

    margin  the least measured effect that counts; it takes the place of t(alpha / 2) stderr where it is larger
    """
    reject, find = stdtrit(freedom, [1 - alpha / 2, POWER]).tolist()
    return max(reject * stderr, margin) + find * stderr if stderr else None


def ratio_of_ratios(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return (b / a, low, high) of two independent ratios, each as (ratio, low, high), such as two runs' speed-ups.

    On logarithms, each side's distance is the root of the squares of the two that add up to it: G. Y. Zou, A. Donner,
    "Construction of confidence limits about effect measures", Statistics in Medicine 27, 2008.
    """
    (x, x_low, x_high), (y, y_low, y_high) = np.log(a), np.log(b)
    low, high = math.hypot(y - y_low, x_high - x), math.hypot(y_high - y, x - x_low)
    return math.exp(y - x), math.exp(y - x - low), math.exp(y - x + high)


def kendall(a: Values, b: Values) -> float:
    """Return Kendall's tau-b of two orders of the same things, in [-1, 1]; NaN where all values of one are equal."""
    signs_a, signs_b = (np.sign(np.subtract.outer(side, side)) for side in (np.asarray(a), np.asarray(b)))
    pairs = math.sqrt(float(np.abs(signs_a).sum() * np.abs(signs_b).sum()))
    return float((signs_a * signs_b).sum()) / pairs if pairs else math.nan


def holm(p: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Return p values adjusted for their number: any of them falls below 5 % by chance in 5 % of tables.

    S. Holm, "A simple sequentially rejective multiple test procedure", 1979; with weights, its section 3: a test of
    twice the weight is rejected at twice the level.
    """
    share = list(weights or [1.0] * len(p))
    order = sorted(range(len(p)), key=lambda number: p[number] / share[number])
    remaining_from = [*accumulate(share[number] for number in reversed(order))][::-1]
    adjusted, worst = [0.0] * len(p), 0.0
    for number, remaining in zip(order, remaining_from, strict=True):
        worst = max(worst, min(1.0, p[number] / share[number] * remaining))
        adjusted[number] = worst
    return adjusted
