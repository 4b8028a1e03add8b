"""Tests the pairs of cells of a table, with p values adjusted for the number of pairs (Holm).

perplexity   Student's test on the windows that both models scored
average      McNemar's exact test on the documents that both models answered, where every task has as many and each
             answer is right or wrong; else, as for bits per byte of the right answer, a normal test on the paired
             differences, every task weighing alike

A pair is tested so (bench.regression.pairs) only if both cells have all windows or documents of the other.

Two methods with several calibration seeds are compared seed by seed, at the seeds that both have, of two at least. The
test is then Student's, of the mean difference. It takes in the draw of the calibration beside that of the windows or
documents (bench.stats.draws).

A pair without samples, or with samples of other windows or documents, is tested by the intervals of its two values as
if they were independent. That shows less, since models err on the same documents. Without `intervals` such a pair is
not tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean

import numpy as np

from bench.plan.protocol import name_of_samples
from bench.records.measured import RangeScore, TaskMetric, TextScore
from bench.records.record import Record
from bench.records.samples import AnySample, Pair, Sample, Samples, pair_whole
from bench.regression.pairs import (
    Windows,
    compare_means,
    compare_perplexities,
    compare_shares,
    to_windows,
)
from bench.stats import clusters, draws
from bench.stats import intervals as stats
from bench.stats.intervals import NORMAL_95, Contrast

LEVEL = 0.05  # of a p value that counts, over all pairs

Places = tuple[int, int]  # of two records
Contrasts = dict[Places, Contrast]
Records = Sequence[Record] | Mapping[int, Record]
Seeds = Mapping[int, Mapping[int, int]]  # {place that stands for a model of several seeds: {seed: its place}}
Cells = dict[Places, list[Places]]  # {two models: their two cells for each seed that both have}


def contrast_of_perplexities(
    records: Records,
    pairs: Sequence[Places],
    samples: Samples,
    text: str,
    *,
    intervals: bool = True,
    seeds: Seeds | None = None,
    base: str = "",
) -> Contrasts:
    """Return {pair: contrast} of cells with a finite perplexity of the text; without `intervals` only of those paired.

    text   a text, or a range of positions of one
    seeds  of the places that stand for a model of several seeds
    base   a range of the same windows: the contrast is then that of the text over that of the base
    """
    cells = _cells_of_pairs(pairs, seeds or {})
    every = {n: records[n].measured.scores_of_windows.get(text) for n in _places(cells)}
    scores = {n: score for n, score in every.items() if score is not None}
    finite = {n for n, score in scores.items() if math.isfinite(score.perplexity)}
    cells = {places: sides for places, sides in cells.items() if finite.issuperset(chain(*sides))}
    nats = _read_samples(samples, name_of_samples(text), dict.fromkeys(_places(cells), "nll"))
    windows = {n: to_windows(sample, scores[n]) for n, sample in nats.items()}
    if base:
        bases = _read_samples(samples, name_of_samples(base), dict.fromkeys(windows, "nll"))
        windows = {n: windows[n].relative_to(sample) for n, sample in bases.items()}
    paired = _pair_cells(cells, [windows])
    single = {places: by_seed[0] for places, (by_seed,) in paired.items() if len(by_seed) == 1}
    contrasts: dict[Places, Contrast | None] = dict(zip(single, compare_perplexities([*single.values()]), strict=True))
    for places, (by_seed,) in paired.items():
        if len(by_seed) > 1 and all(pair_whole(by_seed[0].first, both.first) for both in by_seed):
            contrasts[places] = _compare_perplexities_of_seeds(by_seed)
    if intervals:
        rest = [places for places in cells if places not in contrasts]
        contrasts |= {places: _compare_independent_perplexities(scores, cells[places]) for places in rest}
    return _adjust_p(cells, contrasts)


def contrast_of_averages(
    records: Records,
    pairs: Sequence[Places],
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

    def share_metrics(sides: Sequence[Places]) -> bool:
        return all(metrics[a] == metrics[b] != [] for a, b in sides)

    cells = {places: sides for places, sides in cells.items() if share_metrics(sides)}
    every_place = _places(cells)
    answers = []
    for at, task in enumerate(tasks):
        answers.append(_read_samples(samples, task, {n: metrics[n][at] for n in every_place}))
    contrasts: dict[Places, Contrast | None] = dict(_compare_answers(_pair_cells(cells, answers), bounds=bounds))
    if intervals:
        rest = [places for places in cells if places not in contrasts]
        values = {n: values_of_tasks(records[n], tasks, metrics[n]) for n in every_place}
        contrasts |= {places: _compare_independent_averages(values, cells[places]) for places in rest}
    return _adjust_p(cells, contrasts)


# Pairing


def _cells_of_pairs(pairs: Sequence[Places], seeds: Seeds) -> Cells:
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


def _pair_cells(
    cells: Cells, samples_by_task: Sequence[Mapping[int, AnySample]]
) -> dict[Places, list[list[Pair[AnySample]]]]:
    """Return {two models: for each task a pair of samples for each seed} of the models whose samples all pair whole."""
    paired = {}
    for places, sides in cells.items():
        by_task = []
        for samples in samples_by_task:
            by_seed = [pair_whole(samples.get(a), samples.get(b)) for a, b in sides]
            by_task.append([both for both in by_seed if both is not None])
        if all(len(by_seed) == len(sides) for by_seed in by_task):
            paired[places] = by_task
    return paired


# Perplexities


def _compare_perplexities_of_seeds(pairs: Sequence[Pair[Windows]]) -> Contrast:
    """Return the contrast of two models of several seeds, on windows that are the same at each seed."""
    differences = np.array([both.differences for both in pairs])
    windows = pairs[0].first
    _, stderr, freedom = clusters.ratio_stderr(differences.mean(0), windows.tokens, in_a_row=windows.in_a_row)
    logs = (differences.sum(1) / sum(windows.tokens)).tolist()
    return _to_ratio(draws.mean_difference(logs, stderr, freedom), "draws")


def _compare_independent_perplexities(
    scores: Mapping[int, TextScore | RangeScore], sides: Sequence[Places]
) -> Contrast | None:
    """Test two perplexities as if independent, on logarithms; None without the intervals of both."""
    logs = [math.log(scores[b].perplexity / scores[a].perplexity) for a, b in sides]
    ends = _compare_independent(logs, {n: _stderr_of_log(scores[n]) for n in chain(*sides)}, sides)
    return ends and _to_ratio(ends, "intervals")


def _compare_independent(
    differences: Sequence[float], stderrs: Mapping[int, float | None], sides: Sequence[Places]
) -> tuple[float, float, float, float] | None:
    """Return (estimate, low, high, p) of two models by their own errors at each seed; None where one is missing."""
    errors = {n: stderr for n, stderr in stderrs.items() if stderr is not None}
    if len(errors) < len(stderrs):
        return None
    stderr = fmean(math.hypot(errors[a], errors[b]) for a, b in sides)
    if len(differences) > 1:
        return draws.mean_difference(differences, stderr)
    (difference,), half = differences, NORMAL_95 * stderr
    return difference, difference - half, difference + half, stats.normal_p(difference, stderr)


def _stderr_of_log(score: TextScore | RangeScore) -> float | None:
    """Return the standard error of a perplexity's logarithm, half of its interval over 1.96; None without it."""
    low, high = score.perplexity_low, score.perplexity_high
    return None if low is None or high is None else math.log(high / low) / (2 * NORMAL_95)


def _to_ratio(log_ratio: tuple[float, float, float, float], test: str) -> Contrast:
    """Return the contrast of a mean logarithm with its interval and its p."""
    *logs, p = log_ratio
    with np.errstate(over="ignore"):  # an endless interval is one
        estimate, low, high = np.exp(logs).tolist()
    return Contrast(estimate, low, high, p, test=test)


# Averages over tasks


def _metrics_of_tasks(record: Record, tasks: Sequence[str], metric: str) -> list[str]:
    """Return the metric of each task, without `metric` its accuracy; empty where a task has none."""
    measured = record.measured.task_scores
    metrics = []
    for task in tasks:
        score = measured.get(task)
        if score is None or not (metric in score.every_metric() if metric else score.is_accuracy):
            return []
        metrics.append(metric or score.main)
    return metrics


def values_of_tasks(record: Record, tasks: Sequence[str], metrics: Sequence[str]) -> list[TaskMetric]:
    """Return the metric of each task. Raises KeyError for a task without it."""
    measured = record.measured.task_scores
    return [measured[task].every_metric()[metric] for task, metric in zip(tasks, metrics, strict=True)]


def _compare_answers(paired: Mapping[Places, Sequence[Sequence[Pair[Sample]]]], *, bounds: bool) -> Contrasts:
    """Return the contrasts of models whose answers pair, for each task at each seed.

    Of one seed each they are exact where all documents weigh alike and are right or wrong.
    """
    exact, rest = dict[Places, list[Pair[Sample]]](), dict[Places, list[Pair[Sample]]]()
    contrasts = Contrasts()
    for places, by_task in paired.items():
        if len(by_task[0]) > 1:
            contrasts[places] = _compare_answers_of_seeds(by_task)
            continue
        tasks = [both for (both,) in by_task]
        weigh_alike = len({len(both.first.units) for both in tasks}) == 1
        is_exact = weigh_alike and all(sample.is_right_or_wrong for sample in chain(*tasks))
        (exact if is_exact else rest)[places] = tasks
    contrasts |= zip(exact, compare_shares([*exact.values()], bounds=bounds), strict=True)
    return contrasts | dict(zip(rest, compare_means([*rest.values()]), strict=True))


def _compare_answers_of_seeds(pairs_by_task: Sequence[Sequence[Pair[Sample]]]) -> Contrast:
    """Return the contrast of two models of several seeds, with every task weighing alike.

    Documents that are the same at each seed are averaged over the seeds; of others each seed is a sample of its own.
    """
    means, variance = [], 0.0
    for pairs in pairs_by_task:
        means.append([both.differences.mean() for both in pairs])
        by_seed = [Sample(both.first.documents, both.differences) for both in pairs]
        aligned = [pair_whole(by_seed[0], sample) for sample in by_seed]
        alike = [both.second.values for both in aligned if both is not None]
        same = len(alike) == len(by_seed)
        differences = [np.mean(alike, axis=0)] if same else [sample.values for sample in by_seed]
        variance += sum(values.var(ddof=1) / len(values) for values in differences) / len(differences) ** 2
    values = np.mean(means, axis=0).tolist()
    estimate, low, high, p = draws.mean_difference(values, math.sqrt(variance) / len(pairs_by_task))
    return Contrast(estimate, low, high, p, test="draws")


def _compare_independent_averages(
    values: Mapping[int, Sequence[TaskMetric]], sides: Sequence[Places]
) -> Contrast | None:
    """Test two averages as if independent, by the standard errors of the values of their tasks; None without these."""
    averages, stderrs = dict[int, float](), dict[int, float | None]()
    for n in chain(*sides):
        averages[n] = fmean(value.value for value in values[n])
        errors = [value.stderr for value in values[n] if value.stderr is not None]
        stderrs[n] = stats.average_stderr(errors) if len(errors) == len(values[n]) else None
    ends = _compare_independent([averages[b] - averages[a] for a, b in sides], stderrs, sides)
    return ends and Contrast(ends[0], math.nan, math.nan, ends[3], test="intervals")


# All tests together


def _adjust_p(pairs: Iterable[Places], contrasts: Mapping[Places, Contrast | None]) -> Contrasts:
    """Return the contrasts in the order of the pairs, with p values adjusted for their number."""
    tested = {places: contrasts.get(places) for places in pairs}
    computed = {places: contrast for places, contrast in tested.items() if contrast is not None}
    adjusted = stats.holm([contrast.p for contrast in computed.values()])
    return {places: replace(contrast, p=p) for (places, contrast), p in zip(computed.items(), adjusted, strict=True)}
