"""The study of which experts go says what its records say."""

from __future__ import annotations

import math
from functools import cache

import pytest
from pages import ROOT, tables, text

from bench.records import run_folder
from bench.records.record import Record
from bench.regression import contrasts
from reports.tables.rows import ReportData

RUN, PAGE = ROOT / "docs/results/experts", "docs/studies/experts.md"
MODELS = ("tiny-moe-0", "tiny-moe-1", "tiny-moe-2")
METHODS = ("reap", "expert-norm", "expert-frequency", "expert-random")
GONE = {0.23: 4, 0.46: 8, 0.69: 12}  # experts of 16, by the ratio that was asked for
TEXTS = ("wiki", "c4")


@cache
def data() -> ReportData:
    merged = run_folder.load_runs([RUN])
    return ReportData(merged.records, "", merged.samples)


def places(model: str, method: str, ratio: float | None) -> list[int]:
    """The records of a method, which are several where it draws."""
    return [
        n
        for n, one in enumerate(data().records)
        if (one.display_name, one.cell.method, one.cell.ratio) == (model, method, ratio)
    ]


def perplexity(record: Record, name: str) -> float:
    return float(record.measured.text_scores[name].perplexity)


def mean(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def times(model: str, method: str, ratio: float, name: str) -> float:
    """How many times the dense model's perplexity a method leaves, as the geometric mean over draws."""
    records = data().records
    (dense,) = places(model, "dense", None)
    return mean([perplexity(records[n], name) for n in places(model, method, ratio)]) / perplexity(records[dense], name)


def row(ratio: float, method: str) -> list[str]:
    found = [[times(model, method, ratio, name) for model in MODELS] for name in TEXTS]
    shown = [f"{one:.2f}" for each in found for one in (*each, mean(each))]
    return [str(GONE[ratio]), method, *shown]


def beside(ratio: float, method: str, name: str) -> list[str]:
    """A method's perplexity over that of reap, on each model, with the interval of the pair."""
    cells = []
    for model in MODELS:
        (one,), (other,) = places(model, "reap", ratio), places(model, method, ratio)
        found = contrasts.contrast_of_perplexities(data().records, [(one, other)], data().samples, name)[one, other]
        cells.append(f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]")
    return [str(GONE[ratio]), method, name, *cells]


def test_every_cell_is_there_and_removed_what_is_said():
    for model in MODELS:
        for ratio, gone in GONE.items():
            for method in METHODS:
                found = [data().records[n] for n in places(model, method, ratio)]
                assert len(found) == (5 if method == "expert-random" else 1)
                assert all(one.decisions["experts"] == [16 - gone] * 6 for one in found)


def test_the_tables_are_of_the_records():
    first, second, *_ = tables(text(PAGE))
    assert first[1:] == [row(ratio, method) for ratio in GONE for method in METHODS]
    assert second[1:] == [beside(ratio, method, name) for ratio in GONE for method in METHODS[1:3] for name in TEXTS]


@pytest.mark.parametrize("model", MODELS)
def test_the_dense_models_are_those_of_the_page(model):
    (dense,) = places(model, "dense", None)
    shown = " and ".join(f"{perplexity(data().records[dense], name):.0f}" for name in TEXTS)
    assert f"{model} {shown}" in text(PAGE)


def below(ratio: float, one: str, other: str, name: str = "wiki") -> int:
    """On how many models one method leaves a lower perplexity than another."""
    return sum(times(model, one, ratio, name) < times(model, other, ratio, name) for model in MODELS)


def average(ratio: float, method: str, name: str) -> float:
    return mean([times(model, method, ratio, name) for model in MODELS])


def test_what_it_says_in_short_is_so():
    quarter, half, _ = GONE
    left = [f"{average(quarter, method, 'wiki'):.2f}" for method in ("reap", "expert-random")]
    said = "it leaves {} times the dense perplexity there, where drawn experts leave {}."
    assert said.format(*left) in text(PAGE)
    assert [below(ratio, "reap", "expert-random") for ratio in GONE] == [3, 3, 2]
    assert [below(ratio, "reap", "expert-norm") for ratio in (quarter, half)] == [2, 2]
    lower = [1 - average(ratio, "reap", "wiki") / average(ratio, "expert-norm", "wiki") for ratio in (quarter, half)]
    assert all(0.045 < one < 0.075 for one in lower)
    assert all(average(ratio, "expert-norm", "c4") < average(ratio, "reap", "c4") for ratio in GONE)
    assert [below(ratio, "expert-random", "expert-frequency") for ratio in (quarter, half)] == [2, 2]
    assert all(average(ratio, "expert-frequency", "c4") < average(ratio, "expert-random", "c4") for ratio in GONE)
