"""The view calibration: a row for each method, a column for each number of tokens, and the number that suffices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_records import DENSE, PER_LAYER, changed, measured, ok, plain_inputs

from bench.records.record import Record
from reports.figures.calibration import figures_of_curves
from reports.figures.figure import to_svg
from reports.tables.calibration import SUFFICES, curves_of_records
from reports.tables.rows import ReportData
from reports.tables.table import Table
from reports.tables.views import build_view

LENGTH = 256


def cell(method: str, sequences: int, ppl: float, *, half: float = 1.02, ratio: float = 0.3, seed: int = 0) -> Record:
    """A measured cell that was offered `sequences` of LENGTH tokens; its interval reaches `half` times up and down."""
    figures = measured(11 * PER_LAYER, (ppl / half, ppl, ppl * half), [0.4] * 5, 60.0)
    record = ok(method, ratio, figures, budget=11, seed=seed, prune_seconds=0.5 * sequences)
    for name, value in {"calibration_sequences": sequences, "calibration_length": LENGTH}.items():
        record = changed(record, "cell", "protocol", name, to=value)
    inputs = plain_inputs(texts={"wiki": "t"}, calibration_sha256=f"{sequences} {seed}")
    return changed(record, "cell", "inputs", to=inputs)


def curve(method: str, *ppls: float, **more: float) -> list[Record]:
    """A method at 4, 16, 64, ... sequences."""
    return [cell(method, 4 ** (1 + at), ppl, **more) for at, ppl in enumerate(ppls)]


def dense_of(record: Record) -> Record:
    """The dense cell of a record's setup."""
    return replace(DENSE, cell=replace(record.cell, method="dense", parameters={}, given=(), ratio=None))


def table_of(records: list[Record], measure: str = "perplexity-wiki") -> Table:
    (table,) = (table for table in build_view("calibration", records) if f"-{measure}-" in table.name)
    return table


def values(table: Table) -> dict[str, dict[str, object]]:
    """{label: {column: value}}."""
    return {
        row.label: {column.label: cell.value for column, cell in zip(table.columns, row.cells, strict=True)}
        for row in table.rows
    }


def test_each_figure_stands_at_its_method_and_tokens():
    records = [*curve("flap", 90, 60, 50), *curve("laco", 70, 69, 69)]
    rows = values(table_of([dense_of(records[0]), *records[::-1]]))
    assert list(rows) == ["dense", "flap", "laco"]  # the best at most tokens first
    assert [rows["flap"][f"{tokens:,}"] for tokens in (1024, 4096, 16384)] == [90, 60, 50]
    assert [rows["laco"][f"{tokens:,}"] for tokens in (1024, 4096, 16384)] == [70, 69, 69]
    assert len({rows["dense"][f"{tokens:,}"] for tokens in (1024, 4096, 16384)}) == 1
    seconds = values(table_of(records, "prune-seconds"))
    assert [seconds["flap"][f"{tokens:,}"] for tokens in (1024, 4096, 16384)] == [2, 8, 32]


@pytest.mark.parametrize(
    "ppls, enough",
    [
        ((100, 100.1, 100.2), 1024),  # nothing is gained
        ((200, 100, 100.1), 4096),  # as good from the second on
        ((200, 100, 50), 16384),  # still better at the last
        ((100, 200, 100.1), 1024),  # the second is worse, and no larger number is better than the first
        ((200, 300, 100), 16384),
    ],
)
def test_the_smallest_number_behind_which_no_gain_is_shown_suffices(ppls, enough):
    assert values(table_of(curve("flap", *ppls)))["flap"][SUFFICES] == enough


def test_wide_intervals_show_no_gain():
    assert values(table_of(curve("flap", 200, 100, 50, half=6)))["flap"][SUFFICES] == 1024


def test_seconds_are_not_tested():
    assert SUFFICES not in {column.label for column in table_of(curve("flap", 90, 60), "prune-seconds").columns}


def test_several_seeds_share_a_row():
    records = [cell("flap", n, ppl, seed=seed) for n, ppls in ((4, (80, 125)), (16, (64, 100))) for seed, ppl in
               enumerate(ppls)]  # fmt: skip
    row = values(table_of(records))["flap"]
    assert row["1,024"] == pytest.approx(100)  # the geometric mean
    assert row["4,096"] == pytest.approx(80)


def test_other_ratios_texts_and_lengths_are_other_tables():
    other_text = [changed(record, "cell", "protocol", "calibration", to="wiki") for record in curve("flap", 3, 2)]
    longer = [changed(record, "cell", "protocol", "calibration_length", to=512) for record in curve("flap", 3, 2)]
    at_half = curve("flap", 3, 2, ratio=0.5)
    assert len(curves_of_records(ReportData([*curve("flap", 3, 2), *other_text, *longer, *at_half]))) == 4


def test_methods_without_a_calibration_or_with_one_number_of_tokens_have_no_curve():
    records = [*curve("flap", 3, 2), *curve("laco", 3), *curve("drop-tail", 3, 2)]
    (found,) = curves_of_records(ReportData(records, needs={"drop-tail": "nothing"}))
    assert list(found.places) == ["flap"]
    assert curves_of_records(ReportData(curve("laco", 3))) == []


def test_the_figure_has_each_curve_over_tokens_and_seconds():
    records = [*curve("flap", 90, 60, 50), *curve("laco", 70, 69, 69)]
    figures = {figure.name: figure for figure in figures_of_curves(ReportData([dense_of(records[0]), *records]))}
    figure = figures["calibration-perplexity-wiki-0.3"]
    tokens, seconds = figure.draw().axes
    lines = {line.get_label(): line for line in tokens.get_lines()}
    assert {label: list(line.get_ydata()) for label, line in lines.items() if label != "dense"} == {
        "flap": [90, 60, 50],
        "laco": [70, 69, 69],
    }
    assert list(lines["flap"].get_xdata()) == [1024, 4096, 16384]
    assert [list(line.get_xdata()) for line in seconds.get_lines() if line.get_label() == "flap"] == [[2, 8, 32]]
    assert "calibration tokens" in to_svg(figure)
    assert "flap has 90" in figure.description
