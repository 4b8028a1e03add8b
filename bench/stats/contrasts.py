"""Tests whether cells differ, pair by pair, and adjusts the p values for the number of pairs (Holm).

perplexity   Student's test on the windows that both models scored (bench.stats.intervals.paired_perplexity)
average      McNemar's exact test on the documents that both models answered, where every task has as many and each
             answer is right or wrong; else a normal test on the paired differences, every task weighing alike

A pair without samples, or with samples of other windows or documents, is tested by the intervals of its two figures as
if they were independent, which finds less, since models err on the same documents; or, where that is not wanted, not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.records.record import Record, is_accuracy
from bench.records.samples import Sample, Samples, alike
from bench.stats import intervals as stats
from bench.stats.intervals import NORMAL_95

LEVEL = 0.05  # of a p value that counts, over all pairs
NORMAL = NormalDist()


@dataclass(frozen=True)
class Contrast:
    """Hold how the second cell of a pair stands beside the first one.

    estimate   how many times the perplexity, or the difference of the averages
    p          two-sided, adjusted for all pairs
    test       Student's on windows, McNemar's or a normal one on documents, or by the two intervals
    low, high  the 95 % interval of the estimate, not adjusted; of an average where it is asked for
    """

    estimate: float
    p: float
    test: Literal["student", "mcnemar", "normal", "intervals"]
    low: float = math.nan
    high: float = math.nan

    @property
    def paired(self) -> bool:
        """Say whether the test is by what both models did with the same windows or documents."""
        return self.test != "intervals"


Pair = tuple[int, int]  # the places of two records
Contrasts = dict[Pair, Contrast]
Records = Sequence[Record] | Mapping[int, Record]
Numbers = NDArray[np.float64]


def all_pairs(numbers: Sequence[int]) -> list[Pair]:
    """Return every pair (a, b), a before b in `numbers`."""
    return list(combinations(numbers, 2))


def perplexity(
    records: Records, pairs: Sequence[Pair], samples: Samples, text: str, *, intervals: bool = True
) -> Contrasts:
    """Test the pairs of cells with a finite perplexity of the text; without `intervals` only those that are paired."""
    figures = {n: records[n].measured.get("perplexity", {}).get(text, {}) for n in _places(pairs)}
    pairs = [pair for pair in pairs if all(math.isfinite(figures[n].get("perplexity", math.inf)) for n in pair)]
    windows = {n: samples.of(n, f"perplexity-{Path(text).stem}", "nll") for n in _places(pairs)}
    asked = {n: [figures[n].get(name) for name in ("sha256", "window", "stride")] for n in windows}
    found: Contrasts = {}
    for together in _together(pairs, alike(windows, asked)):
        tokens = _known(windows, together[0][0]).units.to_pylist()
        before, after = (np.stack([_known(windows, pair[side]).figures for pair in together]) for side in (0, 1))
        tested = zip(*stats.paired_perplexities(before, after, tokens), strict=True)
        for pair, (estimate, low, high, p) in zip(together, tested, strict=True):
            found[pair] = Contrast(float(estimate), float(p), "student", float(low), float(high))
    rest = [(a, b) for a, b in pairs if intervals and (a, b) not in found]
    return _adjusted(pairs, found | {(a, b): _from_intervals(figures[a], figures[b]) for a, b in rest})


def average(
    records: Records,
    pairs: Sequence[Pair],
    samples: Samples,
    tasks: Sequence[str],
    *,
    intervals: bool = True,
    bounds: bool = False,
) -> Contrasts:
    """Test the pairs of cells that measured an accuracy of every one of the tasks, each by the same metric.

    bounds  also low and high of what is paired, two milliseconds for each (bench.stats.intervals.paired_share_interval)
    """
    found: Contrasts = {}
    measured = {n: records[n].measured.get("tasks", {}) for n in _places(pairs)}
    whole = {n: one for n, one in measured.items() if all(t in one and is_accuracy(one[t]) for t in tasks)}
    mains = {n: [one[task]["main"] for task in tasks] for n, one in whole.items()}
    pairs = [(a, b) for a, b in pairs if tasks and a in whole and b in whole and mains[a] == mains[b]]
    answers = [{n: samples.of(n, task, mains[n][place]) for n in _places(pairs)} for place, task in enumerate(tasks)]
    by_task = [alike(given, mains) for given in answers]
    shared = {n: tuple(groups[n] for groups in by_task) for n in _places(pairs) if all(n in g for g in by_task)}
    for together in _together(pairs, shared):
        found |= _paired_averages(together, answers, bounds=bounds)
    rest = [(a, b) for a, b in pairs if intervals and (a, b) not in found]
    return _adjusted(pairs, found | {(a, b): _independent_average(whole[a], whole[b], tasks) for a, b in rest})


def _places(pairs: Sequence[Pair]) -> list[int]:
    return list(dict.fromkeys(place for pair in pairs for place in pair))


def _together(pairs: Sequence[Pair], groups: Mapping[int, Any]) -> Iterator[list[Pair]]:
    """Give the pairs whose two places are of one group, group by group."""
    found: dict[Any, list[Pair]] = {}
    for a, b in pairs:
        if a in groups and b in groups and groups[a] == groups[b]:
            found.setdefault(groups[a], []).append((a, b))
    yield from found.values()


def _known(samples: Mapping[int, Sample | None], place: int) -> Sample:
    sample = samples[place]
    assert sample is not None
    return sample


def _from_intervals(one: Mapping[str, Any], other: Mapping[str, Any]) -> Contrast | None:
    """Test two perplexities as if independent, on logarithms, half a 95 % interval being 1.96 standard errors."""
    if any(figures.get(name) is None for figures in (one, other) for name in ("perplexity_low", "perplexity_high")):
        return None
    stderrs = [math.log(f["perplexity_high"] / f["perplexity_low"]) / (2 * NORMAL_95) for f in (one, other)]
    log, stderr = math.log(other["perplexity"] / one["perplexity"]), math.hypot(*stderrs)
    ends = (math.exp(log - NORMAL_95 * stderr), math.exp(log + NORMAL_95 * stderr))
    return Contrast(math.exp(log), _normal(log, stderr), "intervals", *ends)


TaskSamples = Sequence[Mapping[int, Sample | None]]  # of each task, by place


def _paired_averages(pairs: Sequence[Pair], answers: TaskSamples, *, bounds: bool) -> Contrasts:
    """Test pairs that answered the same documents of every task."""
    sizes = {len(_known(given, pairs[0][0]).figures) for given in answers}
    plain = {n for n in _places(pairs) if all(np.isin(_known(given, n).figures, (0, 1)).all() for given in answers)}
    exact = [(a, b) for a, b in pairs if len(sizes) == 1 and a in plain and b in plain]
    return _by_mcnemar(exact, answers, bounds=bounds) | _by_normal(
        [pair for pair in pairs if pair not in set(exact)], answers
    )


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
    ends = [stats.paired_share_interval(*one, n) if bounds else (math.nan, math.nan) for one in sides]
    found = zip(pairs, (gained - lost) / n, stats.mcnemars(lost, gained), ends, strict=True)
    return {pair: Contrast(float(estimate), float(p), "mcnemar", *end) for pair, estimate, p, end in found}


def _by_normal(pairs: Sequence[Pair], answers: TaskSamples) -> Contrasts:
    """Test pairs with every task weighing alike."""
    if not pairs:
        return {}
    tables, a, b = _tables(pairs, answers)
    apart = [table[b] - table[a] for table in tables]
    means = np.mean([one.mean(1) for one in apart], axis=0).tolist()
    stderrs = (np.sqrt(sum(one.var(1, ddof=1) / one.shape[1] for one in apart)) / len(apart)).tolist()
    found = zip(pairs, means, stderrs, strict=True)
    return {
        pair: Contrast(mean, _normal(mean, stderr), "normal", mean - NORMAL_95 * stderr, mean + NORMAL_95 * stderr)
        for pair, mean, stderr in found
    }


def _independent_average(one: Mapping[str, Any], other: Mapping[str, Any], tasks: Sequence[str]) -> Contrast | None:
    mains = [[measured[task][measured[task]["main"]] for task in tasks] for measured in (one, other)]
    if any(main.get("stderr") is None for side in mains for main in side):
        return None
    averages = [fmean(main["value"] for main in side) for side in mains]
    stderrs = [stats.average_stderr([main["stderr"] for main in side]) for side in mains]
    difference = averages[1] - averages[0]
    return Contrast(difference, _normal(difference, math.hypot(*stderrs)), "intervals")


def _normal(estimate: float, stderr: float) -> float:
    """Return the p value of no difference by a normal distribution."""
    return 2 * NORMAL.cdf(-abs(estimate) / stderr) if stderr else float(estimate == 0)


def _adjusted(pairs: Sequence[Pair], found: Mapping[Pair, Contrast | None]) -> Contrasts:
    """Return what was tested, in the order of the pairs, with the p values adjusted for their number."""
    known = {pair: contrast for pair in pairs if (contrast := found.get(pair)) is not None}
    adjusted = stats.holm([contrast.p for contrast in known.values()])
    return {pair: replace(contrast, p=p) for (pair, contrast), p in zip(known.items(), adjusted, strict=True)}


def shown_more(contrasts: Contrasts, some: Sequence[int], than: Sequence[int], *, neutral: float) -> bool:
    """Say whether each cell of `some` is shown to have more than each of `than`; equal cells have `neutral`.

    Several cells are the draws of a random method: the claim is then for every one of them.
    """
    return all(_more(contrasts, a, b, neutral) for a in some for b in than)


def _more(contrasts: Contrasts, a: int, b: int, neutral: float) -> bool:
    if (b, a) in contrasts:
        return contrasts[b, a].p < LEVEL and contrasts[b, a].estimate > neutral
    return (a, b) in contrasts and contrasts[a, b].p < LEVEL and contrasts[a, b].estimate < neutral
