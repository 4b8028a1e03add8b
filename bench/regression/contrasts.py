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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist, fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.plan.protocol import name_of_text
from bench.records.measured import is_accuracy
from bench.records.record import Record, metric_of_task
from bench.records.samples import Sample, Samples, find_alike
from bench.stats import clusters, draws
from bench.stats import intervals as stats
from bench.stats.intervals import NORMAL_95

LEVEL = 0.05  # of a p value that counts, over all pairs
NORMAL = NormalDist()


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
Cells = Mapping[Pair, Sequence[Pair]]  # {pair of models: the pair of their cells for each seed that both have}
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
    cells = _cells(pairs, seeds or {})
    figures = {n: records[n].measured.get("perplexity", {}).get(text, {}) for n in _places(_flat(cells))}
    known = {n for n, figure in figures.items() if math.isfinite(figure.get("perplexity", math.inf))}
    cells = {pair: sides for pair, sides in cells.items() if all(n in known for side in sides for n in side)}
    windows = {n: samples.of(n, f"perplexity-{name_of_text(text)}", "nll") for n in _places(_flat(cells))}
    conditions = {n: [figures[n].get(name) for name in ("sha256", "window", "stride")] for n in windows}
    contrasts: Contrasts = {}
    for together in _together(cells, find_alike(windows, conditions)):
        place = cells[together[0]][0][0]
        tokens, row = _known(windows, place).units.to_pylist(), not figures[place]["drawn"]
        before, after = (
            np.array([[_known(windows, cell[side]).figures for cell in cells[pair]] for pair in together])
            for side in (0, 1)
        )
        if before.shape[1] == 1:
            tested = zip(*clusters.paired_perplexities(before[:, 0], after[:, 0], tokens, in_a_row=row), strict=True)
            for pair, (estimate, low, high, p) in zip(together, tested, strict=True):
                contrasts[pair] = Contrast(float(estimate), float(p), "student", float(low), float(high))
            continue
        for pair, difference in zip(together, after - before, strict=True):
            _, stderr, freedom = clusters.ratio_stderr(difference.mean(0), tokens, in_a_row=row)
            logs = (difference.sum(1) / sum(tokens)).tolist()
            contrasts[pair] = _as_ratio(draws.mean_difference(logs, stderr, freedom), "draws")
    rest = [pair for pair in cells if intervals and pair not in contrasts]
    return _adjust_p(cells, contrasts | {pair: _from_intervals(figures, cells[pair]) for pair in rest})


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
    contrasts: Contrasts = {}
    cells = _cells(pairs, seeds or {})
    measured = {n: records[n].measured.get("tasks", {}) for n in _places(_flat(cells))}
    whole = {
        n: results for n, results in measured.items() if all(t in results and _has(results[t], metric) for t in tasks)
    }
    mains = {n: [metric or results[task]["main"] for task in tasks] for n, results in whole.items()}
    cells = {
        pair: sides
        for pair, sides in cells.items()
        if tasks and all(a in whole and b in whole and mains[a] == mains[b] for a, b in sides)
    }
    figures = {
        n: [metric_of_task(whole[n][task], main) for task, main in zip(tasks, mains[n], strict=True)] for n in whole
    }
    answers = [
        {n: samples.of(n, task, mains[n][place]) for n in _places(_flat(cells))} for place, task in enumerate(tasks)
    ]
    by_task = [find_alike(given, mains) for given in answers]
    shared = {n: tuple(groups[n] for groups in by_task) for n in _places(_flat(cells)) if all(n in g for g in by_task)}
    alone = {sides[0]: pair for pair, sides in cells.items() if len(sides) == 1}
    for together in _together({side: [side] for side in alone}, shared):
        paired = _paired_averages(together, answers, bounds=bounds)
        contrasts |= {alone[side]: contrast for side, contrast in paired.items()}
    for pair, sides in cells.items():
        if len(sides) > 1 and all(a in shared and shared[a] == shared.get(b) for a, b in sides):
            contrasts[pair] = _over_draws(sides, answers)
    rest = [pair for pair in cells if intervals and pair not in contrasts]
    return _adjust_p(cells, contrasts | {pair: _independent_average(figures, cells[pair]) for pair in rest})


def _has(task: Mapping[str, Any], metric: str) -> bool:
    """Return whether a task was measured by a metric, or without one by an accuracy."""
    return metric_of_task(task, metric) is not None if metric else is_accuracy(task)


def _cells(pairs: Sequence[Pair], seeds: Seeds) -> Cells:
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


def _flat(cells: Cells) -> list[Pair]:
    return [side for sides in cells.values() for side in sides]


def _places(pairs: Sequence[Pair]) -> list[int]:
    return list(dict.fromkeys(place for pair in pairs for place in pair))


def _together(cells: Cells, groups: Mapping[int, Any]) -> Iterator[list[Pair]]:
    """Yield lists of pairs whose cells are all of one group, a list for each group and number of seeds."""
    pairs_by_group: dict[Any, list[Pair]] = {}
    for pair, sides in cells.items():
        kinds = {groups.get(place) for side in sides for place in side}
        if len(kinds) == 1 and None not in kinds:
            pairs_by_group.setdefault((kinds.pop(), len(sides)), []).append(pair)
    yield from pairs_by_group.values()


def _known(samples: Mapping[int, Sample | None], place: int) -> Sample:
    sample = samples[place]
    assert sample is not None
    return sample


def _from_intervals(figures: Mapping[int, Mapping[str, Any]], sides: Sequence[Pair]) -> Contrast | None:
    """Return the contrast of two perplexities as if independent, on logarithms; half an interval is 1.96 stderr."""
    both = [(figures[a], figures[b]) for a, b in sides]
    if any(figure.get(f"perplexity_{end}") is None for pair in both for figure in pair for end in ("low", "high")):
        return None
    logs = [math.log(second["perplexity"] / first["perplexity"]) for first, second in both]
    stderr = fmean(
        math.hypot(
            *(math.log(figure["perplexity_high"] / figure["perplexity_low"]) / (2 * NORMAL_95) for figure in pair)
        )
        for pair in both
    )
    if len(logs) > 1:
        return _as_ratio(draws.mean_difference(logs, stderr), "intervals")
    (log,), half = logs, NORMAL_95 * stderr
    return _as_ratio((log, log - half, log + half, _normal(log, stderr)), "intervals")


def _as_ratio(log_ratio: tuple[float, float, float, float], test: Literal["draws", "intervals"]) -> Contrast:
    """Return the contrast of a mean logarithm with its interval and its p."""
    *logs, p = log_ratio
    with np.errstate(over="ignore"):  # an endless interval is one
        estimate, low, high = np.exp(logs).tolist()
    return Contrast(estimate, p, test, low, high)


TaskSamples = Sequence[Mapping[int, Sample | None]]  # for each task {place: sample}


def _paired_averages(pairs: Sequence[Pair], answers: TaskSamples, *, bounds: bool) -> Contrasts:
    """Test pairs that answered the same documents of every task."""
    sizes = {len(_known(given, pairs[0][0]).figures) for given in answers}
    plain = {n for n in _places(pairs) if all(np.isin(_known(given, n).figures, (0, 1)).all() for given in answers)}
    exact = [(a, b) for a, b in pairs if len(sizes) == 1 and a in plain and b in plain]
    counted = set(exact)
    rest = [pair for pair in pairs if pair not in counted]
    return _by_mcnemar(exact, answers, bounds=bounds) | _by_normal(rest, answers)


def _tables(pairs: Sequence[Pair], answers: TaskSamples) -> tuple[list[Numbers], list[int], list[int]]:
    """Return for each task the answers, a row for each cell, and the rows of each pair's first and second cell."""
    places = _places(pairs)
    row = {place: number for number, place in enumerate(places)}
    tables = [np.stack([_known(given, place).figures for place in places]) for given in answers]
    return tables, [row[a] for a, _ in pairs], [row[b] for _, b in pairs]


def _by_mcnemar(pairs: Sequence[Pair], answers: TaskSamples, *, bounds: bool) -> Contrasts:
    """Test pairs with every document weighing alike; counts of documents are exact in float64."""
    if not pairs:
        return {}
    tables, a, b = _tables(pairs, answers)
    right = np.concatenate(tables, axis=1)
    both, total = right @ right.T, right.sum(1)
    lost, gained = total[a] - both[a, b], total[b] - both[a, b]
    n = right.shape[1]
    sides = list(zip(lost.astype(int).tolist(), gained.astype(int).tolist(), strict=True))
    ends = [stats.paired_share_interval(*side, n) if bounds else (math.nan, math.nan) for side in sides]
    results = zip(pairs, (gained - lost) / n, stats.mcnemars(lost, gained), ends, strict=True)
    return {pair: Contrast(float(estimate), float(p), "mcnemar", *end) for pair, estimate, p, end in results}


def _by_normal(pairs: Sequence[Pair], answers: TaskSamples) -> Contrasts:
    """Test pairs with every task weighing alike."""
    if not pairs:
        return {}
    tables, a, b = _tables(pairs, answers)
    apart = [table[b] - table[a] for table in tables]
    means = np.mean([difference.mean(1) for difference in apart], axis=0).tolist()
    stderrs = (
        np.sqrt(sum(difference.var(1, ddof=1) / difference.shape[1] for difference in apart)) / len(apart)
    ).tolist()
    results = zip(pairs, means, stderrs, strict=True)
    return {
        pair: Contrast(mean, _normal(mean, stderr), "normal", mean - NORMAL_95 * stderr, mean + NORMAL_95 * stderr)
        for pair, mean, stderr in results
    }


def _over_draws(sides: Sequence[Pair], answers: TaskSamples) -> Contrast:
    """Test two models of several seeds, with every task weighing alike.

    Documents that are the same at each seed are averaged over the seeds; of others each seed is a sample of its own.
    """
    differences = [[_known(given, b).figures - _known(given, a).figures for a, b in sides] for given in answers]
    values = np.mean([[difference.mean() for difference in task] for task in differences], axis=0).tolist()
    variance = 0.0
    for task, given in zip(differences, answers, strict=True):
        units = [_known(given, a).units for a, _ in sides]
        same = all(unit.equals(units[0]) for unit in units)
        several = [np.mean(task, axis=0)] if same else task
        variance += sum(difference.var(ddof=1) / len(difference) for difference in several) / len(several) ** 2
    estimate, low, high, p = draws.mean_difference(values, math.sqrt(variance) / len(differences))
    return Contrast(estimate, p, "draws", low, high)


def _independent_average(figures: Mapping[int, Sequence[Mapping[str, Any]]], sides: Sequence[Pair]) -> Contrast | None:
    """Test two averages as if independent, by the standard errors of the figures of their tasks."""
    known = {n: figures[n] for side in sides for n in side}
    if any(figure.get("stderr") is None for several in known.values() for figure in several):
        return None
    averages = {n: fmean(figure["value"] for figure in several) for n, several in known.items()}
    stderrs = {n: stats.average_stderr([figure["stderr"] for figure in several]) for n, several in known.items()}
    differences = [averages[b] - averages[a] for a, b in sides]
    stderr = fmean(math.hypot(stderrs[a], stderrs[b]) for a, b in sides)
    if len(sides) > 1:
        estimate, _, _, p = draws.mean_difference(differences, stderr)
        return Contrast(estimate, p, "intervals")
    return Contrast(differences[0], _normal(differences[0], stderr), "intervals")


def _normal(estimate: float, stderr: float) -> float:
    """Return the p value of no difference by a normal distribution."""
    return 2 * NORMAL.cdf(-abs(estimate) / stderr) if stderr else float(estimate == 0)


def _adjust_p(pairs: Iterable[Pair], contrasts: Mapping[Pair, Contrast | None]) -> Contrasts:
    """Return the contrasts in the order of the pairs, with p values adjusted for their number."""
    known = {pair: contrast for pair in pairs if (contrast := contrasts.get(pair)) is not None}
    adjusted = stats.holm([contrast.p for contrast in known.values()])
    return {pair: replace(contrast, p=p) for (pair, contrast), p in zip(known.items(), adjusted, strict=True)}


def is_shown_higher(contrasts: Contrasts, rows: Sequence[int], than: Sequence[int], *, neutral: float) -> bool:
    """Return whether each cell of `rows` is shown to have more than each of `than`; equal cells have `neutral`.

    Several cells are the draws of a random method: the claim is then for every one of them.
    """
    return all(_more(contrasts, a, b, neutral) for a in rows for b in than)


def _more(contrasts: Contrasts, a: int, b: int, neutral: float) -> bool:
    if (b, a) in contrasts:
        return contrasts[b, a].p < LEVEL and contrasts[b, a].estimate > neutral
    return (a, b) in contrasts and contrasts[a, b].p < LEVEL and contrasts[a, b].estimate < neutral
