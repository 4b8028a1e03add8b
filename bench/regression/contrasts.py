"""Tests the pairs of cells of a table, with p values adjusted for the number of pairs (Holm).

perplexity   Student's test on the windows that both models scored (bench.stats.clusters.paired_perplexity)
average      McNemar's exact test on the documents that both models answered, where every task has as many and each
             answer is right or wrong; else, as for bits per byte of the right answer, a normal test on the paired
             differences, every task weighing alike

Two methods with several calibration seeds are compared seed by seed, at the seeds that both have, of two at least. The
test is then Student's, of the mean difference. It takes in the draw of the calibration beside that of the windows or
documents (bench.stats.draws).

A pair without samples, or with samples of other windows or documents, is tested by the intervals of its two values as
if they were independent. That shows less, since models err on the same documents. Without `intervals` such a pair is
not tested.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from statistics import NormalDist, fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.plan.protocol import name_of_text
from bench.records.comparability import values_of_fields
from bench.records.measured import is_accuracy
from bench.records.record import Record, metric_of_task
from bench.records.samples import Sample, Samples, find_alike
from bench.stats import clusters, draws
from bench.stats import intervals as stats
from bench.stats.intervals import NORMAL_95

LEVEL = 0.05  # of a p value that counts, over all pairs
NORMAL = NormalDist()
TEXT_CONDITIONS = ("sha256", "window", "stride")  # of windows that can be paired


@dataclass(frozen=True)
class Contrast:
    """Holds the test of the difference of two cells: the second beside the first.

    estimate   how many times the perplexity, or the difference of the averages
    p          two-sided, adjusted for all pairs
    test       Student's on windows, McNemar's or a normal one on documents, by the draws of several seeds beside these,
               or by the two intervals
    low, high  the 95 % interval of the estimate, not adjusted; of an average with `bounds` only
    """

    estimate: float
    p: float
    test: Literal["student", "mcnemar", "normal", "draws", "intervals"]
    low: float = math.nan
    high: float = math.nan

    @property
    def paired(self) -> bool:
        """Return whether the test pairs both models on the same windows or documents."""
        return self.test != "intervals"


Pair = tuple[int, int]  # the places of two records
Contrasts = dict[Pair, Contrast]
Records = Sequence[Record] | Mapping[int, Record]
Seeds = Mapping[int, Mapping[int, int]]  # {place that stands for a model of several seeds: {seed: its place}}
Cells = dict[Pair, list[Pair]]  # {pair of models: the pair of their cells for each seed that both have}
SampleByPlace = Mapping[int, Sample]  # of a text, or of a task
Numbers = NDArray[np.float64]


def pairs_of(numbers: Sequence[int]) -> list[Pair]:
    """Return every pair (a, b), a before b in `numbers`."""
    return list(combinations(numbers, 2))


def contrast_of_perplexities(
    records: Records,
    pairs: Sequence[Pair],
    samples: Samples,
    text: str,
    *,
    intervals: bool = True,
    seeds: Seeds | None = None,
) -> Contrasts:
    """Return {pair: contrast} of cells with a finite perplexity of the text; without `intervals` only of those paired.

    seeds  of the places that stand for a model of several seeds
    """
    cells = _cells_of_pairs(pairs, seeds or {})
    scores = {n: records[n].measured.get("perplexity", {}).get(text, {}) for n in _places(cells)}
    finite = {n for n, score in scores.items() if math.isfinite(score.get("perplexity", math.inf))}
    cells = {pair: sides for pair, sides in cells.items() if finite.issuperset(chain(*sides))}
    windows = _read_samples(samples, f"perplexity-{name_of_text(text)}", dict.fromkeys(_places(cells), "nll"))
    conditions = {n: values_of_fields(scores[n], TEXT_CONDITIONS) for n in windows}
    contrasts: dict[Pair, Contrast | None] = {}
    for alike in _split_by_group(cells, find_alike(windows, conditions)):
        first, *_ = _places(alike)
        contrasts |= _test_windows(alike, windows, in_a_row=not scores[first]["drawn"])
    if intervals:
        rest = [pair for pair in cells if pair not in contrasts]
        contrasts |= {pair: _test_independent_perplexities(scores, cells[pair]) for pair in rest}
    return _adjust_p(cells, contrasts)


def contrast_of_averages(
    records: Records,
    pairs: Sequence[Pair],
    samples: Samples,
    tasks: Sequence[str],
    metric: str = "",
    *,
    intervals: bool = True,
    bounds: bool = False,
    seeds: Seeds | None = None,
) -> Contrasts:
    """Return {pair: contrast} of cells that measured every one of the tasks: by `metric`, else by the same accuracy.

    bounds  also low and high of paired tests, two milliseconds for each (bench.stats.intervals.paired_share_interval)
    seeds   of the places that stand for a model of several seeds
    """
    cells = _cells_of_pairs(pairs if tasks else [], seeds or {})
    metrics = {n: _metrics_of_tasks(records[n], tasks, metric) for n in _places(cells)}

    def share_metrics(sides: Sequence[Pair]) -> bool:
        return all(metrics[a] == metrics[b] != [] for a, b in sides)

    cells = {pair: sides for pair, sides in cells.items() if share_metrics(sides)}
    places = _places(cells)
    answers = []
    for at, task in enumerate(tasks):
        answers.append(_read_samples(samples, task, {n: metrics[n][at] for n in places}))
    contrasts: dict[Pair, Contrast | None] = dict(_test_answers(cells, answers, metrics, bounds=bounds))
    if intervals:
        rest = [pair for pair in cells if pair not in contrasts]
        values = {n: values_of_tasks(records[n], tasks, metrics[n]) for n in places}
        contrasts |= {pair: _test_independent_averages(values, cells[pair]) for pair in rest}
    return _adjust_p(cells, contrasts)


# Pairing


def _cells_of_pairs(pairs: Sequence[Pair], seeds: Seeds) -> Cells:
    """Return the pairs of cells of each pair, without pairs of models that have too few seeds in common.

    A single seed is too few where either model has several: its test would stand beside means of others.
    """
    cells = {}
    for a, b in pairs:
        first, second = seeds.get(a, {}), seeds.get(b, {})
        common = [(first[seed], second[seed]) for seed in first if seed in second]
        if not (first and second):
            cells[a, b] = [(a, b)]
        elif len(common) > 1 or len(first) == len(second) == len(common):
            cells[a, b] = common
    return cells


def _places(cells: Cells) -> list[int]:
    """Return the places of all cells, each once."""
    sides = chain.from_iterable(cells.values())
    return list(dict.fromkeys(chain.from_iterable(sides)))


def _read_samples(samples: Samples, name: str, metric_by_place: Mapping[int, str]) -> dict[int, Sample]:
    """Return {place: sample} of a text or a task for the places that have one."""
    every = {place: samples.of(place, name, metric) for place, metric in metric_by_place.items()}
    return {place: sample for place, sample in every.items() if sample is not None}


def _split_by_group(cells: Cells, group_by_place: Mapping[int, Hashable]) -> list[Cells]:
    """Return the pairs whose cells are all of one group, apart for each group and number of seeds."""
    parts: dict[Hashable, Cells] = {}
    for pair, sides in cells.items():
        groups = {group_by_place.get(place) for place in chain(*sides)}
        if len(groups) == 1 and None not in groups:
            parts.setdefault((groups.pop(), len(sides)), {})[pair] = sides
    return list(parts.values())


# Perplexities


def _test_windows(cells: Cells, windows: SampleByPlace, *, in_a_row: bool) -> Contrasts:
    """Test pairs of as many seeds on the same windows."""
    first, *_ = _places(cells)
    tokens = windows[first].units.to_pylist()
    before, after = (_stack(windows, cells, side) for side in (0, 1))  # nats by pair, seed and window
    contrasts: Contrasts = {}
    if before.shape[1] == 1:
        tests = clusters.paired_perplexities(before[:, 0], after[:, 0], tokens, in_a_row=in_a_row)
        for pair, (estimate, low, high, p) in zip(cells, np.transpose(tests).tolist(), strict=True):
            contrasts[pair] = Contrast(estimate, p, "student", low, high)
        return contrasts
    for pair, difference in zip(cells, after - before, strict=True):
        _, stderr, freedom = clusters.ratio_stderr(difference.mean(0), tokens, in_a_row=in_a_row)
        logs = (difference.sum(1) / sum(tokens)).tolist()
        contrasts[pair] = _as_ratio(draws.mean_difference(logs, stderr, freedom), "draws")
    return contrasts


def _stack(windows: SampleByPlace, cells: Cells, side: int) -> Numbers:
    """Return the figures of the first or the second cells, (pairs, seeds, windows)."""
    rows = []
    for sides in cells.values():
        rows.append([windows[cell[side]].figures for cell in sides])
    return np.array(rows)


def _test_independent_perplexities(scores: Mapping[int, Mapping[str, Any]], sides: Sequence[Pair]) -> Contrast | None:
    """Test two perplexities as if independent, on logarithms; None without the intervals of both."""
    stderrs = dict[int, float]()
    for n in chain(*sides):
        stderr_of_log = _stderr_of_log(scores[n])
        if stderr_of_log is None:
            return None
        stderrs[n] = stderr_of_log
    logs = [math.log(scores[b]["perplexity"] / scores[a]["perplexity"]) for a, b in sides]
    stderr = fmean(math.hypot(stderrs[a], stderrs[b]) for a, b in sides)
    if len(logs) > 1:
        return _as_ratio(draws.mean_difference(logs, stderr), "intervals")
    (log,), half = logs, NORMAL_95 * stderr
    return _as_ratio((log, log - half, log + half, _normal_p(log, stderr)), "intervals")


def _stderr_of_log(score: Mapping[str, Any]) -> float | None:
    """Return the standard error of a perplexity's logarithm, half of its interval over 1.96; None without it."""
    low, high = score.get("perplexity_low"), score.get("perplexity_high")
    return None if low is None or high is None else math.log(high / low) / (2 * NORMAL_95)


def _as_ratio(log_ratio: tuple[float, float, float, float], test: Literal["draws", "intervals"]) -> Contrast:
    """Return the contrast of a mean logarithm with its interval and its p."""
    *logs, p = log_ratio
    with np.errstate(over="ignore"):  # an endless interval is one
        estimate, low, high = np.exp(logs).tolist()
    return Contrast(estimate, p, test, low, high)


# Averages over tasks


def _metrics_of_tasks(record: Record, tasks: Sequence[str], metric: str) -> list[str]:
    """Return the metric of each task, without `metric` its accuracy; empty where a task has none."""
    measured = record.measured.get("tasks", {})
    metrics = []
    for task in tasks:
        score = measured.get(task)
        if score is None or not (metric_of_task(score, metric) is not None if metric else is_accuracy(score)):
            return []
        metrics.append(metric or score["main"])
    return metrics


def values_of_tasks(record: Record, tasks: Sequence[str], metrics: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return {value, stderr} of the metric of each task."""
    measured = record.measured["tasks"]
    return [metric_of_task(measured[task], metric) for task, metric in zip(tasks, metrics, strict=True)]


def _test_answers(
    cells: Cells, answers: Sequence[SampleByPlace], metrics: Mapping[int, Any], *, bounds: bool
) -> Contrasts:
    """Test the pairs that answered the same documents of every task, seed by seed."""
    groups: dict[int, tuple[int, ...]] = {n: () for n in _places(cells)}
    for answers_of_task in answers:
        alike = find_alike(answers_of_task, metrics)
        groups = {n: (*group, alike[n]) for n, group in groups.items() if n in alike}
    contrasts: Contrasts = {}
    for alike_cells in _split_by_group({pair: sides for pair, sides in cells.items() if len(sides) == 1}, groups):
        contrasts |= _test_single_answers(alike_cells, answers, bounds=bounds)
    for pair, sides in cells.items():
        if len(sides) > 1 and all(a in groups and groups[a] == groups.get(b) for a, b in sides):
            contrasts[pair] = _test_draws(sides, answers)
    return contrasts


def _test_single_answers(cells: Cells, answers: Sequence[SampleByPlace], *, bounds: bool) -> Contrasts:
    """Test pairs of one cell each on the same documents, exactly where all weigh alike and are right or wrong."""
    row = {place: number for number, place in enumerate(_places(cells))}
    tables = []
    for answers_of_task in answers:
        tables.append(np.stack([answers_of_task[place].figures for place in row]))
    is_plain = np.all([np.isin(table, (0, 1)).all(1) for table in tables], axis=0)
    weigh_alike = len({table.shape[1] for table in tables}) == 1
    rows = {pair: (row[a], row[b]) for pair, [(a, b)] in cells.items()}
    exact = {pair: (a, b) for pair, (a, b) in rows.items() if weigh_alike and is_plain[a] and is_plain[b]}
    rest = {pair: sides for pair, sides in rows.items() if pair not in exact}
    return _test_shares(exact, np.concatenate(tables, axis=1), bounds=bounds) | _test_means(rest, tables)


def _test_shares(rows: Mapping[Pair, Pair], right: Numbers, *, bounds: bool) -> Contrasts:
    """Test pairs of rows of `right`, (cells, documents) of 0 and 1, by McNemar; counts are exact in float64."""
    if not rows:
        return {}
    a, b = np.array(list(rows.values())).T
    both, total, n = right @ right.T, right.sum(1), right.shape[1]
    lost, gained = total[a] - both[a, b], total[b] - both[a, b]
    contrasts: Contrasts = {}
    counts = zip(lost.astype(int).tolist(), gained.astype(int).tolist(), strict=True)
    for pair, p, (minus, plus) in zip(rows, stats.mcnemars(lost, gained).tolist(), counts, strict=True):
        interval = stats.paired_share_interval(minus, plus, n) if bounds else (math.nan, math.nan)
        contrasts[pair] = Contrast((plus - minus) / n, p, "mcnemar", *interval)
    return contrasts


def _test_means(rows: Mapping[Pair, Pair], tables: Sequence[Numbers]) -> Contrasts:
    """Test pairs of rows of tables, (cells, documents) for each task, by a normal test; every task weighs alike."""
    if not rows:
        return {}
    a, b = np.array(list(rows.values())).T
    differences = [table[b] - table[a] for table in tables]
    means = np.mean([difference.mean(1) for difference in differences], axis=0).tolist()
    variances = [difference.var(1, ddof=1) / difference.shape[1] for difference in differences]
    stderrs = (np.sqrt(sum(variances)) / len(variances)).tolist()
    contrasts: Contrasts = {}
    for pair, mean, stderr in zip(rows, means, stderrs, strict=True):
        half = NORMAL_95 * stderr
        contrasts[pair] = Contrast(mean, _normal_p(mean, stderr), "normal", mean - half, mean + half)
    return contrasts


def _test_draws(sides: Sequence[Pair], answers: Sequence[SampleByPlace]) -> Contrast:
    """Test two models of several seeds, with every task weighing alike.

    Documents that are the same at each seed are averaged over the seeds; of others each seed is a sample of its own.
    """
    means, variance = [], 0.0
    for answers_of_task in answers:
        differences = [answers_of_task[b].figures - answers_of_task[a].figures for a, b in sides]
        means.append([difference.mean() for difference in differences])
        units = [answers_of_task[a].units for a, _ in sides]
        same = all(unit.equals(units[0]) for unit in units)
        samples = [np.mean(differences, axis=0)] if same else differences
        variance += sum(sample.var(ddof=1) / len(sample) for sample in samples) / len(samples) ** 2
    values = np.mean(means, axis=0).tolist()
    estimate, low, high, p = draws.mean_difference(values, math.sqrt(variance) / len(answers))
    return Contrast(estimate, p, "draws", low, high)


def _test_independent_averages(
    values: Mapping[int, Sequence[Mapping[str, Any]]], sides: Sequence[Pair]
) -> Contrast | None:
    """Test two averages as if independent, by the standard errors of the values of their tasks; None without these."""
    averages, stderrs = dict[int, float](), dict[int, float]()
    for n in chain(*sides):
        if any(value.get("stderr") is None for value in values[n]):
            return None
        averages[n] = fmean(value["value"] for value in values[n])
        stderrs[n] = stats.average_stderr([value["stderr"] for value in values[n]])
    differences = [averages[b] - averages[a] for a, b in sides]
    stderr = fmean(math.hypot(stderrs[a], stderrs[b]) for a, b in sides)
    if len(sides) > 1:
        estimate, _, _, p = draws.mean_difference(differences, stderr)
        return Contrast(estimate, p, "intervals")
    return Contrast(differences[0], _normal_p(differences[0], stderr), "intervals")


# All tests together


def _normal_p(estimate: float, stderr: float) -> float:
    """Return the p value of no difference by a normal distribution."""
    return 2 * NORMAL.cdf(-abs(estimate) / stderr) if stderr else float(estimate == 0)


def _adjust_p(pairs: Iterable[Pair], contrasts: Mapping[Pair, Contrast | None]) -> Contrasts:
    """Return the contrasts in the order of the pairs, with p values adjusted for their number."""
    tested = {pair: contrasts.get(pair) for pair in pairs}
    computed = {pair: contrast for pair, contrast in tested.items() if contrast is not None}
    adjusted = stats.holm([contrast.p for contrast in computed.values()])
    return {pair: replace(contrast, p=p) for (pair, contrast), p in zip(computed.items(), adjusted, strict=True)}


def is_shown_higher(contrasts: Contrasts, rows: Sequence[int], than: Sequence[int], *, neutral: float) -> bool:
    """Return whether each cell of `rows` is shown to have more than each of `than`; equal cells have `neutral`.

    Several cells are the draws of a random method: the claim is then for every one of them.
    """
    return all(_more(contrasts, a, b, neutral) for a in rows for b in than)


def _more(contrasts: Contrasts, a: int, b: int, neutral: float) -> bool:
    if (b, a) in contrasts:
        return contrasts[b, a].p < LEVEL and contrasts[b, a].estimate > neutral
    return (a, b) in contrasts and contrasts[a, b].p < LEVEL and contrasts[a, b].estimate < neutral
