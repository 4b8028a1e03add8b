"""What is lost of each skill: which tasks are in it, what pairs them, and the columns of rows, draws and trackers."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from made_records import RECORDS, changed
from made_samples import MadeSamples, any_figures
from made_skills import answered, record, samples_of

from bench.data.skills import QUICK_SKILLS
from bench.records.frame import rows_of_records
from bench.records.samples import Samples
from bench.stats.losses import FormAnswers, estimate_share
from reports.groups import group_records
from reports.report import to_csv

RIGHT = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
PRUNED = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
BITS = [0.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
BOTH = {"basic_skills_arithmetic_rc": 0.25, "basic_skills_arithmetic_mc": 0.25}


def rows_of(values, tasks, methods=("dense", "laco"), **changes):
    """Return the rows of cells with these tasks, and samples of them."""
    return rows_of_records([record(method, tasks, **changes) for method in methods], samples_of(values))


def share(*forms):
    """Return the share that is lost from RIGHT to each of these answers, as forms of one task."""
    dense = np.array(RIGHT, dtype=float)
    return estimate_share([[FormAnswers(dense, dense, np.array(form, dtype=float), 0.25) for form in forms]])


def test_both_forms_are_one_task_and_stand_apart_beside_it():
    text, letter = BOTH
    values = {(0, text, "acc"): RIGHT, (1, text, "acc"): PRUNED, (0, letter, "acc"): RIGHT, (1, letter, "acc"): RIGHT}
    dense, laco = rows_of(values, BOTH)
    assert laco["skill_loss_arithmetic"] == pytest.approx((0.2 + 0) / 2 / 0.65)
    expected, above = share(PRUNED, RIGHT)
    columns = [laco[f"skill_loss_arithmetic_{end}"] for end in ("low", "high", "stderr")]
    assert columns == pytest.approx([expected.low, expected.high, expected.stderr])
    assert laco["skill_text_arithmetic"] == pytest.approx(0.2 / 0.65)
    assert laco["skill_letter_arithmetic"] == 0
    assert dense["skill_above_arithmetic"] == pytest.approx(0.65)
    assert dense["skill_above_arithmetic_low"] == pytest.approx(above.low)
    assert "skill_loss_arithmetic" not in dense
    assert "skill_above_arithmetic" not in laco


def test_bits_are_of_references_and_of_texts_of_choices_and_never_of_letters():
    tasks = {"gsm8k_bpb": 0, **BOTH}
    values = {(at, task, "answer_bpb"): np.multiply(BITS, 1 + at) for at in (0, 1) for task in tasks}
    values[1, "basic_skills_arithmetic_mc", "answer_bpb"] = np.multiply(BITS, 9)
    _, laco = rows_of(values, tasks)
    assert (laco["skill_bits_math"], laco["skill_bits_arithmetic"]) == pytest.approx((1, 1))
    assert "skill_loss_math" not in laco  # which has no choices


def test_a_skill_on_which_the_dense_model_may_guess_has_no_share():
    guesses = [1, 0, 0, 0, 1, 0, 0, 0, 1, 0]
    values = {(at, "copycolors_mc", "acc"): guesses for at in (0, 1)}
    dense, laco = rows_of(values, {"copycolors_mc": 0.25})
    assert dense["skill_above_copying_low"] < 0 < dense["skill_above_copying"]
    assert laco.get("skill_loss_copying") is None


@pytest.mark.parametrize("why", ["no samples", "other documents", "another metric", "one task missing"])
def test_without_the_same_answers_nothing_is_lost(why):
    tasks = {"boolq_rc": 0.5, "coqa_bpb": 0.0}
    values = {(at, "boolq_rc", "acc"): RIGHT for at in (0, 1)} | {(at, "boolq_rc", "answer_bpb"): BITS for at in (0, 1)}
    values |= {(at, "coqa_bpb", "answer_bpb"): BITS for at in (0, 1)}
    cells = [record(method, tasks) for method in ("dense", "laco")]
    if why == "no samples":
        del values[1, "boolq_rc", "acc"], values[1, "boolq_rc", "answer_bpb"]
    elif why == "other documents":
        values[1, "boolq_rc", "acc"], values[1, "boolq_rc", "answer_bpb"] = RIGHT[1:], BITS[1:]
    elif why == "another metric":
        cells[1] = changed(cells[1], "measured", "tasks", "boolq_rc", "version", to=2)
        del values[1, "boolq_rc", "answer_bpb"]
    else:
        del values[1, "coqa_bpb", "answer_bpb"]
    _, laco = rows_of_records(cells, samples_of(values))
    assert laco.get("skill_bits_reading") is None
    assert (laco.get("skill_loss_reading") is None) == (why != "one task missing")
    assert not any(name.startswith("skill_") for row in rows_of_records(cells) for name in row)


def test_seeds_share_a_row_whose_interval_has_their_draw_in_it():
    values = {}
    for place, answers in enumerate((RIGHT, PRUNED, RIGHT, RIGHT)):
        values[place, "piqa_rc", "acc"] = answers
    cells = [record(method, {"piqa_rc": 0.25}, seed=seed) for seed in (0, 1) for method in ("dense", "laco")]
    ((group,),) = group_records(cells, samples_of(values))
    row = next(row for row in group.rows if row["method"] == "laco")
    assert row["skill_loss_commonsense"] == pytest.approx((0.2 / 0.65 + 0) / 2)
    single = rows_of_records(cells, samples_of(values))[1]
    assert row["skill_loss_commonsense_high"] > single["skill_loss_commonsense_high"]


def test_the_csv_has_them_for_every_skill_and_other_tasks_have_none():
    cells, samples = answered(QUICK_SKILLS, documents=40)
    (*_, line) = csv.DictReader(io.StringIO(to_csv(cells, samples)))
    assert line["label"] == "shortgpt"
    assert 0.3 < float(line["skill_loss_arithmetic"]) < 0.9
    assert [name for name in line if name.startswith("skill_bits_") and name.count("_") == 2] == [
        f"skill_bits_{skill}"
        for skill in ("knowledge", "reading", "language", "commonsense", "reasoning", "arithmetic", "math", "code")
    ] + ["skill_bits_copying"]
    assert "skill_" not in to_csv(RECORDS, MadeSamples(any_figures))
    assert "skill_" not in to_csv(cells, Samples())
