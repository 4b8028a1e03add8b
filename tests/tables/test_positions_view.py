"""The view positions: ratios to the dense model are of pairs of windows, and the growth of the first and last range."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_records import DENSE, LACO
from made_samples import MadeSamples, paired_perplexity

from bench.records.measured import RangeScore
from reports.figures.catalogue import figures_of_report
from reports.figures.figure import to_svg
from reports.tables.views import build_view

NATS = {  # of each window of 511 tokens, for two ranges; the second draws the pruned model further away
    ("dense", "0-512"): np.array([1500.0, 1600, 1400, 1550]),
    ("laco", "0-512"): np.array([2010.0, 2120, 1905, 2060]),
    ("dense", "512-1024"): np.array([1450.0, 1500, 1300, 1500]),
    ("laco", "512-1024"): np.array([2210.0, 2255, 2065, 2250]),
}


def scores(method):
    perplexity = {positions: math.exp(NATS[method, positions].sum() / (4 * 511)) for positions in ("0-512", "512-1024")}
    shared = {"tokens": 4 * 511, "windows": 4, "drawn": True, "window": 1024, "within": True, "bos": "none"}
    return {
        f"wiki:{positions}": RangeScore(
            perplexity=value,
            perplexity_low=0.9 * value,
            perplexity_high=1.1 * value,
            nll_per_token=math.log(value),
            sha256=positions,
            **shared,
        )
        for positions, value in perplexity.items()
    }


@pytest.fixture
def records():
    return [
        replace(each, measured=replace(each.measured, positions=scores(each.cell.method))) for each in (DENSE, LACO)
    ]


def of_window(number, name, figure):
    positions = name.removeprefix("positions-wiki-")
    return NATS[("dense", "laco")[number], positions] if figure == "nll" and positions != name else None


def test_ratios_are_of_pairs_and_the_growth_is_that_of_two_ranges(records):
    perplexities, beside = [
        table
        for table in build_view("positions", records, samples=MadeSamples(of_window))
        if table.rows[-1].label == "laco"
    ]
    assert [column.label for column in perplexities.columns] == ["0-512", "512-1024"]
    assert [row.label for row in perplexities.rows] == ["dense", "laco"]
    assert perplexities.rows[1].cells[1].value == records[1].measured.positions["wiki:512-1024"].perplexity
    assert (
        "ppl wiki by position",
        "4 windows of 1,024 tokens, drawn from the text, each within a document, no BOS",
    ) in perplexities.protocol
    (row,) = beside.rows
    for cell, positions in zip(row.cells, ("0-512", "512-1024"), strict=False):
        expected = paired_perplexity(NATS["dense", positions], NATS["laco", positions], [511] * 4)
        assert (cell.value, cell.low, cell.high) == pytest.approx((expected.estimate, expected.low, expected.high))
    growth = row.cells[-1]
    assert beside.columns[-1].label == "last / first"
    assert growth.value == pytest.approx(row.cells[1].value / row.cells[0].value)
    assert growth.value > 1
    assert growth.low > 1  # each window moves alike, so that pairs show it
    assert "differs" in growth.marks


def test_without_samples_there_are_no_pairs_and_without_positions_no_tables(records):
    assert {table.name.rpartition("-")[0] for table in build_view("positions", records)} == {"positions-wiki"}
    assert build_view("positions", [DENSE, LACO]) == []


def test_the_figure_has_both_and_says_the_numbers(records):
    figures = figures_of_report(records, MadeSamples(of_window))
    (figure,) = [figure for figure in figures if figure.name.startswith("positions-wiki")]
    assert "laco" in figure.description
    assert "times dense" in figure.description
    svg = to_svg(figure)
    assert "<desc>" in svg
    assert not [each for each in figures_of_report([DENSE, LACO]) if each.name.startswith("positions")]
