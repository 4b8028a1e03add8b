"""What the draw of the calibration adds: by hand, against scipy and statsmodels, and on data of known components."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t, ttest_1samp
from statsmodels.regression.mixed_linear_model import MixedLM

from bench.stats.draws import draw_stderr, exp_of_log, mean_difference, mean_interval, variance_components


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_models_are_told_apart_rarely_and_more_rarely_where_each_seed_draws_documents(seeds):
    """The difference at each seed: what documents add, of the same ones or of others, and less of the draw."""
    rng, trials, found = np.random.default_rng(seeds), 1500, []
    for of_documents, stderr in ((1, 1.0), (seeds, 1 / math.sqrt(seeds))):
        values = rng.normal(0, 1, (trials, of_documents)) + rng.normal(0, 0.3, (trials, seeds))
        found.append(np.mean([mean_difference(row, stderr)[3] < 0.05 for row in values.tolist()]))
    same, drawn = found
    assert 0.02 < same < 0.07
    assert drawn < 0.02


def test_exponentials_are_endless_and_no_number_stays_none():
    assert (exp_of_log(0.0), exp_of_log(750.0), exp_of_log(-800.0)) == (1.0, math.inf, 0.0)
    assert math.isnan(exp_of_log(math.nan))


def test_components_by_hand():
    between, within = variance_components([1, 3, 5, 9], "aabb")
    assert (within.variance, within.freedom) == (pytest.approx((2 + 8) / 2), 2)
    assert (between.variance, between.freedom) == (pytest.approx((2 * 2 * 2.5**2 - 5) / 2), 1)
    between, within = variance_components([1, 3, 6], "aab")  # n = 2 and 1: each group's share is (3 - 5 / 3) / 1
    assert within.variance == pytest.approx(2)
    assert between.variance == pytest.approx((2 * (2 - 10 / 3) ** 2 + (6 - 10 / 3) ** 2 - 2) / (3 - 5 / 3))


def test_components_of_equal_groups_are_those_of_restricted_likelihood():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(12), 4)
    y = rng.normal(0, 2, 12)[group] + rng.normal(0, 1, 48)
    fitted = MixedLM(y, np.ones((48, 1)), groups=group).fit(reml=True)
    between, within = variance_components(y, group)
    assert within.variance == pytest.approx(fitted.scale, rel=1e-3)
    assert between.variance == pytest.approx(float(fitted.cov_re[0, 0]), rel=1e-3)


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "unbalanced"])
def test_components_recover_what_data_were_made_from(balanced):
    """Methods, two or three texts of each, up to five seeds of each text; unbiased, so that the mean is the truth."""
    true, rng = (1.0, 0.25, 0.5), np.random.default_rng(int(balanced))
    cells = [
        (method, text, seed)
        for method in range(6)
        for text in range(2 if balanced else 1 + method % 3)
        for seed in range(4 if balanced else 1 + (2 * method + 3 * text) % 5)
    ]
    methods, texts, _ = zip(*cells, strict=True)
    found = []
    for _ in range(400):
        of_method, of_text = rng.normal(0, true[0], 6), rng.normal(0, true[1], (6, 3))
        y = [of_method[m] + of_text[m, k] + rng.normal(0, true[2]) for m, k, _ in cells]
        found.append([one.variance for one in variance_components(y, methods, texts)])
    mean, stderr = np.mean(found, axis=0), np.std(found, axis=0) / 20
    assert np.abs(mean - np.square(true)) == pytest.approx(0, abs=4 * stderr.max())
    assert (np.abs(mean - np.square(true)) < 4 * stderr).all()


def test_a_level_without_freedom_has_no_component_and_one_below_zero_has_no_deviation():
    method, text, seed = variance_components([1.0, 2.0, 5.0, 6.5], "aabb", "cccc")
    assert (text.variance, text.freedom, text.deviation) == (None, 0, None)
    assert seed.freedom == 2
    assert method.variance == variance_components([1.0, 2.0, 5.0, 6.5], "aabb")[0].variance
    between, within = variance_components([0.0, 10.0, 1.0, 9.5], "aabb")
    assert between.variance < 0
    assert between.deviation == 0
    assert within.deviation == pytest.approx(math.sqrt((50 + 8.5**2 / 2) / 2))


def test_the_interval_of_a_mean_is_by_hand():
    low, high = mean_interval([1.0, 2.0, 3.0], [0.5, 1.5, 2.5], [2.0, 3.0, 4.0])
    margin = t.ppf(0.975, 2) * 1 / math.sqrt(3)
    assert (low, high) == pytest.approx((2 - math.hypot(margin, 0.5), 2 + math.hypot(margin, 1)))
    assert mean_interval([2.0], [1.0], [4.0]) == (1.0, 4.0)
    assert draw_stderr([2.0]) == 0


def test_the_test_of_a_mean_is_students_where_one_part_is_all():
    values = [0.2, 0.5, 0.1, 0.4]
    mean, low, high, p = mean_difference(values, 0.0)
    known = ttest_1samp(values, 0)
    assert (mean, p) == pytest.approx((0.3, known.pvalue))
    assert (low, high) == pytest.approx(tuple(known.confidence_interval()))
    _, low, high, p = mean_difference([0.3, 0.3, 0.3], 0.1, 15)
    assert p == pytest.approx(2 * t.sf(3, 15))
    assert high - low == pytest.approx(2 * 0.1 * t.ppf(0.975, 15))
    assert mean_difference([0.0, 0.0], 0.0) == (0, 0, 0, 1)
    assert mean_difference([0.1, 0.1], 0.0)[3] == 0
    assert mean_difference([0.1, -0.1, 0.0], 0.1)[3] == pytest.approx(1)


def test_both_parts_are_added_in_squares_and_p_is_where_the_interval_ends():
    values = [0.2, 0.5, 0.1]
    mean, low, high, p = mean_difference(values, 0.1, 15)
    half = math.hypot(t.ppf(0.975, 2) * draw_stderr(values), t.ppf(0.975, 15) * 0.1)
    assert (low, high) == pytest.approx((mean - half, mean + half))
    assert p > mean_difference(values, 0.0)[3]
    for confidence in (0.8, 0.9, 0.99):
        low = mean_difference(values, 0.1, 15, confidence)[1]
        assert (low > 0) == (p < 1 - confidence)
    assert mean_difference(values, 0.1, 15, 1 - p)[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("seed", "window", "both"), [(1, 2, 1), (1, 0, 1), (0.3, 2, 0.3)])
def test_of_equal_methods_few_are_told_apart(seed, window, both):
    """Differences vary by seed, by window and by both: the level holds, also where Holm asks for a hundredth of it."""
    rng, p = np.random.default_rng(0), []
    for _ in range(1000):
        d = rng.normal(0, seed, (3, 1)) + rng.normal(0, window, (1, 16)) + rng.normal(0, both, (3, 16))
        p.append(mean_difference(d.mean(1).tolist(), d.mean(0).std(ddof=1) / 4, 15)[3])
    assert 0 < np.sum(np.less(p, 0.05)) <= 60
    assert np.sum(np.less(p, 0.0005)) <= 3


def test_levels_may_be_any_names():
    frame = pd.DataFrame({"m": [("a", 1), ("a", 1), ("b", 1), ("b", 1)], "y": [1.0, 3.0, 5.0, 9.0]})
    assert variance_components(frame["y"].tolist(), frame["m"].tolist()) == variance_components([1, 3, 5, 9], "aabb")
