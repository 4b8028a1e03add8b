"""The view signal: which methods stand in it, and what its rows are of."""

from __future__ import annotations

import numpy as np
import pytest
from made_records import DENSE, LACO, changed, failed
from made_samples import MadeSamples, any_figures

from bench.stats.draws import separation_of
from reports.formats import terminal
from reports.legend import OTHER_DOCUMENTS
from reports.tables.views import build_view

NAMES = ("laco", "sleb", "flap", "shortgpt", "2ssp")
RECORDS = [DENSE, *(changed(LACO, "cell", "method", to=name) for name in NAMES)]


def shown(records, samples):
    (table,) = build_view("signal", records, samples=samples)
    return {row.label: [cell.value for cell in row.cells] for row in table.rows}, table


def test_each_figure_of_each_task_and_their_means_have_a_row():
    tasks = LACO.measured.task_scores
    rows, table = shown(RECORDS, MadeSamples(any_figures))
    each = [f"{task} {one.main}" for task, one in tasks.items()]
    assert list(rows) == [*each, *(f"{task} bpb" for task in tasks), "average", "bpb"]
    places = range(1, 6)  # behind the dense model, which is no method
    right = separation_of([np.array([any_figures(at, "piqa", "") for at in places])], 20)
    assert rows["piqa bpb"] == pytest.approx([right.signal, right.noise, right.ratio, right.agreement, right.needed])
    assert rows["piqa acc_norm"][:2] == pytest.approx([100 * right.signal, 100 * right.noise])  # in points
    both = separation_of([np.array([any_figures(at, task, "") for at in places]) for task in tasks], 20)
    assert rows["bpb"] == pytest.approx([both.signal, both.noise, both.ratio, both.agreement, both.needed])
    assert table.title.endswith(", 5 methods")
    assert set(table.protocol[0][1].split(", ")) == set(NAMES)
    assert any("a draw of 20 documents of each task" in said for said in table.footnotes)  # half of 40


def test_who_answered_other_documents_is_left_out_and_named():
    other = changed(LACO, "cell", "method", to="angular")
    samples = MadeSamples(lambda *asked: any_figures(*asked)[: 30 if asked[0] == 6 else 40])
    rows, table = shown([*RECORDS, other, failed("error", "angular-2", "it broke")], samples)
    assert rows == shown(RECORDS, MadeSamples(any_figures))[0]
    assert table.notes == (f"other documents: {OTHER_DOCUMENTS.sentence[:-1]}: angular.",)
    assert "angular" not in table.protocol[0][1]
    half = MadeSamples(
        lambda number, task, figure: None if (number, task) == (2, "piqa") else any_figures(number, task, figure)
    )
    assert shown(RECORDS, half)[1].notes[0].endswith(": sleb.")


def test_few_methods_and_no_samples_have_no_table():
    assert build_view("signal", RECORDS[:4], samples=MadeSamples(any_figures)) == []
    assert build_view("signal", RECORDS, samples=MadeSamples(lambda *_: None)) == []


def test_a_figure_without_a_signal_needs_no_number():
    alike = MadeSamples(
        lambda number, task, _: any_figures(1, task, "") if task == "piqa" else any_figures(number, task, "")
    )
    rows, table = shown(RECORDS, alike)
    signal, noise, _, agreement, needed = rows["piqa bpb"]
    assert (signal, noise, agreement, needed) == (0, pytest.approx(0, abs=1e-12), None, None)
    assert "piqa bpb" in terminal.render([table])
