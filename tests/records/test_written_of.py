"""Answers that are chosen and written: shares and intervals by hand, and the tables that have them."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest
from made_records import DENSE, LACO, changed

from bench.records.frame import rows_of_records
from bench.records.samples import Samples
from bench.stats.intervals import wilson
from reports.report import to_csv
from reports.tables.views import build_view

CHOSEN = [1, 1, 1, 1, 1, 1, 0, 0]  # of eight documents
WRITTEN = [1, 1, 0, 0, 0, 0, 1, 0]  # of the six that are chosen right two are written right; 6 is written right alone
PRUNED = [0, 0, 0, 0, 0, 0, 1, 0]
NUMBERS = [3, 9, 12, 20, 21, 30, 44, 45]  # of the documents that are drawn
TASKS = ("basic_skills_arithmetic_rc", "basic_skills_arithmetic_gen")
COLUMN = "written_basic_skills_arithmetic_rc"


def record(method, tasks=TASKS, available=100):
    """A record with these tasks, of which one whose answers are written is right by exact_match."""
    scores = {}
    for task in tasks:
        metric = "exact_match" if task.endswith("gen") else "acc_norm"
        scores[task] = {"main": metric, "metrics": {metric: {"value": 0.5, "stderr": 0.1}}, "version": 1, "fewshot": 5}
        scores[task] |= {"documents": 8, "available": 100 if metric == "acc_norm" else available}
    return changed(DENSE if method == "dense" else LACO, "measured", "tasks", to=scores)


def write(folder, chosen, written, numbers=NUMBERS):
    """Write the samples of a cell, those that are written in another order, and return their folder."""
    folder.mkdir(parents=True)
    for task, metric, right in zip(TASKS, ("acc_norm", "exact_match"), (chosen, written), strict=True):
        hashes = [
            f"{task} {number}" for number in range(len(right))
        ]  # other ones, since the documents have other columns
        documents = NUMBERS if metric == "acc_norm" else numbers
        table = pd.DataFrame({"doc_id": documents, "doc_hash": hashes, metric: list(map(float, right))})
        table.iloc[:: 1 if metric == "acc_norm" else -1].to_parquet(folder / f"{task}.parquet")
    return folder


@pytest.fixture
def cells(tmp_path):
    folders = [write(tmp_path / "dense", CHOSEN, WRITTEN), write(tmp_path / "laco", CHOSEN, PRUNED)]
    return [record("dense"), record("laco")], folders


def test_the_view_skills_has_a_table_of_them(cells):
    records, folders = cells
    *_, table = build_view("skills", records, samples=Samples(folders))
    assert table.name.startswith("skills-written-")
    assert [column.label for column in table.columns] == ["arithmetic, text"]
    assert {row.label: row.cells[0].value for row in table.rows} == {"dense": pytest.approx(2 / 6), "laco": 0}
    assert (table.rows[0].cells[0].low, table.rows[0].cells[0].high) == wilson(2, 6)
    assert any("Wilson" in note for note in table.footnotes)


def test_of_what_is_chosen_right_a_share_is_written_right(cells):
    records, folders = cells
    dense, pruned = rows_of_records(records, Samples(folders))
    assert dense[COLUMN] == pytest.approx(2 / 6)
    assert (dense[f"{COLUMN}_low"], dense[f"{COLUMN}_high"]) == wilson(2, 6)
    assert pruned[COLUMN] == 0  # what is written right is not chosen right
    assert pruned[f"{COLUMN}_high"] == wilson(0, 6)[1]


@pytest.mark.parametrize("why", ["other documents", "other task", "none chosen", "not written", "no samples"])
def test_without_the_same_documents_there_is_no_share(cells, tmp_path, why):
    records, folders = cells
    if why == "other documents":
        folders[1] = write(tmp_path / why, CHOSEN, WRITTEN, [*NUMBERS[:-1], 46])
    if why == "other task":
        records[1] = record("laco", available=99)
    if why == "none chosen":
        folders[1] = write(tmp_path / why, [0] * 8, WRITTEN)
    if why == "not written":
        records[1] = record("laco", TASKS[:1])
    if why == "no samples":
        folders = folders[:1]
    dense, pruned = rows_of_records(records, Samples(folders))
    assert COLUMN in dense
    assert COLUMN not in pruned


def test_the_view_per_task_and_report_csv_have_it(cells):
    records, folders = cells
    (table,) = build_view("per-task", records, samples=Samples(folders))
    (part,) = [part for part in table.groups() if part.columns[0].group == "written"]
    assert [column.name for column in part.columns] == [COLUMN]
    low, high = wilson(2, 6)
    assert part.rows[0].cells[0].text == f"33.3 [{100 * low:.1f}, {100 * high:.1f}]"
    assert any(sentence.startswith("written of: of the answers that are chosen") for sentence in table.footnotes)
    lines = list(csv.DictReader(io.StringIO(to_csv(records, Samples(folders)))))
    assert [float(line[COLUMN]) for line in lines] == pytest.approx([2 / 6, 0])
    assert COLUMN not in to_csv(records)
