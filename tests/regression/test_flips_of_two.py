"""Flips of two cells side by side, and under a gate: counts by hand."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from made_runs import cell

from bench.cli.main import main
from bench.regression import gate
from bench.regression.compare import compare_cells
from bench.regression.gate import Margins
from bench.regression.results import add_flips, results_of_run
from bench.stats.intervals import paired_share_interval
from methods.errors import UserError

DENSE = np.repeat([1.0, 0.0], [280, 120])


def flipped(lose: int, gain: int) -> np.ndarray:
    """Return the dense answers, of which the first right ones are lost and the first wrong ones gained."""
    right = DENSE.copy()
    right[:lose] = 0
    right[280 : 280 + gain] = 1
    return right


@pytest.fixture
def runs(tmp_path):
    """Two runs of one dense model and one method, which is as accurate in both and flips 20 and 60 of 400 answers."""
    for run, count in (("a", 10), ("b", 30)):
        cell(tmp_path / run, tasks={"piqa": DENSE})
        cell(tmp_path / run, "laco", 0.1, tasks={"piqa": flipped(count, count)})
    return tmp_path / "a", tmp_path / "b"


def compared(capsys, *sides):
    """Return the lines of a comparison by cells and metric."""
    assert main(["compare", *map(str, sides), "--format", "csv"]) == 0
    return {(row["cells"], row["metric"]): row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}


def test_compare_has_the_flips_of_each_cell_beside_its_own_dense_cell(runs, capsys):
    lines = compared(capsys, *runs)
    row = lines["laco at 0.1, seed 0", "flips"]
    assert (float(row["a"]), float(row["b"]), row["documents"]) == (0.05, 0.15, "400")
    low, high = paired_share_interval(0, 40, 400)
    assert [float(row[name]) for name in ("difference", "low", "high")] == pytest.approx([0.1, low, high])
    assert (row["p"], row["p_adjusted"], row["lost"], row["verdict"]) == ("", "", "", "worse")
    assert lines["laco at 0.1, seed 0", "piqa acc"]["verdict"] == "no difference shown"
    assert ("dense, seed 0", "flips") not in lines


def test_flips_take_no_power_from_other_tests(runs):
    before, after = (results_of_run(run)["laco at 0.1, seed 0"] for run in runs)
    rows = compare_cells(before, after)
    others = [row for row in rows if row.kind != "flips"]
    assert len(others) == len(rows) - 1
    judged = [row for row in gate.judge_rows({"laco": rows}) if row.row.kind != "flips"]
    assert judged == gate.judge_rows({"laco": others})


def test_a_dense_cell_flips_nothing_of_itself(runs, capsys):
    rows = compared(capsys, runs[0] / "dense", runs[0] / "laco")
    (row,) = [row for (_, metric), row in rows.items() if metric == "flips"]
    assert (float(row["a"]), float(row["b"]), row["verdict"]) == (0.0, 0.05, "worse")


def test_without_the_samples_of_its_dense_cell_a_cell_is_compared_without_flips(runs, capsys):
    next((runs[0] / "samples").glob("dense*/piqa.parquet")).unlink()
    rows = compared(capsys, runs[0] / "laco", runs[1] / "laco")
    assert {metric: row["verdict"] for (_, metric), row in rows.items() if metric in ("flips", "piqa acc")} == {
        "flips": "only in B",
        "piqa acc": "no difference shown",
    }


def verdicts(runs, margins):
    """Return the words of the gate on the accuracy and the flips of the method."""
    judged = gate.judge(*map(results_of_run, runs), margins)
    return {v.metric: v.word for v in judged if v.cell.startswith("laco") and v.metric in ("accuracy", "flips")}


def test_a_gate_holds_flips_where_a_margin_names_them(runs):
    assert "flips" not in verdicts(runs, Margins())
    assert verdicts(runs, Margins(flips=2.0))["flips"] == "worse"
    assert verdicts(runs[::-1], Margins(flips=2.0))["flips"] == "better"
    assert verdicts((runs[0], runs[0]), Margins(flips=2.0))["flips"] == "not worse"
    assert verdicts(runs, Margins(flips=11.0))["flips"] != "worse"


def test_the_command_fails_by_flips_alone_and_says_so(runs, tmp_path, capsys):
    margins = tmp_path / "margins.yaml"
    margins.write_text("flips: 2.0\naccuracy: off\n")
    order = ["gate", str(runs[1]), "--baseline", str(runs[0]), "--no-confirm", "--margins", str(margins)]
    assert main(order) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("flips"))
    assert " ".join(line.split()[1:12]) == "5.0 % 15.0 % +10.0 pt [+7.4, +13.3] 2 pt worse"


def test_a_margin_of_flips_without_a_dense_cell_is_refused(runs, capsys):
    for run in runs:
        next((run / "cells").glob("dense*")).unlink()
    with pytest.raises(UserError, match="neither run has its dense cell"):
        verdicts(runs, Margins(flips=2.0))


def test_a_run_that_has_lost_its_flips_is_missing_them(runs):
    next((runs[1] / "cells").glob("dense*")).unlink()
    assert verdicts(runs, Margins(flips=2.0))["flips"] == "missing"


def test_a_cell_that_is_measured_again_flips_beside_the_dense_cell_of_its_run(runs):
    cells = results_of_run(runs[1])
    name = "laco at 0.1, seed 0"
    again = replace(cells[name], flips={})
    assert add_flips(cells | {name: again})[name].flips["piqa"].values.mean() == pytest.approx(0.15)


def test_a_dense_cell_of_other_conditions_or_documents_is_no_dense_cell(tmp_path):
    cell(tmp_path / "run", tasks={"piqa": DENSE}, environment={"cuda": "12.9"})
    cell(tmp_path / "run", "laco", 0.1, tasks={"piqa": flipped(1, 1)})
    cell(tmp_path / "other", tasks={"piqa": DENSE}, questions="others")
    cell(tmp_path / "other", "laco", 0.1, tasks={"piqa": flipped(1, 1)})
    for run in ("run", "other"):
        assert results_of_run(tmp_path / run)["laco at 0.1, seed 0"].flips == {}
