"""Pairs of samples: what is paired, both ways round, and the same numbers in a table, compare and the gate."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple

import numpy as np
import pytest
from made_runs import answers, cell
from made_samples import made_answers, made_windows

from bench.cli.main import main
from bench.records.run_folder import load_runs
from bench.records.samples import Pair, Sample, pair, pair_whole
from bench.regression import gate
from bench.regression.gate import Margins
from bench.regression.pairs import compare_means, compare_perplexities, compare_shares
from bench.regression.results import results_of_run
from reports.tables.views import build_view


def mix(sample: Sample, seed: int = 0) -> Sample:
    """Return a sample with its units in another order."""
    return sample.take(np.random.default_rng(seed).permutation(len(sample.units)).tolist())


def two_answers(seed: int, *, plain: bool = True) -> tuple[Sample, Sample]:
    generator = np.random.default_rng(seed)
    values = generator.uniform(size=(2, 60))
    return tuple(made_answers("acc", np.round(side) if plain else side) for side in values)


def two_texts(seed: int) -> tuple[Sample, Sample]:
    generator = np.random.default_rng(seed)
    nll = generator.normal(1500, 100, 16)
    return made_windows(nll, in_a_row=True), made_windows(nll + generator.normal(5, 9, 16), in_a_row=True)


@pytest.mark.parametrize("seed", range(5))
def test_pairing_does_not_depend_on_the_order_of_units(seed):
    first, second = two_answers(seed)
    straight, mixed = pair(first, second), pair(first, mix(second, seed))
    assert mixed.first.units == mixed.second.units == straight.first.units
    assert (mixed.second.values == straight.second.values).all()
    both = pair(mix(first, seed), mix(second, seed + 1))
    assert both.first.units == both.second.units
    assert dict(zip(both.first.units, both.differences, strict=True)) == pytest.approx(
        dict(zip(straight.first.units, straight.differences, strict=True))
    )
    assert compare_shares([[both]]) == compare_shares([[straight]])


@pytest.mark.parametrize("seed", range(5))
def test_no_unit_is_paired_that_a_side_lacks(seed):
    first, second = two_answers(seed)
    generator = np.random.default_rng(seed)
    of_first, of_second = (sorted(generator.permutation(60)[:40].tolist()) for _ in range(2))
    both = pair(first.take(of_first), mix(second.take(of_second)))
    assert set(both.first.units) == {first.units[n] for n in of_first} & {second.units[n] for n in of_second}
    assert pair_whole(first.take(of_first), second.take(of_second)) is None
    assert pair_whole(first.take(of_first), second) is None
    assert pair_whole(first, mix(second)) is not None


def test_a_unit_that_comes_twice_is_paired_as_often_as_both_have_it():
    first = made_answers("acc", np.array([1, 0, 1]), ["a", "b", "a"])
    second = made_answers("acc", np.array([0, 1, 0]), ["a", "a", "c"])
    both = pair(first, second)
    assert both.first.units == both.second.units == ("a", "a")
    assert (both.first.values.tolist(), both.second.values.tolist()) == ([1, 1], [0, 1])


def test_windows_of_another_text_or_place_are_never_paired():
    nll = np.arange(8.0)
    first = made_windows(nll)
    assert len(pair(first, made_windows(nll, text="another")).first.units) == 0
    assert pair_whole(first, made_windows(nll, text="another")) is None
    assert pair_whole(first, made_windows(nll, tokens=510)) is None
    assert pair(first, made_windows(nll[:5])).first.units == first.units[:5]


def turned(both: Pair) -> Pair:
    return Pair(both.second, both.first)


@pytest.mark.parametrize("seed", range(5))
def test_turning_a_pair_round_turns_the_sign_and_keeps_p(seed):
    rough = [pair(*two_answers(seed + more, plain=False)) for more in (0, 10)]
    plain = [pair(*two_answers(seed + more)) for more in (0, 10)]
    for compare, tasks in ((compare_means, rough), (compare_shares, plain)):
        (there,), (back,) = compare([tasks]), compare([[turned(both) for both in tasks]])
        assert (back.estimate, back.low, back.high, back.p) == pytest.approx(
            (-there.estimate, -there.high, -there.low, there.p), abs=1e-12
        )
    assert (back.lost, back.gained) == (there.gained, there.lost)
    text = pair(*two_texts(seed))
    (there,), (back,) = compare_perplexities([text]), compare_perplexities([turned(text)])
    assert (back.estimate, back.low, back.high, back.p) == pytest.approx(
        (1 / there.estimate, 1 / there.high, 1 / there.low, there.p), rel=1e-12
    )


def test_pairs_of_other_sizes_are_compared_together_as_alone():
    texts = [pair(*two_texts(seed)) for seed in range(4)]
    texts[1:1] = [pair(texts[0].first.take(range(9)), texts[2].second.take(range(9)))]
    for together, text in zip(compare_perplexities(texts), texts, strict=True):
        (alone,) = compare_perplexities([text])
        assert astuple(together)[:5] == pytest.approx(astuple(alone)[:5], rel=1e-12)
    tasks = [[pair(*two_answers(seed, plain=False))] for seed in range(4)]
    tasks[1:1] = [[pair(tasks[0][0].first, tasks[2][0].second.take(range(30)))]]
    assert compare_means(tasks) == [compare_means([of_task])[0] for of_task in tasks]


def test_a_table_compare_and_the_gate_have_the_same_numbers(tmp_path, capsys):
    right, nll = answers(1, 400), np.random.default_rng(1).normal(1500, 120, 20).round(2)
    worse = np.where(np.random.default_rng(2).uniform(size=400) < 0.1, 1 - right, right)
    apart = np.random.default_rng(3).normal(6, 9, 20).round(2)
    for run, names in (("a", ("sleb",)), ("b", ("sleb+ghost",)), ("both", ("sleb", "sleb+ghost"))):
        for name in names:
            task, nats = (right, nll) if name == "sleb" else (worse, nll + apart)
            cell(tmp_path / run, name, 0.3, tasks={"piqa": task}, texts={"wiki": nats}, metric="acc")
    merged = load_runs([tmp_path / "both"])
    tables = {table.name: table for table in build_view("grid", merged.records, samples=merged.samples)}
    judged = gate.judge(
        results_of_run(tmp_path / "a"), results_of_run(tmp_path / "b"), Margins(), {"sleb+ghost": "sleb"}
    )
    contrast_by_metric = {verdict.metric: verdict.row.contrast for verdict in judged if verdict.row}
    assert main(["compare", f"{tmp_path}/a/sleb", f"{tmp_path}/b/sleb+ghost", "--format", "csv"]) == 0
    lines = {line["metric"]: line for line in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    for column, compared, gated in (
        ("average", "piqa acc", "accuracy"),
        ("perplexity_wiki", "perplexity wiki", "perplexity wiki"),
    ):
        ((shown,),) = (row.cells for row in tables[f"grid-gain-{column}-0.3"].rows)
        contrast = contrast_by_metric[gated]
        expected = pytest.approx((contrast.estimate, contrast.low, contrast.high), rel=1e-12)
        assert contrast.estimate not in (0, 1)
        assert (shown.value, shown.low, shown.high) == expected
        assert tuple(float(lines[compared][name]) for name in ("difference", "low", "high")) == expected
        assert float(lines[compared]["p"]) == pytest.approx(contrast.p, rel=1e-9)
        assert ("differs" in shown.marks) == (contrast.p < 0.05)
