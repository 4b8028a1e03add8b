"""Signal, noise and what follows from them, against what made-up figures were made of."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kendalltau

from bench.stats import draws
from bench.stats.draws import separation_of

RNG = np.random.default_rng(3)


def figures(models, documents, *, spread=0.5, hard=2.0, rest=1.5):
    """Made of what is the model's, the document's, and neither's, with these standard deviations."""
    own, shared = RNG.normal(0, spread, (models, 1)), RNG.normal(0, hard, (1, documents))
    return own + shared + RNG.normal(0, rest, (models, documents))


def test_what_figures_were_made_of_is_found():
    found = [separation_of([figures(12, 400)], 100) for _ in range(500)]
    assert np.mean([one.signal**2 for one in found]) == pytest.approx(0.25, rel=0.07)
    assert np.mean([one.noise for one in found]) == pytest.approx(1.5 / 10, rel=0.02)


def test_what_a_document_does_to_all_models_is_in_nothing():
    given = figures(6, 50)
    one, other = separation_of([given], 20), separation_of([given + 100 * RNG.normal(size=50)], 20)
    assert [one.signal, one.noise, one.agreement] == pytest.approx([other.signal, other.noise, other.agreement])


def test_without_a_difference_there_is_no_signal():
    found = [separation_of([figures(8, 100, spread=0.0)], 50) for _ in range(80)]
    assert np.mean([one.signal == 0 for one in found]) > 0.4  # as often as chance gives less than its mean
    assert abs(np.mean([one.agreement for one in found])) < 0.05
    assert all(math.isinf(one.needed) for one in found if not one.signal)


def test_without_noise_every_draw_has_the_order():
    found = separation_of([figures(6, 30, rest=0.0)], 10)
    assert (found.agreement, found.noise) == (1.0, pytest.approx(0, abs=1e-12))
    assert found.ratio > 1e9


def test_no_document_left_has_no_agreement():
    assert math.isnan(separation_of([figures(5, 20)], 20).agreement)
    assert math.isnan(separation_of([np.ones((5, 20))], 10).agreement)


def test_the_agreement_is_kendalls_of_two_halves(monkeypatch):
    given = np.round(figures(5, 4))  # with ties; of six ways to draw two documents each is as likely
    taus = []
    for chosen in combinations(range(4), 2):
        left = [one for one in range(4) if one not in chosen]
        taus.append(kendalltau(given[:, list(chosen)].mean(1), given[:, left].mean(1)).statistic)
    monkeypatch.setattr(draws, "DRAWS", 20_000)
    assert separation_of([given], 2).agreement == pytest.approx(np.nanmean(taus), abs=0.02)


def test_the_mean_of_tasks_weighs_each_alike(monkeypatch):
    monkeypatch.setattr(draws, "DRAWS", 1)  # of halves, whose agreement is not looked at here
    rng = np.random.default_rng(5)
    own = rng.normal(0, 0.3, (2_000, 1))
    easy, hard = own + rng.normal(0, 1, (2_000, 300)), -own + rng.normal(0, 4, (2_000, 50))
    found = separation_of([easy, hard], 25)
    assert found.noise == pytest.approx(math.sqrt((1 + 16) / 4 / 25), rel=0.02)
    assert found.signal < 0.07  # what one task finds the other takes back
    apart = own + np.zeros((2_000, 50)) + rng.normal(0, 4, (2_000, 50))
    assert separation_of([easy, apart], 25).signal == pytest.approx(0.3, abs=0.04)


def test_with_the_documents_that_are_needed_a_difference_is_found_in_four_of_five_draws():
    found = separation_of([figures(20, 2_000, spread=0.4)], 100)
    documents = math.ceil(found.needed)
    pairs = np.random.default_rng(1).normal(0, 1.5, (20_000, 2, documents))
    apart = pairs[:, 0] - pairs[:, 1] + found.signal
    z = apart.mean(1) / (1.5 * math.sqrt(2 / documents))
    assert np.mean(z > 1.96) == pytest.approx(0.8, abs=0.03)
