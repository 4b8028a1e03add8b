"""Computes intervals and tests of values per document, and of sums over clusters of documents or windows.

Clusters. A cluster is a window of a text, or the questions on one passage. The tokens of a window are no independent
observations, and neither are the questions on a passage: clusters are counted, and not what is in them. Windows that
follow each other in a text are not independent either, since neighbours are often of one article. `in_a_row` says that
clusters do; otherwise they are drawn at random from it.

On 224 windows of Wikipedia in a row (docs/results/more-windows), the interval of 16 neighbours that takes them for
drawn ones held the ratio of two perplexities over the whole text 73 times of 100, that of `in_a_row` 92 times, and of
16 windows that were drawn 95 times, at half the length (docs/reference/measures.md).

Resampling. Values of any kind per document are tested by drawing again. This needs scipy.stats, which takes long to
import, and so bench.stats.intervals does without it.

Letters: n = clusters, y and x = the two sums of each, r = their ratio, e = what a cluster lies off, B = cosines.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import bootstrap, permutation_test

from bench.stats.intervals import Contrast, Floats, Values


def ratio_interval(
    y: Sequence[float], x: Sequence[float], confidence: float = 0.95, *, in_a_row: bool = False
) -> tuple[float, float]:
    """Return the interval of r = sum(y) / sum(x) over n clusters, such as windows of x tokens and y nats each.

    in_a_row  whether the clusters follow each other in one text, so that neighbours are alike; else they are drawn

    The interval is r -+ t sqrt(v), with v and the degrees of freedom of t as `ratio_stderr` gives them.
    """
    r, stderr, freedom = ratio_stderr(y, x, in_a_row=in_a_row)
    margin = float(stdtrit(freedom, (1 + confidence) / 2)) * stderr
    return r - margin, r + margin


def ratio_stderr(y: Values, x: Values, *, in_a_row: bool = False) -> tuple[float, float, int]:
    """Return r = sum(y) / sum(x) over n clusters, its standard error, and the degrees of freedom of that.

    Of clusters that are drawn, with n - 1 degrees of freedom,

        v(r) = n / (n - 1) * sum((y - r x)^2) / sum(x)^2      W. G. Cochran, Sampling Techniques, 3rd ed. 1977, eq. 6.13

    Of clusters in a row the residuals e = y - r x have a long-run variance, which the first B cosines estimate:

        v(r) = n * mean over k = 1 .. B of (sqrt(2 / n) sum over i of e_i cos(pi k (i - 1/2) / n))^2 / sum(x)^2

    with B = 0.4 n^(2/3) degrees of freedom: E. Lazarus, D. J. Lewis, J. H. Stock, M. W. Watson, "HAR inference:
    recommendations for practice", Journal of Business & Economic Statistics 36, 2018, section 3.
    Raises ValueError for fewer than two clusters.
    """
    if len(y) < 2 or len(x) != len(y):
        raise ValueError(f"an interval needs two clusters with both figures; got {len(y)} and {len(x)}")
    r, stderr, freedom = _ratios_stderrs(np.asarray(y, dtype=float), np.asarray(x, dtype=float), in_a_row)
    return float(r), float(stderr), freedom


def _ratios_stderrs(y: Floats, x: Floats, in_a_row: bool) -> tuple[Floats, Floats, int]:
    """Return ratios, standard errors and freedom as `ratio_stderr`, along the last axis of y and x, each (..., n)."""
    n, total = x.shape[-1], x.sum(-1)
    r = y.sum(-1) / total
    e = y - r[..., None] * x
    freedom = degrees_of_freedom(n, in_a_row=in_a_row)
    if not in_a_row:
        return r, np.sqrt(n / (n - 1) * np.square(e).sum(-1)) / total, freedom
    B = freedom
    cosines = np.cos(math.pi * np.outer(np.arange(n) + 0.5, np.arange(1, B + 1)) / n)  # (n, B)
    return r, np.sqrt(2 * np.square(e @ cosines).mean(-1)) / total, freedom


def degrees_of_freedom(n: int, *, in_a_row: bool) -> int:
    """Return the degrees of freedom of a standard error over n clusters, by the formulas of `ratio_stderr`."""
    return max(1, round(0.4 * n ** (2 / 3))) if in_a_row else n - 1


def paired_perplexities(differences: Floats, tokens: Floats, *, in_a_row: bool = False) -> list[Contrast]:
    """Return for each pair of models how many times the first's perplexity the second has on the same windows.

    differences  the second's nats minus the first's, (pairs, windows)
    tokens       scored in each window, (windows,) or as the differences
    in_a_row     whether the windows follow each other in the text, see `ratio_stderr`

    The logarithm of the ratio is sum(differences) / sum(tokens): `ratio_interval` with the windows as clusters, since
    the tokens of one are no independent observations, and Student's test with its degrees of freedom.
    """
    *logs, p, stderr = _students(differences, tokens, in_a_row=in_a_row)
    with np.errstate(over="ignore"):  # an endless interval is one
        columns = np.array([*np.exp(logs), p, stderr])
    freedom = degrees_of_freedom(differences.shape[1], in_a_row=in_a_row)
    contrasts = []
    for estimate, low, high, p_value, error in columns.T.tolist():
        contrasts.append(Contrast(estimate, low, high, p_value, error, freedom, "student"))
    return contrasts


def student(sums: Values, sizes: Values) -> Contrast:
    """Return sum(sums) / sum(sizes) over clusters; of equal ones the interval is a point, and p is 0 or 1."""
    numbers = _students(np.asarray(sums, dtype=float), np.asarray(sizes, dtype=float), in_a_row=False)
    estimate, low, high, p, stderr = map(float, numbers)
    return Contrast(estimate, low, high, p, stderr, len(sums) - 1, "student")


def _students(sums: Floats, sizes: Floats, *, in_a_row: bool) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return (estimate, low, high, p, stderr) along the last axis of sums and sizes, each (..., n)."""
    estimate, stderr, freedom = _ratios_stderrs(sums, sizes, in_a_row)
    margin = stdtrit(freedom, 0.975) * stderr
    positive = np.where(stderr > 0, stderr, 1.0)
    p = np.where(stderr > 0, 2 * stdtr(freedom, -np.abs(estimate) / positive), estimate == 0)
    return estimate, estimate - margin, estimate + margin, p, stderr


def paired_clusters(a: Values, b: Values, groups: Sequence[Hashable]) -> Contrast:
    """Return the mean of b - a where documents of one group, as questions on one passage, are not independent.

    The standard error is the cluster-robust one (`ratio_interval` on the groups' sums and sizes), test and interval are
    Student's with one degree of freedom less than there are groups. E. Miller, "Adding error bars to evals", 2024, 2.2.
    """
    return student(*sums_by_group(np.asarray(b, dtype=float) - np.asarray(a, dtype=float), groups))


def sums_by_group(values: NDArray[Any], groups: Sequence[Hashable]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sums and the sizes of the groups, each (groups,)."""
    number = {group: position for position, group in enumerate(dict.fromkeys(groups))}
    where = [number[group] for group in groups]
    return np.bincount(where, weights=values), np.bincount(where).astype(float)


RESAMPLES = 9999  # of a permutation test or a bootstrap; with at most 13 differences the test is exact
SEED = 0  # of both, so that equal records give equal reports


def paired_resampled(a: Values, b: Values, groups: Sequence[Hashable]) -> Contrast:
    """Return the mean of b - a for any figure per document, by a sign-flip test and a bootstrap over the groups.

    Test: if neither model is better, each group's sum is as likely to have the other sign (R. A. Fisher, The Design of
    Experiments, 1935, section 21). Interval: bias-corrected and accelerated (B. Efron, "Better bootstrap confidence
    intervals", 1987).
    """
    sums, sizes = sums_by_group(np.asarray(b, dtype=float) - np.asarray(a, dtype=float), groups)
    estimate, stderr, freedom = ratio_stderr(sums, sizes)
    if not stderr:
        return student(sums, sizes)
    drawn = bootstrap(
        (sums, sizes),
        lambda y, x, axis: y.sum(axis) / x.sum(axis),
        paired=True,
        n_resamples=RESAMPLES,
        batch=_batch(len(sums)),
        rng=SEED,
    ).confidence_interval
    return Contrast(estimate, float(drawn.low), float(drawn.high), sign_flip(sums), stderr, freedom)


def sign_flip(differences: Values) -> float:
    """Return the p value for a mean of zero, from all or RESAMPLES choices of the differences' signs."""
    values = np.asarray(differences, dtype=float)
    if not values.any():
        return 1.0
    done = permutation_test(
        (values,),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(len(values)),
        rng=SEED,
    )
    return float(done.pvalue)


def _batch(n: int) -> int:
    """Return the number of resamples that are drawn at a time, so that they take some 16 MB."""
    return max(1, 2_000_000 // n)
