"""Whether cells of one ratio differ: every pair is tested, and the p values are adjusted for the number of pairs.

perplexity   Student's test on the windows that both models scored (bench.stats.paired_perplexity)
average      McNemar's exact test on the documents that both models answered, where every task has as many and each
             answer is right or wrong; else a normal test on the paired differences, every task weighing alike

A pair without samples, or with samples of other windows or documents, is tested by the intervals of its two figures as
if they were independent; that finds less, since models err on the same documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench import stats
from bench.record import Record
from reports.frame import is_accuracy

LEVEL = 0.05  # of a p value that counts, over all pairs of a ratio
NORMAL = NormalDist()
UNITS = ("doc_hash", "doc_id", "tokens")  # the column that tells documents or windows apart, the surest first


@dataclass(frozen=True)
class Contrast:
    """The second cell of a pair beside the first one.

    estimate   how many times the perplexity, or the difference of the averages
    p          two-sided, adjusted for all pairs
    paired     whether it is by what both models did with the same windows or documents
    low, high  of a perplexity: the 95 % interval of the estimate, not adjusted
    """

    estimate: float
    p: float
    paired: bool
    low: float = math.nan
    high: float = math.nan


Contrasts = dict[tuple[int, int], Contrast]
Compare = Callable[[int, int], Contrast | None]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A figure for each document or window; units: the documents' hashes or numbers, or the windows' tokens."""

    units: tuple[Any, ...]
    figures: Numbers


class Samples:
    """The samples of some records, each file read once. A folder that is None, or lacks a file, has none."""

    def __init__(self, folders: Sequence[Path | None]) -> None:
        self._folders = folders
        self._tables: dict[tuple[int, str], pd.DataFrame | None] = {}
        self._columns: dict[tuple[int, str, str], Sample | None] = {}

    def of(self, number: int, name: str) -> pd.DataFrame | None:
        """The documents of a task, or the windows of a text by "perplexity-TEXT", of the record at this place."""
        if (number, name) not in self._tables:
            folder = self._folders[number] if number < len(self._folders) else None
            path = folder / f"{name}.parquet" if folder else None
            self._tables[number, name] = pd.read_parquet(path) if path and path.is_file() else None
        return self._tables[number, name]

    def column(self, number: int, name: str, figure: str) -> Sample | None:
        """One figure of each document or window; None where there are not two, or no telling which they are."""
        key = (number, name, figure)
        if key not in self._columns:
            table = self.of(number, name)
            self._columns[key] = None if table is None else _sample(table, figure)
        return self._columns[key]


def _sample(table: pd.DataFrame, figure: str) -> Sample | None:
    unit = next((name for name in UNITS if name in table), None)
    if unit is None or figure not in table or len(table) < 2:
        return None
    return Sample(tuple(table[unit].tolist()), table[figure].to_numpy(float))


def perplexity(records: Sequence[Record], numbers: Sequence[int], samples: Samples, text: str) -> Contrasts:
    """Every pair (a, b), a before b in `numbers`, of the cells with a finite perplexity of the text."""

    def figures(number: int) -> dict[str, Any]:
        return dict(records[number].measured.get("perplexity", {}).get(text, {}))

    def compare(a: int, b: int) -> Contrast | None:
        one, other = figures(a), figures(b)
        first, second = (samples.column(number, f"perplexity-{Path(text).stem}", "nll") for number in (a, b))
        same = all(one.get(name) == other.get(name) for name in ("sha256", "window", "stride"))
        if same and first and second and first.units == second.units:
            found = stats.paired_perplexity(first.figures, second.figures, first.units)
            return Contrast(found.estimate, found.p, True, found.low, found.high)
        return _from_intervals(one, other)

    return _all_pairs([n for n in numbers if math.isfinite(figures(n).get("perplexity", math.inf))], compare)


def _from_intervals(one: dict[str, Any], other: dict[str, Any]) -> Contrast | None:
    """Two perplexities as if independent, on logarithms; half a 95 % interval is taken for 1.96 standard errors."""
    if any(figures.get(name) is None for figures in (one, other) for name in ("perplexity_low", "perplexity_high")):
        return None
    stderrs = [math.log(f["perplexity_high"] / f["perplexity_low"]) / (2 * 1.96) for f in (one, other)]
    log, stderr = math.log(other["perplexity"] / one["perplexity"]), math.hypot(*stderrs)
    p = _normal(log, stderr, paired=False).p
    return Contrast(math.exp(log), p, False, math.exp(log - 1.96 * stderr), math.exp(log + 1.96 * stderr))


def average(records: Sequence[Record], numbers: Sequence[int], samples: Samples, tasks: Sequence[str]) -> Contrasts:
    """Every pair (a, b), a before b in `numbers`, of the cells that measured an accuracy of every one of the tasks."""

    def compare(a: int, b: int) -> Contrast | None:
        one, other = (records[number].measured["tasks"] for number in (a, b))
        if any(one[task]["main"] != other[task]["main"] for task in tasks):
            return None
        answers = [_answers(samples, (a, b), task, one[task]["main"]) for task in tasks]
        pairs = [pair for pair in answers if pair is not None]
        return _paired_average(pairs) if len(pairs) == len(tasks) else _independent_average(one, other, tasks)

    def measured_all(number: int) -> bool:
        found = records[number].measured.get("tasks", {})
        return all(task in found and is_accuracy(found[task]) for task in tasks)

    return _all_pairs([n for n in numbers if tasks and measured_all(n)], compare)


Answers = tuple[Numbers, Numbers]


def _answers(samples: Samples, pair: tuple[int, int], task: str, metric: str) -> Answers | None:
    """What both models got for the same documents in the same order; None where that is not known."""
    first, second = (samples.column(number, task, metric) for number in pair)
    return (first.figures, second.figures) if first and second and first.units == second.units else None


def _paired_average(answers: Sequence[Answers]) -> Contrast:
    sizes = {len(before) for before, _ in answers}
    if len(sizes) == 1 and all(np.isin(side, (0, 1)).all() for pair in answers for side in pair):
        lost = sum(int((before > after).sum()) for before, after in answers)
        gained = sum(int((after > before).sum()) for before, after in answers)
        return Contrast((gained - lost) / (len(answers) * sizes.pop()), stats.mcnemar(lost, gained), True)
    found = [stats.mean_stderr((after - before).tolist()) for before, after in answers]
    return _normal(fmean(mean for mean, _ in found), stats.average_stderr([e or 0.0 for _, e in found]), paired=True)


def _independent_average(one: dict[str, Any], other: dict[str, Any], tasks: Sequence[str]) -> Contrast | None:
    mains = [[measured[task][measured[task]["main"]] for task in tasks] for measured in (one, other)]
    if any(main.get("stderr") is None for side in mains for main in side):
        return None
    averages = [fmean(main["value"] for main in side) for side in mains]
    stderrs = [stats.average_stderr([main["stderr"] for main in side]) for side in mains]
    return _normal(averages[1] - averages[0], math.hypot(*stderrs), paired=False)


def _normal(estimate: float, stderr: float, *, paired: bool) -> Contrast:
    return Contrast(estimate, 2 * NORMAL.cdf(-abs(estimate) / stderr) if stderr else float(estimate == 0), paired)


def _all_pairs(numbers: Sequence[int], compare: Compare) -> Contrasts:
    found = {(a, b): compare(a, b) for a, b in combinations(numbers, 2)}
    known = {pair: contrast for pair, contrast in found.items() if contrast is not None}
    adjusted = stats.holm([contrast.p for contrast in known.values()])
    return {pair: replace(contrast, p=p) for (pair, contrast), p in zip(known.items(), adjusted, strict=True)}


def shown_more(contrasts: Contrasts, some: Sequence[int], than: Sequence[int], *, neutral: float) -> bool:
    """Whether each cell of `some` is shown to have more than each of `than`; `neutral` is what equal cells have.

    Several cells are the draws of a random method: the claim is then for every one of them.
    """
    return all(_more(contrasts, a, b, neutral) for a in some for b in than)


def _more(contrasts: Contrasts, a: int, b: int, neutral: float) -> bool:
    if (b, a) in contrasts:
        return contrasts[b, a].p < LEVEL and contrasts[b, a].estimate > neutral
    return (a, b) in contrasts and contrasts[a, b].p < LEVEL and contrasts[a, b].estimate < neutral
