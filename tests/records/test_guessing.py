"""Accuracies that may be those of guesses are marked, and tasks in which the dense model may guess can be left out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import DENSE, measured, ok, with_measured

from bench.cli.main import main
from bench.records import answers
from bench.records.frame import drop_guessed_tasks, may_be_guessed, rows_of_records
from bench.records.measured import TaskMetric
from bench.records.run_folder import load_run
from bench.stats.intervals import wilson
from reports.formats import latex, terminal
from reports.legend import GUESS
from reports.tables.views import build_views

STUDY = Path(__file__).parents[2] / "docs" / "results" / "task-signal"
GRID = STUDY.parent / "grid"
CHANCES = dict.fromkeys(("hellaswag", "arc_easy", "openbookqa"), 0.25) | dict.fromkeys(("piqa", "winogrande"), 0.5)


def guessing(record, **chances):
    """The record, with the accuracy of guesses of each task."""
    own = CHANCES | chances
    tasks = {name: replace(task, chance=own[name]) for name, task in record.measured.task_scores.items()}
    return with_measured(record, tasks=tasks)


def pruned(accuracies, ratio=0.1):
    return guessing(ok("laco", ratio, measured(4 * 3_540_096, (30.0, 31.0, 32.0), accuracies, 70.0)))


def test_guesses_among_unlike_numbers_of_choices():
    assert answers.accuracy_of_guesses([[-1.0] * 2, [-1.0] * 4, [-1.0] * 5]) == pytest.approx(
        (1 / 2 + 1 / 4 + 1 / 5) / 3
    )
    assert answers.accuracy_of_guesses([[-1.0], [-2.0]]) is None  # a likelihood and no choice
    assert answers.accuracy_of_guesses([]) is None


@pytest.mark.parametrize("right", range(50, 71))
def test_an_accuracy_is_above_guessing_where_its_interval_is(right):
    (row,) = rows_of_records([pruned([right / 100] * 5)])
    assert may_be_guessed(row, "task_piqa") == (wilson(right, 100)[0] <= 0.5)
    assert not may_be_guessed(row, "task_arc_easy")
    assert row["average_chance"] == pytest.approx((3 * 0.25 + 2 * 0.5) / 5)


def test_an_average_is_held_against_the_average_of_guesses():
    for accuracies, guessed in (([0.3, 0.52, 0.52, 0.28, 0.27], True), ([0.4, 0.7, 0.6, 0.5, 0.3], False)):
        (row,) = rows_of_records([pruned(accuracies)])
        assert may_be_guessed(row, "average") == guessed == (row["average"] - 1.96 * row["average_stderr"] <= 0.35)


def test_nothing_is_said_where_the_choices_are_not_known():
    (row,) = rows_of_records([ok("laco", 0.1, measured(0, (30.0, 31.0, 32.0), [0.1] * 5, 70.0))])
    assert not any(may_be_guessed(row, column) for column in ("task_piqa", "average", "task_none"))


def test_a_score_that_is_no_accuracy_is_not_held_against_guesses():
    record = guessing(DENSE)
    tasks = {
        name: replace(task, metrics={"mcc": TaskMetric(value=-0.1)}, main="mcc")
        for name, task in record.measured.task_scores.items()
    }
    record = with_measured(record, tasks=tasks)
    assert not any(name.endswith("_chance") for name in rows_of_records([record])[0])
    assert drop_guessed_tasks([record]) == ([record], [])


def test_tables_mark_what_may_be_guessed_and_say_what_guesses_have():
    records = [guessing(DENSE), pruned([0.45, 0.52, 0.5, 0.6, 0.44])]
    (table,) = build_views(("per-task",), records)["per-task"]
    marked = {
        (row.label, column.name)
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if "guess" in cell.marks
    }
    assert marked == {("laco", "task_piqa"), ("laco", "task_winogrande"), ("dense", "task_winogrande")}
    assert f"‡ guess: {GUESS.sentence[:-1]}: piqa, winogrande [50.0 %]." in table.notes
    assert re.search(r"dense .*71\.0 ± [\d.]+ .*50\.0 ± [\d.]+‡", terminal.render([table]))
    assert latex.render([table]).count(r"$^{\ddagger}$") == 3 + 1  # and in what it means


def test_tasks_in_which_the_dense_model_may_guess_are_left_out_of_every_row():
    good = pruned([0.45, 0.72, 0.7, 0.6, 0.44])
    kept, said = drop_guessed_tasks([guessing(DENSE), good])
    assert [list(record.measured.task_scores) for record in kept] == [
        ["hellaswag", "piqa", "arc_easy", "openbookqa"]
    ] * 2
    assert said == [
        "winogrande is left out: the dense SmolLM2-135M-Instruct has 50.0 % [40.4, 59.6], and guesses have 50.0 %"
    ]
    assert rows_of_records(kept)[1]["average"] == pytest.approx((0.45 + 0.72 + 0.6 + 0.44) / 4)
    assert drop_guessed_tasks([good]) == ([good], [])  # without a dense cell


def test_a_task_in_which_the_dense_model_may_guess_is_left_out_of_a_report(capsys):
    tasks = next(record for record in load_run(STUDY) if record.cell.method == "dense").measured.task_scores
    assert {name: round(task.chance, 2) for name, task in tasks.items()} == CHANCES
    assert main(["report", str(STUDY), "--model", "smollm2-135m", "--above-guessing", "--explain"]) == 0
    out, said = capsys.readouterr()
    assert [line.partition(" ")[0] for line in said.splitlines()] == ["winogrande"]
    assert re.search(r"\nhellaswag, piqa, arc_easy +acc_norm, 500 documents, 0-shot\n", out)
    assert "winogrande" not in out


def test_how_many_averages_of_a_shipped_run_may_be_guessed():
    cells = [(record, record.cell) for record in load_run(GRID)]
    kept = [record for record, cell in cells if (cell.model, cell.seed) == ("smollm2-135m", 0)]
    rows = rows_of_records([record for record in kept if record.cell.method != "drop-random"])
    counts = [
        sum(may_be_guessed(row, "average") for row in rows if row["requested_ratio"] == ratio)
        for ratio in (0.1, 0.2, 0.3)
    ]
    assert counts == [3, 9, 17]
