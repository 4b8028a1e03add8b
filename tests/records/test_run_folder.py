"""A run as data frames: one row for each cell, one for each document."""

from __future__ import annotations

import numpy as np
import pytest
from made_runs import answers, cell, nats

from bench.records import packed_run, run_folder
from methods.errors import UserError


@pytest.fixture(params=["loose", "packed"])
def run(request, tmp_path):
    folder = tmp_path / "run"
    cell(folder, tasks={"piqa": answers(1)}, texts={"wiki": nats(1)})
    cell(folder, "laco", 0.1, tasks={"piqa": answers(3)}, texts={"wiki": nats(4)})
    cell(folder, "sleb", 0.1, status="out_of_memory")
    if request.param == "packed":
        packed_run.pack_run(folder, folder)
    return folder


def test_read_has_a_row_for_each_cell(run):
    frame = run_folder.read(str(run))
    assert frame["cell"].tolist() == ["dense--fixed--0", "laco--0.1--0", "sleb--0.1--0"]
    assert frame["label"].tolist() == ["dense", "laco", "sleb"]
    assert frame["status"].tolist() == ["ok", "ok", "out_of_memory"]
    assert frame["task_piqa"].tolist()[:2] == [answers(1).mean(), answers(3).mean()]
    assert np.isnan(frame["task_piqa"][2])
    assert frame["parameters"].dtype == "Int64"


def test_samples_have_a_row_for_each_cell_and_document(run):
    frame = run_folder.samples(run, "piqa")
    assert len(frame) == 2000
    assert frame.columns[0] == "cell"
    assert frame[frame["cell"] == "laco--0.1--0"]["acc"].tolist() == answers(3).tolist()
    windows = run_folder.samples(run, "perplexity-wiki")
    assert windows.groupby("cell")["nll"].sum().tolist() == pytest.approx([nats(1).sum(), nats(4).sum()])


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(UserError, match=r"no samples of 'piq'; it has perplexity-wiki, piqa"):
        run_folder.samples(run, "piq")
    with pytest.raises(UserError, match="is no run folder"):
        run_folder.read(tmp_path)


def test_a_cell_goes_by_key_start_or_label(run):
    assert (
        run_folder.find_cell(run, "laco--0.1--0")[0]
        == run_folder.find_cell(run, "la")[0]
        == run_folder.find_cell(run, "laco")[0]
    )
    assert run_folder.split_name(f"{run}/laco") == (run, "laco")
    with pytest.raises(UserError, match="'nosuch' is no cell of"):
        run_folder.find_cell(run, "nosuch")
