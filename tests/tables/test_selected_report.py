"""A report of some methods, ratios and models says of them what the report of all says, and rows go by any column."""

from __future__ import annotations

import csv
import io

import pytest
from conftest import refused
from pages import DOCS

import bench
from bench.cli.main import main
from bench.records.record import name_of_model

STUDY = DOCS / "results" / "laco-puzzle-seeds"
RATIOS = DOCS / "results" / "ratio-curves"


def lines(capsys, *arguments):
    assert main(["report", str(STUDY), "--format", "csv", *arguments]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


@pytest.fixture(scope="module")
def records():
    return bench.report(STUDY)._merged.records


def test_selected_lines_are_those_of_the_whole_report(records, capsys):
    methods = sorted({record.cell.method for record in records} - {"dense"})[:2]
    whole, some = lines(capsys), lines(capsys, "--methods", ",".join(methods))
    wanted = [line for line in whole if line["method"] in (*methods, "dense")]
    assert len(some) == len(wanted) < len(whole)
    named = [name for name in some[0] if any(line[name] for line in some)]
    assert {"flips", "average"} <= {*named}  # which are made of the samples of the same cells
    assert [{name: line[name] for name in named} for line in some] == [
        {name: line[name] for name in named} for line in wanted
    ]


def test_ratios_are_selected_and_the_dense_model_stays():
    every, some = (bench.report(RATIOS, ratio=ratio)._merged.records for ratio in ((), "0.2,0.3"))
    assert {record.cell.ratio for record in every} > {None, 0.2, 0.3}
    assert {record.cell.ratio for record in some} == {None, 0.2, 0.3}
    assert len(some) == sum(record.cell.ratio in (None, 0.2, 0.3) for record in every)


def test_models_are_selected(records):
    first, second = dict.fromkeys(map(name_of_model, records))
    some = bench.report(STUDY, model=second)._merged.records
    assert {name_of_model(record) for record in some} == {second}
    assert len(some) == len(records) - sum(name_of_model(record) == first for record in records)
    (given,) = {record.cell.model for record in some}
    assert given != second  # the run was given another name of it
    same = bench.report(STUDY, model=given)._merged.records
    assert [record.cell for record in same] == [record.cell for record in some]


def test_rows_go_by_any_column_and_the_note_says_which(records):
    for sort, sign in (("average", -1), ("answer_bpb", 1)):
        tables = bench.report(STUDY).table(sort=sort).tables
        for table in (table for table in tables if sort in [head.name for head in table.columns]):
            column = [head.name for head in table.columns].index(sort)
            values = [row.cells[column].value for row in table.rows if row.method != "dense"]
            assert values == sorted(values, key=lambda value: sign * value)
            assert any("sorted by" in note for note in table.footnotes)
        assert {row.method for row in tables[0].rows} == {"dense", "laco-ls", "laco-puzzle", "2ssp+refit"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "lacco"], "no cell is of the method 'lacco'; did you mean laco"),
        (["--methods", "xyz"], "no cell is of the method 'xyz'; there are "),
        (["--ratio", "0.77"], "no cell has the ratio 0.77; there are 0."),
        (["--ratio", "7"], "a ratio is the share of parameters to remove, in [0, 1); got 7"),
        (["--model", "xyz"], "no cell is of the model 'xyz'; there are "),
        (["--sort", "averge"], "no column 'averge' has numbers to sort by; did you mean average?"),
        (["--sort", "method"], "no column 'method' has numbers to sort by; `report --format csv` has the columns"),
        (["--sort", "average", "--view", "seeds"], "--sort orders the views main, "),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(options, message, capsys):
    assert message in refused(capsys, ["report", str(STUDY), *options])
