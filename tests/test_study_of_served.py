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

RUN = ROOT / "docs/results/served"


@pytest.fixture(scope="module")
def records():
    return {one.name: one for one in served.load(RUN) if one.protocol["engine"] == "llama.cpp"}


@pytest.fixture(scope="module")
def in_vllm():
    ok = [one for one in served.load(RUN) if one.status == "ok"]
    return {one.name: one for one in ok if one.protocol["engine"] == "vllm"}


def figure(record, name, kind="decode"):
    (point,) = [one for one in record.measured["points"] if one["kind"] == kind]
    return point[name]


def interval(record, kind="decode"):
    return f"[{figure(record, 'speedup_low', kind):.2f}, {figure(record, 'speedup_high', kind):.2f}]"


def times(record, base):
    return record.measured["perplexity"]["perplexity"] / base.measured["perplexity"]["perplexity"]


def test_the_table_is_that_of_the_records(records):
    (table,) = tables.tables_of_served(list(records.values()))
    lines = [line for line in markup.grid_to_markdown(table).splitlines() if line.startswith("|")]
    head, _, *rows = ([word.strip() for word in line.strip("|").split("|")] for line in lines)
    assert [head[at] for at in (4, 7, 8)] == ["times dense", "tokens/s", "times as fast"]
    assert len(rows) == len(records) == 18
    figures_by_model = {}
    for name, _, _, _, perplexity, _, _, _, steps, *_ in rows:
        label, _, kind = name.partition("@")
        figures_by_model.setdefault(label, {})[kind] = perplexity, steps
    page, kinds = text("docs/studies/served.md"), ("bfloat16", "q8_0", "q4_0")
    for label, of in figures_by_model.items():
        assert f"| `{label}` | {' | '.join(of[kind][at] for at in (0, 1) for kind in kinds)} |" in page


def test_the_answer_is_what_the_records_say(records):
    page, readme = text("docs/studies/served.md"), text("README.md")
    base, eight, four = (records[f"dense@{kind}"] for kind in ("bfloat16", "q8_0", "q4_0"))
    pruned = [one for one in records.values() if one.model["method"] != "dense"]
    by_type = {kind: [one for one in pruned if one.type == kind] for kind in ("bfloat16", "q8_0", "q4_0")}
    assert [len(several) for several in by_type.values()] == [5, 5, 5]
    for small, beaten in ((eight, by_type["bfloat16"]), (four, by_type["q8_0"])):
        assert all(one.measured["bytes"] > small.measured["bytes"] for one in beaten)
    assert all(figure(one, "speedup_high") < figure(four, "speedup_low") for one in by_type["q8_0"])
    fastest = max(by_type["bfloat16"], key=lambda one: figure(one, "speedup"))
    words = f"It generates {figure(eight, 'speedup'):.2f} times as fast as the dense model, "
    assert f"{words}the fastest of them {figure(fastest, 'speedup'):.2f} times, with intervals that overlap." in page
    assert figure(fastest, "speedup_high") > figure(eight, "speedup_low")
    assert figure(fastest, "speedup") < figure(eight, "speedup")
    best = min(times(one, base) for one in by_type["bfloat16"])
    assert f"each of 5 models pruned in bfloat16, at {times(eight, base):.2f} times the dense perplexity" in page
    assert f"where the best of them has {best:.2f}." in page
    assert f"is smaller and faster than each of them in 8 bits, at {times(four, base):.2f} times." in page
    said = (
        f"has {times(eight, base):.2f} times the dense perplexity, where the best of five pruned ones has {best:.2f} ("
    )
    assert said in readme
    quicker = [one for one in by_type["q4_0"] if figure(one, "speedup_low") > figure(four, "speedup_high")]
    quick = min(quicker, key=lambda one: times(one, base))
    faster = figure(quick, "speedup"), figure(four, "speedup")
    said = f"`{quick.name}` generates {faster[0]:.2f} times as fast as the dense model in bfloat16 and `dense@q4_0`"
    assert f"{said} {faster[1]:.2f} times" in page
    assert f"In 4 bits that is {times(quick, four):.2f} times the perplexity of `dense@q4_0`" in page
    assert quick.model["label"] == "laco-ls, healed"
    layers = records["laco-ls@bfloat16"]
    assert f"`laco-ls` reads them {figure(layers, 'speedup', 'prefill'):.2f} {interval(layers, 'prefill')}" in page
    assert f"`dense@q8_0` is at {figure(eight, 'speedup', 'prefill'):.2f} {interval(eight, 'prefill')}" in page
    assert figure(layers, "speedup_low", "prefill") > 1 > figure(eight, "speedup_low", "prefill")
    said = "`laco-ls` reads prompts {:.2f} times as fast as the dense model, `flap` {:.2f}."
    said += " They generate {:.2f} and {:.2f} times as fast."
    one, other = records["laco-ls@bfloat16"], records["flap@bfloat16"]
    speeds = [figure(each, "speedup", kind) for kind in ("prefill", "decode") for each in (one, other)]
    assert said.format(*speeds) in readme


def test_what_else_was_found_is_what_the_records_say(records, in_vllm):
    page, base = text("docs/studies/served.md"), records["dense@bfloat16"]
    for one in (base, in_vllm["dense@bfloat16"]):
        assert figure(one, "speedup_low") <= 1 <= figure(one, "speedup_high")
        assert f"{figure(one, 'speedup'):.2f} {interval(one)}" in page
    costs = {}
    for kind in ("q8_0", "q4_0"):
        several = [one for one in records.values() if one.type == kind]
        costs[kind] = {one.model["label"]: times(one, records[f"{one.model['label']}@bfloat16"]) for one in several}
    eight, four = costs["q8_0"].values(), costs["q4_0"]
    assert f"has {min(eight):.3f} to {max(eight):.3f} times the perplexity of bfloat16" in page
    most = max(four, key=four.get)
    assert (
        f"costs the whole model {100 * (four['dense'] - 1):.0f} % and `{most}` {100 * (four[most] - 1):.0f} %" in page
    )
    prompts = [figure(records[f"{name}@bfloat16"], "speedup", "prefill") for name in ("flap", "2ssp", "shortgpt")]
    assert "read prompts {:.2f} and {:.2f} times as fast".format(*prompts) in page
    assert f"is at {prompts[2]:.2f}." in page
    assert (
        len({round(records[f"{name}@bfloat16"].measured["bytes"] / 1e6) for name in ("flap", "2ssp", "shortgpt")}) == 1
    )
    layers = [records[f"{name}@bfloat16"] for name in ("laco-ls", "laco-ls, healed", "shortgpt")]
    (promised,) = {figure(one, "speedup_by_bytes") for one in layers}
    assert f"the bytes predict {promised:.3f} times the speed" in page
    first, above, last = layers
    inside = [first, last]
    assert all(figure(one, "speedup_low") <= promised <= figure(one, "speedup_high") for one in inside)
    assert promised < figure(above, "speedup_low")
    assert f"`laco-ls, healed` begins a little above, at {figure(above, 'speedup_low'):.3f}." in page
    for one in inside:
        assert f"`{one.model['label']}` has {figure(one, 'speedup'):.2f} {interval(one)}." in page
    alike = [records[f"{name}@q4_0"] for name in ("shortgpt", "laco-ls", "laco-ls, healed")]
    assert len({one.measured["bytes"] // 1000 for one in alike}) == 1
    speeds = [figure(one, "speedup") for one in alike]
    assert "in `q4_0` generate {:.2f}, {:.2f} and {:.2f} times as fast.".format(*speeds) in page
    words = "With 6 of 30 layers less a model is {:.2f}x {} as fast, where bytes predict {:.2f}x"
    speeds = figure(inside[0], "speedup"), interval(inside[0]), promised
    assert words.format(*speeds) in text("docs/guides/serve.md")
    for name in ("dense@w8a8", "dense@w4a16"):
        assert f"{figure(in_vllm[name], 'speedup'):.2f} {interval(in_vllm[name])}" in page
    eight, four = in_vllm["dense@w8a8"], in_vllm["dense@w4a16"]
    assert figure(eight, "speedup_low") < 1 < figure(eight, "speedup")  # not shown
    assert figure(four, "speedup_high") < 1
    points = [point for one in (*records.values(), *in_vllm.values()) for point in one.measured["points"]]
    apart = [point for point in points if "processes_disagree" in point["flags"]]
    assert f"disagree on {len(apart)} of the {len(points)} ratios of this run" in page
    healed, before = (times(records[f"{name}@bfloat16"], base) for name in ("laco-ls, healed", "laco-ls"))
    assert f"has {healed:.2f} times the dense perplexity in place of {before:.2f}" in page


def test_the_picture_is_drawn_from_the_records(records):
    (drawn,) = figures.figures_of_served(list(records.values()))
    size, speed = drawn.charts
    names = ("2ssp", "flap", "laco-ls", "laco-ls, healed", "shortgpt")
    assert {curve.label for curve in size.curves} == {"dense", *names}
    fronts = [{round(x, 3) for x, _ in chart.front} for chart in (size, speed)]
    mine = [records[f"dense@{kind}"] for kind in ("bfloat16", "q8_0", "q4_0")] + [records["laco-ls, healed@q4_0"]]
    assert fronts[0] == {round(one.measured["bytes"] / 1e6, 3) for one in mine}
    assert fronts[1] == {round(figure(one, "speedup"), 3) for one in [*mine, records["laco-ls@q4_0"]]}
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
