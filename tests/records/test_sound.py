"""A cell keeps all that it has found but what no record holds, and the smallest object that makes no sense without."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from made_records import LACO, changed

from bench.records.record import Record, load
from bench.runs import store

SHA = "ab" * 32
POINT = {
    "step": 1,
    "tokens": 64,
    "seconds": 1.0,
    "heldout_loss": 3.0,
    "heldout_loss_low": 2.9,
    "heldout_loss_high": 3.1,
}
CURVE = [POINT, POINT | {"step": 2}]
WHOLE = changed(
    changed(LACO, "measured", "healing", to={"tokens": 64, "seconds": 1.0, "curve": CURVE}),
    *("measured", "pruned_sha256"),
    to=SHA,
)


def finished(record: Record, folder) -> Record:
    """Finish a cell, with samples of a piece as they were kept before."""
    pieces = store.pieces_of(folder, "x", record.measured.pruned_sha256)
    pieces.keep("piqa", None, pd.DataFrame({"acc": [1.0]}))
    found = store.write_record(record, folder, "x")
    assert found == load(folder / "cells" / "x.json")
    return found


def without(*paths: tuple[str, ...]) -> dict:
    """What is measured of the whole record, but for what stands at the paths."""
    left = WHOLE.plain()["measured"]
    for *above, name in paths:
        place = left
        for step in above:
            place = place[step]
        del place[name]
    return left


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("path", "lost"),
    [
        (("perplexity", "wiki", "perplexity"), ("perplexity", "wiki")),
        (("perplexity", "wiki", "perplexity_low"), ("perplexity", "wiki", "perplexity_low")),
        (("tasks", "piqa", "answer_bpb", "value"), ("tasks", "piqa", "answer_bpb")),
        (("tasks", "piqa", "metrics", "acc", "value"), ("tasks", "piqa", "metrics", "acc")),
        (("healing", "curve", 1, "heldout_loss"), ("healing",)),
        (("healing", "tokens_per_second"), ()),
    ],
)
def test_what_is_measured_beside_a_figure_that_is_no_number_stays(path, lost, value, tmp_path):
    found = finished(changed(WHOLE, "measured", *path, to=value), tmp_path)
    named = ".".join(name for name in ("measured", *path) if isinstance(name, str))
    assert (found.status, found.error) == ("error", f"not a finite number: {named}")
    kept = found.plain()["measured"]
    del kept["samples"]
    assert kept == without(*([lost] if lost else []))
    assert list(found.measured.samples) == ["piqa"]
    assert (tmp_path / "samples" / "x" / "piqa.parquet").is_file()


def test_a_main_metric_that_is_no_number_takes_its_task_with_it(tmp_path):
    main = WHOLE.measured.task_scores["piqa"].main
    found = finished(changed(WHOLE, "measured", "tasks", "piqa", "metrics", main, "value", to=math.nan), tmp_path)
    assert found.plain()["measured"]["tasks"] == without(("tasks", "piqa"))["tasks"] != {}


@pytest.mark.parametrize("value", [np.float32(1.5), torch.ones(2), {1, 2}])
def test_a_value_that_json_has_none_of_fails_the_cell_and_is_named(value, tmp_path):
    decisions = {"removed_layers": [1], "mine": {"scores": [0.5, value], "best": value}}
    wrong = replace(WHOLE, decisions=decisions)
    found = finished(wrong, tmp_path)
    kind = type(value).__name__
    assert found.error == f"not a value of JSON: decisions.mine.scores ({kind}), decisions.mine.best ({kind})"
    assert (found.status, found.decisions) == ("error", {"removed_layers": [1], "mine": {"scores": [0.5, None]}})
    assert found.measured.task_scores == WHOLE.measured.task_scores


@pytest.mark.parametrize(
    ("decisions", "left"),
    [
        ({"removed_layers": [1, "2"], "note": 1}, {"note": 1}),
        ({"removed_layers": [99], "note": 1}, {}),  # of which the model did not have so many
        ({"kv_heads": [1, 0.5]}, {}),
    ],
)
def test_a_list_is_left_out_whole(decisions, left, tmp_path):
    found = finished(replace(WHOLE, decisions=decisions), tmp_path)
    assert (found.status, found.decisions) == ("error", left)
    assert found.error.startswith("this is no record's: ")
    assert found.measured.task_scores == WHOLE.measured.task_scores


def test_what_fits_is_written_as_it_is(tmp_path):
    found = finished(WHOLE, tmp_path)
    assert found.measured == replace(WHOLE.measured, samples=found.measured.samples)
    assert json.loads((tmp_path / "cells" / "x.json").read_text())["status"] == "ok"
