"""The view models: what each method does to several models, its places among the others, and how far orders agree.

For each ratio and each measure a table of figures beside the dense model's, their mean over models, and ranks; then the
agreement of orders between models, and between measures and texts. What has no figure on a model has neither mean nor
rank, and a note names it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from statistics import fmean

from scipy.special import stdtrit

from bench.records.comparability import over_models
from bench.records.record import amount, share
from bench.stats.intervals import kendall
from methods.counted import QUANTITIES
from reports import notes
from reports.metrics import Metric, metric, percent, perplexity, shown
from reports.tables.models.changes import (
    Change,
    ModelRows,
    Place,
    SharedRatio,
    is_times,
    mean_change,
    shared_ratios,
    written_scale,
)
from reports.tables.pivots import pivot
from reports.tables.rows import ReportData, starred
from reports.tables.table import ARROWS, Column, Row, Table, TableCell, text, with_best_marked

TIMES = Metric(
    "times the dense model's", "", lambda one, beside: perplexity(one, max(one, beside)), "lower", "interval"
)
POINTS = Metric("points more than the dense model's", "", percent, "higher", "interval")
ABOUT = (
    "± or [ ] of one model: the 95 % interval over windows of a perplexity, over documents of bpb (bits per byte of "
    "the right answers) and average, paired with the dense model's; as if independent where there are no samples.",
    "mean: over the models, of times the geometric one. Its interval is that of a mean over models drawn at random, "
    "which chosen ones are not: to either side the root of two squares, Student's t over the models and the mean "
    "length of their own intervals.",
)
PLACES = (
    "places: ranks, 1 for the best, of the methods that have a figure on every model. [ ] of one model: what the tests "
    "of all pairs there leave open, p < 0.05 adjusted by Holm; of the mean place: the lowest and the highest.",
)
APART = "†: changes place by more than the tests leave open, since [ ] of two models do not meet."
AGREEMENT = (
    "Kendall's tau-b of two orders of the same methods: 1 where they are the same, -1 where one is the reverse of the "
    "other. n: methods that have both figures; a random method counts once, by its mean. The dense model is left out.",
)


def tables(data: ReportData) -> list[Table]:
    """Return the tables of all that was measured alike on several models; none where there is nothing."""
    found = list(shared_ratios(data))
    each = [table for one in found for measure in one.measures() for table in _of_measure(one, measure)]
    alike: dict[str, list[SharedRatio]] = {}
    for one in found:
        alike.setdefault(over_models(one.records[0]), []).append(one)
    return [*each, *(table for several in alike.values() for table in _agreement(several))]


def _of_measure(shared: SharedRatio, measure: str) -> Iterator[Table]:
    """Yield the table of what is changed of one measure at one ratio, and that of the places of several methods."""
    everywhere = shared.everywhere(measure)
    rest = [method for method in shared.methods() if method not in everywhere]
    rows = [_changes(shared, method, measure, mean=method in everywhere) for method in (*everywhere, *rest)]
    better, count = metric(measure).better, len(shared.models)
    if better:
        eligible = [not any(_too_little(model, row.label) for model in shared.models) for row in rows]
        is_better = partial(_is_apart, [row.cells[count] for row in rows], better)
        rows = with_best_marked(rows, count, better, eligible, is_better)
    models = [Column(f"change_{model.name}", model.name, group="changes", brief=True) for model in shared.models]
    asked = amount(shared.group.ratio, shared.group.ratio_of) or "ratio fixed"
    what = f"{metric(measure).label}, {(TIMES if is_times(measure) else POINTS).label}, {asked}"
    yield _table(
        shared,
        f"models-{measure}-{_ratio(shared)}",
        f"{what}, {count} models{ARROWS[better]}",
        [*models, Column("mean", "mean", group="changes")],
        rows,
        said=list(_notes(shared, measure, rest)),
        footnotes=[
            *ABOUT,
            f"with {count} models Student's t is {stdtrit(count - 1, 0.975):.1f}, and a mean's interval is wide.",
        ],
    )
    if len(everywhere) > 1:
        places = [model.places(everywhere, measure) for model in shared.models]
        lines = [_places(shared, method, [one[method] for one in places]) for method in everywhere]
        apart = any(cell.marks for line in lines for cell in line.cells)
        models = [Column(f"place_{model.name}", model.name, group="places") for model in shared.models]
        yield _table(
            shared,
            f"models-places-{measure}-{_ratio(shared)}",
            f"{metric(measure).label}, places of {len(everywhere)} methods, {asked}, {count} models",
            [*models, Column("mean_place", "mean place", group="places")],
            sorted(lines, key=lambda line: float(line.cells[-1].value or 0)),
            said=[APART] * apart,
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
    said: Sequence[str] = (),
    head: str = "method",
) -> Table:
    """Return a table of several models, under the conditions that they share."""
    conditions = tuple(notes.conditions(shared.records))
    plain = name.replace("/", "-").replace(" ", "-")
    return Table(
        plain, "models", "", title, conditions, tuple(columns), tuple(rows), tuple(said), tuple(footnotes), head
    )


def _changes(shared: SharedRatio, method: str, measure: str, *, mean: bool) -> Row:
    """Return the row of what a method changes of each model, with the mean where it has one."""
    known = [change for model in shared.models if (change := model.change(method, measure))]
    cells = [_figure(model, method, measure) for model in shared.models]
    cells.append(_cell(measure, mean_change(known)) if mean else TableCell())
    return Row(method, shared.method(method), shared.group.ratio, tuple(cells), ratio_of=shared.group.ratio_of)


def _is_apart(cells: Sequence[TableCell], better: str, one: int, another: int) -> bool:
    """Say whether the interval of a mean lies on the better side of another's; no where there is none."""
    (low, high), (low_of_another, high_of_another) = ((cells[at].low, cells[at].high) for at in (one, another))
    if low is None or high is None or low_of_another is None or high_of_another is None:
        return False
    return low > high_of_another if better == "higher" else high < low_of_another


def _places(shared: SharedRatio, method: str, places: Sequence[Place]) -> Row:
    """Return the row of a method's places, marked where they differ by more than their intervals allow."""
    ranks = [one.rank for one in places]
    lowest, middle, highest = min(ranks), fmean(ranks), max(ranks)
    cells = [TableCell(f"{r:g} [{low}, {high}]", f"{r:g}", r, low, high) for r, low, high in places]
    mean = TableCell(f"{middle:.1f} [{lowest:g}, {highest:g}]", f"{middle:.1f}", middle, lowest, highest)
    apart = any(one.worst < other.best or other.worst < one.best for one, other in combinations(places, 2))
    last = mean.marked("differs") if apart else mean
    return Row(method, shared.method(method), shared.group.ratio, (*cells, last), ratio_of=shared.group.ratio_of)


def _ratio(shared: SharedRatio) -> str:
    return share(shared.group.ratio, shared.group.ratio_of) or "fixed"


def _figure(model: ModelRows, method: str, measure: str) -> TableCell:
    """Return what a method changes of a model, or why it has no figure there."""
    at, change = model.place(method), model.change(method, measure)
    if at is None:
        return TableCell()
    if change is None:
        status = notes.status(model.group.records[at])
        return TableCell() if status == "ok" else TableCell(status)
    return starred(_cell(measure, change), model.group.rows[at])


def _cell(measure: str, change: Change) -> TableCell:
    """Return the cell of a change, with its interval where there is one."""
    value, low, high = written_scale(measure, change)
    form = TIMES if is_times(measure) else POINTS
    if math.isnan(low) or math.isnan(high):
        return TableCell(form.show(value), value=value)
    return TableCell(form.show_interval(value, low, high), form.show(value), value, low, high)


def _too_little(model: ModelRows, method: str) -> bool:
    at = model.place(method)
    return at is not None and model.group.records[at].status == "ok" and model.group.removed_too_little(at)


def _notes(shared: SharedRatio, measure: str, rest: Sequence[str]) -> Iterator[str]:
    """Yield what is to be known of the table of one measure."""
    unit = "" if metric(measure).unit_in_cell else f" {metric(measure).unit}"
    dense = [
        f"{shown(model.group.rows[at], measure)}{unit} on {model.name}"
        for model in shared.models
        if (at := model.place("dense")) is not None
    ]
    if dense:
        yield f"dense: {', '.join(dense)}."
    by_reason = defaultdict[str, list[str]](list)
    for method in rest:
        without = [model for model in shared.models if not model.change(method, measure)]
        by_reason[", ".join(f"{_why(model, method, measure)} on {model.name}" for model in without)].append(method)
    for why, names in by_reason.items():
        have = "has" if len(names) == 1 else "have"
        yield f"{', '.join(names)} {have} no mean and no place: {why}."
    if any("missed" in _figure(model, one, measure).marks for model in shared.models for one in shared.methods()):
        of = QUANTITIES.get(shared.group.ratio_of, "the number of parameters")
        yield f"*: missed {of} by more than 0.5 % of the model."
    for name in shared.unused:
        yield f"{name} has more cells under other conditions, of which those with most figures stand here."


def _why(model: ModelRows, method: str, measure: str) -> str:
    at = model.place(method)
    if at is None:
        return "not measured"
    status = notes.status(model.group.records[at])
    return status if status != "ok" else f"no {metric(measure).label}"


def _agreement(found: Sequence[SharedRatio]) -> list[Table]:
    """Return how far orders agree: of each measure between models, and on each model between measures and texts."""
    models = Column("models", "models", words=True, key=True)
    measures = Column("measures", "measures", words=True, key=True)
    between, within = list[tuple[Row, Column, TableCell]](), list[tuple[Row, Column, TableCell]]()
    for shared in found:
        head = Column(f"tau_{_ratio(shared)}", _ratio(shared))
        for measure in shared.measures():
            for one, other in combinations(shared.models, 2):
                line = Row(metric(measure).label, "", None, (text(f"{one.name}, {other.name}"),))
                between.append((line, head, _tau(shared, (one, measure), (other, measure))))
        for model in shared.models:
            for a, b in combinations(shared.measures(), 2):
                line = Row(model.name, "", None, (text(f"{metric(a).label}, {metric(b).label}"),))
                within.append((line, head, _tau(shared, (model, a), (model, b))))
    titles = {"models": "order by a measure on two models", "measures": "orders by two measures on one model"}
    tables = []
    for pairs, cells, first in ((models, between, "measure"), (measures, within, "model")):
        if cells:
            heads, rows = _beside(cells)
            title = f"{titles[pairs.name]}, Kendall's tau by ratio"
            tables.append(
                _table(
                    found[0],
                    f"models-orders-{pairs.name}",
                    title,
                    [pairs, *heads],
                    rows,
                    footnotes=AGREEMENT,
                    head=first,
                )
            )
    return tables


def _beside(cells: Sequence[tuple[Row, Column, TableCell]]) -> tuple[tuple[Column, ...], list[Row]]:
    """Return the grid of cells behind the cells that their rows have already."""
    heads, rows = pivot(cells)
    own = list(dict.fromkeys(row for row, _, _ in cells))
    return heads, [replace(row, cells=(*first.cells, *row.cells)) for first, row in zip(own, rows, strict=True)]


def _tau(shared: SharedRatio, *sides: tuple[ModelRows, str]) -> TableCell:
    """Return the agreement of two orders of the methods that have both figures, the best first in each."""
    figures = [[model.figure(method, measure) for method in shared.methods()] for model, measure in sides]
    signs = [-1 if metric(measure).better == "higher" else 1 for _, measure in sides]
    both = [(a * signs[0], b * signs[1]) for a, b in zip(*figures, strict=True) if a is not None and b is not None]
    tau = kendall(*zip(*both, strict=True)) if len(both) > 1 else math.nan
    return TableCell() if math.isnan(tau) else TableCell(f"{tau:.2f} (n {len(both)})", value=tau)
