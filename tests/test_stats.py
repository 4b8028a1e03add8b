"""Intervals against published and scipy's values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, sem

from bench.stats import average_stderr, mean_stderr, ratio_interval, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (1, 1), (450, 1000), (3, 100)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_against_a_known_value():
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I: 81 of 263
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson(successes, n)


def test_mean_stderr_is_the_samples():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    mean, stderr = mean_stderr(values)
    assert mean == pytest.approx(0.6)
    assert stderr == pytest.approx(sem(values))


def test_one_value_has_no_stderr_and_none_no_mean():
    assert mean_stderr([3.0]) == (3.0, None)
    with pytest.raises(ValueError, match="no values"):
        mean_stderr([])


def test_average_stderr_by_hand():
    assert average_stderr([0.03, 0.04]) == pytest.approx(0.05 / 2)
    with pytest.raises(ValueError, match="no means"):
        average_stderr([])


def test_average_stderr_matches_a_simulation():
    draws = np.random.default_rng(0).normal(0, [0.1, 0.2, 0.4], size=(200_000, 3)).mean(axis=1)
    assert average_stderr([0.1, 0.2, 0.4]) == pytest.approx(draws.std(), rel=0.01)


def test_the_interval_of_a_ratio_is_that_of_a_mean_where_clusters_are_alike():
    y = [2.0, 3.0, 5.0, 2.0]
    low, high = ratio_interval(y, [2.0] * 4)
    assert (low + high) / 2 == pytest.approx(1.5)
    assert (high - low) / 2 == pytest.approx(3.182446 * sem(y) / 2)  # t of 3 at 0.975
    assert ratio_interval([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize(("y", "x"), [([1.0], [1.0]), ([], []), ([1.0, 2.0], [1.0])])
def test_the_interval_of_a_ratio_needs_two_clusters(y, x):
    with pytest.raises(ValueError, match=f"got {len(y)} and {len(x)}"):
        ratio_interval(y, x)
