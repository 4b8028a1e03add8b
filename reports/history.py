"""Follows a metric over commits: where it reaches a new level, the value of each run, and how a history is shown.

In order: the points of a history and their changes of level; the value of one run, which is a metric of the cell that a
reader names; the history as a table, as lines of CSV and as a plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from bench.records import frame as column_data
from bench.records import run_folder
from bench.records.comparability import conditions_of_metric, differences_of_setups, setups_of_records
from bench.records.quantities import find_quantity, format_value, quantity_of_column
from bench.records.record import Record, name_of_model
from bench.records.samples import SampleFiles, Samples
from bench.stats.intervals import NORMAL_95
from methods.console import say
from methods.errors import UserError
from methods.files import write_atomically
from reports.groups import name_with_ratio, pool_draws
from reports.tables.table import Row, Table, TableCell, cell_of_text, column_of, column_of_words
from reports.text import to_printable

FEWEST = 5  # runs; in fewer no change is marked
BOTH_SIDES = 2  # runs that a level must have held for: the newest run alone is no new level
PENALTY = 3.0  # times noise times log(runs): a further level must lower the sum of distances to the medians by that.
# it marks 4 % of series of 6 runs of noise alone, 1 % from 12 on, and 9 of 10 steps of 6 times the noise in mid-series


@dataclass(frozen=True)
class HistoryPoint:
    """Holds the metric of one run.

    low, high   the 95 % interval; None if the metric has none
    draws       the number of cells whose mean the value is; above 1 there is no interval
    apart       conditions that differ from the run before; a step at such a run may have other causes than the code
    change      whether a new level begins at this run
    """

    run: str
    date: str
    commit: str
    value: float
    low: float | None
    high: float | None
    draws: int
    conditions: dict[str, Any]
    apart: tuple[str, ...] = ()
    change: bool = False


def series_of_points(points: Sequence[HistoryPoint]) -> list[HistoryPoint]:
    """Return the points by date, with the conditions that differ from the point before and with the marks of change."""
    ordered = sorted(points, key=lambda point: (point.date, point.run))
    marked = find_changes([point.value for point in ordered])
    series = []
    for number, point in enumerate(ordered):
        before = ordered[number - 1].conditions if number else point.conditions
        names = sorted(before.keys() | point.conditions.keys())
        apart = tuple(name for name in names if before.get(name) != point.conditions.get(name))
        series.append(replace(point, apart=apart, change=number in marked))
    return series


def find_changes(values: Sequence[float]) -> list[int]:
    """Return the places at which the level of a series changes, its values in order of time; empty below FEWEST.

    R. Killick, P. Fearnhead, I. A. Eckley, "Optimal detection of changepoints with a linear computational cost", 2012
    (ruptures.Pelt), with the distance to a level's median as the cost, so that one odd run makes no level. The noise is
    1.4826 / sqrt(2) times the median distance of neighbours. A metric that repeats exactly has none, and any lasting
    step of it is marked.
    """
    import ruptures

    finite = np.asarray(values, dtype=float)
    if len(finite) < FEWEST or not np.isfinite(finite).all():
        return []
    noise = 1.4826 / math.sqrt(2) * float(np.median(np.abs(np.diff(finite))))
    penalty = max(PENALTY * noise * math.log(len(finite)), 1e-9 * float(np.abs(finite).max()), 1e-300)
    ends = ruptures.Pelt(model="l1", min_size=BOTH_SIDES, jump=1).fit(finite.reshape(-1, 1)).predict(pen=penalty)
    return [int(end) for end in ends[:-1]]


class FigureChoice(NamedTuple):
    """Names a value of a run: a column of report.csv, and the model, label and ratio of the cell. None fits any."""

    metric: str
    model: str | None
    label: str | None
    ratio: float | None


class _Lacking(UserError):
    """Is raised for a folder that is no run, or that has no value of the named cell."""


def points_of(runs: Sequence[Path], choice: FigureChoice) -> list[HistoryPoint]:
    """Return the points of the runs that have the named cell, and print how many have not.

    Raises UserError if no run has it.
    """
    points: list[HistoryPoint] = []
    lacking: list[_Lacking] = []
    for run in runs:
        try:
            points.append(_point(run, choice))
        except _Lacking as reason:
            lacking.append(reason)
    if lacking and not points:
        raise lacking[0]
    if lacking:
        say(f"left out {len(lacking)} of {len(runs)} folders; of the first: {lacking[0]}")
    return points


def _point(run: Path, choice: FigureChoice) -> HistoryPoint:
    """Return the metric of the cell of a run that `choice` names, or the mean of its draws. Raises UserError."""
    cells = _cells_of_choice(run, choice)
    record, row = cells[0]
    environment = record.environment
    value = float((pool_draws([draw for _, draw in cells]) if len(cells) > 1 else row)[choice.metric])
    low, high = _interval(row, choice.metric) if len(cells) == 1 else (None, None)
    return HistoryPoint(
        run=run.name,
        date=str(environment.get("date", "")),
        commit=str(environment.get("commit", ""))[:8] + "*" * bool(environment.get("dirty")),
        value=value,
        low=low,
        high=high,
        draws=len(cells),
        conditions=conditions_of_metric(record, choice.metric),
    )


def _cells_of_choice(run: Path, choice: FigureChoice) -> list[tuple[Record, dict[str, Any]]]:
    """Return the cells of a run that `choice` names, with their rows: one cell, or draws and seeds of one."""
    metric, model, label, ratio = choice
    files = SampleFiles()
    try:
        record_by_key = run_folder.read_records(run)
    except UserError as error:
        raise _Lacking(str(error)) from None
    records = list(record_by_key.values())
    quantity, folders = find_quantity(metric), [run_folder.folder_of_samples(run, key) for key in record_by_key]
    samples = Samples(folders, records, files) if quantity and quantity.part == "flips" else None
    rows = column_data.rows_of_records(records, samples)
    columns = column_data.columns_of_rows(rows)
    figures = [name for name in columns if _has_number(rows, name)]
    if metric not in figures:
        raise _Lacking(f"{run} has no metric {metric!r}; it has {', '.join(figures)}")
    named = [model in (None, record.cell.model, name_of_model(record)) for record in records]
    if not any(named):
        present = ", ".join(dict.fromkeys(map(name_of_model, records)))
        raise _Lacking(f"{run} has no model {model!r}; it has {present}")
    names = [name_with_ratio(record, records) for record in records]
    numbers = [
        number
        for number, record in enumerate(records)
        if named[number]
        and label in (None, record.cell.label)
        and ratio in (None, record.cell.ratio)
        and rows[number].get(metric) is not None
    ]
    if len({names[number] for number in numbers}) != 1:
        which = "several cells" if numbers else "no cell"
        present = "; ".join(dict.fromkeys(names))
        refusal = UserError if numbers else _Lacking
        raise refusal(f"{run} has {which} of that --label and --ratio with {metric}; it has {present}")
    if reason := _not_alike([records[number] for number in numbers], records):
        raise UserError(f"{run} has {names[numbers[0]]} {reason}")
    keys = list(record_by_key)
    run_folder.refuse_unfit_samples(run, {keys[number]: records[number] for number in numbers}, files)
    return [(records[number], rows[number]) for number in numbers]


def _not_alike(chosen: Sequence[Record], records: Sequence[Record]) -> str:
    """Return why cells of one name in a run are not draws of one cell; empty if they are."""
    of = {id(record): setup for record, setup in zip(records, setups_of_records(records), strict=True)}
    record_by_setup = {of[id(record)]: record for record in chosen}
    if len(record_by_setup) == 1:
        return ""
    models = {record.cell.model: name_of_model(record) for record in chosen}
    if len(models) > 1:
        names = models.values() if len(set(models.values())) == len(models) else models
        return f"on several models, whose mean says nothing: {', '.join(names)}; --model names one"
    differences, ways = differences_of_setups(records), list[str]()
    for setup, record in record_by_setup.items():
        ways.append(", ".join([record.cell.device, record.cell.dtype, *differences[setup]]))
    return f"under several conditions, whose mean says nothing: {'; '.join(ways)}; name runs of one"


def _interval(row: Mapping[str, Any], metric: str) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of a metric, from its standard error if it has no interval of its own."""
    spread = (row.get(f"{metric}_{end}") for end in ("low", "high", "stderr"))
    low, high, stderr = (math.nan if figure is None else float(figure) for figure in spread)
    value = float(row[metric])
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    return (value - NORMAL_95 * stderr, value + NORMAL_95 * stderr) if math.isfinite(stderr) else (None, None)


DIRTY = "*: files differed from the commit."
INTERVAL = "intervals: of each run by itself; runs share documents and windows, so a step within can be real."
CHANGE = (
    "new level: it differs from the runs before by more than their noise, and has held for two runs; "
    f"marked from {FEWEST} runs on."
)
POOLED = "mean over draws or seeds, of a perplexity the geometric one, without an interval."


def _has_number(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(isinstance(row.get(name), int | float) for row in rows)


def table_of_history(points: Sequence[HistoryPoint], name: str) -> Table:
    """Return the table of the metric `name`, with one row per run; new levels are marked."""
    columns = [
        column_of_words("commit"),
        column_of_words("run"),
        replace(column_of(name), better=None),
        column_of_words("level", ""),
    ]
    columns.append(column_of_words("apart", "conditions that differ from the run before"))
    rows = [Row(point.date[:16].replace("T", " "), "", None, _cells(point, name)) for point in points]
    filled = {at for row in rows for at, cell in enumerate(row.cells) if cell.value}
    used = [at for at in range(len(columns)) if at < 3 or at in filled]
    dirty, interval = (any(p.commit.endswith("*") for p in points), any(p.low is not None for p in points))
    pooled = any(point.draws > 1 for point in points)
    footnotes = (*[DIRTY] * dirty, *[INTERVAL] * interval, CHANGE, *[POOLED] * pooled)
    return Table("history", "history", "", "", (), tuple(columns), tuple(rows), (), footnotes, "date").only(used)


def _cells(point: HistoryPoint, name: str) -> tuple[TableCell, ...]:
    row = {name: point.value, f"{name}_low": point.low, f"{name}_high": point.high}
    if quantity_of_column(name).spread == "stderr" and point.low is not None and point.high is not None:
        row[f"{name}_stderr"] = (point.high - point.low) / 2 / NORMAL_95
    value = TableCell(format_value(row, name), value=point.value, low=point.low, high=point.high)
    level, apart = "new level" if point.change else "", ", ".join(point.apart)
    return (
        cell_of_text(point.commit),
        cell_of_text(point.run),
        value,
        TableCell(level, value=level),
        TableCell(apart, value=apart),
    )


def csv_of_history(points: Sequence[HistoryPoint], name: str) -> tuple[list[str], list[list[object]]]:
    """Return the headings, and a line of values per run."""
    lines: list[list[object]] = [
        [p.date, p.commit, p.run, p.value, p.low, p.high, p.draws, int(p.change), " ".join(p.apart)] for p in points
    ]
    return ["date", "commit", "run", name, "low", "high", "draws", "new_level", "conditions_apart"], lines


def draw_history(points: Sequence[HistoryPoint], name: str, title: str, file: Path) -> None:
    """Draw the values with their intervals over the commits, evenly spaced, with new levels and changed conditions.

    Raises Unwritable if the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "prunebench", "text.parse_math": False}):
        figure, axes = pyplot.subplots(figsize=(max(5.0, 0.45 * len(points) + 2), 3.6), layout="constrained")
        _draw(axes, points, name, title)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(file.suffix, {})
        drawn = BytesIO()
        figure.savefig(drawn, format=file.suffix.removeprefix("."), dpi=150, metadata=metadata)
        pyplot.close(figure)
    write_atomically(file, drawn.getvalue())


def _draw(axes: Any, points: Sequence[HistoryPoint], name: str, title: str) -> None:
    places = range(len(points))
    values = [point.value for point in points]
    ends = [
        (point.value if point.low is None else point.low, point.value if point.high is None else point.high)
        for point in points
    ]
    below = [value - low for value, (low, _) in zip(values, ends, strict=True)]
    above = [high - value for value, (_, high) in zip(values, ends, strict=True)]
    axes.errorbar(places, values, yerr=[below, above], fmt="o", color="#0072B2", ecolor="#999999", capsize=2, zorder=3)
    starts = [n for n, point in enumerate(points) if point.change]
    for first, last in zip([0, *starts], [*starts, len(points)], strict=True):
        level = median(values[first:last])
        axes.hlines(level, first - 0.4, last - 0.6, color="#0072B2", linewidth=1, alpha=0.6)
    for n in starts:
        axes.axvline(
            n - 0.5, color="#D55E00", linestyle="--", linewidth=1, label="new level" if n == starts[0] else None
        )
    apart = [n for n, point in enumerate(points) if point.apart]
    for n in apart:
        axes.axvline(n - 0.5, color="#999999", linestyle=":", label="other conditions" if n == apart[0] else None)
    axes.set_xticks(
        list(places), [to_printable(point.commit or point.date[:10]) for point in points], rotation=60, fontsize=7
    )
    quantity = quantity_of_column(name)
    axes.set_ylabel(to_printable(f"{quantity.heading} ({quantity.unit})" if quantity.unit else quantity.heading))
    axes.set_title(to_printable(title), fontsize=9)
    if starts or apart:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
