"""Intervals and tests against published values, scipy's and statsmodels'."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, kendalltau, sem, ttest_rel
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests

from bench.stats.clusters import paired_resampled, sign_flip
from bench.stats.intervals import (
    average_stderr,
    detectable_share,
    holm,
    kendall,
    mcnemars,
    mean_stderr,
    paired_share_interval,
    ratio_of_ratios,
    wilson,
)


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


# Paired differences


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (5, 0), (0, 7), (12, 30), (42, 18), (100, 103)])
def test_mcnemar_is_statsmodels_exact(lost, gained):
    table = [[50, lost], [gained, 20]]
    (p,) = mcnemars(np.array([lost]), np.array([gained]))
    assert p == pytest.approx(contingency_tables.mcnemar(table, exact=True).pvalue, abs=1e-12)


def likelihood_score(d: float, lost: int, gained: int, n: int) -> float:
    """Tango's z, the likelihood of lost and gained documents under a difference d maximised numerically."""

    def loss(q: float) -> float:
        shares = (q, q + d, 1 - 2 * q - d)
        counts = (lost, gained, n - lost - gained)
        return -sum(k * math.log(max(share, 1e-300)) for k, share in zip(counts, shares, strict=True) if k)

    q = minimize_scalar(loss, bounds=(max(0.0, -d), (1 - d) / 2), method="bounded", options={"xatol": 1e-13}).x
    return (gained - lost - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(42, 18, 1000), (1, 9, 44), (3, 3, 20), (0, 5, 30), (30, 0, 60)])
def test_tangos_interval_ends_where_the_score_test_rejects(lost, gained, n):
    low, high = paired_share_interval(lost, gained, n)
    assert low < (gained - lost) / n < high
    assert likelihood_score(low, lost, gained, n) == pytest.approx(1.959964, abs=2e-3)
    assert likelihood_score(high, lost, gained, n) == pytest.approx(-1.959964, abs=2e-3)


def test_tangos_interval_at_the_edges():
    z2 = 1.959964**2
    assert paired_share_interval(0, 0, 200) == pytest.approx((-z2 / (200 + z2), z2 / (200 + z2)), abs=1e-6)
    assert paired_share_interval(0, 10, 10)[1] == 1
    assert paired_share_interval(10, 0, 10)[0] == -1
    with pytest.raises(ValueError, match="got 3 and 8 of 10"):
        paired_share_interval(3, 8, 10)


@pytest.mark.parametrize(("loses", "gains", "n"), [(0.042, 0.018, 1000), (0.03, 0.03, 1000), (0.1, 0.1, 100)])
def test_paired_intervals_cover_at_their_rate(loses, gains, n):
    generator = np.random.default_rng(3)
    counts = generator.multinomial(n, [loses, gains, 1 - loses - gains], size=4000)[:, :2]
    pairs, times = np.unique(counts, axis=0, return_counts=True)
    intervals = [paired_share_interval(int(lost), int(gained), n) for lost, gained in pairs]
    covered = sum(k for (low, high), k in zip(intervals, times, strict=True) if low <= gains - loses <= high)
    assert covered / 4000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("n", "discordance"), [(1000, 0.06), (500, 0.2), (2000, 0.1)])
def test_the_detectable_difference_is_found_in_80_percent(n, discordance):
    d = detectable_share(n, discordance)
    assert d is not None
    generator = np.random.default_rng(5)
    shares = [(discordance + d) / 2, (discordance - d) / 2, 1 - discordance]
    lost, gained = generator.multinomial(n, shares, size=4000)[:, :2].T
    z = (lost - gained) / np.sqrt(lost + gained)  # the test without a continuity correction, as the formula has it
    assert np.mean(np.abs(z) > 1.959964) == pytest.approx(0.8, abs=0.03)


def test_too_few_documents_detect_nothing():
    assert detectable_share(50, 0.02) is None
    assert detectable_share(1000, 0.0) is None


def test_kendalls_tau_is_scipys():
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.integers(0, 6, (2, 12))  # with ties
        assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic, abs=1e-12)
    assert math.isnan(kendall([1, 1, 1], [1, 2, 3]))


def test_sign_flips_are_enumerated_where_there_are_few():
    differences = np.array([1.0, 2.0, -0.5, 3.0, 1.5])
    signs = np.array(list(itertools.product([1, -1], repeat=5)))
    means = np.abs((signs * differences).mean(1))
    assert sign_flip(differences) == pytest.approx(np.mean(means >= abs(differences.mean()) - 1e-12))
    assert sign_flip([0.0, 0.0]) == 1


def test_resampling_agrees_with_students_test_for_normal_figures():
    generator = np.random.default_rng(8)
    a, b = generator.normal(0, 1, 80), generator.normal(0.3, 1, 80)
    found = paired_resampled(a, b, range(80))
    expected = ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, abs=0.01)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.05)
    assert found == paired_resampled(a, b, range(80))  # equal figures, equal report


def test_a_ratio_of_equal_ratios_is_one_and_its_interval_wider_than_either():
    ratio, low, high = ratio_of_ratios((1.5, 1.4, 1.6), (1.5, 1.4, 1.6))
    assert ratio == pytest.approx(1)
    assert low < 1.4 / 1.5 < 1.6 / 1.5 < high
    generator = np.random.default_rng(9)
    draws = np.exp(generator.normal(math.log(1.4), 0.03, 200_000) - generator.normal(math.log(1.2), 0.04, 200_000))
    ends = [(r, r * math.exp(-1.96 * s), r * math.exp(1.96 * s)) for r, s in ((1.2, 0.04), (1.4, 0.03))]
    assert ratio_of_ratios(*ends)[1:] == pytest.approx(np.quantile(draws, [0.025, 0.975]), rel=0.002)


def test_holm_is_statsmodels():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_weighted_holm_by_hand():
    # level 0.05 shared 4 : 1; the first is rejected below 0.04, and the second then has all of it
    assert holm([0.039, 0.049], [4, 1]) == pytest.approx([0.039 * 5 / 4, 0.049])
    assert holm([0.041, 0.001], [4, 1]) == pytest.approx([0.041, 0.005])


def test_weighted_holm_keeps_the_level_of_the_whole_table():
    draws = np.random.default_rng(10).uniform(size=(4000, 3))
    assert np.mean([min(holm(row.tolist(), [4, 1, 1])) < 0.05 for row in draws]) < 0.06
