"""Runs with many tasks by skill: what the main table shows of them, and which tasks means are of."""

from __future__ import annotations

import csv
import io

import pytest
from made_records import DENSE, changed
from made_skills import LEAVES, answered, record

from bench.data.skills import QUICK_SKILLS, SKILLS
from bench.records.frame import columns_of_tasks, keep_shown_tasks, keep_standard_tasks, rows_of_records
from reports.formats import terminal
from reports.report import to_csv
from reports.tables.views import FOLDED, build_view

STANDARD = ("piqa", "hellaswag")


def test_means_are_of_lm_eval_s_tasks_where_there_are_any():
    assert keep_standard_tasks(["piqa", "piqa_rc", "gsm8k_bpb", "needle_1k", "instructions", "mmlu_pro"]) == [
        *("piqa", "mmlu_pro")
    ]
    assert keep_standard_tasks(["piqa_rc", "gsm8k_bpb"]) == ["piqa_rc", "gsm8k_bpb"]


def scored(accuracies):
    """A dense record with these accuracies by task."""
    tasks = record("dense", dict.fromkeys(accuracies, 0.25)).plain()["measured"]["tasks"]
    for task, value in accuracies.items():
        tasks[task]["metrics"]["acc"]["value"] = value
    return changed(DENSE, "measured", "tasks", to=tasks)


def test_the_average_is_not_moved_by_tasks_by_skill_and_says_so():
    alone, both = scored({"piqa": 0.6, "hellaswag": 0.4}), scored({"piqa": 0.6, "hellaswag": 0.4, "sciq_rc": 0.9})
    rows = [rows_of_records([each])[0] for each in (alone, both)]
    assert [row["average"] for row in rows] == [pytest.approx(0.5)] * 2
    assert rows[0]["average_stderr"] == rows[1]["average_stderr"]
    assert rows_of_records([scored({"sciq_rc": 0.9, "sciq_mc": 0.5})])[0]["average"] == pytest.approx(0.7)
    (table,) = build_view("main", [both])
    assert any(note.startswith("Means over tasks are of those that lm-eval defines") for note in table.footnotes)
    facts = {task: fact for tasks, fact in table.protocol for task in tasks.split(", ")}
    assert "not in the average" in facts["sciq_rc"]
    assert "not in the average" not in facts["piqa"]
    assert not any("lm-eval defines" in note for note in build_view("main", [alone])[0].footnotes)


def test_many_tasks_by_skill_are_folded_in_the_main_table():
    names = [*STANDARD, *(task for tasks in SKILLS.values() for task in tasks if not task.endswith("_gen"))]
    records, samples = answered(names, documents=20)
    (main,) = build_view("main", records, samples=samples)
    heads = [column.label for column in main.columns]
    assert "piqa" in heads
    assert "arithmetic lost" in heads
    assert not {"sciq_rc", "gsm8k_bpb"} & set(heads)
    assert len(heads) < 30
    assert FOLDED in main.footnotes
    assert max(map(len, terminal.render([main]).splitlines())) <= 100
    (every,) = build_view("per-task", records, samples=samples)
    names_of_columns = [column.name for column in every.columns]
    assert len(names_of_columns) == len(set(names_of_columns)) > 100


def test_few_tasks_by_skill_stand_one_by_one():
    few = ["piqa", *QUICK_SKILLS[:10]]
    records, samples = answered(few, documents=20)
    assert keep_shown_tasks(records) == few
    assert FOLDED not in build_view("main", records, samples=samples)[0].footnotes
    records, _ = answered(["piqa", *QUICK_SKILLS[:11]], documents=20)
    assert keep_shown_tasks(records) == ["piqa"]


def test_a_task_with_bits_alone_has_them_once():
    records, samples = answered(["gsm8k_bpb", "sciq_rc"], LEAVES, documents=20)
    assert columns_of_tasks(records) == ["task_sciq_rc", "answer_bpb_gsm8k_bpb"]
    header = next(csv.reader(io.StringIO(to_csv(records))))
    assert [name for name in header if "gsm8k" in name and name.endswith("bpb")] == ["answer_bpb_gsm8k_bpb"]
    assert len(header) == len(set(header))
    for view in ("main", "per-task"):
        (table,) = build_view(view, records, samples=samples)
        assert [column.name for column in table.columns].count("answer_bpb_gsm8k_bpb") == 1
