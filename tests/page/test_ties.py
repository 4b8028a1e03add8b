"""Groups of ties, the best and the warnings of the page; the tests behind them against scipy and statsmodels."""

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
from scipy.stats import binomtest, norm, ttest_1samp
from statsmodels.stats.multitest import multipletests

from bench.records.record import Record
from bench.records.samples import Sample, Samples
from bench.regression import contrasts
from bench.regression.contrasts import LEVEL, contrast_of_averages
from bench.stats import intervals
from reports import legend
from reports.groups import group_records
from reports.page.explorer import data_of_explorer
from reports.tables.rows import GroupTests
from reports.tables.ties import BETTER, TIED, UNTESTED, WORSE, Ties, letters_of_ties

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


def ties(records: list[Record], column: str = "perplexity_wiki", samples: Any = ()) -> Ties:
    """The rows of the records' only ratio, compared in a column."""
    samples = samples if isinstance(samples, Samples) else Samples(samples)
    ((group,),) = group_records(records, samples)
    return Ties(GroupTests(group, samples, records), column)


def labels(tie: Ties, places: list[int]) -> list[str]:
    return [tie.tests.group.label(place) for place in places]


def beaten(tie: Ties) -> tuple[list[str], int]:
    """The methods with the best value, and how many others the first is shown to be better than."""
    rows = tie.tests.group.rows
    best = [place for place in tie.order if rows[place][tie.column] == rows[tie.order[0]][tie.column]]
    rest = [place for place in tie.order if place not in best]
    return labels(tie, best), [tie.verdict(best[0], place) for place in rest].count(BETTER)


def cells_of_flag(flag: legend.Flag, records: list[Record]) -> str:
    """The cells of a flag in the warnings of the page; empty if it does not occur."""
    notes = list[str]()
    for setup in data_of_explorer(records, Samples())["setups"]:
        notes += [*setup["notes"], *(note for amount in setup["amounts"] for note in amount["notes"])]
    lines = [note for note in notes if note.startswith(f"{flag.head}: ")]
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
    first = min(records[1:3], key=lambda record: record.measured.text_scores["wiki"].perplexity)
    ppl, average = (ties(records, column, folders) for column in ("perplexity_wiki", "average"))
    assert beaten(ppl) == ([first.cell.method], 1)
    assert {label for label in labels(ppl, ppl.best)} == {"good", "close"}
    assert beaten(average)[1] == 1
    dense = average.tests.dense
    assert [average.verdict(dense, place) for place in average.order] == [BETTER] * 3  # 20 points of 400 documents
    assert [average.verdict(place, dense) for place in average.order] == [WORSE] * 3
    letters = {ppl.tests.group.label(place): words for place, words in ppl.letters.items()}
    assert letters == {"good": "a", "close": "a", "bad": "b"}


def test_rows_share_a_letter_exactly_if_they_are_not_apart(rng):
    """Also of relations that no order explains, as those of tests are."""
    for count in (1, 2, 7, 12):
        apart = rng.uniform(size=(count, count)) < 0.5
        words = letters_of_ties(count, lambda a, b, apart=apart: bool(apart[a, b]))
        sets = [spelt(each) for each in words]
        for a, b in combinations(range(count), 2):
            assert bool(sets[a] & sets[b]) is not bool(apart[a, b])
        assert all(sets)
    assert letters_of_ties(6, lambda a, b: b - a > 3) == ["a", "a b", "a-c", "a-c", "b c", "c"]
    assert letters_of_ties(28, lambda a, b: True)[25:] == ["z", "a2", "b2"]


def spelt(words: str) -> set[str]:
    """The letters that words such as 'a c-e' name."""
    names = [f"{letter}{number}" for number in ("", 2, 3, 4) for letter in "abcdefghijklmnopqrstuvwxyz"]
    ends = [word.split("-") for word in words.split()]
    return {name for first, *last in ends for name in names[names.index(first) : names.index((last or [first])[0]) + 1]}


def test_what_has_no_interval_is_not_tested_and_a_guess_is_never_among_the_best():
    records = [DENSE, at(0.3, "a", 30.0, 0.9), at(0.3, "b", 31.0, 0.88), at(0.3, "c", 90.0, 0.36)]
    for column in ("peak_memory_bytes", "weight_bytes", "parameters"):
        tie = ties(records, column)
        assert (tie.is_tested, tie.best, tie.letters) == (False, [], {}), column
        assert (len(tie.order), tie.verdict(1, 2)) == (3, UNTESTED)
    assert labels(ties(records, "average"), ties(records, "average").best) == ["a", "b"]
    guesses = [DENSE, *(at(0.3, name, 30.0, 0.36) for name in "ab"), at(0.3, "c", 30.0, 0.1)]
    tie = ties(guesses, "average")
    assert (tie.verdict(1, 2), labels(tie, tie.best)) == (TIED, ["a", "b"])
    tie = ties(guesses, "average")
    for row in tie.tests.group.rows:
        row["average_chance"] = 0.35
    assert tie.best == []
    tie = ties([DENSE, at(0.3, "a", 30.0, 0.4), at(0.3, "b", 30.0, 0.38), at(0.3, "c", 30.0, 0.1)], "average")
    assert labels(tie, tie.best) == ["a", "b"]
    tie = ties([DENSE, at(0.3, "a", 30.0, 0.4), at(0.3, "b", 30.0, 0.38), at(0.3, "c", 30.0, 0.1)], "average")
    for row in tie.tests.group.rows:
        row["average_chance"] = 0.35
    assert labels(tie, tie.best) == ["a"]  # b is tied, and may guess


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


def test_ties_say_whose_right_answers_are_the_likeliest(tmp_path, rng):
    records, samples = with_bits(tmp_path, rng)
    bits = ties(records, "answer_bpb", samples)
    assert beaten(bits) == (["near"], 1)
    apart = {name: pairs_apart(ties(records, name, samples)) for name in ("average", "answer_bpb", "perplexity_wiki")}
    assert apart == {"average": (0, 3), "answer_bpb": (2, 3), "perplexity_wiki": (0, 3)}


def pairs_apart(tie: Ties) -> tuple[int, int]:
    """How many pairs of models a column tells apart, and of how many."""
    tests = tie.tests.tests(tie.column)
    return sum(contrast.p < LEVEL for contrast in tests.values()), len(tests)


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
    records = [records[0], good, *records[2:]]
    assert beaten(ties(records, samples=folders)) == (["close"], 1)
    assert "good [requested 30.0 %, budget 28.9 %, achieved 26.9 %]" in cells_of_flag(legend.MISSED, records)


def at(ratio: float, method: str, ppl: float, accuracy: float = 0.4) -> Record:
    figures = measured(LAYERS * PER_LAYER, (0.95 * ppl, ppl, 1.05 * ppl), [accuracy] * 5, 80.0)
    return ok(method, ratio, figures, budget=LAYERS)


def test_a_cliff_is_a_step_of_ten_and_no_less():
    steep = [DENSE, at(0.1, "steep", 200.0), at(0.2, "steep", 2_100.0), at(0.3, "steep", 3_000.0)]
    assert cells_of_flag(legend.CLIFF, steep) == "steep [ppl wiki from 0.1 to 0.2: 200 to 2,100]."
    assert (
        cells_of_flag(legend.CLIFF, [DENSE, at(0.1, "steep", 209.0)])
        == "steep [ppl wiki from dense to 0.1: 20.8 to 209]."
    )


def test_of_several_cliffs_of_a_method_the_first_is_named():
    steep = [DENSE, at(0.1, "steep", 2_100.0), at(0.2, "steep", 30_000.0), at(0.2, "late", 2_100.0)]
    cells = cells_of_flag(legend.CLIFF, steep)
    assert "steep [ppl wiki from dense to 0.1: 20.8 to 2,100]" in cells
    assert "30,000" not in cells
    assert "late [" in cells


def test_a_cliff_is_between_ratios_of_one_thing():
    decoder = changed(at(0.1, "steep", 2_500.0), "cell", "ratio_of", to="decoder")
    cells = cells_of_flag(legend.CLIFF, [DENSE, at(0.3, "steep", 200.0), decoder])
    assert cells == "steep [ppl wiki from dense to 0.1 of the decoder: 20.8 to 2,500]."


def test_methods_with_the_best_value_share_the_first_group():
    two = ties([DENSE, at(0.3, "a", 30.0, 0.5), at(0.3, "b", 30.0, 0.5), at(0.3, "c", 90.0, 0.4)])
    assert (labels(two, two.best), list(two.letters.values())) == (["a", "b"], ["a", "a", "b"])
    every = ties([DENSE, *(at(0.3, name, 30.0, 0.5) for name in "abc")])
    assert (every.best, set(every.letters.values())) == ([], {"a"})  # of all alike none is marked


def test_perplexity_and_accuracy_disagree_where_they_do():
    agree = [DENSE, at(0.3, "a", 30.0, 0.5), at(0.3, "b", 60.0, 0.45), at(0.3, "c", 90.0, 0.4)]
    assert not cells_of_flag(legend.ORDERS_DISAGREE, agree)
    reverse = [DENSE, at(0.3, "a", 30.0, 0.3), at(0.3, "b", 60.0, 0.45), at(0.3, "c", 90.0, 0.5)]
    assert cells_of_flag(legend.ORDERS_DISAGREE, reverse) == "c at 0.3 [3 of 3]."
    shared = [DENSE, at(0.3, "a", 60.0, 0.5), at(0.3, "b", 30.0, 0.5), at(0.3, "c", 90.0, 0.4)]
    assert not cells_of_flag(legend.ORDERS_DISAGREE, shared)  # one of the most accurate has the lowest


def test_random_layers_are_a_bar_for_every_method():
    draws = [drawn(seed, ppl, 0.3) for seed, ppl in enumerate((900.0, 1_000.0, 5_000.0))]
    others = [at(0.1, "better", 50.0), at(0.1, "middle", 2_000.0), at(0.1, "worse", 90_000.0)]
    every = [DENSE, *others, *draws]
    assert cells_of_flag(legend.NOT_ABOVE_RANDOM, every) == "middle [at 0.1]."
    assert cells_of_flag(legend.WORSE_THAN_RANDOM, every) == "worse [at 0.1]."
    rest = [DENSE, *others]
    assert not cells_of_flag(legend.NOT_ABOVE_RANDOM, rest) + cells_of_flag(legend.WORSE_THAN_RANDOM, rest)


def test_cells_without_figures_are_named():
    both = [failed("error", "flap", "no", seed=seed) for seed in (0, 1)]
    records = [DENSE, at(0.3, "laco", 90.0), *both]
    assert cells_of_flag(legend.FAILED, records) == "flap [error: no]."
    assert ties(records).best == []  # there is nothing to compare it with
    assert cells_of_flag(legend.FAILED, [failed("error", "flap", "no")]) == "flap [error: no]."


def test_seeds_that_miss_their_budget_on_both_sides_do_not_cancel():
    records = [changed(at(0.3, "laco", 90.0), "cell", "seed", to=seed) for seed in (0, 1)]
    for number, miss in enumerate((-0.02, 0.02)):
        records[number] = with_measured(records[number], ratio=records[number].measured.ratio + miss)
    cells = cells_of_flag(legend.MISSED, [DENSE, *records])
    assert "laco (seed 0) [requested 30.0 %, budget 28.9 %, achieved 26.9 %]" in cells
    assert "laco (seed 1) [requested 30.0 %, budget 28.9 %, achieved 30.9 %]" in cells


def test_the_groups_are_the_same_in_any_order_of_the_records():
    records = [changed(at(0.3, m, ppl + s), "cell", "seed", to=s) for m, ppl in BEST_TWO.items() for s in (0, 1)]

    def letters(records: list[Record]) -> dict[str, str]:
        tie = ties(records)
        return {tie.tests.group.label(place): words for place, words in tie.letters.items()}

    expected = letters([DENSE, *records])
    assert len(expected) == 2
    for order in ((1, 2, 3, 0), (3, 0, 1, 2), (2, 3, 0, 1)):
        assert letters([DENSE, *(records[number] for number in order)]) == expected


def test_speed_is_compared_by_its_intervals():
    def fast(method: str, speedup: float, half: float) -> Record:
        record = at(0.3, method, 90.0)
        ends = {"speedup": speedup, "speedup_low": speedup - half, "speedup_high": speedup + half}
        points = [replace(point, **ends) for point in record.measured.timed_points]
        return with_measured(record, speed=replace(record.measured.speed, points=points))

    tie = ties([DENSE, fast("quick", 1.5, 0.02), fast("near", 1.48, 0.02), fast("slow", 0.9, 0.02)], "decode_speed")
    assert beaten(tie) == (["quick"], 1)
    assert labels(tie, tie.best) == ["quick", "near"]


def test_the_lead_names_the_first_beside_the_dense_model_and_what_is_not_shown_to_be_worse():
    far = [DENSE, at(0.3, "a", 30.0), at(0.3, "b", 60.0), at(0.3, "c", 90.0)]
    assert ties(far).sentences() == [
        "lowest ppl wiki: a 30.0 (dense 20.8, next b 60.0).",
        "shown to be worse: all 2 others.",
    ]
    near = [DENSE, *(at(0.3, f"m{number}", 30.0) for number in range(8)), at(0.3, "far", 90.0)]
    assert ties(near).sentences()[1] == (
        "not shown to be worse: m1, m2, m3, m4, m5, 2 more; shown to be: 1 of 8 others."
    )
    assert ties([at(0.3, "a", 30.0)]).sentences() == ["lowest ppl wiki: a 30.0."]
    assert ties(far, "average").sentences()[0].startswith("highest average (%): a 40.0 (dense ")
    assert ties(far, "peak_memory_bytes").sentences()[1] == "nothing tests whether others are worse."
    assert ties([DENSE, failed("error", "flap", "no")]).sentences() == []
    too_little = changed(far[1], "measured", "ratio", to=far[1].measured.ratio - 0.02)
    (first, _) = ties([DENSE, too_little, *far[2:]]).sentences()
    assert first == "lowest ppl wiki of those that removed enough: b 60.0 (dense 20.8, next c 90.0)."
