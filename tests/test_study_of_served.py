"""The studies of served models and of a budget of latency say what their records say."""

from __future__ import annotations

import json
import math
import re

import pytest
from pages import ROOT, text

from bench.plan.kinds import to_plain
from bench.records import served
from bench.records.run_folder import load_run, load_runs
from bench.regression.contrasts import contrast_of_perplexities
from reports.figures import pareto as figures
from reports.formats import markup
from reports.tables import speed as tables
from reports.tables.views import build_view

RUN = ROOT / "docs/results/smollm2-135m"


@pytest.fixture(scope="module")
def records():
    return {one.name: one for one in served.load(RUN)}


def figure(record, name, kind="decode"):
    (point,) = [one for one in record.measured["points"] if one["kind"] == kind]
    return point[name]


def times(record, base):
    return record.measured["perplexity"]["perplexity"] / base.measured["perplexity"]["perplexity"]


def test_the_table_is_that_of_the_records(records):
    (table,) = tables.tables_of_served(list(records.values()))
    page = text("docs/studies/served.md")
    lines = [line for line in markup.grid_to_markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 11
    assert all(line in page for line in lines)


def test_the_claims_are_what_the_records_say(records):
    page, base, small = text("docs/studies/served.md"), records["dense@bfloat16"], records["dense@q8_0"]
    pruned = [one for one in records.values() if one.model["method"] != "dense"]
    wide = [one for one in pruned if one.type == "bfloat16"]
    assert all(one.measured["bytes"] > small.measured["bytes"] for one in wide)
    assert all(figure(one, "pruned_ms") > figure(small, "pruned_ms") for one in wide)
    assert f"at {times(small, base):.2f} times the dense perplexity" in page
    assert f"the best of them has {min(times(one, base) for one in wide):.2f} times" in page
    best = min(times(one, base) for one in wide)
    said = (
        f"has {times(small, base):.2f} times the dense perplexity, where the best of four pruned ones has {best:.2f} ("
    )
    assert said in text("README.md")
    assert len(wide) == 4
    faster = [figure(records[f"{name}@bfloat16"], "speedup") for name in ("sleb", "shortgpt", "flap")]
    said = "are {:.2f} and {:.2f} times as fast as the dense one. `flap` is {:.2f}."
    assert said.format(*faster) in text("README.md")
    prompts = [figure(one, "pruned_ms", "prefill") for one in wide]
    assert sum(one < figure(small, "pruned_ms", "prefill") for one in prompts) == 3
    assert "read faster by three of the four" in page
    both, four = records["2ssp@q8_0"], records["dense@q4_0"]
    assert f"generates {figure(small, 'pruned_ms') / figure(both, 'pruned_ms'):.2f} times as many tokens" in page
    assert f"from a file of {both.measured['bytes'] / small.measured['bytes']:.2f} times the bytes" in page
    assert all(one.measured["bytes"] > four.measured["bytes"] for one in pruned)
    assert all(figure(one, "pruned_ms") > figure(four, "pruned_ms") for one in pruned)
    assert all(times(one, four) > 2 for one in pruned)  # better by half
    eight = [times(one, records[f"{one.model['label']}@bfloat16"]) for one in records.values() if one.type == "q8_0"]
    assert f"has {min(eight):.3f} to {max(eight):.3f} times the perplexity of bfloat16" in page
    assert len(eight) == 5
    assert f"`q4_0` costs the whole model {100 * (times(four, base) - 1):.0f} %" in page
    for name in ("flap", "2ssp"):
        one = records[f"{name}@bfloat16"]
        speeds = figure(one, "speedup"), figure(one, "speedup_by_bytes")
        assert "make {:.2f} times the speed of generation, where the bytes predict {:.2f}".format(*speeds) in page
    for name, kind in (("dense", "prefill"), ("dense", "decode"), ("shortgpt", "decode"), ("sleb", "decode")):
        one = records[f"{name}@bfloat16"]
        low, high = figure(one, "speedup_low", kind), figure(one, "speedup_high", kind)
        assert low <= (1 if name == "dense" else figure(one, "speedup_by_bytes")) <= high


def test_the_picture_is_drawn_from_the_records(records):
    (drawn,) = figures.figures_of_served(list(records.values()))
    size, speed = drawn.charts
    assert {curve.label for curve in size.curves} == {
        "dense",
        "2ssp at 0.2",
        "flap at 0.2",
        "shortgpt at 0.2",
        "sleb at 0.2",
    }
    fronts = [{round(x, 1) for x, _ in chart.front} for chart in (size, speed)]
    mine = [records[f"dense@{kind}"] for kind in ("bfloat16", "q8_0", "q4_0")]
    assert fronts[0] == {round(one.measured["bytes"] / 1e6, 1) for one in mine}
    assert fronts[1] == {round(1000 / figure(one, "pruned_ms"), 1) for one in mine}
    assert all(math.isfinite(y) for chart in (size, speed) for _, y in chart.front)
    picture = text("docs/images/served.svg")
    assert drawn.description.partition(".")[0] in picture


def pairs_beside(base, labels):
    """Return the interval of how many times the perplexity of a method each of some has, on the same windows."""
    run = load_runs([ROOT / "docs/results/latency"])
    at = {one.cell.label: n for n, one in enumerate(run.records)}
    pairs = [(at[base], at[label]) for label in labels]
    contrasts = [contrast_of_perplexities(run.records, [pair], run.samples, "wiki")[pair] for pair in pairs]
    return [f"{one.low:.1f}, {one.high:.1f}" for one in contrasts]


def test_the_table_of_one_budget_of_latency_is_that_of_its_records():
    records = load_run(ROOT / "docs/results/latency")
    page, (table,) = text("docs/studies/speed.md"), build_view("main", records)
    lines = [line for line in markup.grid_to_markdown(table.groups()[0]).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert all(line in page for line in lines)
    pruned = [record for record in records if record.cell.method != "dense"]
    (told,) = {json.dumps(to_plain(record.cell.latency)) for record in pruned}
    told = json.loads(told)
    attention, mlp = (told["parts"][part] for part in ("attention", "mlp"))
    assert f"{told['about']['dense_ms']:.0f} ms for a token" in page
    assert f"takes {attention[-1][1]:.2f}, its MLP {mlp[-1][1]:.2f} and all that is no layer {told['rest']:.1f}" in page
    assert f"a third of the heads {attention[1][1] / attention[-1][1]:.0%}".replace("%", " %") in page
    assert attention[1][0] / attention[-1][0] == pytest.approx(1 / 3, abs=0.01)
    assert mlp[1][1] / mlp[-1][1] == pytest.approx(0.5, abs=0.005)
    assert mlp[1][0] / mlp[-1][0] == pytest.approx(0.25, abs=0.01)
    promised = [1 / record.measured.budget.stays for record in pruned]
    assert f"promises {min(promised):.2f} to {max(promised):.2f} times as fast" in page
    ppl = {one.cell.method: one.measured.text_scores["wiki"].perplexity for one in pruned}
    more = {method: ppl[method] / ppl["shortgpt"] for method in ("2ssp", "flap")}
    times_as_much = [f"{times:.1f}" for times in more.values()]
    assert "`2ssp` and `flap` have {} and {} times the perplexity of `shortgpt`".format(*times_as_much) in page
    for (method, times), ends in zip(more.items(), pairs_beside("shortgpt", more), strict=True):
        assert re.search(rf"`{method}` has {times:.1f} \[{ends}\] times", page), (method, ends)
    outside = []
    for record, times in zip(pruned, promised, strict=True):
        (point,) = record.measured.timed_points
        if not point.speedup_low <= times <= point.speedup_high:
            outside.append(f"`{record.cell.method}` ends at {point.speedup_high:.3f} for {times:.3f}")
    assert len(outside) == 1
    assert outside[0] in page
