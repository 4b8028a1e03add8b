"""The explorer shows models in inference engines as setups of their own, the dense model in fewer bits as a control."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from browser import needs_chromium, opened
from pages import ROOT

from bench.records import run_folder, served
from bench.records.samples import Samples
from reports.page.explorer import data_of_explorer
from reports.page.page import render_page

RUN = ROOT / "docs" / "results" / "served"
SERVED = served.load(RUN)
LLAMA = "SmolLM2-135M-Instruct in llama.cpp"


def setups_of(records: list[served.ServedRecord]) -> dict[str, dict]:
    return {setup["name"]: setup for setup in data_of_explorer([], Samples(), records)["setups"]}


def rows_of(setup: dict) -> dict[str, dict]:
    (amount,) = setup["amounts"]
    return {row["label"]: row for row in amount["rows"]}


def test_each_engine_is_a_setup_whose_figures_are_those_of_its_lines():
    lines = [json.loads(line) for line in (RUN / "served.jsonl").read_text(encoding="utf-8").splitlines()]
    setups = setups_of(SERVED)
    assert {name.rpartition(" in ")[2] for name in setups} == {line["protocol"]["engine"] for line in lines}
    rows = rows_of(setups[LLAMA])
    own = [line for line in lines if line["protocol"]["engine"] == "llama.cpp"]
    assert len(rows) == len(own) == 18
    assert [amount["name"] for amount in setups[LLAMA]["amounts"]] == ["0.2 of the decoder"]
    for line in own:
        values, measured = rows[f"{line['model']['label']}@{line['type']}"]["values"], line["measured"]
        assert values["served_bytes"][0] == measured["bytes"]
        quality = [measured["perplexity"][name] for name in ("perplexity", "perplexity_low", "perplexity_high")]
        assert [values["served_perplexity"][place] for place in (0, 3, 4)] == pytest.approx(quality, rel=1e-5)
        times = measured["perplexity"]["perplexity"] / own[0]["measured"]["perplexity"]["perplexity"]
        assert values["served_times"][0] == pytest.approx(times, rel=1e-5)


def test_the_dense_model_in_fewer_bits_is_a_control_and_only_that_in_all_of_them_is_the_dense_one():
    rows = rows_of(setups_of(SERVED)[LLAMA])
    assert [label for label, row in rows.items() if row["method"] == "dense"] == ["dense@bfloat16"]
    assert {"dense@q8_0", "dense@q4_0"} <= rows.keys()
    assert rows["laco-ls, healed@q4_0"]["method"] == "laco-ls"  # whose colour and card it has


def test_what_failed_has_a_reason_and_no_figure():
    failed = replace(SERVED[3], status="unsupported", error="no room", measured={})
    row = rows_of(setups_of([*SERVED[:3], failed])[LLAMA])[failed.name]
    assert row["failure"] == "unsupported"
    assert row["values"] == {}


def test_models_that_were_served_otherwise_are_another_setup_that_can_be_chosen():
    """Of other threads, and of other rounds, which no condition of a table tells apart."""
    threads, rounds = (
        [replace(record, protocol=record.protocol | change) for record in SERVED[:2]]
        for change in ({"threads": 7}, {"rounds": 3})
    )
    setups = data_of_explorer([], Samples(), [*SERVED[:2], *threads, *rounds])["setups"]
    names = [setup["name"] for setup in setups]
    assert len(names) == len(set(names)) == 3
    assert any("7 threads" in name for name in names)


def test_every_column_of_a_row_is_declared_and_a_page_without_served_models_has_none():
    data = data_of_explorer([], Samples(), SERVED)
    declared = {column["name"] for column in data["columns"]}
    rows = itertools.chain(*(rows_of(setup).values() for setup in data["setups"]))
    assert {name for row in rows for name in row["values"]} == declared
    assert data_of_explorer([], Samples())["columns"] == []


@needs_chromium
@pytest.mark.parametrize("against", ["served_bytes", "served_decode"])
def test_the_front_has_the_dense_model_in_fewer_bits_beside_pruned_models(tmp_path: Path, chromium, against):
    merged = run_folder.load_runs([RUN])
    path = tmp_path / "report.html"
    path.write_text(render_page(merged.records, samples=merged.samples, served=merged.served), encoding="utf-8")
    with opened(chromium, viewport={"width": 1400, "height": 900}) as view:
        view.goto(f"{path.as_uri()}#model={LLAMA.replace(' ', '+')}&by=served_times&against={against}")
        names = view.evaluate("[...document.querySelectorAll('#plot svg > text')].map((each) => each.textContent)")
        assert {"dense@q8_0", "dense@q4_0", "laco-ls, healed@bfloat16"} <= set(names)
        assert "dense@bfloat16" not in names  # the dotted line
        assert view.evaluate("document.querySelectorAll('#plot svg g circle').length") == 17
        assert view.evaluate("document.querySelector('#answer').textContent").startswith(
            "dense@q8_0 has the lowest relative perplexity at 0.2 of the decoder: 1.01, beside 1.00 of the dense model."
        )
        assert view.complaints == []
