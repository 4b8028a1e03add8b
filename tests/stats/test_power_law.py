"""A power law is fitted through logarithms, and its inverse has an interval that covers what it should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bench.stats.power_law import fit_power_law

TOKENS = [1e4, 3e4, 1e5, 3e5, 1e6]


def test_an_exact_power_law_is_found_with_an_interval_of_no_width():
    law = fit_power_law([0, *TOKENS], [5.0, *(40 * t**-0.3 for t in TOKENS)])
    assert law.slope == pytest.approx(-0.3)
    assert law.n == 5
    for level in (1.0, 0.1):
        assert law.find_tokens(level) == pytest.approx([(level / 40) ** (1 / -0.3)] * 3, rel=1e-4)


def test_the_ends_are_where_the_interval_of_the_line_meets_the_level():
    noise = np.array([0.08, -0.05, -0.1, 0.06, 0.01])
    x, y = np.log(TOKENS), np.log([40 * t**-0.3 for t in TOKENS]) + noise
    line = stats.linregress(x, y)
    s = math.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / 3)

    def misses(at):
        """By how many standard errors the line misses the level at log t."""
        error = s * math.sqrt(1 / 5 + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
        return abs(line.intercept + line.slope * at - math.log(0.5)) / error

    tokens, low, high = fit_power_law(TOKENS, np.exp(y).tolist()).find_tokens(0.5)
    assert low < tokens < high
    assert misses(math.log(tokens)) == pytest.approx(0, abs=1e-6)
    for end in (low, high):
        assert misses(math.log(end)) == pytest.approx(stats.t.ppf(0.975, 3), rel=1e-6)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator, covered = np.random.default_rng(1), 0
    for _ in range(400):
        excess = [40 * t**-0.3 * math.exp(0.1 * generator.standard_normal()) for t in TOKENS]
        reached = fit_power_law(TOKENS, excess).find_tokens(0.5)
        covered += reached is None or reached[1] <= (0.5 / 40) ** (1 / -0.3) <= reached[2]
    assert 0.92 <= covered / 400 <= 0.98


def test_a_curve_that_does_not_fall_or_is_short_reaches_nothing():
    assert fit_power_law(TOKENS, [1.0, 1.2, 0.9, 1.1, 1.0]).find_tokens(0.1) is None
    assert fit_power_law(TOKENS, [1.0, 1.1, 1.2, 1.3, 1.4]).find_tokens(0.1) is None
    assert fit_power_law([0, *TOKENS[:3]], [4.0, 3.0, 2.0, 1.0]) is None
    assert fit_power_law(TOKENS, [3.0, 2.0, 1.0, -0.1, 0.5]) is not None  # better than the dense model is no excess
    assert fit_power_law([1e4] * 4, [3.0, 2.0, 1.0, 0.5]) is None
    assert fit_power_law(TOKENS, [40 * t**-0.001 for t in TOKENS]).find_tokens(1e-3)[0] == math.inf
