"""Answers that pruning flips: shares and standard errors by hand, and the tables that have them."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_records import DENSE, LACO, changed

from bench.records.frame import rows_of_records
from bench.records.samples import Samples
from reports.report import to_csv
from reports.tables.views import build_view

ROOT = Path(__file__).parent.parent.parent
# of ten documents the dense model has the first six right; the pruned one loses 0 and 1, and gains 9
RIGHT = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
PRUNED = [0, 0, 1, 1, 1, 1, 0, 0, 0, 1]
CHOICES = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]  # the likeliest choice of the dense model
OTHERS = [1, 2, 0, 0, 0, 0, 1, 1, 2, 0]  # and of the pruned one: 8 goes from one wrong choice to another


def record(method, tasks, seed=0, documents=10):
    """Return a record with these tasks of ten documents, by the metric acc_norm."""
    task = {"main": "acc_norm", "metrics": {"acc_norm": {"value": 0.5, "stderr": 0.1}}, "version": 1}
    task |= {"documents": documents, "available": 100, "fewshot": 0}
    first = changed(DENSE if method == "dense" else LACO, "cell", "method", to=method)
    return changed(changed(first, "cell", "seed", to=seed), "measured", "tasks", to=dict.fromkeys(tasks, task))


def likelihoods(choice):
    """Return the log-likelihoods of three choices, of which this one is the likeliest."""
    return [-1.0 if place == choice else -5.0 for place in range(3)]


def write(folder, answers_by_task, *, order=None, likeliest=None):
    """Write the samples of a cell, of each task {document: answer}, and return their folder."""
    folder.mkdir(parents=True)
    for task, answers in answers_by_task.items():
        documents = [f"{task} {number}" for number in range(len(answers))]
        table = pd.DataFrame({"doc_hash": documents, "acc_norm": np.asarray(answers, dtype=float)})
        if likeliest is not None:
            table["loglikelihoods"] = [likelihoods(choice) for choice in likeliest]
        table.iloc[order if order is not None else range(len(answers))].to_parquet(folder / f"{task}.parquet")
    return folder


@pytest.fixture
def one_task(tmp_path):
    """A dense and a pruned cell, whose samples stand in another order."""
    folders = [
        write(tmp_path / "dense", {"piqa": RIGHT}, likeliest=CHOICES),
        write(tmp_path / "laco", {"piqa": PRUNED}, order=[3, 1, 4, 0, 5, 9, 2, 6, 8, 7], likeliest=OTHERS),
    ]
    return [record("dense", ["piqa"]), record("laco", ["piqa"])], folders


def stderr(count, documents):
    """Return the standard error of a share of this many of the documents, with one degree of freedom less."""
    share = count / documents
    return math.sqrt(share * (1 - share) / (documents - 1))


def test_flips_are_what_is_lost_and_gained_and_every_change_of_choice_is_changed(one_task):
    records, folders = one_task
    dense, pruned = rows_of_records(records, Samples(folders))
    expected = {"flips": 3, "lost": 2, "gained": 1, "changed": 4}
    for kind, count in expected.items():
        assert pruned[f"{kind}_piqa"] == pruned[kind] == pytest.approx(count / 10)
        assert pruned[f"{kind}_piqa_stderr"] == pruned[f"{kind}_stderr"] == pytest.approx(stderr(count, 10))
    assert not [name for name in dense if name.startswith(tuple(expected))]


def test_every_task_weighs_alike_whatever_its_documents(tmp_path):
    # 3 of 10 flip, and 1 of 4: the mean is 27.5 %, and not 4 of 14
    folders = [
        write(tmp_path / "dense", {"piqa": RIGHT, "arc_easy": [1, 0, 1, 0]}),
        write(tmp_path / "laco", {"piqa": PRUNED, "arc_easy": [1, 0, 0, 0]}),
    ]
    _, pruned = rows_of_records([record(name, ["piqa", "arc_easy"]) for name in ("dense", "laco")], Samples(folders))
    assert pruned["flips"] == pytest.approx((0.3 + 0.25) / 2)
    assert pruned["flips_stderr"] == pytest.approx(math.hypot(stderr(3, 10), stderr(1, 4)) / 2)
    assert (pruned["lost"], pruned["gained"]) == pytest.approx(((0.2 + 0.25) / 2, 0.1 / 2))
    assert "changed" not in pruned  # the samples hold no likelihoods


def test_what_is_gained_less_what_is_lost_is_the_change_of_the_average(one_task):
    records, folders = one_task
    _, pruned = rows_of_records(records, Samples(folders))
    assert pruned["gained"] - pruned["lost"] == pytest.approx(np.mean(PRUNED) - np.mean(RIGHT))


@pytest.mark.parametrize(
    "why", ["no samples", "fewer documents", "other documents", "other metric", "no right or wrong", "no dense cell"]
)
def test_without_samples_of_the_same_answers_nothing_flips(one_task, tmp_path, why):
    records, folders = one_task
    if why == "no samples":
        folders = [folders[0]]
    if why == "fewer documents":
        folders[1] = write(tmp_path / "few", {"piqa": PRUNED[:9]})
    if why == "other documents":
        path = folders[1] / "piqa.parquet"
        table = pd.read_parquet(path)
        table.assign(doc_hash=table["doc_hash"] + " again").to_parquet(path)
    if why == "other metric":
        task = changed(records[1], "measured", "tasks", "piqa", "version", to=2)
        records = [records[0], task]
    if why == "no right or wrong":
        folders[1] = write(tmp_path / "shares", {"piqa": [0.5, *PRUNED[1:]]})
    if why == "no dense cell":
        records, folders = records[1:], folders[1:]
    for row in rows_of_records(records, Samples(folders)):
        assert row.get("flips_piqa") is None
        assert row.get("flips") is None
    (table,) = build_view("main", records, samples=Samples(folders))
    assert "flips" not in [column.name for column in table.columns]


def test_one_task_without_samples_leaves_the_mean_missing(tmp_path):
    # of the second method one task alone has samples, and a mean over other tasks than those of the first is none
    names = ["piqa", "arc_easy"]
    both = {"piqa": RIGHT, "arc_easy": [1, 0, 1, 0]}
    folders = [write(tmp_path / name, both) for name in ("dense", "laco")]
    folders.append(write(tmp_path / "sleb", {"piqa": PRUNED}))
    _, laco, sleb = rows_of_records([record(name, names) for name in ("dense", "laco", "sleb")], Samples(folders))
    assert (laco["flips"], laco["flips_arc_easy"]) == (0, 0)
    assert (sleb["flips"], sleb["flips_piqa"]) == (None, pytest.approx(0.3))


def test_the_main_table_has_flips_and_a_terminal_leaves_them_out(one_task):
    records, folders = one_task
    (table,) = build_view("main", records, samples=Samples(folders))
    (place,) = [at for at, column in enumerate(table.columns) if column.name == "flips"]
    assert table.columns[place].head == "flips (%) ↓"
    assert (table.columns[place].group, table.columns[place].detail) == ("quality", True)
    assert [row.cells[place].text for row in table.rows] == ["-", f"30.0 ± {100 * stderr(3, 10):.1f}"]
    assert any(sentence.startswith("flips: answers that are right") for sentence in table.footnotes)
    (without,) = build_view("main", records)
    assert "flips" not in [column.name for column in without.columns]
    assert not any(sentence.startswith("flips:") for sentence in without.footnotes)


def test_the_view_per_task_has_the_flips_of_each_task_and_all_four_kinds(one_task):
    records, folders = one_task
    (table,) = build_view("per-task", records, samples=Samples(folders))
    (part,) = [part for part in table.groups() if part.columns[0].group == "flips"]
    assert [column.name for column in part.columns] == ["flips_piqa", "flips", "lost", "gained", "changed"]
    assert [cell.value for cell in part.rows[1].cells] == pytest.approx([0.3, 0.3, 0.2, 0.1, 0.4])


def test_report_csv_has_all_of_them(one_task):
    records, folders = one_task
    lines = list(csv.DictReader(io.StringIO(to_csv(records, Samples(folders)))))
    assert [line["flips_piqa"] for line in lines] == ["", "0.3"]
    assert float(lines[1]["changed_piqa"]) == 0.4
    assert "flips" not in to_csv(records)


def test_draws_of_a_method_share_a_row_with_the_mean_of_their_flips(tmp_path):
    folders = [write(tmp_path / str(at), {"piqa": answers}) for at, answers in enumerate((RIGHT, RIGHT, PRUNED, RIGHT))]
    records = [record(method, ["piqa"], seed) for seed in (0, 1) for method in ("dense", "laco")]
    records = [records[0], records[2], records[1], records[3]]
    (table,) = build_view("main", records, samples=Samples(folders))
    (place,) = [at for at, column in enumerate(table.columns) if column.name == "flips"]
    assert [row.cells[place].value for row in table.rows] == [None, pytest.approx(0.15)]
