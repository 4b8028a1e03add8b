"""Intervals and tests over clusters against scipy's and statsmodels', on windows that are drawn and on neighbours."""

from __future__ import annotations

import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from made_samples import paired_perplexity
from pyarrow.parquet import read_table
from scipy.fft import dct
from scipy.signal import lfilter
from scipy.stats import sem, ttest_rel
from scipy.stats import t as student
from statsmodels.regression.linear_model import OLS

from bench.stats.clusters import (
    degrees_of_freedom,
    paired_clusters,
    paired_perplexities,
    ratio_interval,
    ratio_stderr,
)

RESULTS = Path(__file__).parents[2] / "docs" / "results"


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


@pytest.mark.parametrize("windows", [4, 16, 60])
def test_perplexity_intervals_cover_at_their_rate(windows):
    generator = np.random.default_rng(4)
    tokens = np.full(windows, 511)
    differences = generator.normal(0.02, 0.05, size=(2000, windows)) * 511
    zero = np.zeros(windows)
    found = [paired_perplexity(zero, row, tokens) for row in differences]
    assert np.mean([one.low <= math.exp(0.02) <= one.high for one in found]) == pytest.approx(0.95, abs=0.02)


def test_paired_perplexity_is_a_paired_t_test_where_windows_are_alike():
    generator = np.random.default_rng(6)
    a = generator.normal(1500, 100, 20)
    b = a + generator.normal(20, 30, 20)
    found = paired_perplexity(a, b, [500] * 20)
    expected = ttest_rel(b / 500, a / 500)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.estimate == pytest.approx(math.exp((b - a).sum() / 10_000))


def test_equal_likelihoods_leave_no_doubt():
    found = paired_perplexity([5.0, 7.0, 9.0], [5.0, 7.0, 9.0], [3, 4, 5])
    assert (found.estimate, found.low, found.high, found.p) == (1, 1, 1, 1)


def test_a_clustered_difference_is_statsmodels_weighted_by_nothing():
    generator = np.random.default_rng(7)
    groups = generator.integers(0, 30, 200)
    a = generator.integers(0, 2, 200).astype(float)
    b = np.clip(a + generator.integers(-1, 2, 200) * (groups % 3 == 0), 0, 1)
    found = paired_clusters(a, b, groups.tolist())
    fit = OLS(b - a, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    count = len(set(groups.tolist()))
    stderr = fit.bse[0] * math.sqrt(count / (count - 1))  # statsmodels corrects by G / (G - 1) times (N - 1) / (N - K)
    assert found.estimate == pytest.approx(fit.params[0])
    assert found.high - found.estimate == pytest.approx(student.ppf(0.975, count - 1) * stderr)


def test_clusters_widen_the_interval_of_answers_that_go_together():
    a = np.zeros(100)
    b = np.repeat([1, 0, 0, 0, 1, 0, 1, 0, 0, 0], 10).astype(float)
    apart, together = paired_clusters(a, b, range(100)), paired_clusters(a, b, np.repeat(range(10), 10).tolist())
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


# Windows in a row


def test_the_error_of_windows_in_a_row_is_that_of_scipys_cosine_transform():
    generator = np.random.default_rng(8)
    y, x = generator.normal(1500, 100, 50), generator.integers(400, 512, 50).astype(float)
    r, stderr, freedom = ratio_stderr(y, x, in_a_row=True)
    assert r == pytest.approx(y.sum() / x.sum())
    assert freedom == round(0.4 * 50 ** (2 / 3)) == 5
    cosines = dct(y - r * x, type=2, norm="ortho")[1:6]  # sqrt(2 / n) sum of e_i cos(pi k (i - 1/2) / n)
    assert stderr == pytest.approx(math.sqrt(50 * np.mean(cosines**2)) / x.sum())
    low, high = ratio_interval(y.tolist(), x.tolist(), in_a_row=True)
    assert (low, high) == pytest.approx((r - student.ppf(0.975, 5) * stderr, r + student.ppf(0.975, 5) * stderr))


@pytest.mark.parametrize(("n", "freedom"), [(2, 1), (4, 1), (16, 3), (56, 6), (224, 15)])
def test_neighbours_leave_few_degrees_of_freedom(n, freedom):
    assert degrees_of_freedom(n, in_a_row=True) == freedom
    assert degrees_of_freedom(n, in_a_row=False) == n - 1


def covered(differences: np.ndarray, mean: float, *, in_a_row: bool) -> float:
    """The share of the rows whose interval holds the mean."""
    tokens = np.full(differences.shape[1], 511.0)
    sums = differences * tokens
    found = paired_perplexities(sums, tokens, in_a_row=in_a_row)
    return float(np.mean([one.low <= math.exp(mean) <= one.high for one in found]))


@pytest.mark.parametrize(("correlation", "n"), [(0.0, 16), (0.0, 64), (0.5, 64), (0.5, 224)])
def test_intervals_of_neighbours_cover_where_those_of_drawn_windows_do_not(correlation, n):
    """On 2,000 texts whose windows' differences follow each other with a correlation, and differ by 0.02 on average."""
    noise = np.random.default_rng(9).normal(0, 0.05, (2000, 200 + n))
    differences = 0.02 + lfilter([1], [1, -correlation], noise, axis=1)[:, 200:]
    assert covered(differences, 0.02, in_a_row=True) == pytest.approx(0.95, abs=0.03)
    if correlation:
        assert covered(differences, 0.02, in_a_row=False) < 0.8


def test_coverage_on_a_text_is_what_the_guide_says():
    """Of the ratio of two perplexities over 224 windows of Wikipedia, by 16 neighbours and by 16 drawn ones."""
    table = read_table(RESULTS / "more-windows" / "samples" / "perplexity-wiki.parquet").to_pydict()
    nll = np.array(table["nll"]).reshape(3, 224) / 511
    assert set(table["tokens"]) == {511}
    generator = np.random.default_rng(0)
    starts = range(224 - 16 + 1)
    drawn = [generator.permutation(224)[:16] for _ in range(2000)]
    found = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        d = nll[b] - nll[a]
        neighbours = np.stack([d[start : start + 16] for start in starts])
        found.append(
            [
                covered(neighbours, d.mean(), in_a_row=False),
                covered(neighbours, d.mean(), in_a_row=True),
                covered(np.stack([d[some] for some in drawn]), d.mean(), in_a_row=False),
            ]
        )
    assert [round(100 * share) for share in np.mean(found, axis=0)] == [73, 92, 95]


@pytest.mark.parametrize("in_a_row", [False, True])
def test_many_pairs_are_tested_as_each_alone(in_a_row):
    generator = np.random.default_rng(10)
    a, b = generator.normal(1500, 100, (2, 5, 20))
    tokens = generator.integers(400, 512, 20)
    many = paired_perplexities(b - a, tokens, in_a_row=in_a_row)
    for pair in range(5):
        one = paired_perplexity(a[pair], b[pair], tokens, in_a_row=in_a_row)
        assert astuple(many[pair])[:5] == pytest.approx(astuple(one)[:5])
