"""The sentences of the page: true, and said only when they are; the tests behind them against scipy and statsmodels."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from made_records import DENSE, PER_LAYER, changed, drawn, failed, measured, ok
from pages import ROOT, text
from scipy.stats import binomtest, norm, ttest_1samp
from statsmodels.stats.multitest import multipletests

from bench.records import run_folder
from bench.records.record import Record
from bench.records.samples import Sample, Samples
from bench.regression import contrasts
from bench.regression.contrasts import LEVEL, contrast_of_averages, pairs_of
from bench.stats import intervals
from bench.stats.clusters import paired_perplexity
from reports.page.summary import summarise_groups

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


def sentences(records: list[Record], samples: list[Path | None] | None = None) -> str:
    topics = summarise_groups(records, Samples(samples or ()))
    return "\n".join(sentence for topic in topics for sentence in topic.sentences)


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
    pairs, samples = pairs_of(range(len(records))), Samples(folders)
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
    for record in records:
        record.measured["perplexity"]["wiki"]["drawn"] = not in_a_row
    records[4].measured["perplexity"]["wiki"]["sha256"] = "other"
    pairs, samples = pairs_of(range(9)), Samples(folders)
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
            assert raw.p == pytest.approx(intervals.paired_shares(right[a], right[b]).p, abs=1e-12)


def test_without_samples_in_common_figures_are_taken_as_independent(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    paired = contrasts.contrast_of_perplexities(records, [(1, 2)], Samples(folders), "wiki")[1, 2]
    (rough,) = contrasts.contrast_of_perplexities(
        records, [(1, 2)], Samples([None, folders[1], None, None]), "wiki"
    ).values()
    one, other = (records[n].measured["perplexity"]["wiki"] for n in (1, 2))
    stderrs = [math.log(f["perplexity_high"] / f["perplexity_low"]) / 3.92 for f in (one, other)]
    log = math.log(other["perplexity"] / one["perplexity"])
    assert rough.p == pytest.approx(2 * norm.sf(abs(log) / math.hypot(*stderrs)), rel=1e-6)
    assert (rough.paired, rough.estimate) == (False, pytest.approx(paired.estimate))
    assert rough.p > paired.p
    assert contrasts.contrast_of_perplexities(records, [(1, 2)], Samples(), "wiki", intervals=False) == {}
    table = pd.read_parquet(folders[3] / "piqa.parquet")
    table.iloc[::-1].to_parquet(folders[3] / "piqa.parquet")  # the same documents in another order
    (averages,) = contrast_of_averages(records, [(1, 3)], Samples(folders), TASKS).values()
    assert not averages.paired


def test_the_page_names_the_tests_that_it_used(tmp_path, rng):
    records, folders = a_run(tmp_path / "equal", rng)
    said = sentences(records, folders)
    assert "Student's test over the windows" in said
    assert "McNemar's over the documents" in said
    assert "normal" not in said
    unequal = []
    for number, method in enumerate(("one", "two")):
        right = {"hellaswag": rng.uniform(size=20) < 0.5, "piqa": rng.uniform(size=60) < 0.5}
        unequal.append(made(tmp_path / method, method, rng.normal(1800, 9, 8 + number), right))
    said = sentences(unequal, [tmp_path / "one", tmp_path / "two"])
    assert "tested by a normal test over the documents both answered, every task weighing alike; else by" in said
    assert "McNemar" not in said


def test_tasks_of_unequal_size_weigh_alike(tmp_path, rng):
    records, folders = [], []
    for method, small, large in (("one", 0.9, 0.5), ("two", 0.3, 0.6)):
        right = {"hellaswag": rng.uniform(size=20) < small, "piqa": rng.uniform(size=2000) < large}
        records.append(made(tmp_path / method, method, rng.normal(1800, 9, 8), right))
        folders.append(tmp_path / method)
    (found,) = contrast_of_averages(records, [(0, 1)], Samples(folders), TASKS).values()
    means = [
        np.mean([record.measured["tasks"][t]["metrics"]["acc_norm"]["value"] for t in TASKS]) for record in records
    ]
    assert found.estimate == pytest.approx(means[1] - means[0])
    assert found.estimate < 0  # although two answers more documents rightly
    tables = [[pd.read_parquet(f / f"{t}.parquet")["acc_norm"] for t in TASKS] for f in folders]
    variances = [(tables[1][k] - tables[0][k]).var(ddof=1) / len(tables[0][k]) for k in (0, 1)]
    assert found.p == pytest.approx(2 * norm.sf(abs(found.estimate) / (math.sqrt(sum(variances)) / 2)), rel=1e-6)


def test_who_wins_and_how_far_that_is_shown(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    text = sentences(records, folders)
    first = min(records[1:3], key=lambda record: record.measured["perplexity"]["wiki"]["perplexity"])
    second = records[2] if first is records[1] else records[1]
    ppl = [record.measured["perplexity"]["wiki"]["perplexity"] for record in (first, second)]
    assert f"At ratio 0.3, {first.cell['method']} has the lowest perplexity on wiki: {ppl[0]:.1f}" in text
    assert f"shown to be below 1 of 2 others; not below {second.cell['method']}." in text
    assert f"{second.cell['method']} comes next: {ppl[1]:.1f}" in text
    assert f"{ppl[1] / ppl[0]:.2f} times as high" in text
    assert "has the highest average accuracy" in text
    assert "shown to be above 1 of 2 others" in text
    assert "for all 6 pairs of cells at a ratio" in text
    assert "no loss of accuracy" not in text  # 20 points over 400 documents are a loss
    assert "as if independent" not in text
    assert "as if independent" in sentences(records)


class Made(Samples):
    """Windows that no file holds."""

    def __init__(self, nll: list[np.ndarray]) -> None:
        self.nll = nll

    def of(self, number: int, name: str, figure: str) -> Sample:
        return Sample(pa.array([511] * len(self.nll[number])), self.nll[number])


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
    apart = [samples.of(2, task, "answer_bpb").figures - samples.of(1, task, "answer_bpb").figures for task in TASKS]
    estimate = np.mean([one.mean() for one in apart])
    stderr = math.hypot(*(one.std(ddof=1) / math.sqrt(len(one)) for one in apart)) / 2
    far = found[1, 2]
    assert (far.test, far.estimate) == ("normal", pytest.approx(estimate))
    assert (far.low, far.high) == (pytest.approx(estimate - 1.96 * stderr), pytest.approx(estimate + 1.96 * stderr))
    assert far.p == pytest.approx(2 * 2 * norm.sf(estimate / stderr))
    same = found[0, 1]
    assert (same.estimate, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_the_page_says_whose_right_answers_are_the_likeliest(tmp_path, rng):
    records, samples = with_bits(tmp_path, rng)
    (topic,) = (topic for topic in summarise_groups(records, samples) if topic.title == "Right answers")
    first, unshown, counted = topic.sentences
    assert first.startswith("At ratio 0.3, near has the lowest bits per byte of the right answer: ")
    assert "shown to be below the other one" in first
    assert re.search(r"far comes next: 1\.\d{3} ± 0\.\d{3}, 0\.\d{3} more \[0\.\d{3}, 0\.\d{3}\]", first)
    assert "for near;" in unshown
    assert "by average accuracy 0 of 3, bits per byte of the right answer 2 of 3, perplexity on wiki 0 of 3" in counted


def test_the_guide_has_what_the_page_says_of_twenty_methods():
    """How many pairs each figure tells apart, and how well its order agrees with that by perplexity."""
    merged = run_folder.load_runs([ROOT / "docs/results/smollm2-135m"])
    (topic,) = (topic for topic in summarise_groups(merged.records, merged.samples) if topic.title == "Right answers")
    said, guide = "\n".join(topic.sentences), " ".join(text("docs/guides/reports.md").split())

    def found(pattern: str) -> str:
        *first, last = re.findall(pattern, said)
        return f"{', '.join(first)} and {last}"

    accuracy, bits, perplexity = (
        found(rf"{name} (\d+) of 300") for name in ("average accuracy", "right answer", "perplexity on wiki")
    )
    assert f"accuracy is shown to differ in {accuracy} at 0.1, 0.2 and 0.3" in guide
    assert f"the bits in {bits}, and the perplexity on Wikipedia in {perplexity}." in guide
    taus = found(r"is ([\d.]+) of bits"), found(r"and ([\d.]+) of average")
    assert "is {} for the bits, and {} for the accuracy".format(*taus) in guide
    study = " ".join(text("docs/studies/twenty-methods.md").split())
    assert f"is shown to differ in {perplexity}, the average in {accuracy}." in study
    (topic,) = (topic for topic in summarise_groups(merged.records, merged.samples) if topic.title == "Perplexity")
    said = "\n".join(topic.sentences)
    below = found(r"laco-ls has the lowest perplexity on wiki: .*? shown to be below (\d+) of 19 others")
    assert f"show it to be below {below} of the 19 others at 0.1, 0.2 and 0.3" in study
    for times in re.findall(r"([\d.]+) times as high( \[[\d., ]+\])", said):
        assert any("".join(form) in study for form in (times, (times[0], " times its perplexity", times[1])))


def test_nothing_is_said_of_bits_that_were_not_measured(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    assert "bits per byte" not in sentences(records, folders)


def test_of_equal_models_none_is_shown_to_be_better():
    claims = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base = rng.normal(1800, 150, 16)
        nll = [base + rng.normal(0, 30, 16) for _ in range(8)]
        found = contrasts.contrast_of_perplexities([DENSE] * 8, pairs_of(range(8)), Made(nll), "wiki")
        claims += any(contrast.p < LEVEL for contrast in found.values())
    assert claims <= 5  # at 5 % in 99 of 100 such tests; without adjustment it is half of them


def test_the_best_is_not_one_that_removed_too_little(tmp_path, rng):
    records, folders = a_run(tmp_path, rng)
    good = changed(records[1], "measured", "ratio", to=records[1].measured["ratio"] - 0.02)
    text = sentences([records[0], good, *records[2:]], folders)
    assert "close has the lowest perplexity" in text
    assert "good removed 2.0 % less of the dense model. What removed too little is not called best: good." in text


def at(ratio: float, method: str, ppl: float, accuracy: float = 0.4) -> Record:
    figures = measured(LAYERS * PER_LAYER, (0.95 * ppl, ppl, 1.05 * ppl), [accuracy] * 5, 80.0)
    return ok(method, ratio, figures, budget=LAYERS)


def test_a_cliff_is_a_step_of_ten_and_no_less():
    text = sentences([DENSE, at(0.1, "steep", 200.0), at(0.2, "steep", 2_100.0), at(0.3, "steep", 3_000.0)])
    assert "From 0.1 to 0.2 the perplexity grows at least tenfold: steep (200 to 2,100)." in text
    assert text.count("tenfold") == 1
    assert "From dense to 0.1 the perplexity grows at least tenfold: steep (20.8 to 209)." in sentences(
        [DENSE, at(0.1, "steep", 209.0)]
    )


def test_a_cliff_is_between_ratios_of_one_thing():
    decoder = changed(at(0.1, "steep", 2_500.0), "cell", "ratio_of", to="decoder")
    text = sentences([DENSE, at(0.3, "steep", 200.0), decoder])
    assert "From dense to 0.1 of the decoder the perplexity grows at least tenfold: steep (20.8 to 2,500)." in text
    assert text.count("tenfold") == 1


def test_of_equal_figures_none_is_told_as_the_best():
    text = sentences([DENSE, at(0.3, "a", 30.0, 0.5), at(0.3, "b", 30.0, 0.5), at(0.3, "c", 90.0, 0.4)])
    assert "At ratio 0.3, a and b both have the lowest perplexity on wiki: 30.0 ± 1.5 (dense 20.8 ± 0.9), " in text
    assert "c comes next: 90.0 ± 4.5, 3.00 times as high" in text
    assert "At ratio 0.3, a and b both have the highest average accuracy: 50.0 " in text
    text = sentences([DENSE, *(at(0.3, name, 30.0, 0.5) for name in "abc")])
    assert "a, b and c all have the lowest perplexity on wiki: 30.0 ± 1.5 (dense 20.8 ± 0.9)." in text
    assert re.search(
        r"a, b and c all have the highest average accuracy: 50.0 [^;,]*, \d+ % of the dense model's\.", text
    )
    assert "comes next" not in text
    accurate = [at(0.3, "a", 60.0, 0.5), at(0.3, "b", 30.0, 0.5), at(0.3, "c", 90.0, 0.4)]
    assert "disagree" not in sentences([DENSE, *accurate])  # one of the most accurate has the lowest perplexity


def test_perplexity_and_accuracy_disagree_where_they_do():
    agree = [DENSE, at(0.3, "a", 30.0, 0.5), at(0.3, "b", 60.0, 0.45), at(0.3, "c", 90.0, 0.4)]
    assert "disagree" not in sentences(agree)
    reverse = [DENSE, at(0.3, "a", 30.0, 0.3), at(0.3, "b", 60.0, 0.45), at(0.3, "c", 90.0, 0.5)]
    said = "perplexity and accuracy disagree: c has the highest average and comes 3 of 3 by perplexity (90.0"
    assert said in sentences(reverse)
    assert "between the two orders is -1.00." in sentences(reverse)


def test_random_layers_are_a_bar_for_every_method():
    draws = [drawn(seed, ppl, 0.3) for seed, ppl in enumerate((900.0, 1_000.0, 5_000.0))]
    others = [at(0.1, "better", 50.0), at(0.1, "middle", 2_000.0), at(0.1, "worse", 90_000.0)]
    text = sentences([DENSE, *others, *draws])
    assert "not shown to be better than all 3 draws of drop-random, by perplexity: middle." in text
    assert "shown to be worse than all 3 draws of drop-random: worse." in text
    assert "drop-random" not in sentences([DENSE, *others])


def test_cells_without_figures_are_counted_and_named():
    text = sentences([DENSE, at(0.3, "laco", 90.0), failed("error", "flap", "no"), failed("timed_out", "sleb", "late")])
    assert "2 cells have no figures: flap at 0.3 (error), sleb at 0.3 (timed out)." in text
    assert "there is nothing to compare it with" in text


def test_a_cell_without_figures_is_named_with_its_ratio_and_seed():
    both = [failed("error", "flap", "no", seed=seed) for seed in (0, 1)]
    text = sentences([DENSE, at(0.3, "laco", 90.0), *both, changed(both[0], "cell", "ratio", to=0.5)])
    where = ", ".join(f"flap at {which} (error)" for which in ("0.3 (seed 0)", "0.3 (seed 1)", "0.5 (seed 0)"))
    assert f"3 cells have no figures: {where}." in text


@pytest.mark.parametrize(
    ("misses", "expected"),
    [
        ((-0.02, 0.02), "between 2.0 % less and 2.0 % more"),
        ((-0.02, -0.01), "between 2.0 % less and 1.0 % less"),
        ((0.02, 0.02), "2.0 % more"),
    ],
)
def test_seeds_that_miss_their_budget_on_both_sides_do_not_cancel(misses, expected):
    records = [changed(at(0.3, "laco", 90.0), "cell", "seed", to=seed) for seed in (0, 1)]
    for record, miss in zip(records, misses, strict=True):
        record.measured["ratio"] += miss
    assert f"laco (mean of 2 seeds) removed {expected} of the dense model." in sentences([DENSE, *records])


def test_the_next_one_has_its_interval_in_any_order_of_the_records():
    records = [changed(at(0.3, m, ppl + s), "cell", "seed", to=s) for m, ppl in BEST_TWO.items() for s in (0, 1)]
    expected = re.search("flap .*comes next: .* times as high .*]", sentences([DENSE, *records]))[0]
    for order in ((1, 2, 3, 0), (3, 0, 1, 2), (2, 3, 0, 1)):
        assert expected in sentences([DENSE, *(records[number] for number in order)])


def test_speed_is_claimed_by_its_intervals():
    def fast(method: str, speedup: float, half: float) -> Record:
        record = at(0.3, method, 90.0)
        for point in record.measured["speed"]["points"]:
            point |= {"speedup": speedup, "speedup_low": speedup - half, "speedup_high": speedup + half}
        return record

    text = sentences([DENSE, fast("quick", 1.5, 0.02), fast("near", 1.48, 0.02), fast("slow", 1.0, 0.02)])
    assert "quick is the fastest in decode: 1.50x ± 0.02 the dense model's speed; not apart from it" in text
    assert "by the intervals: near." in text
    assert "not shown to be faster than dense in decode: slow." in text


def test_nothing_is_said_of_nothing():
    assert summarise_groups([], Samples()) == []
    assert "lowest" not in sentences([DENSE])
