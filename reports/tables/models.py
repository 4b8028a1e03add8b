"""The view models: what each method changes of several models, its places among the methods, and how far orders agree.

A change is on one scale for all models. A perplexity and the bits per byte of the right answer are divided by the dense
model's; an accuracy has the dense model's subtracted. Intervals are paired on the windows or documents of both. Ranks
are among the methods that have a value on every model, so that a place means the same on each.

The first table has the values of the dense models. Each ratio and measure has a table of changes with their mean over
models, and a table of places. Further tables hold the agreement of orders between models, and between measures and
texts. A method without a value on a model has neither mean nor rank, and a note names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, combinations, product
from operator import itemgetter
from statistics import fmean
from typing import NamedTuple

from scipy.special import stdtrit

from bench.plan.cell import words_of_amount, words_of_ratio
from bench.records.comparability import find_dense_peer, setup_of_models
from bench.records.frame import keep_standard_tasks, tasks_with_accuracies, tasks_with_answers, texts_of_records
from bench.records.measured import ANSWER_BPB, TaskMetric
from bench.records.quantities import quantity_of_column
from bench.records.quantity import Quantity, format_percent, format_perplexity, is_finite
from bench.records.record import Record, names_of_models
from bench.records.samples import Samples, pair_whole
from bench.regression import contrasts
from bench.regression.contrasts import Places
from bench.stats.draws import exp_of_log, mean_interval
from bench.stats.intervals import NORMAL_95, average_stderr, kendall
from reports import legend, protocol
from reports.groups import TableGroup
from reports.legend import FlaggedCell
from reports.tables.pivots import pivot
from reports.tables.rows import GroupTests, ReportData, mark_missed
from reports.tables.table import (
    ARROWS,
    Column,
    Row,
    Table,
    TableCell,
    cell_of,
    cell_of_text,
    column_of,
    is_apart,
    mark_best,
)

AVERAGE = "average"


class Change(NamedTuple):
    """The change by a method, with its 95 % interval: the logarithm of a ratio, or a difference of averages."""

    value: float
    low: float
    high: float


class Place(NamedTuple):
    """A rank, with 1 for the best and ties in the middle, and the best and worst rank that the tests of pairs allow."""

    rank: float
    best: int
    worst: int


@dataclass(frozen=True)
class ModelRows:
    """Holds the rows of one model at one ratio, with the samples of all records.

    name  the shortest end of the model's path or address that tells it from the other models
    """

    name: str
    group: TableGroup
    samples: Samples

    @property
    def model(self) -> str:
        """Return the model's whole path or address."""
        return self.group.records[0].cell.model

    @cached_property
    def tested(self) -> GroupTests:
        """Return the rows with the tests of all pairs."""
        return GroupTests(self.group, self.samples, list(self._records.values()))

    def place(self, method: str) -> int | None:
        """Return the place of a method's row; None without a row."""
        return self._places.get(method)

    def figure(self, method: str, measure: str) -> float | None:
        """Return a method's value of a measure; None without a finite one."""
        at = self.place(method)
        if at is None or self.group.records[at].status != "ok" or not is_finite(self.group.rows[at].get(measure)):
            return None
        return float(self.group.rows[at][measure])

    def change(self, method: str, measure: str) -> Change | None:
        """Return what a method changes of a measure, the mean of several draws; None without values of both models."""
        if (method, measure) not in self._changes_by_method:
            self._changes_by_method[method, measure] = self._mean_of_draws(method, measure)
        return self._changes_by_method[method, measure]

    def _mean_of_draws(self, method: str, measure: str) -> Change | None:
        at = self.place(method)
        if at is None or self.figure(method, measure) is None:
            return None
        changes = [self._change(n, measure) for n in self.group.numbers[at]]
        present = [change for change in changes if change is not None]
        return mean_of_changes(present) if len(present) == len(changes) else None

    def places(self, methods: Sequence[str], measure: str) -> dict[str, Place]:
        """Return {method: its place} for methods that all have a value, by the tests of all pairs adjusted by Holm."""
        from scipy.stats import rankdata

        way = quantity_of_column(measure).better or "lower"
        better = partial(self.tested.is_better, column=measure, better=way)
        rows = [at for at in map(self.place, methods) if at is not None]
        figures = [self.group.rows[at][measure] for at in rows]
        ranks = rankdata([-figure if way == "higher" else figure for figure in figures]).tolist()

        places = {}
        for method, at, rank in zip(methods, rows, ranks, strict=True):
            above = sum(better(row, at) for row in rows if row != at)
            below = sum(better(at, row) for row in rows if row != at)
            places[method] = Place(rank, 1 + above, len(rows) - below)
        return places

    @cached_property
    def _places(self) -> dict[str, int]:
        """Return {label: place of the row}, and under "dense" the first row in which the dense model has values."""
        place_by_label = {self.group.label(at): at for at in range(len(self.group.records))}
        ok = [at for at, record in enumerate(self.group.records) if record.status == "ok"]
        dense = [at for at in ok if self.group.records[at].cell.method == "dense"]
        return place_by_label | ({"dense": dense[0]} if dense else {})

    @cached_property
    def _changes_by_method(self) -> dict[tuple[str, str], Change | None]:
        """Return the changes that are computed already, empty at first."""
        return {}

    @cached_property
    def _records(self) -> dict[int, Record]:
        """Return {place among all records: record}."""
        each = zip(chain(*self.group.numbers), chain(*self.group.drawn), strict=True)
        return dict(each)

    @cached_property
    def tasks(self) -> dict[str, list[str]]:
        """Return {measure that is a mean over tasks: its tasks}."""
        every = list(self._records.values())
        tasks = {ANSWER_BPB: tasks_with_answers(every), AVERAGE: tasks_with_accuracies(every)}
        return {measure: keep_standard_tasks(names) for measure, names in tasks.items()}

    def _change(self, number: int, measure: str) -> Change | None:
        """Return what one cell changes; None if the dense model of its seed has no value."""
        dense = find_dense_peer(self._records[number], list(self._records.values()))
        beside = zip(self.group.numbers, self.group.drawn, self.group.rows, strict=True)
        rows = ((n, row) for numbers, drawn, row in beside for n, r in zip(numbers, drawn, strict=True) if r is dense)
        at, row = next(rows, (None, {}))
        if at is None or not is_finite(row.get(measure)):
            return None
        if measure in self.tasks:
            return _of_tasks(self._records, (at, number), self.tasks[measure], measure, self.samples)
        return _of_text(self._records, (at, number), measure.removeprefix("perplexity_"), self.samples)


@dataclass(frozen=True)
class SharedRatio:
    """Holds the rows of several models at one ratio, measured alike, the smallest model first.

    unused  names of models with further cells, under conditions that do not touch quality; these are left out
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
        return model.group.records[at].cell.method

    def methods(self) -> list[str]:
        """Return every method but the dense model, by the label of its rows."""
        return list(
            dict.fromkeys(
                model.group.label(at)
                for model in self.models
                for at, record in enumerate(model.group.records)
                if record.cell.method != "dense"
            )
        )

    def measures(self) -> list[str]:
        """Return the columns in which several models have values; means over tasks only if the tasks are the same."""
        names = [f"perplexity_{text}" for text in texts_of_records(self.records)]
        first, *rest = [model.tasks for model in self.models]
        for name in (ANSWER_BPB, AVERAGE):
            names += [name] if all(tasks[name] == first[name] for tasks in rest) else []
        return [name for name in names if sum(map(partial(self._has_figure, name), self.models)) > 1]

    def _has_figure(self, measure: str, model: ModelRows) -> bool:
        """Say whether any method has a value of a measure on a model."""
        return any(model.figure(method, measure) is not None for method in self.methods())

    def methods_on_all_models(self, measure: str) -> list[str]:
        """Return the methods that have a value on every model, in the order of the mean change, the best first."""
        means = {}
        for method in self.methods():
            every = [model.change(method, measure) for model in self.models]
            values = [change.value for change in every if change is not None]
            if len(values) == len(every):
                means[method] = fmean(values)
        sign = -1 if quantity_of_column(measure).better == "higher" else 1
        return sorted(means, key=lambda method: (sign * means[method], method))


def mean_of_changes(changes: Sequence[Change]) -> Change:
    """Return the mean over models or draws, with its interval (bench.stats.draws.mean_interval); or the only change."""
    if len(changes) == 1:
        return changes[0]
    values, lows, highs = zip(*changes, strict=True)
    return Change(fmean(values), *mean_interval(values, lows, highs))


def is_times(measure: str) -> bool:
    """Say whether a measure is divided by the dense model's, and not subtracted from it."""
    return measure != AVERAGE


def to_display_scale(measure: str, change: Change) -> Change:
    """Return a change on the scale of a table: a ratio to the dense model, or a difference of shares."""
    return Change(*map(exp_of_log, change)) if is_times(measure) else change


def ratios_on_all_models(data: ReportData) -> Iterator[SharedRatio]:
    """Yield the rows of the models for each ratio at which several models were measured alike."""
    rows_by_ratio: dict[tuple[str, float | None, str], list[ModelRows]] = {}
    names = names_of_models(record.cell.model for record in data.records)
    for groups in data.setups:
        for group in groups:
            records = [record for drawn in group.drawn for record in drawn]
            if any(record.cell.method != "dense" for record in records):
                key = setup_of_models(records[0]), group.ratio, group.ratio_of
                name = names[records[0].cell.model]
                rows_by_ratio.setdefault(key, []).append(ModelRows(name, group, data.samples))
    for alike_rows in rows_by_ratio.values():
        most = sorted(
            alike_rows, key=lambda model: -sum(record.status == "ok" for record in model.group.records)
        )  # the group with most measured cells is chosen for each model
        chosen = {model.model: model for model in reversed(most)}
        kept = [model for model in alike_rows if chosen[model.model] is model]
        if len(kept) > 1:
            kept.sort(key=lambda model: max(r.measured.dense_parameters or 0 for r in model.group.records))
            yield SharedRatio(kept, [model.name for model in alike_rows if chosen[model.model] is not model])


def _of_text(records: Mapping[int, Record], places: Places, text: str, samples: Samples) -> Change:
    """Return the change of perplexity from the first cell, the dense model, to the second, as a logarithm."""
    contrast = contrasts.contrast_of_perplexities(records, [places], samples, text).get(places)
    if contrast is None:
        dense, pruned = (records[n].measured.text_scores[text].perplexity for n in places)
        return Change(math.log(pruned / dense), math.nan, math.nan)
    logs = [
        math.log(end) if 0 < end < math.inf else math.nan for end in (contrast.estimate, contrast.low, contrast.high)
    ]
    return Change(*logs)


def _of_tasks(
    records: Mapping[int, Record], places: Places, tasks: Sequence[str], measure: str, samples: Samples
) -> Change | None:
    """Return the change of a mean over tasks from the first cell of a pair to the second, with a normal interval.

    For bits per byte it is the logarithm of their ratio. To first order its error is that of the difference of the two,
    each divided by its mean. None if the two were not measured by the same metrics.
    """
    dense, pruned = (records[n].measured.task_scores for n in places)
    names = [measure if measure == ANSWER_BPB else str(dense[task].main) for task in tasks]
    if any(name not in pruned[task].every_metric() for name, task in zip(names, tasks, strict=True)):
        return None
    figures = [contrasts.values_of_tasks(records[n], tasks, names) for n in places]
    means = [_mean_of_metrics(side) for side in figures]
    over = means if is_times(measure) else [1.0, 1.0]
    pairs = []
    for task, name in zip(tasks, names, strict=True):
        pairs.append(pair_whole(*(samples.of(n, task, name) for n in places)))
    paired = [both for both in pairs if both is not None]
    if len(paired) == len(tasks):
        differences = [both.second.values / over[1] - both.first.values / over[0] for both in paired]
        stderr = average_stderr([math.sqrt(difference.var(ddof=1) / len(difference)) for difference in differences])
    else:
        errors = [average_stderr(list(map(_stderr_of_metric, side))) for side in figures]
        stderr = math.hypot(errors[0] / over[0], errors[1] / over[1])
    value = math.log(means[1] / means[0]) if is_times(measure) else means[1] - means[0]
    return Change(value, value - NORMAL_95 * stderr, value + NORMAL_95 * stderr)


def _mean_of_metrics(metrics: Sequence[TaskMetric]) -> float:
    """Return the mean of tasks' values."""
    return fmean(metric.value for metric in metrics)


def _stderr_of_metric(metric: TaskMetric) -> float:
    """Return the standard error of a task's value; NaN without one."""
    return math.nan if metric.stderr is None else metric.stderr


TIMES = Quantity(
    "times",
    "times the dense model's",
    "value over the dense model's",
    lambda value, beside: format_perplexity(value, max(value, beside)),
    better="lower",
    spread="interval",
)
POINTS = Quantity(
    "points",
    "points more than the dense model's",
    "value minus the dense model's",
    format_percent,
    better="higher",
    spread="interval",
)
ABOUT = (
    "± or [ ] of one model: the 95 % interval over windows of a perplexity, and over documents of bpb and average.",
    "bpb: bits per byte of the right answers.",
    "Intervals are paired with the dense model's; without samples they are as if the two were independent.",
    "mean: over the models; of times it is the geometric one.",
    "The interval of a mean is that of models drawn at random, which chosen ones are not.",
    "Each side of it is the root of two squares: Student's t over the models, and the mean length of their intervals.",
)
PLACES = (
    "places: ranks, 1 for the best, of the methods that have a figure on every model.",
    "[ ] of one model: the ranks that the tests of all pairs leave open, p < 0.05 adjusted by Holm.",
    "[ ] of the mean place: the lowest and the highest place.",
)
APART = "†: changes place by more than the tests leave open, since [ ] of two models do not meet."
AGREEMENT = (
    "Kendall's tau-b of two orders of the same methods: 1 where they are the same, -1 where one is the reverse.",
    "n: methods that have both figures; a random method counts once, by its mean. The dense model is left out.",
)


def tables_of_models(data: ReportData) -> list[Table]:
    """Return the tables of all cells that were measured alike on several models; empty without any."""
    shared_ratios = list(ratios_on_all_models(data))
    each = [
        table for shared in shared_ratios for measure in shared.measures() for table in _of_measure(shared, measure)
    ]
    alike: dict[str, list[SharedRatio]] = {}
    for shared in shared_ratios:
        alike.setdefault(setup_of_models(shared.records[0]), []).append(shared)
    dense = filter(None, map(_dense_values, alike.values()))
    return [*dense, *each, *(table for several in alike.values() for table in _agreement(several))]


def _dense_values(ratios: Sequence[SharedRatio]) -> Table | None:
    """Return the table of the dense models' values: a row for each model, a column for each measure; None without any.

    A model stands at the first ratio at which it has a dense cell.
    """
    measures = list(dict.fromkeys(measure for shared in ratios for measure in shared.measures()))
    rows = dict[str, Row]()
    for model in (model for shared in ratios for model in shared.models):
        at = model.place("dense")
        if at is not None and model.name not in rows:
            cells = tuple(cell_of(model.group.rows[at], measure) for measure in measures)
            rows[model.name] = Row(model.name, "dense", None, cells)
    if not rows:
        return None
    columns = [column_of(measure, "changes") for measure in measures]
    return _table(ratios[0], "models-dense", "dense models", columns, list(rows.values()), footnotes=(), head="model")


def _of_measure(shared: SharedRatio, measure: str) -> Iterator[Table]:
    """Yield the table of changes of one measure at one ratio, and a table of places if several methods have them."""
    everywhere = shared.methods_on_all_models(measure)
    rest = [method for method in shared.methods() if method not in everywhere]
    rows = [_changes(shared, method, measure, mean=method in everywhere) for method in (*everywhere, *rest)]
    better, count = quantity_of_column(measure).better, len(shared.models)
    if better:
        too_little = {row.label for row in rows for model in shared.models if _too_little(model, row.label)}
        eligible = [row.label not in too_little for row in rows]
        means = [row.cells[count] for row in rows]
        rows = mark_best(rows, count, better, eligible, lambda a, b: is_apart(means[a], means[b], better))
    models = [Column(f"change_{model.name}", model.name, group="changes", brief=True) for model in shared.models]
    amount = words_of_amount(shared.group.ratio, shared.group.ratio_of) or "ratio fixed"
    what = f"{quantity_of_column(measure).heading}, {(TIMES if is_times(measure) else POINTS).heading}, {amount}"
    yield _table(
        shared,
        f"models-{measure}-{_ratio(shared)}",
        f"{what}, {count} models{ARROWS[better]}",
        [*models, Column("mean", "mean", group="changes")],
        rows,
        remarks=legend.describe_flags(_flags(shared, measure, rest)),
        footnotes=[
            *ABOUT,
            f"with {count} models Student's t is {stdtrit(count - 1, 0.975):.1f}, and a mean's interval is wide.",
        ],
    )
    if len(everywhere) > 1:
        places = [model.places(everywhere, measure) for model in shared.models]
        lines = [_places(shared, method, list(map(itemgetter(method), places))) for method in everywhere]
        apart = any(cell.marks for line in lines for cell in line.cells)
        models = [Column(f"place_{model.name}", model.name, group="places") for model in shared.models]
        yield _table(
            shared,
            f"models-places-{measure}-{_ratio(shared)}",
            f"{quantity_of_column(measure).heading}, places of {len(everywhere)} methods, {amount}, {count} models",
            [*models, Column("mean_place", "mean place", group="places")],
            sorted(lines, key=lambda line: float(line.cells[-1].value or 0)),
            remarks=[APART] * apart,
            footnotes=PLACES,
        )


def _table(
    shared: SharedRatio,
    name: str,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    footnotes: Sequence[str],
    remarks: Sequence[str] = (),
    head: str = "method",
) -> Table:
    """Return a table of several models, under the conditions that they share."""
    conditions = tuple(protocol.conditions_of(shared.records))
    plain = name.replace("/", "-").replace(" ", "-")
    return Table(
        plain, "models", "", title, conditions, tuple(columns), tuple(rows), tuple(remarks), tuple(footnotes), head
    )


def _changes(shared: SharedRatio, method: str, measure: str, *, mean: bool) -> Row:
    """Return the row of what a method changes of each model.

    mean  whether the row has a mean, as it has if the method has a value on every model
    """
    changes = [model.change(method, measure) for model in shared.models]
    present = [change for change in changes if change is not None]
    cells = [_figure(model, method, measure) for model in shared.models]
    cells.append(_cell(measure, mean_of_changes(present)) if mean else TableCell())
    return Row(method, shared.method(method), shared.group.ratio, tuple(cells), ratio_of=shared.group.ratio_of)


def _places(shared: SharedRatio, method: str, places: Sequence[Place]) -> Row:
    """Return the row of a method's places; the mean is marked if the intervals of two places do not meet."""
    ranks = [place.rank for place in places]
    lowest, middle, highest = min(ranks), fmean(ranks), max(ranks)
    cells = [TableCell(f"{r:g} [{low}, {high}]", f"{r:g}", r, low, high) for r, low, high in places]
    mean = TableCell(f"{middle:.1f} [{lowest:g}, {highest:g}]", f"{middle:.1f}", middle, lowest, highest)
    apart = any(first.worst < second.best or second.worst < first.best for first, second in combinations(places, 2))
    last = mean.with_mark("differs") if apart else mean
    return Row(method, shared.method(method), shared.group.ratio, (*cells, last), ratio_of=shared.group.ratio_of)


def _ratio(shared: SharedRatio) -> str:
    return words_of_ratio(shared.group.ratio, shared.group.ratio_of) or "fixed"


def _figure(model: ModelRows, method: str, measure: str) -> TableCell:
    """Return the cell of what a method changes of a model, or of why it has no value on it."""
    at, change = model.place(method), model.change(method, measure)
    if at is None:
        return TableCell()
    if change is None:
        status = legend.words_of_status(model.group.records[at])
        return TableCell() if status == "ok" else TableCell(status)
    return mark_missed(_cell(measure, change), model.group.rows[at])


def _cell(measure: str, change: Change) -> TableCell:
    """Return the cell of a change, with its interval if it has one."""
    value, low, high = to_display_scale(measure, change)
    form = TIMES if is_times(measure) else POINTS
    if math.isnan(low) or math.isnan(high):
        return TableCell(form.show(value), value=value)
    return TableCell(form.show_interval(value, low, high), form.show(value), value, low, high)


def _too_little(model: ModelRows, method: str) -> bool:
    at = model.place(method)
    return at is not None and model.group.records[at].status == "ok" and model.group.removes_too_little(at)


def _flags(shared: SharedRatio, measure: str, rest: Sequence[str]) -> Iterator[FlaggedCell]:
    """Yield the flags of the table of one measure, whose cells are named by their methods and models."""
    for model, method in product(shared.models, shared.methods()):
        at = model.place(method)
        if at is not None and "missed" in _figure(model, method, measure).marks:
            missed = {"miss": legend.words_of_miss(model.group.records[at])}
            yield FlaggedCell(legend.MISSED, f"{method} on {model.name}", missed)
    for method in rest:
        without = [model for model in shared.models if not model.change(method, measure)]
        reasons = ", ".join(f"{_why(model, method, measure)} on {model.name}" for model in without)
        yield FlaggedCell(legend.NO_MEAN, method, {"reasons": reasons})
    for name in shared.unused:
        yield FlaggedCell(legend.MORE_CELLS, name)


def _why(model: ModelRows, method: str, measure: str) -> str:
    at = model.place(method)
    if at is None:
        return "not measured"
    status = legend.words_of_status(model.group.records[at])
    return status if status != "ok" else f"no {quantity_of_column(measure).heading}"


def _agreement(ratios: Sequence[SharedRatio]) -> list[Table]:
    """Return the tables of how far orders agree: between models by a measure, and between measures on a model."""
    models = Column("models", "models", words=True, key=True)
    measures = Column("measures", "measures", words=True, key=True)
    between, within = list[tuple[Row, Column, TableCell]](), list[tuple[Row, Column, TableCell]]()
    for shared in ratios:
        head = Column(f"tau_{_ratio(shared)}", _ratio(shared))
        for measure in shared.measures():
            for model, peer in combinations(shared.models, 2):
                line = Row(quantity_of_column(measure).heading, "", None, (cell_of_text(f"{model.name}, {peer.name}"),))
                between.append((line, head, _tau(shared, (model, measure), (peer, measure))))
        for model in shared.models:
            for a, b in combinations(shared.measures(), 2):
                line = Row(
                    model.name,
                    "",
                    None,
                    (cell_of_text(f"{quantity_of_column(a).heading}, {quantity_of_column(b).heading}"),),
                )
                within.append((line, head, _tau(shared, (model, a), (model, b))))
    titles = {"models": "order by a measure on two models", "measures": "orders by two measures on one model"}
    tables = []
    for pair_columns, cells, first in ((models, between, "measure"), (measures, within, "model")):
        if cells:
            heads, rows = _beside(cells)
            title = f"{titles[pair_columns.name]}, Kendall's tau by ratio"
            tables.append(
                _table(
                    ratios[0],
                    f"models-orders-{pair_columns.name}",
                    title,
                    [pair_columns, *heads],
                    rows,
                    footnotes=AGREEMENT,
                    head=first,
                )
            )
    return tables


def _beside(cells: Sequence[tuple[Row, Column, TableCell]]) -> tuple[tuple[Column, ...], list[Row]]:
    """Return the grid of cells; each row begins with the cells that it has already."""
    heads, rows = pivot(cells)
    own = list(dict.fromkeys(row for row, _, _ in cells))
    return heads, [replace(row, cells=(*first.cells, *row.cells)) for first, row in zip(own, rows, strict=True)]


def _sign(measure: str) -> int:
    """Return -1 for a measure where higher is better, else 1."""
    return -1 if quantity_of_column(measure).better == "higher" else 1


def _tau(shared: SharedRatio, *sides: tuple[ModelRows, str]) -> TableCell:
    """Return the cell of Kendall's tau of two orders of the methods that have both values, from best to worst."""
    (first, of_first), (second, of_second) = sides
    both = []
    for method in shared.methods():
        a, b = first.figure(method, of_first), second.figure(method, of_second)
        if a is not None and b is not None:
            both.append((_sign(of_first) * a, _sign(of_second) * b))
    tau = kendall(*zip(*both, strict=True)) if len(both) > 1 else math.nan
    return TableCell() if math.isnan(tau) else TableCell(f"{tau:.2f} (n {len(both)})", value=tau)
