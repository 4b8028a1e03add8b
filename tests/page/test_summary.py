"""The summary of the page: its rows and flags; the tests behind them against scipy and statsmodels."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_records import DENSE, PER_LAYER, changed, drawn, failed, measured, ok, with_measured
from made_samples import paired_perplexity
from pages import ROOT, text
from scipy.stats import binomtest, norm, ttest_1samp
from statsmodels.stats.multitest import multipletests

from bench.records import run_folder
from bench.records.quantities import quantity_of_column
from bench.records.record import Record
from bench.records.samples import Sample, Samples
from bench.regression import contrasts
from bench.regression.contrasts import LEVEL, contrast_of_averages
from bench.stats import intervals
from reports import legend
from reports.groups import group_records
from reports.page.summary import INDEPENDENT, summarise_setups
from reports.tables.rows import GroupTests
from reports.tables.table import Table

TASKS = ("hellaswag", "piqa")
BEST_TWO = {"laco": 100.0, "flap": 200.0}  # their perplexities
LAYERS = 11  # of the budget at ratio 0.3


def made(
    folder: Path,
    method: str,
    nll: Any,
    right: dict[str, Any],
    ratio: float | None = 0.3,
    *,
    bits: dict[str, Any] | None = None,
    **more: Any,
) -> Record:
    """A record whose figures follow from its samples, which are written to `folder`; bits of the right answers too."""
    nll = np.asarray(nll, dtype=float)
    ppl = math.exp(nll.sum() / (511 * len(nll)))
    spread = math.exp(1.96 * nll.std(ddof=1) / math.sqrt(len(nll)) / 511)
    figures = measured(0 if ratio is None else LAYERS * PER_LAYER, (ppl / spread, ppl, ppl * spread), [0.5, 0.5], 80.0)
    folder.mkdir(parents=True)
    pd.DataFrame({"nll": nll, "tokens": 511}).to_parquet(folder / "perplexity-wiki.parquet")
    for task, given in right.items():
        answers = np.asarray(given, dtype=float)
        ids = [f"{task}-{number}" for number in range(len(answers))]
        figures["tasks"][task].pop("answer_bpb")
        table = pd.DataFrame({"doc_hash": ids, "acc_norm": answers})
        if bits:
            table["answer_bpb"] = likely = np.asarray(bits[task], dtype=float)
            stderr = float(likely.std(ddof=1)) / math.sqrt(len(likely))
            figures["tasks"][task]["answer_bpb"] = {"value": float(likely.mean()), "stderr": stderr}
        table.to_parquet(folder / f"{task}.parquet")
        value = float(answers.mean())
        stderr = math.sqrt(value * (1 - value) / (len(answers) - 1))
        figures["tasks"][task]["metrics"]["acc_norm"] = {"value": value, "stderr": stderr}
        figures["tasks"][task]["documents"] = len(answers)
    return ok(method, ratio, figures, budget=LAYERS, **more)


def summary(records: list[Record], samples: Samples | list[Path | None] | None = None) -> Table:
    """The summary of records of one setup."""
    (table,) = summarise_setups(records, samples if isinstance(samples, Samples) else Samples(samples or ()))
    return table


def rows(table: Table) -> dict[tuple[str, str], dict[str, str]]:
    """The cells of a summary by quantity and ratio."""
    names = [column.name for column in table.columns]
    return {
        (row.label.split(" (")[0].rstrip(" ↑↓"), row.cells[0].text): dict(
            zip(names, (cell.text for cell in row.cells), strict=True)
        )
        for row in table.rows
    }


def cells_of_flag(flag: legend.Flag, table: Table) -> str:
    """The cells of a flag in the legend; empty if it does not occur."""
    lines = [note for note in table.notes if note.startswith(f"{flag.head}: ")]
    return "".join(line.removeprefix(f"{flag.head}: {flag.sentence.removesuffix('.')}: ") for line in lines)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def a_run(tmp_path: Path, rng: np.random.Generator) -> tuple[list[Record], list[Path | None]]:
    """dense best, close and good not told apart, bad far behind."""
    base = rng.normal(1800, 150, 16)
    models = {"dense": (-200, 0.8), "good": (0, 0.6), "close": (1, 0.58), "bad": (900, 0.2)}
    records, folders = [], []
    for method, (shift, share) in models.items():
        nll = base + shift + rng.normal(0, 12, 16)
        right = {task: rng.uniform(size=200) < share for task in TASKS}
        ratio = None if method == "dense" else 0.3
        records.append(made(tmp_path / method, method, nll, right, ratio))
        folders.append(tmp_path / method)
    return records, folders


def test_pairs_are_tested_as_scipy_does_and_adjusted_as_statsmodels_does(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    pairs, samples = list(combinations(range(len(records)), 2)), Samples(folders)
    nll = [pd.read_parquet(f / "perplexity-wiki.parquet")["nll"].to_numpy() for f in folders]
    right = [np.concatenate([pd.read_parquet(f / f"{t}.parquet")["acc_norm"] for t in TASKS]) for f in folders]
    expected = [ttest_1samp(nll[b] - nll[a], 0).pvalue for a, b in pairs]
    found = contrasts.contrast_of_perplexities(records, pairs, samples, "wiki")
    assert [found[pair].p for pair in pairs] == pytest.approx(multipletests(expected, method="holm")[1], rel=1e-6)
    assert found[1, 3].estimate == pytest.approx(math.exp((nll[3] - nll[1]).mean() / 511))
    assert found[1, 3].low < found[1, 3].estimate < found[1, 3].high
    lost = [int((right[a] > right[b]).sum()) for a, b in pairs]
    gained = [int((right[b] > right[a]).sum()) for a, b in pairs]
    expected = [binomtest(x, x + y).pvalue for x, y in zip(lost, gained, strict=True)]
    found = contrast_of_averages(records, pairs, samples, TASKS)
    assert [found[pair].p for pair in pairs] == pytest.approx(multipletests(expected, method="holm")[1], rel=1e-6)
    assert found[0, 3].estimate == pytest.approx(right[3].mean() - right[0].mean())
    assert all(contrast.paired for contrast in found.values())


@pytest.mark.parametrize("in_a_row", [False, True])
def test_pairs_tested_together_are_tested_as_one_by_one(tmp_path, rng, in_a_row):
    """Cells of other windows and of answers that are no right or wrong among them; equal cells leave no doubt."""
    base, shares = rng.normal(1800, 150, 16), rng.uniform(size=(len(TASKS), 200))
    records, folders = [], []
    for number in range(9):
        nll = base if number in (0, 1) else base + rng.normal(2 * number, 9, 16)
        right = {task: share < 0.8 - 0.05 * number for task, share in zip(TASKS, shares, strict=True)}
        if number == 3:
            right["piqa"] = right["piqa"] * 0.7
        records.append(made(tmp_path / str(number), f"m{number}", nll, right))
        folders.append(tmp_path / str(number))
    records = [changed(one, "measured", "perplexity", "wiki", "drawn", to=not in_a_row) for one in records]
    records[4] = changed(records[4], "measured", "perplexity", "wiki", "sha256", to="other")
    pairs, samples = list(combinations(range(9), 2)), Samples(folders)
    for test in (
        lambda pairs: contrasts.contrast_of_perplexities(records, pairs, samples, "wiki"),
        lambda pairs: contrast_of_averages(records, pairs, samples, TASKS),
    ):
        alone, together = [test([pair])[pair] for pair in pairs], test(pairs)
        assert list(together) == pairs
        assert len({contrast.test for contrast in alone}) == 2
        assert [c.test for c in together.values()] == [c.test for c in alone]
        adjusted = intervals.holm([contrast.p for contrast in alone])
        assert [c.p for c in together.values()] == pytest.approx(adjusted, abs=1e-12)
        assert [c.estimate for c in together.values()] == pytest.approx([c.estimate for c in alone], rel=1e-12)
    nll = [pd.read_parquet(folder / "perplexity-wiki.parquet")["nll"].to_numpy() for folder in folders]
    for (a, b), contrast in contrasts.contrast_of_perplexities(records, pairs, samples, "wiki").items():
        if contrast.test == "student":
            one = paired_perplexity(nll[a], nll[b], [511] * 16, in_a_row=in_a_row)
            assert (contrast.estimate, contrast.low, contrast.high) == pytest.approx(
                (one.estimate, one.low, one.high), rel=1e-12
            )
            (raw,) = contrasts.contrast_of_perplexities(records, [(a, b)], samples, "wiki").values()
            assert raw.p == pytest.approx(one.p, abs=1e-12)
    right = [np.concatenate([pd.read_parquet(f / f"{t}.parquet")["acc_norm"] for t in TASKS]) for f in folders]
    for (a, b), contrast in contrast_of_averages(records, pairs, samples, TASKS).items():
        (raw,) = contrast_of_averages(records, [(a, b)], samples, TASKS).values()
        if contrast.test == "mcnemar":
            lost, gained = int((right[a] > right[b]).sum()), int((right[b] > right[a]).sum())
            assert raw.p == pytest.approx(binomtest(lost, lost + gained).pvalue if lost + gained else 1.0, abs=1e-12)


def test_without_samples_in_common_figures_are_taken_as_independent(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    paired = contrasts.contrast_of_perplexities(records, [(1, 2)], Samples(folders), "wiki")[1, 2]
    (rough,) = contrasts.contrast_of_perplexities(
        records, [(1, 2)], Samples([None, folders[1], None, None]), "wiki"
    ).values()
    one, other = (records[n].measured.text_scores["wiki"] for n in (1, 2))
    stderrs = [math.log(f.perplexity_high / f.perplexity_low) / 3.92 for f in (one, other)]
    log = math.log(other.perplexity / one.perplexity)
    assert rough.p == pytest.approx(2 * norm.sf(abs(log) / math.hypot(*stderrs)), rel=1e-6)
    assert (rough.paired, rough.estimate) == (False, pytest.approx(paired.estimate))
    assert rough.p > paired.p
    assert contrasts.contrast_of_perplexities(records, [(1, 2)], Samples(), "wiki", intervals=False) == {}
    table = pd.read_parquet(folders[3] / "piqa.parquet")
    table.iloc[1:].to_parquet(folders[3] / "piqa.parquet")  # without a document of the other's
    (averages,) = contrast_of_averages(records, [(1, 3)], Samples(folders), TASKS).values()
    assert not averages.paired


def test_tasks_of_unequal_size_weigh_alike(tmp_path, rng):
    records, folders = [], []
    for method, small, large in (("one", 0.9, 0.5), ("two", 0.3, 0.6)):
        right = {"hellaswag": rng.uniform(size=20) < small, "piqa": rng.uniform(size=2000) < large}
        records.append(made(tmp_path / method, method, rng.normal(1800, 9, 8), right))
        folders.append(tmp_path / method)
    (found,) = contrast_of_averages(records, [(0, 1)], Samples(folders), TASKS).values()
    means = [np.mean([record.measured.task_scores[t].metrics["acc_norm"].value for t in TASKS]) for record in records]
    assert found.estimate == pytest.approx(means[1] - means[0])
    assert found.estimate < 0  # although two answers more documents rightly
    tables = [[pd.read_parquet(f / f"{t}.parquet")["acc_norm"] for t in TASKS] for f in folders]
    variances = [(tables[1][k] - tables[0][k]).var(ddof=1) / len(tables[0][k]) for k in (0, 1)]
    assert found.p == pytest.approx(2 * norm.sf(abs(found.estimate) / (math.sqrt(sum(variances)) / 2)), rel=1e-6)


def test_who_wins_and_how_far_that_is_shown(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    table = summary(records, folders)
    first = min(records[1:3], key=lambda record: record.measured.text_scores["wiki"].perplexity)
    ppl, average = rows(table)["ppl wiki", "0.3"], rows(table)["average", "0.3"]
    assert ppl["best"] == first.cell.method
    assert ppl["value"].startswith(f"{first.measured.text_scores['wiki'].perplexity:.1f}")
    assert ppl["dense"].startswith(f"{records[0].measured.text_scores['wiki'].perplexity:.1f}")
    assert ppl["better"] == average["better"] == "1 of 2, shown"
    assert average["dense_better"] == "3 of 3"  # 20 points over 400 documents are a loss
    assert ppl["apart"].endswith(" of 6")
    assert INDEPENDENT not in table.footnotes
    assert INDEPENDENT in summary(records).footnotes


class Made(Samples):
    """Windows that no file holds."""

    def __init__(self, nll: list[np.ndarray]) -> None:
        self.nll = nll

    def of(self, number: int, name: str, figure: str) -> Sample:
        return Sample(tuple((place, 511) for place in range(len(self.nll[number]))), self.nll[number])


def with_bits(tmp_path: Path, rng: np.random.Generator) -> tuple[list[Record], Samples]:
    """Three models as accurate and as perplexed, which differ in how likely the right answers are."""
    nll, base = rng.normal(1800, 150, 16), {task: rng.gamma(4, 0.4, 200) for task in TASKS}
    right = {task: rng.uniform(size=200) < 0.5 for task in TASKS}
    records, folders = [], []
    for method, shift in {"dense": 0.0, "near": 0.0, "far": 0.2}.items():
        bits = {task: found + shift + 0.3 * (shift > 0) * rng.normal(size=200) for task, found in base.items()}
        folders.append(tmp_path / method)
        records.append(made(folders[-1], method, nll, right, None if method == "dense" else 0.3, bits=bits))
    return records, Samples(folders)


def test_bits_per_byte_are_tested_on_the_same_documents(tmp_path, rng):
    records, samples = with_bits(tmp_path, rng)
    found = contrast_of_averages(records, [(0, 1), (1, 2)], samples, TASKS, "answer_bpb")
    apart = [samples.of(2, task, "answer_bpb").values - samples.of(1, task, "answer_bpb").values for task in TASKS]
    estimate = np.mean([one.mean() for one in apart])
    stderr = math.hypot(*(one.std(ddof=1) / math.sqrt(len(one)) for one in apart)) / 2
    far = found[1, 2]
    assert (far.test, far.estimate) == ("normal", pytest.approx(estimate))
    assert (far.low, far.high) == (pytest.approx(estimate - 1.96 * stderr), pytest.approx(estimate + 1.96 * stderr))
    assert far.p == pytest.approx(2 * 2 * norm.sf(estimate / stderr))
    same = found[0, 1]
    assert (same.estimate, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_the_summary_says_whose_right_answers_are_the_likeliest(tmp_path, rng):
    found = rows(summary(*with_bits(tmp_path, rng)))
    bits = found["bpb", "0.3"]
    assert (bits["best"], bits["better"], bits["dense_better"]) == ("near", "1 of 1, shown", "1 of 2")
    assert [found[name, "0.3"]["apart"] for name in ("average", "bpb", "ppl wiki")] == ["0 of 3", "2 of 3", "0 of 3"]


def test_the_study_has_what_the_page_says_of_twenty_methods():
    """How many pairs each figure tells apart, and how much the best is ahead of the next."""
    merged = run_folder.load_runs([ROOT / "docs/results/smollm2-135m"])
    found = rows(summary(merged.records, merged.samples))
    study = " ".join(text("docs/studies/twenty-methods.md").split())

    def numbers(name: str, column: str) -> list[str]:
        return [found[name, ratio][column].partition(" of ")[0] for ratio in ("0.1", "0.2", "0.3")]

    def counts(name: str, column: str) -> str:
        *first, last = numbers(name, column)
        return f"{', '.join(first)} and {last}"

    accuracy, perplexity = (counts(name, "apart") for name in ("average", "ppl wiki"))
    assert {found["bpb", ratio]["apart"].partition(" of ")[2] for ratio in ("0.1", "0.2", "0.3")} == {"300"}
    assert f"is shown to differ in {perplexity}, the average in {accuracy}." in study
    assert {found["ppl wiki", ratio]["best"] for ratio in ("0.1", "0.2", "0.3")} == {"laco-ls"}
    below = counts("ppl wiki", "better")
    assert f"show it to be below {below} of the 19 others at 0.1, 0.2 and 0.3" in study
    factors = []
    (groups,) = group_records(merged.records)
    for group in groups:
        tested = GroupTests(group, merged.samples, merged.records)
        order = tested.order(tested.eligible(), "perplexity_wiki", "lower")
        (first, second) = (tested.models(place)[0] for place in order[:2])
        contrast, turned = tested.tests("perplexity_wiki").get((first, second)), False
        if contrast is None:
            contrast, turned = tested.tests("perplexity_wiki")[second, first], True
        ends = (contrast.estimate, contrast.low, contrast.high)
        factors.append([1 / end for end in (ends[0], ends[2], ends[1])] if turned else ends)
    for times in factors:
        value, low, high = (quantity_of_column("prefill_speed").format(end, times[0]) for end in times)
        forms = (f"{value} [{low}, {high}]", f"{value} times its perplexity [{low}, {high}]")
        assert any(form in study for form in forms), forms


def test_bits_that_were_not_measured_have_no_row(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    assert "bpb" not in {quantity for quantity, _ in rows(summary(records, folders))}


def test_of_equal_models_none_is_shown_to_be_better():
    claims = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base = rng.normal(1800, 150, 16)
        nll = [base + rng.normal(0, 30, 16) for _ in range(8)]
        found = contrasts.contrast_of_perplexities([DENSE] * 8, list(combinations(range(8), 2)), Made(nll), "wiki")
        claims += any(contrast.p < LEVEL for contrast in found.values())
    assert claims <= 5  # at 5 % in 99 of 100 such tests; without adjustment it is half of them


def test_the_best_is_not_one_that_removed_too_little(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    good = changed(records[1], "measured", "ratio", to=records[1].measured.ratio - 0.02)
    table = summary([records[0], good, *records[2:]], folders)
    assert rows(table)["ppl wiki", "0.3"]["best"] == "close"
    assert rows(table)["ppl wiki", "0.3"]["better"] == "1 of 1, shown"
    assert "good at 0.3 [requested 30.0 %, budget 28.9 %, achieved 26.9 %]" in cells_of_flag(legend.MISSED, table)


def at(ratio: float, method: str, ppl: float, accuracy: float = 0.4) -> Record:
    figures = measured(LAYERS * PER_LAYER, (0.95 * ppl, ppl, 1.05 * ppl), [accuracy] * 5, 80.0)
    return ok(method, ratio, figures, budget=LAYERS)


def test_a_cliff_is_a_step_of_ten_and_no_less():
    table = summary([DENSE, at(0.1, "steep", 200.0), at(0.2, "steep", 2_100.0), at(0.3, "steep", 3_000.0)])
    assert cells_of_flag(legend.CLIFF, table) == "steep [ppl wiki from 0.1 to 0.2: 200 to 2,100]."
    table = summary([DENSE, at(0.1, "steep", 209.0)])
    assert cells_of_flag(legend.CLIFF, table) == "steep [ppl wiki from dense to 0.1: 20.8 to 209]."


def test_a_cliff_is_between_ratios_of_one_thing():
    decoder = changed(at(0.1, "steep", 2_500.0), "cell", "ratio_of", to="decoder")
    table = summary([DENSE, at(0.3, "steep", 200.0), decoder])
    assert cells_of_flag(legend.CLIFF, table) == "steep [ppl wiki from dense to 0.1 of the decoder: 20.8 to 2,500]."


def test_methods_with_the_best_value_share_the_row():
    found = rows(summary([DENSE, at(0.3, "a", 30.0, 0.5), at(0.3, "b", 30.0, 0.5), at(0.3, "c", 90.0, 0.4)]))
    ppl = found["ppl wiki", "0.3"]
    assert (ppl["best"], ppl["value"], ppl["dense"]) == ("a, b", "30.0 ± 1.5", "20.8 ± 0.9")
    assert ppl["better"].endswith(" of 1, shown")
    assert found["average", "0.3"]["best"] == "a, b"
    found = rows(summary([DENSE, *(at(0.3, name, 30.0, 0.5) for name in "abc")]))
    assert (found["ppl wiki", "0.3"]["best"], found["ppl wiki", "0.3"]["better"]) == ("a, b, c", "-")


def test_perplexity_and_accuracy_disagree_where_they_do():
    agree = [DENSE, at(0.3, "a", 30.0, 0.5), at(0.3, "b", 60.0, 0.45), at(0.3, "c", 90.0, 0.4)]
    assert not cells_of_flag(legend.ORDERS_DISAGREE, summary(agree))
    reverse = [DENSE, at(0.3, "a", 30.0, 0.3), at(0.3, "b", 60.0, 0.45), at(0.3, "c", 90.0, 0.5)]
    assert cells_of_flag(legend.ORDERS_DISAGREE, summary(reverse)) == "c at 0.3 [3 of 3]."
    shared = [DENSE, at(0.3, "a", 60.0, 0.5), at(0.3, "b", 30.0, 0.5), at(0.3, "c", 90.0, 0.4)]
    assert not cells_of_flag(legend.ORDERS_DISAGREE, summary(shared))  # one of the most accurate has the lowest


def test_random_layers_are_a_bar_for_every_method():
    draws = [drawn(seed, ppl, 0.3) for seed, ppl in enumerate((900.0, 1_000.0, 5_000.0))]
    others = [at(0.1, "better", 50.0), at(0.1, "middle", 2_000.0), at(0.1, "worse", 90_000.0)]
    table = summary([DENSE, *others, *draws])
    assert cells_of_flag(legend.NOT_ABOVE_RANDOM, table) == "middle [at 0.1]."
    assert cells_of_flag(legend.WORSE_THAN_RANDOM, table) == "worse [at 0.1]."
    table = summary([DENSE, *others])
    assert not cells_of_flag(legend.NOT_ABOVE_RANDOM, table) + cells_of_flag(legend.WORSE_THAN_RANDOM, table)


def test_cells_without_figures_are_named_with_their_ratio():
    both = [failed("error", "flap", "no", seed=seed) for seed in (0, 1)]
    table = summary([DENSE, at(0.3, "laco", 90.0), *both, changed(both[0], "cell", "ratio", to=0.5)])
    shown = cells_of_flag(legend.FAILED, table)
    assert shown == "flap at 0.3, flap at 0.5 [error: no]."
    assert rows(table)["ppl wiki", "0.3"]["better"] == "-"  # there is nothing to compare it with


def test_seeds_that_miss_their_budget_on_both_sides_do_not_cancel():
    records = [changed(at(0.3, "laco", 90.0), "cell", "seed", to=seed) for seed in (0, 1)]
    for number, miss in enumerate((-0.02, 0.02)):
        records[number] = with_measured(records[number], ratio=records[number].measured.ratio + miss)
    shown = cells_of_flag(legend.MISSED, summary([DENSE, *records]))
    assert "laco (seed 0) at 0.3 [requested 30.0 %, budget 28.9 %, achieved 26.9 %]" in shown
    assert "laco (seed 1) at 0.3 [requested 30.0 %, budget 28.9 %, achieved 30.9 %]" in shown


def test_the_summary_is_the_same_in_any_order_of_the_records():
    records = [changed(at(0.3, m, ppl + s), "cell", "seed", to=s) for m, ppl in BEST_TWO.items() for s in (0, 1)]
    expected = rows(summary([DENSE, *records]))
    for order in ((1, 2, 3, 0), (3, 0, 1, 2), (2, 3, 0, 1)):
        assert rows(summary([DENSE, *(records[number] for number in order)])) == expected


def test_speed_is_compared_by_its_intervals():
    def fast(method: str, speedup: float, half: float) -> Record:
        record = at(0.3, method, 90.0)
        ends = {"speedup": speedup, "speedup_low": speedup - half, "speedup_high": speedup + half}
        points = [replace(point, **ends) for point in record.measured.timed_points]
        return with_measured(record, speed=replace(record.measured.speed, points=points))

    found = rows(summary([DENSE, fast("quick", 1.5, 0.02), fast("near", 1.48, 0.02), fast("slow", 0.9, 0.02)]))
    speed = found["decode", "0.3"]
    assert (speed["best"], speed["value"], speed["better"]) == ("quick", "1.50x ± 0.02", "1 of 2, shown")
    assert (speed["dense_better"], speed["apart"]) == ("1 of 3", "-")


def test_without_a_pruned_model_there_is_no_summary():
    assert summarise_setups([], Samples()) == []
    assert summarise_setups([DENSE], Samples()) == []
    assert cells_of_flag(legend.FAILED, summary([failed("error", "flap", "no")])) == "flap at 0.3 [error: no]."
