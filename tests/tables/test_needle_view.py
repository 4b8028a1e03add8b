"""The view needle: documents are counted at the depth of their number, whichever of them were drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_records import DENSE, LACO
from made_samples import MadeSamples

from bench.records.measured import TaskMetric, TaskScore
from bench.stats.intervals import wilson
from reports.figures.catalogue import figures_of_report
from reports.figures.figure import to_svg
from reports.tables.views import build_view

DOCUMENTS = np.array([0, 5, 10, 4, 9, 14, 19])  # three at the beginning of their haystack, four at the end
RIGHT = (np.array([1, 1, 1, 1, 1, 1, 1]), np.array([0, 1, 0, 1, 1, 1, 0]))
BITS = (np.full(7, 0.5), np.array([1.0, 2, 3, 0.5, 0.5, 0.5, 0.5]))


@pytest.fixture
def records():
    score = {"main": "acc", "version": 1.0, "documents": 7, "available": 100, "fewshot": 0, "chance": 0.1}
    made = []
    for record, right in zip((DENSE, LACO), RIGHT, strict=True):
        task = TaskScore(metrics={"acc": TaskMetric(value=right.mean(), stderr=0.1)}, **score)
        made.append(replace(record, measured=replace(record.measured, tasks={"needle_1k": task})))
    return made


def of_task(number, name, figure):
    return {"doc_id": DOCUMENTS, "acc": RIGHT[number], "answer_bpb": BITS[number]}.get(figure)


def test_each_depth_has_its_own_documents(records):
    tables = build_view("needle", records, samples=MadeSamples(of_task))
    (table,) = [table for table in tables if len(table.rows) == 2]
    assert [column.label for column in table.columns] == ["acc 0 %", "acc 100 %", "bpb 0 %", "bpb 100 %"]
    dense, laco = table.rows
    assert [cell.value for cell in dense.cells] == [1, 1, 0.5, 0.5]
    assert [cell.value for cell in laco.cells] == pytest.approx([1 / 3, 3 / 4, 2, 0.5])
    assert (laco.cells[0].low, laco.cells[0].high) == pytest.approx(wilson(1, 3))
    assert laco.cells[2].stderr == pytest.approx(1 / 3**0.5)
    assert build_view("needle", records) == []
    assert build_view("needle", [DENSE, LACO], samples=MadeSamples(of_task)) == []


def test_the_map_says_what_is_found(records):
    (figure,) = [each for each in figures_of_report(records, MadeSamples(of_task)) if each.name.startswith("needle")]
    assert "laco 33, 75 %" in figure.description
    assert "<desc>" in to_svg(figure)
