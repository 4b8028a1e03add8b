"""What methods change of each model's quality: figures of cells of several models on one scale, with their ranks.

A perplexity and the bits per byte of the right answer are divided by the dense model's, and an accuracy has the dense
model's subtracted, with intervals in pairs on the windows or documents of both. Ranks are among the methods that have a
figure on every model, so that a place means the same on each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from statistics import fmean
from typing import NamedTuple

from bench.records.columns import accuracies, answered, texts
from bench.records.comparability import dense_peer, over_models
from bench.records.record import ANSWER_BPB, Record, metric_of_task, model_names
from bench.records.samples import Samples
from bench.stats import contrasts
from bench.stats.contrasts import Pair
from bench.stats.draws import exponential, mean_interval
from bench.stats.intervals import NORMAL_95, average_stderr
from reports.blocks import TableGroup
from reports.metrics import finite, metric
from reports.tables.rows import ReportData
from reports.tested_rows import TestedRow, tested_block

AVERAGE = "average"


class Change(NamedTuple):
    """What a method changes, with its 95 % interval: a logarithm of a ratio, or a difference of averages."""

    value: float
    low: float
    high: float


class Place(NamedTuple):
    """A rank, 1 for the best and ties in the middle, and the lowest and highest that the tests of pairs leave open."""

    rank: float
    best: int
    worst: int


@dataclass(frozen=True)
class ModelRows:
    """Hold the rows of one model at one ratio, with the samples of all records.

    name  the end of the model's path or address, as short as tells it from the other models
    """

    name: str
    group: TableGroup
    samples: Samples

    @property
    def model(self) -> str:
        """Return the model's whole path or address."""
        return str(self.group.records[0].cell["model"])

    @cached_property
    def tested(self) -> TestedRow:
        """Return the rows with the tests of all pairs."""
        return tested_block(list(self._records.values()), self.group, self.samples)

    def place(self, method: str) -> int | None:
        """Return the row of a method, None where it was not asked for."""
        return self._places.get(method)

    def figure(self, method: str, measure: str) -> float | None:
        """Return a method's figure, None where it has no finite one."""
        at = self.place(method)
        if at is None or self.group.records[at].status != "ok" or not finite(self.group.rows[at].get(measure)):
            return None
        return float(self.group.rows[at][measure])

    def change(self, method: str, measure: str) -> Change | None:
        """Return what a method changes of a measure, of several draws the mean; None without both figures."""
        if (method, measure) not in self._known:
            self._known[method, measure] = self._mean_of_draws(method, measure)
        return self._known[method, measure]

    def _mean_of_draws(self, method: str, measure: str) -> Change | None:
        at = self.place(method)
        if at is None or self.figure(method, measure) is None:
            return None
        found = [self._change(n, measure) for n in self.group.numbers[at]]
        known = [one for one in found if one is not None]
        return mean_change(known) if len(known) == len(found) else None

    def places(self, methods: Sequence[str], measure: str) -> dict[str, Place]:
        """Return the places of methods that all have a figure: by the tests of all pairs, which Holm has adjusted."""
        from scipy.stats import rankdata

        higher = metric(measure).better == "higher"
        rows = [at for method in methods if (at := self.place(method)) is not None]
        figures = [self.group.rows[at][measure] for at in rows]
        ranks = rankdata([-one if higher else one for one in figures]).tolist()

        def better(some: int, than: int) -> bool:
            more, less = (some, than) if higher else (than, some)
            return self.tested.shows_more(more, less, measure)

        found = {}
        for method, at, rank in zip(methods, rows, ranks, strict=True):
            above = sum(better(other, at) for other in rows if other != at)
            below = sum(better(at, other) for other in rows if other != at)
            found[method] = Place(rank, 1 + above, len(rows) - below)
        return found

    @cached_property
    def _places(self) -> dict[str, int]:
        """Return the rows by their labels, and as "dense" the first that the dense model has figures in."""
        found = {self.group.label(at): at for at in range(len(self.group.records))}
        ok = [at for at, record in enumerate(self.group.records) if record.status == "ok"]
        dense = [at for at in ok if self.group.records[at].cell["method"] == "dense"]
        return found | ({"dense": dense[0]} if dense else {})

    @cached_property
    def _known(self) -> dict[tuple[str, str], Change | None]:
        """Return the changes that were asked for before."""
        return {}

    @cached_property
    def _records(self) -> dict[int, Record]:
        """Return the records by their places among all."""
        each = zip(chain(*self.group.numbers), chain(*self.group.drawn), strict=True)
        return dict(each)

    @cached_property
    def tasks(self) -> dict[str, list[str]]:
        """Return the tasks of each measure that is a mean over tasks."""
        every = list(self._records.values())
        return {ANSWER_BPB: answered(every), AVERAGE: accuracies(every)}

    def _change(self, number: int, measure: str) -> Change | None:
        """Return what one cell changes, None where the dense model of its seed has no figure."""
        dense = dense_peer(self._records[number], list(self._records.values()))
        beside = zip(self.group.numbers, self.group.drawn, self.group.rows, strict=True)
        found = ((n, row) for numbers, drawn, row in beside for n, r in zip(numbers, drawn, strict=True) if r is dense)
        at, row = next(found, (None, {}))
        if at is None or not finite(row.get(measure)):
            return None
        if measure in self.tasks:
            return _of_tasks(self._records, (at, number), self.tasks[measure], measure, self.samples)
        return _of_text(self._records, (at, number), measure.removeprefix("perplexity_"), self.samples)


@dataclass(frozen=True)
class SharedRatio:
    """Hold the rows of several models at one ratio, measured alike, the smallest model first.

    unused  names of models that have more cells under conditions that touch no quality, which are left out
    """

    models: list[ModelRows]
    unused: list[str] = field(default_factory=list)

    @property
    def group(self) -> TableGroup:
        """Return the rows of the first model."""
        return self.models[0].group

    @property
    def records(self) -> list[Record]:
        """Return the records of all models."""
        return [record for model in self.models for drawn in model.group.drawn for record in drawn]

    def method(self, label: str) -> str:
        """Return the name of the method behind the label of its rows."""
        places = ((model, model.place(label)) for model in self.models)
        model, at = next((model, at) for model, at in places if at is not None)
        return str(model.group.records[at].cell["method"])

    def methods(self) -> list[str]:
        """Return every method but the dense model, by the label of its rows."""
        return list(
            dict.fromkeys(
                model.group.label(at)
                for model in self.models
                for at, record in enumerate(model.group.records)
                if record.cell["method"] != "dense"
            )
        )

    def measures(self) -> list[str]:
        """Return the columns that several models have a figure of, and of means over tasks those of the same tasks."""
        names = [f"perplexity_{text}" for text in texts(self.records)]
        names += [n for n in (ANSWER_BPB, AVERAGE) if len({tuple(model.tasks[n]) for model in self.models}) == 1]
        return [
            name
            for name in names
            if sum(any(model.figure(method, name) is not None for method in self.methods()) for model in self.models)
            > 1
        ]

    def everywhere(self, measure: str) -> list[str]:
        """Return the methods that have a figure on every model, in the order of the mean, the best first."""
        changes = {method: [model.change(method, measure) for model in self.models] for method in self.methods()}
        means = {
            method: fmean(one.value for one in found if one)
            for method, found in changes.items()
            if all(one is not None for one in found)
        }
        sign = -1 if metric(measure).better == "higher" else 1
        return sorted(means, key=lambda method: (sign * means[method], method))


def mean_change(changes: Sequence[Change]) -> Change:
    """Return the mean over models or draws, with its interval (bench.stats.draws.mean_interval); of one itself."""
    if len(changes) == 1:
        return changes[0]
    values, lows, highs = zip(*changes, strict=True)
    return Change(fmean(values), *mean_interval(values, lows, highs))


def is_times(measure: str) -> bool:
    """Say whether a measure is divided by the dense model's, and not subtracted from it."""
    return measure != AVERAGE


def written_scale(measure: str, change: Change) -> Change:
    """Return a change as a reader sees it: how many times as much, or a difference of shares."""
    return Change(*map(exponential, change)) if is_times(measure) else change


def shared_ratios(data: ReportData) -> Iterator[SharedRatio]:
    """Yield for each ratio at which several models were measured alike the rows of each."""
    found: dict[tuple[str, float | None, str], list[ModelRows]] = {}
    names = model_names(str(record.cell["model"]) for record in data.records)
    for groups in data.setups:
        for group in groups:
            records = [record for drawn in group.drawn for record in drawn]
            if any(record.cell["method"] != "dense" for record in records):
                key = over_models(records[0]), group.ratio, group.ratio_of
                name = names[str(records[0].cell["model"])]
                found.setdefault(key, []).append(ModelRows(name, group, data.samples))
    for alike_rows in found.values():
        most = sorted(
            alike_rows, key=lambda model: -sum(record.status == "ok" for record in model.group.records)
        )  # of one model that with most figures
        chosen = {model.model: model for model in reversed(most)}
        kept = [model for model in alike_rows if chosen[model.model] is model]
        if len(kept) > 1:
            kept.sort(key=lambda model: max(r.measured.get("dense_parameters", 0) for r in model.group.records))
            yield SharedRatio(kept, [model.name for model in alike_rows if chosen[model.model] is not model])


def _of_text(records: Mapping[int, Record], pair: Pair, text: str, samples: Samples) -> Change:
    """Return the logarithm of how many times the dense model's perplexity the second cell of a pair has."""
    found = contrasts.perplexity(records, [pair], samples, text).get(pair)
    if found is None:
        one, other = (records[n].measured["perplexity"][text]["perplexity"] for n in pair)
        return Change(math.log(other / one), math.nan, math.nan)
    logs = [math.log(end) if 0 < end < math.inf else math.nan for end in (found.estimate, found.low, found.high)]
    return Change(*logs)


def _of_tasks(
    records: Mapping[int, Record], pair: Pair, tasks: Sequence[str], measure: str, samples: Samples
) -> Change | None:
    """Return what the second cell of a pair has more of a mean over tasks than the first, by a normal distribution.

    Of bits per byte that is the logarithm of their ratio, whose error is to first order that of the difference of both,
    each over its mean. None where the two were not measured by the same metrics.
    """
    dense, pruned = ([records[n].measured["tasks"][task] for task in tasks] for n in pair)
    names = [measure if measure == ANSWER_BPB else str(task["main"]) for task in dense]
    if any(metric_of_task(task, name) is None for name, task in zip(names, pruned, strict=True)):
        return None
    figures = [[metric_of_task(task, name) for name, task in zip(names, side, strict=True)] for side in (dense, pruned)]
    means = [fmean(one["value"] for one in side) for side in figures]
    over = means if is_times(measure) else [1.0, 1.0]
    both = [[samples.of(n, task, name) for n in pair] for task, name in zip(tasks, names, strict=True)]
    paired = [(a.figures, b.figures) for a, b in both if a and b and a.units.equals(b.units)]
    if len(paired) == len(tasks):
        apart = [after / over[1] - before / over[0] for before, after in paired]
        stderr = average_stderr([math.sqrt(one.var(ddof=1) / len(one)) for one in apart])
    else:
        errors = [average_stderr([_error(one) for one in side]) for side in figures]
        stderr = math.hypot(errors[0] / over[0], errors[1] / over[1])
    value = math.log(means[1] / means[0]) if is_times(measure) else means[1] - means[0]
    return Change(value, value - NORMAL_95 * stderr, value + NORMAL_95 * stderr)


def _error(figure: Mapping[str, float | None]) -> float:
    """Return the standard error of a task's figure, which is no number where there is none."""
    error = figure.get("stderr")
    return math.nan if error is None else error
