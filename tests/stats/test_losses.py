"""Shares of what guesses leave and bits that are added: by hand, by Fieller's condition, and in repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.stats.losses import FormAnswers, estimate_added, estimate_share

DENSE = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0.0])
PRUNED = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0.0])


def form(dense=DENSE, second=PRUNED, chance=0.25):
    """Return answers of a pruned model beside those of its dense model."""
    return FormAnswers(dense, dense, second, chance)


def moments(lost, above, chance):
    """Return the variances of the means and their covariance, with a lost and a gained answer among the documents."""
    lost, above = [*lost, 1, -1], [*above, 1 - chance, -chance]
    both = np.array([np.subtract(lost, np.mean(lost)), np.subtract(above, np.mean(above))])
    return both @ both.T / len(lost) ** 2


def test_the_share_and_both_ends_of_its_interval_are_those_of_the_formula():
    share, above = estimate_share([[form()]])
    assert share.estimate == pytest.approx((0.8 - 0.6) / (0.8 - 0.25))
    variances = moments(DENSE - PRUNED, DENSE - 0.25, 0.25)
    assert above.low == pytest.approx(0.55 - 1.96 * math.sqrt(variances[1, 1]))
    for end in (share.low, share.high):  # where N - r D is just not shown to differ from 0
        stderr = math.sqrt(np.array([1, -end]) @ variances @ np.array([1, -end]))
        assert abs(0.2 - end * 0.55) == pytest.approx(1.96 * stderr)
    assert share.low < share.estimate < share.high
    assert share.stderr == pytest.approx(math.sqrt(variances[0, 0]) / 0.55)


def test_tasks_weigh_alike_whatever_their_documents_and_two_forms_are_one_task():
    none = form(second=DENSE)
    assert estimate_share([[form()], [none]])[0].estimate == pytest.approx(0.2 / 2 / 0.55)
    long = form(np.tile(DENSE, 9), np.tile(DENSE, 9))
    assert estimate_share([[form()], [long]])[0].estimate == pytest.approx(0.2 / 2 / 0.55)
    assert estimate_share([[form()], [none, none]])[0].estimate == pytest.approx(0.2 / 2 / 0.55)
    # two forms that err on the same documents say no more than one; two tasks do
    once, twice, tasks = (estimate_share(answers)[0] for answers in ([[form()]], [[form()] * 2], [[form()], [form()]]))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert tasks.high - tasks.low < 0.75 * (once.high - once.low)


def test_forms_of_unlike_documents_are_parts_of_one_task():
    longer = form(np.tile(DENSE, 2), np.tile(PRUNED, 2))
    share, _ = estimate_share([[form(), longer]])
    assert share.estimate == pytest.approx(0.2 / 0.55)


def test_answers_that_all_stay_have_an_interval_that_shrinks_with_their_number():
    few, many = (estimate_share([[form(dense, dense)]])[0] for dense in (DENSE, np.tile(DENSE, 20)))
    assert (few.estimate, few.p) == (0, 1)
    assert few.low < -0.2 < 0.2 < few.high
    assert many.high < few.high / 4


def test_there_is_no_share_unless_the_dense_model_is_above_guesses():
    share, above = estimate_share([[form(chance=0.6)]])
    assert share is None
    assert (above.estimate, above.low < 0) == (pytest.approx(0.2), True)
    assert estimate_share([[form(np.tile(DENSE, 20), np.tile(PRUNED, 20), 0.6)]])[0] is not None


def test_the_interval_holds_the_true_share_in_95_of_100_draws():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        draws = rng.random((3, 60))
        tasks = [[form((draw < 0.7).astype(float), (draw < 0.5).astype(float))] for draw in draws]
        share, _ = estimate_share(tasks)
        held += share.low <= 0.2 / 0.45 <= share.high
    assert 0.93 <= held / 400 <= 0.99


def test_bits_added_are_the_geometric_mean_of_the_ratios_of_tasks():
    first, second = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])
    added = estimate_added([(first, second), (first, 3 * first)])
    assert added.estimate == pytest.approx(math.sqrt(1.5 * 3) - 1)
    parts = second / 3 - first / 2
    stderr = math.sqrt(parts.var(ddof=1) / 3) / 2  # a task whose bits all grow alike adds none
    assert added.stderr == pytest.approx(stderr)
    assert math.log(1 + added.high) - math.log(1 + added.low) == pytest.approx(2 * 1.96 * stderr)


def test_no_bits_at_all_have_no_ratio():
    assert estimate_added([(np.zeros(3), np.ones(3))]) is None
