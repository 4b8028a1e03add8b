"""Several calibration seeds: one row for each method, tests seed by seed, ties where ranks change, the view seeds."""

from __future__ import annotations

import math
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_records import DENSE, PER_LAYER, RECIPE, changed, drawn, failed, measured, ok, plain_inputs, with_measured
from made_runs import run_folder
from scipy.stats import t

from bench.cli.main import main
from bench.plan.protocol import name_of_text
from bench.records.comparability import group_draws, setups_of_records
from bench.records.record import Record
from bench.records.run_folder import load_runs
from bench.records.samples import Samples
from bench.regression.contrasts import LEVEL, contrast_of_averages, contrast_of_perplexities
from bench.stats.draws import mean_difference, variance_components
from reports import legend
from reports.figures import catalogue
from reports.figures.factors import figures_of_calibrations as draws_figures
from reports.formats.terminal import render
from reports.groups import TableGroup, group_records
from reports.page.explorer import data_of_explorer
from reports.page.page import render_page
from reports.report import to_csv, to_terminal
from reports.tables.cost import MEANS
from reports.tables.rows import GroupTests
from reports.tables.ties import BETTER, Ties
from reports.tables.views import build_view

TOKENS, WINDOWS = 511, 16


def cell(method: str, seed: int, ppl: float = 100.0, *, text: str = "c4", half: float = 1.1, **more: Any) -> Record:
    """A measured cell at ratio 0.3, whose seed has drawn its calibration and its documents."""
    ratio = None if method == "dense" else 0.3
    accuracies = more.pop("accuracies", [0.4] * 5)
    figures = measured(0 if ratio is None else 11 * PER_LAYER, (ppl / half, ppl, ppl * half), accuracies, 60.0)
    record = ok(method, ratio, figures, budget=0 if ratio is None else 11, seed=seed, **more)
    tasks = {"piqa": {"version": 1, "sha256": f"documents of {seed}"}}
    inputs = plain_inputs(texts={"wiki": "t"}, calibration_sha256=f"{text} {seed}", tasks=tasks)
    record = changed(record, "cell", "protocol", "calibration", to=text)
    return changed(record, "cell", "inputs", to=inputs)


def run(figures: dict[str, list[float]], **more: Any) -> list[Record]:
    """The dense model and methods with their perplexity at each seed from 0."""
    dense = [cell("dense", seed, 20.8, **more) for seed in range(max(map(len, figures.values())))]
    return [
        *dense,
        *(cell(method, seed, ppl, **more) for method, ppls in figures.items() for seed, ppl in enumerate(ppls)),
    ]


def only(records: list[Record]) -> TableGroup:
    ((group,),) = group_records(records)
    return group


def best_by_perplexity(records: list[Record], samples: Samples | None = None) -> tuple[str | None, str | None, str]:
    """The first method by perplexity, how many others it is shown to be better than, and the notes of the page."""
    group = group_records(records)[0][0]
    ties = Ties(GroupTests(group, samples or Samples(), records), "perplexity_wiki")
    first, *rest = ties.order
    better = [ties.verdict(first, place) for place in rest].count(BETTER)
    amount = data_of_explorer(records, samples or Samples())["setups"][0]["amounts"][0]
    words = f"{better} of {len(rest)}, shown" if rest else None
    return group.label(first), words, "\n".join((*amount["notes"], *amount["reading"]))


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- one row


def test_seeds_share_a_row_whose_interval_has_their_draw_in_it():
    group = only(run({"laco": [80.0, 100.0, 125.0]}))
    assert [len(numbers) for numbers in group.numbers] == [3, 3]
    row = group.rows[1]
    assert row["perplexity_wiki"] == pytest.approx(100)
    spread = math.log(1.25)
    half = math.hypot(t.ppf(0.975, 2) * spread / math.sqrt(3), math.log(1.1))
    ends = (100 * math.exp(-half), 100 * math.exp(half))
    assert (row["perplexity_wiki_low"], row["perplexity_wiki_high"]) == pytest.approx(ends)
    own = group.each[1][0]["average_stderr"]
    assert row["average_stderr"] == pytest.approx(own)  # the same at every seed
    dense = group.rows[0]
    assert (dense["perplexity_wiki_low"], dense["perplexity_wiki_high"]) == pytest.approx((20.8 / 1.1, 20.8 * 1.1))
    assert dense["kept"] == 1


def test_a_mean_needs_every_seed_and_an_interval_may_be_endless():
    records = run({"laco": [80.0, 100.0]})
    lost = changed(records[-1], "measured", "perplexity", to={})
    assert only([*records[:-1], lost]).rows[1]["perplexity_wiki"] is None
    row = only(run({"laco": [1e3, 1e300]})).rows[-1]
    assert row["perplexity_wiki"] == pytest.approx(10**151.5)
    assert row["perplexity_wiki_high"] == math.inf
    assert "laco" in to_terminal(run({"laco": [1e3, 1e300], "flap": [90.0, 91.0]}))
    assert "laco" in render_page(run({"laco": [1e3, 1e300], "flap": [90.0, 91.0]}))


def test_an_average_has_the_error_of_both_draws():
    records = [cell("laco", seed, accuracies=[share] * 5) for seed, share in enumerate((0.3, 0.4, 0.5))]
    group = only(records)
    own = np.mean([row["average_stderr"] for row in group.each[0]])
    assert group.rows[0]["average"] == pytest.approx(0.4)
    assert group.rows[0]["average_stderr"] == pytest.approx(math.hypot(0.1 / math.sqrt(3), own))


def test_the_table_says_of_which_seeds_it_is_and_the_frame_has_every_cell():
    records = run({"laco": [80.0, 100.0, 125.0], "flap": [90.0, 91.0]})
    text = to_terminal(records)
    assert "of c4, seeds 0, 1, 2" in one_line(text)
    assert one_line(legend.MEANS) in one_line(text)
    assert one_line(legend.ONE_SEED) not in one_line(text)
    names = [line.split("  ")[0] for line in text.splitlines() if "  " in line]  # rows, and no sentences
    assert {name for name in names if "laco" in name} == {"laco"}
    assert "flap (seeds 0, 1)" in names
    assert to_csv(records).count(",laco,laco,") == 3
    assert one_line(legend.ONE_SEED) in one_line(to_terminal([DENSE, cell("laco", 0)]))


def test_a_table_says_of_its_own_cells_whether_they_are_means_over_seeds():
    alone = changed(cell("laco", 0), "cell", "ratio", to=0.2)
    for name in ("main", "per-task"):
        once, thrice = build_view(name, [*run({"laco": [80.0, 100.0, 125.0]}), alone])
        assert (legend.ONE_SEED in once.footnotes, legend.MEANS in once.footnotes) == (True, False)
        assert (legend.ONE_SEED in thrice.footnotes, legend.MEANS in thrice.footnotes) == (False, True)
        assert dict(once.protocol)["calibration"].endswith("of c4, seed 0")


def test_where_a_seed_has_drawn_two_calibrations_none_are_joined():
    records = run({"laco": [80.0, 100.0]})
    assert len(set(setups_of_records(records))) == 1
    other = changed(cell("laco", 1, 300.0), "cell", "inputs", "calibration_sha256", to="another version of c4")
    assert len(set(setups_of_records([*records, other]))) == 3
    assert len(group_records([*records, other])) == 3
    wiki = run({"laco": [70.0, 71.0]}, text="wiki")
    assert [len(group.numbers[1]) for (group,) in group_records([*records, *wiki])] == [2, 2]


def test_one_seed_twice_is_no_draw():
    twice = [cell("laco", 0), cell("laco", 0)]
    assert group_draws(twice) == [[0], [1]]
    assert group_draws([*twice, cell("laco", 1)]) == [[0, 2], [1]]
    assert group_draws([cell("laco", 1), cell("laco", 0)]) == [[1, 0]]
    assert group_draws([cell("laco", 1), cell("laco", 0)], seeds=False) == [[0], [1]]


def test_what_fails_at_every_seed_is_one_row_and_at_one_seed_is_named():
    records = [cell("laco", 0), cell("laco", 1), *(failed("unsupported", "flap", "no MLP", seed=s) for s in (0, 1))]
    inputs = [one.cell.inputs for one in records[:2]]
    records[2:] = [changed(one, "cell", "inputs", to=given) for one, given in zip(records[2:], inputs, strict=True)]
    records.append(changed(failed("error", "sleb", "lost", seed=1), "cell", "inputs", to=inputs[1]))
    records.insert(0, cell("sleb", 0, 50.0))
    names = [line.split("  ")[0] for line in to_terminal(records).splitlines()]
    assert one_line(to_terminal(records)).count("flap [unsupported: no MLP]") == 1
    assert {"flap", "sleb (seed 0)", "sleb (seed 1)"} <= set(names)


def test_a_ratio_that_is_missed_at_one_seed_is_marked_and_named():
    second = cell("laco", 1)
    second = changed(second, "measured", "ratio_budget", to=second.measured.ratio + 0.01)
    text = to_terminal([cell("laco", 0), second])
    assert "%*" in text
    assert len([line for line in text.splitlines() if line.startswith("* missed: ")]) == 1
    assert "laco (seed 1) [requested" in one_line(text)
    assert "laco (seed 0) [" not in one_line(text)


def short_of_budget(record: Record) -> Record:
    """The record with a budget of one percent of the model more than it has removed."""
    return changed(record, "measured", "ratio_budget", to=record.measured.ratio + 0.01)


def test_what_removed_too_little_at_a_later_seed_is_not_the_best():
    records = [*run({"laco": [80.0, 81.0], "sleb": [90.0, 91.0], "flap": [9500.0, 9600.0]})]
    laco = next(place for place, one in enumerate(records) if one.cell.method == "laco" and one.cell.seed == 1)
    records[laco] = short_of_budget(records[laco])
    (table,) = build_view("main", records)
    at = [column.name for column in table.columns].index("perplexity_wiki")
    assert {row.label: row.cells[at].marks for row in table.rows} == {
        "dense": (),
        "laco": (),
        "sleb": ("best",),
        "flap": (),
    }
    group = only(records)
    tested = GroupTests(group, Samples(), records)
    assert sorted(group.label(place) for place in tested.eligible()) == ["flap", "sleb"]


@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 0, 1)])
def test_a_later_random_draw_that_misses_is_marked_named_and_not_the_best(seeds):
    draws = [changed(drawn(draw, 60.0, 0.4), "cell", "seed", to=seed) for draw, seed in enumerate(seeds)]
    draws[1] = short_of_budget(draws[1])
    others = [ok(name, 0.1, measured(4 * PER_LAYER, (80, 81, 82), [0.4] * 5, 60.0)) for name in ("laco", "sleb")]
    (table,) = build_view("main", [DENSE, *others, *draws])
    row = next(row for row in table.rows if row.label.startswith("drop-random"))
    names = [column.name for column in table.columns]
    assert row.cells[names.index("ratio")].text.endswith("*")
    assert row.cells[names.index("perplexity_wiki")].marks == ()
    (missed,) = [note for note in table.notes if note.startswith("* missed: ")]
    assert f": drop-random ({'seed 0, ' if len(set(seeds)) > 1 else ''}draw 1) [requested" in missed
    assert missed.count("drop-random") == 1


def test_draws_that_all_miss_alike_are_named_once():
    (table,) = build_view("main", [DENSE, *(short_of_budget(drawn(draw, 60.0, 0.4)) for draw in range(3))])
    (missed,) = [note for note in table.notes if note.startswith("* missed: ")]
    assert ": drop-random [requested" in missed
    assert missed.count("drop-random") == 1


def test_random_choices_of_several_seeds_are_all_draws():
    both = [changed(drawn(draw, 100.0 * (1 + draw), 0.4), "cell", "seed", to=draw // 2) for draw in range(4)]
    group = only(both)
    assert group.numbers == [[0, 1, 2, 3]]
    assert group.models(0) == [{0: 0, 1: 2}, {0: 1, 1: 3}]
    logs = [np.log([100, 200]).mean(), np.log([300, 400]).mean()]
    assert group.rows[0]["perplexity_wiki"] == pytest.approx(math.exp(np.mean(logs)))
    assert "drop-random [4 draws over 2 seeds]" in one_line(to_terminal(both))


def test_every_view_and_the_page_take_several_seeds(tmp_path):
    records = run({"laco": [80.0, 100.0, 125.0], "sleb": [90.0, 91.0, 92.0]})
    for name in ("per-task", "by-ratio", "speed", "cost"):
        assert build_view(name, records), name
    speed = render(build_view("speed", records))
    assert "laco at 0.3 (seed 2)" in speed
    html = render_page(records)
    assert "Draws of the calibration" in html
    folder = run_folder(tmp_path / "run", records)
    assert load_runs([folder]).remarks == []


def test_the_cost_says_that_it_is_a_mean_and_memory_is_the_highest_of_all():
    records = run({"laco": [80.0, 81.0]})
    for at, seconds, memory in ((2, 10.0, 9 * 2**30), (3, 30.0, 2**30)):
        stages = {"prune": {"resident_bytes": memory // 2}, "checks": {"resident_bytes": memory}}
        records[at] = with_measured(records[at], prune_seconds=seconds, peak_memory=stages)
    (table,) = build_view("cost", records)
    found = dict(zip([one.name for one in table.columns], table.rows[1].cells, strict=True))
    names = ("prune_seconds", "peak_memory_bytes", "prune_memory_bytes")
    assert [found[name].value for name in names] == [20.0, 9 * 2**30, 9 * 2**29]
    assert (found["cells"].value, MEANS in table.footnotes) == (2, True)
    assert dict(table.protocol)["calibration"].endswith("of c4, seeds 0, 1")
    (table,) = build_view("cost", [DENSE, *(drawn(draw, 100.0, 0.3) for draw in range(3))])
    assert ([row.cells[-1].value for row in table.rows], table.columns[-1].name) == ([1, 3], "cells")
    (table,) = build_view("cost", [DENSE, drawn(0, 100.0, 0.3)])
    assert (table.columns[-1].name, MEANS in table.footnotes) == ("gradients", False)


# --- tests between methods


def with_samples(folder: Path, shifts: dict[str, list[float]], noise: float = 2.0) -> tuple[list[Record], Samples]:
    """Methods with nats of each window at each seed: `shifts` are nats per window; the windows are the same."""
    rng = np.random.default_rng(5)
    base = rng.normal(1800, 150, WINDOWS)
    records, folders = [], []
    for method, several in shifts.items():
        for seed, shift in enumerate(several):
            nll = base + shift + rng.normal(0, noise, WINDOWS)
            records.append(cell(method, seed, math.exp(nll.sum() / (TOKENS * WINDOWS))))
            folders.append(folder / f"{method}-{seed}")
            folders[-1].mkdir(parents=True)
            frame = pd.DataFrame({"nll": nll, "tokens": TOKENS})
            frame.to_parquet(folders[-1] / "perplexity-wiki.parquet")
    return records, Samples(folders)


def nats(samples: Samples, place: int) -> np.ndarray:
    return samples.of(place, "perplexity-wiki", "nll").values


def test_two_methods_are_paired_by_seed_and_p_has_the_draw_in_it(tmp_path):
    records, samples = with_samples(tmp_path, {"laco": [0, 20, -30], "sleb": [40, 75, 3]})
    seeds = {0: {0: 0, 1: 1, 2: 2}, 3: {0: 3, 1: 4, 2: 5}}
    (found,) = contrast_of_perplexities(records, [(0, 3)], samples, "wiki", seeds=seeds).values()
    differences = np.array([nats(samples, 3 + seed) - nats(samples, seed) for seed in range(3)])
    stderr = differences.mean(0).std(ddof=1) / math.sqrt(WINDOWS) / TOKENS
    expected = mean_difference(differences.mean(1) / TOKENS, stderr, WINDOWS - 1)
    assert found.test == "draws"
    assert found.p == pytest.approx(expected[3])
    assert (found.estimate, found.low, found.high) == pytest.approx(tuple(np.exp(expected[:3])))
    (alone,) = contrast_of_perplexities(records, [(0, 3)], samples, "wiki").values()
    assert alone.p < found.p


def test_methods_are_compared_at_the_seeds_that_both_have(tmp_path):
    records, samples = with_samples(tmp_path, {"laco": [0, 20], "sleb": [40, 75]})
    alone = contrast_of_perplexities(records, [(1, 3)], samples, "wiki")[1, 3]
    same = {1: {1: 1}, 3: {1: 3}}
    assert contrast_of_perplexities(records, [(1, 3)], samples, "wiki", seeds=same)[1, 3] == alone
    assert contrast_of_perplexities(records, [(0, 3)], samples, "wiki", seeds={0: {0: 0}, 3: {1: 3}}) == {}
    some = {0: {0: 0, 1: 1}, 3: {1: 3}}  # a test of seed 1 would stand beside the mean of two
    assert contrast_of_perplexities(records, [(0, 3)], samples, "wiki", seeds=some) == {}


def test_no_test_contradicts_the_means_beside_it(tmp_path):
    """laco is better at the two seeds that both have, and by the mean of its three seeds worse."""
    records, samples = with_samples(tmp_path, {"laco": [0.0, 2.0, 1200.0], "sleb": [300.0, 310.0]})
    group = only(records)
    laco, sleb = (next(n for n, one in enumerate(group.records) if one.cell.method == m) for m in ("laco", "sleb"))
    mean = [group.rows[place]["perplexity_wiki"] for place in (laco, sleb)]
    assert mean[0] > mean[1]
    tests = GroupTests(group, samples, records)
    (found,) = (one for pair, one in tests.tests("perplexity_wiki").items() if len({*pair}) == 2)
    assert found.test == "draws"
    assert group.order_depends_on_seed(laco, sleb, "perplexity_wiki")
    for one, other in ((laco, sleb), (sleb, laco)):
        assert not tests.has_more(one, other, "perplexity_wiki")


def test_accuracies_are_paired_by_seed_whether_or_not_documents_are_drawn_anew(tmp_path):
    rng, folders, records = np.random.default_rng(1), [], []
    for method, share in (("laco", 0.5), ("sleb", 0.6)):
        for seed in (0, 1):
            folders.append(tmp_path / f"{method}{seed}")
            folders[-1].mkdir()
            right = (rng.uniform(size=80) < share + 0.05 * seed).astype(float)
            ids = [f"{seed}-{n}" for n in range(80)]
            pd.DataFrame({"doc_hash": ids, "acc_norm": right}).to_parquet(folders[-1] / "piqa.parquet")
            records.append(cell(method, seed, accuracies=[0.4, float(right.mean())]))
    seeds = {0: {0: 0, 1: 1}, 2: {0: 2, 1: 3}}
    (found,) = contrast_of_averages(records, [(0, 2)], Samples(folders), ["piqa"], seeds=seeds).values()
    answers = [pd.read_parquet(folder / "piqa.parquet")["acc_norm"].to_numpy() for folder in folders]
    apart = [answers[2] - answers[0], answers[3] - answers[1]]
    stderr = math.sqrt(sum(one.var(ddof=1) / 80 for one in apart)) / 2
    assert found.test == "draws"
    assert found.p == pytest.approx(mean_difference([one.mean() for one in apart], stderr)[3])
    for place in (1, 3):
        frame = pd.read_parquet(folders[place] / "piqa.parquet")
        frame["doc_hash"] = [f"0-{n}" for n in range(80)]
        frame.to_parquet(folders[place] / "piqa.parquet")
    (found,) = contrast_of_averages(records, [(0, 2)], Samples(folders), ["piqa"], seeds=seeds).values()
    stderr = np.mean(apart, axis=0).std(ddof=1) / math.sqrt(80)
    assert found.p == pytest.approx(mean_difference([one.mean() for one in apart], stderr)[3])


def test_a_rank_that_changes_with_the_seed_is_a_tie(tmp_path):
    steady = [100.0 + seed for seed in range(8)]
    ahead, flips = [value - 40 for value in steady], [*(value - 40 for value in steady[:7]), steady[7] + 3]
    records, samples = with_samples(tmp_path / "steady", {"laco": steady, "sleb": ahead})
    best, better, text = best_by_perplexity(records, samples)
    assert (best, better) == ("sleb", "1 of 1, shown")
    assert legend.SEEDS_DISAGREE.sentence[:-1] not in text
    assert legend.MEANS in text
    (table,) = build_view("main", records, "laco", samples)
    assert "differs" in {row.label: row for row in table.rows}["sleb"].cells[2].marks
    records, samples = with_samples(tmp_path / "flips", {"laco": steady, "sleb": flips})
    (found,) = contrast_of_perplexities(
        records, [(0, 8)], samples, "wiki", seeds={0: {s: s for s in range(8)}, 8: {s: 8 + s for s in range(8)}}
    ).values()
    assert found.p < LEVEL  # and still
    best, better, text = best_by_perplexity(records, samples)
    assert (best, better) == ("sleb", "0 of 1, shown")
    assert f"{legend.SEEDS_DISAGREE.sentence[:-1]}: sleb and laco [ppl wiki at 0.3]." in text
    (table,) = build_view("main", records, "laco", samples)
    assert table.marks() & {"differs"} == set()


def test_one_seed_is_said_with_the_way_out():
    assert legend.ONE_SEED in render_page([DENSE, cell("laco", 0), cell("sleb", 0, 90.0)])


# --- the view


def logs_of(records: list[Record], method: str) -> list[float]:
    found = [one for one in records if one.cell.method == method]
    return [math.log(one.measured.text_scores["wiki"].perplexity) for one in found]


def test_the_components_are_those_of_the_figures(tmp_path):
    records, samples = with_samples(tmp_path, {"laco": [0, 20, -30], "sleb": [40, 75, 3], "flap": [-9, 25, 30]})
    sources, methods = build_view("seeds", records, samples=samples)
    values = {row.label: [one.value for one in row.cells] for row in sources.rows}
    logs = {method: logs_of(records, method) for method in ("laco", "sleb", "flap")}
    one, _, seed = variance_components([*chain(*logs.values())], [m for m in logs for _ in range(3)], "ccccccccc")
    assert values["method"] == [pytest.approx(one.deviation), pytest.approx(math.expm1(one.deviation)), 2, *[None] * 3]
    assert values["calibration text"] == [None] * 6
    assert values["calibration seed"][:3] == [
        pytest.approx(seed.deviation),
        pytest.approx(math.expm1(seed.deviation)),
        6,
    ]
    pairs = [("laco", "sleb"), ("laco", "flap"), ("sleb", "flap")]
    apart = np.mean([np.var(np.subtract(logs[b], logs[a]), ddof=1) for a, b in pairs])
    assert values["calibration seed"][3] == pytest.approx(math.sqrt(apart))
    windows = [
        np.var(nats(samples, 3 * b + s) - nats(samples, 3 * a + s), ddof=1) / WINDOWS / TOKENS**2
        for a, b in ((0, 1), (0, 2), (1, 2))
        for s in range(3)
    ]
    assert values["windows"][3] == pytest.approx(math.sqrt(np.mean(windows)))
    assert values["windows"][0] == pytest.approx(math.log(1.1) / t.ppf(0.975, 15))
    assert values["calibration seed"][5] == pytest.approx(math.expm1(1.96 * math.sqrt(apart)), rel=1e-4)
    both = math.sqrt(apart + np.mean(windows))
    assert values["calibration seed and windows"][:3] == [None] * 3
    assert values["calibration seed and windows"][3::2] == pytest.approx([both, math.expm1(1.96 * both)], rel=1e-4)
    assert "9 cells of 3 methods, calibrated on c4, seeds 0, 1, 2" in sources.title
    rows = {row.label: [one.value for one in row.cells] for row in methods.rows}
    assert rows["laco"][0] == pytest.approx(math.exp(np.mean(logs["laco"])))
    assert rows["laco"][3:5] == [3, pytest.approx(np.std(logs["laco"], ddof=1))]
    order = [row.label for row in methods.rows]
    ahead = [sum(np.less(logs[a], logs[b])) for a, b in pairwise(order)]
    assert [row.cells[-1].text for row in methods.rows] == [*(f"{count} of 3" for count in ahead), "-"]
    assert set(ahead) - {3}  # the order of some depends on the draw
    assert dict(sources.protocol)["ppl wiki"].startswith("16 windows of 512 tokens")


@pytest.mark.parametrize("text", ["hub:Salesforce/wikitext:wikitext-2-raw-v1:test:text", "/data/wiki.test.txt"])
def test_windows_are_paired_whatever_their_text_is_called(tmp_path, text):
    records, samples = with_samples(tmp_path, {"laco": [0, 20], "sleb": [40, 75]})
    (known, _) = build_view("seeds", records, samples=samples)
    for folder in tmp_path.iterdir():
        (folder / "perplexity-wiki.parquet").rename(folder / f"perplexity-{name_of_text(text)}.parquet")
    renamed = [changed(one, "measured", "perplexity", to={text: one.measured.text_scores["wiki"]}) for one in records]
    (found, _) = build_view("seeds", renamed, samples=samples)
    assert known.rows[3].cells[3].value == found.rows[3].cells[3].value > 0


@pytest.mark.parametrize(("seeds", "text"), [(2, "c4"), (0, "wiki")])
def test_methods_that_share_no_draw_have_no_difference(seeds, text):
    records = [cell("laco", seed, 100.0 + seed) for seed in (0, 1)]
    records += [cell("sleb", seeds + seed, 120.0 + 9 * seed, text=text) for seed in (0, 1)]
    sources, methods = build_view("seeds", records)
    assert [row.cells[3].value for row in sources.rows] == [None] * 4
    assert sources.rows[2].cells[0].value > 0
    assert [row.label for row in methods.rows] == ["laco", "sleb"]


def test_texts_are_a_level_and_missing_cells_are_named():
    rng = np.random.default_rng(2)
    records = [
        cell(method, seed, float(np.exp(rng.normal(4.5, 0.3))), text=text)
        for method in ("laco", "sleb", "flap")
        for text in ("c4", "wiki")
        for seed in range(3)
    ]
    lost = records.pop(4)
    records.append(failed("error", "laco", "lost", seed=lost.cell.seed))
    records[-1] = changed(records[-1], "cell", "protocol", to=lost.cell.protocol)
    records[-1] = changed(records[-1], "cell", "inputs", to=lost.cell.inputs)
    sources, methods = build_view("seeds", records)
    assert [row.cells[2].value for row in sources.rows] == [2, 3, 11, 15]
    assert "17 cells of 3 methods, calibrated on c4 and wiki" in sources.title
    assert f"no perplexity: {legend.NO_PERPLEXITY.sentence[:-1]}: laco [wiki, seed 1]." in sources.notes
    assert {row.label: row.cells[3].value for row in methods.rows} == {"laco": 5, "sleb": 6, "flap": 6}
    assert sources.rows[3].cells[3].value is None  # without samples no windows are paired


def test_two_recipes_are_two_methods_and_what_was_measured_again_is_named():
    records = run({"sleb": [40.0, 41.0, 42.0]})
    for loss, ppl in (("kl", 50.0), ("next-token", 500.0)):
        records += [cell("laco", seed, ppl + seed, healing=RECIPE | {"loss": loss}) for seed in range(3)]
    again = changed(cell("sleb", 0, 9e9), "cell", "inputs", "calibration_sha256", to="of another version of c4")
    sources, methods = build_view("seeds", [*records, again])
    means = {row.label: row.cells[0].value for row in methods.rows}
    assert means == {
        "sleb": pytest.approx((40 * 41 * 42) ** (1 / 3)),
        "laco, healed (loss kl)": pytest.approx((50 * 51 * 52) ** (1 / 3)),
        "laco, healed (loss next-token)": pytest.approx((500 * 501 * 502) ** (1 / 3)),
    }
    assert [note for note in sources.notes if "left out" in note] == [
        f"repeated: {legend.REPEATED.sentence[:-1]}: sleb [c4, seed 0]."
    ]


def test_an_estimate_below_zero_is_shown_as_zero_and_said():
    records = run({"laco": [80.0, 120.0], "sleb": [81.0, 119.0]})
    (sources, _) = build_view("seeds", records)
    assert sources.rows[0].cells[0].text == "0"
    (line,) = [line for line in sources.notes if line.startswith("below zero: ")]
    assert "method [of one cell]" in line


def test_what_no_calibration_decides_is_left_out():
    records = run({"laco": [80.0, 120.0], "sleb": [81.0, 110.0], "magnitude": [300.0, 300.0]})
    (sources, methods) = build_view("seeds", records, needs={"magnitude": "nothing", "laco": "calibration"})
    assert f"uncalibrated: {legend.UNCALIBRATED.sentence[:-1]}: magnitude." in sources.notes
    assert [row.label for row in methods.rows] == ["sleb", "laco"]


def test_one_seed_has_no_view_and_the_command_says_what_to_do(tmp_path, capsys):
    assert build_view("seeds", [DENSE, cell("laco", 0), cell("sleb", 0)]) == []
    folder = run_folder(tmp_path / "run", [cell("dense", 0), cell("laco", 0), cell("sleb", 0)])
    assert main(["report", str(folder), "--view", "seeds"]) == 2
    assert "--seed 0,1,2" in capsys.readouterr().err
    folder = run_folder(tmp_path / "several", run({"laco": [80.0, 120.0], "sleb": [81.0, 110.0]}))
    assert main(["report", str(folder), "--view", "seeds", "--format", "markdown"]) == 0
    assert "| calibration seed |" in one_line(capsys.readouterr().out)


# --- the figure


def test_the_figure_has_a_dot_for_every_draw_and_a_bar_at_the_mean():
    records = [*run({"laco": [100.0, 200.0], "slicegpt": [50.0, 400.0]}), *run({"laco": [300.0, 300.0]}, text="wiki")]
    (figure,) = draws_figures(records)
    assert (figure.name, "at ratio 0.3" in figure.title) == ("perplexity-by-draw-0.3", True)
    assert "slicegpt 141 (50.0 to 400, 2 draws); laco 206 (100 to 300, 4 draws)" in figure.description
    (panel,) = figure.draw().axes
    labels = [tick.get_text() for tick in panel.get_yticklabels()]
    places = {label: y for label, y in zip(labels, panel.get_yticks(), strict=True)}
    assert labels == ["laco", "slicegpt"]  # from below: the best is on top
    bars, dots = {}, {}
    for line in panel.lines:
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            (bars if line.get_marker() == "|" else dots).setdefault(round(y), []).append(float(x))
    assert sorted(dots[places["laco"]]) == pytest.approx([100.0, 200.0, 300.0, 300.0])
    assert sorted(dots[places["slicegpt"]]) == pytest.approx([50.0, 400.0])
    assert bars[places["laco"]] == pytest.approx([math.exp(np.mean(np.log([100, 200, 300, 300])))])


def test_a_figure_of_draws_is_of_one_setup_and_names_it():
    figures = {"laco": [100.0, 200.0], "slicegpt": [50.0, 400.0]}
    decoder = [changed(one, "cell", "ratio_of", to="decoder") for one in run(figures)]
    other = [changed(one, "cell", "display_name", to="Other-1B") for one in run(figures)]
    other = [changed(one, "cell", "model", to="other") for one in other]
    longer = [changed(one, "cell", "protocol", "calibration_length", to=64) for one in run(figures)]
    found = draws_figures([*run(figures), *decoder, *other, *longer])
    titles = [figure.title.partition(" by the draw")[0] for figure in found]
    first = "perplexity of SmolLM2-135M-Instruct at ratio 0.3"
    assert titles == [first, f"{first} of the decoder", "perplexity of Other-1B at ratio 0.3", first]
    assert len({figure.title for figure in found}) == 4
    assert found[3].title.endswith(" sequences of 64 tokens")
    assert [len(figure.draw().axes) for figure in found] == [1] * 4


def test_one_seed_has_no_figure_of_draws():
    assert draws_figures(run({"laco": [100.0], "slicegpt": [50.0]})) == []


def test_the_figure_leaves_out_what_the_view_leaves_out():
    records = run({"magnitude": [10.0, 11.0], "laco": [100.0, 200.0], "slicegpt": [50.0, 400.0]})
    needs = {"magnitude": "nothing", "laco": "calibration", "slicegpt": "calibration"}
    (figure,) = (one for one in catalogue.figures_of_report(records, needs=needs) if "by-draw" in one.name)
    assert "magnitude" not in figure.description
    assert "slicegpt" in figure.description
    assert not [one for one in catalogue.figures_of_report(records[:6], needs=needs) if "by-draw" in one.name]
