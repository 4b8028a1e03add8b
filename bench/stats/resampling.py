"""Computes tests and intervals for any figure per document, by drawing again.

Apart from bench.stats.intervals, since it imports scipy.stats, which takes long.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import bootstrap, permutation_test

from bench.stats.clusters import by_group, ratio_stderr, student
from bench.stats.intervals import Difference, Values

RESAMPLES = 9999  # of a permutation test or a bootstrap; with at most 13 differences the test is exact
SEED = 0  # of both, so that equal records give equal reports


def paired_resampled(a: Values, b: Values, groups: Sequence[Hashable], confidence: float = 0.95) -> Difference:
    """Return the mean of b - a for any figure per document, by a sign-flip test and a bootstrap over the groups.

    Test: if neither model is better, each group's sum is as likely to have the other sign (R. A. Fisher, The Design of
    Experiments, 1935, section 21). Interval: bias-corrected and accelerated (B. Efron, "Better bootstrap confidence
    intervals", 1987).
    """
    sums, sizes = by_group(np.asarray(b, dtype=float) - np.asarray(a, dtype=float), groups)
    estimate, stderr, freedom = ratio_stderr(sums, sizes)
    if not stderr:
        return student(sums, sizes, confidence)
    drawn = bootstrap(
        (sums, sizes),
        lambda y, x, axis: y.sum(axis) / x.sum(axis),
        paired=True,
        n_resamples=RESAMPLES,
        batch=_batch(len(sums)),
        confidence_level=confidence,
        rng=SEED,
    ).confidence_interval
    return Difference(estimate, float(drawn.low), float(drawn.high), sign_flip(sums), stderr, freedom)


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
    """Return how many resamples are drawn at a time, so that they take some 16 MB."""
    return max(1, 2_000_000 // n)
