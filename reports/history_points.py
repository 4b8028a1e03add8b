"""Takes from each run the one figure that a history is made of: a metric of the cell that a reader names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.records import columns as column_data
from bench.records import run_folder
from bench.records.comparability import apart, identity, metric_conditions, setups
from bench.records.record import Record, display_name
from bench.records.samples import SampleFiles
from bench.regression.history import HistoryPoint
from bench.stats.intervals import NORMAL_95
from bench.system.console import say
from methods.errors import UserError
from reports.blocks import named_beside, pooled


class AskedFigure(NamedTuple):
    """Names a figure of a run: a column of report.csv, and the model, label and ratio of the cell; None: any."""

    metric: str
    model: str | None
    label: str | None
    ratio: float | None


class _Lacking(UserError):
    """Is raised where a folder is no run, or has no figure of the cell that is asked for."""


def points(runs: Sequence[Path], asked: AskedFigure) -> list[HistoryPoint]:
    """Return the points of the runs that have the cell, and say how many have not. Raises UserError where none has."""
    found: list[HistoryPoint] = []
    lacking: list[_Lacking] = []
    for run in runs:
        try:
            found.append(_point(run, asked))
        except _Lacking as reason:
            lacking.append(reason)
    if lacking and not found:
        raise lacking[0]
    if lacking:
        say(f"left out {len(lacking)} of {len(runs)} folders; of the first: {lacking[0]}")
    return found


def _point(run: Path, asked: AskedFigure) -> HistoryPoint:
    """Return the metric of the one cell of a run that the flags name, or the mean of its draws. Raises UserError."""
    wanted = _wanted(run, asked)
    record, row = wanted[0]
    environment = record.environment
    value = float((pooled([one for _, one in wanted]) if len(wanted) > 1 else row)[asked.metric])
    low, high = _interval(row, asked.metric) if len(wanted) == 1 else (None, None)
    return HistoryPoint(
        run=run.name,
        date=str(environment.get("date", "")),
        commit=str(environment.get("commit", ""))[:8] + "*" * bool(environment.get("dirty")),
        value=value,
        low=low,
        high=high,
        draws=len(wanted),
        conditions=metric_conditions(record, asked.metric),
    )


def _wanted(run: Path, asked: AskedFigure) -> list[tuple[Record, dict[str, Any]]]:
    """Return the cells of a run that the flags name, with their rows: one, or draws and seeds of one."""
    metric, model, label, ratio = asked
    files = SampleFiles()
    try:
        found = run_folder.records(run)
    except UserError as error:
        raise _Lacking(str(error)) from None
    records = list(found.values())
    rows = column_data.rows(records)
    columns = column_data.columns(rows)
    figures = [name for name in columns if any(isinstance(row.get(name), int | float) for row in rows)]
    if metric not in figures:
        raise _Lacking(f"{run} has no metric {metric!r}; it has {', '.join(figures)}")
    named = [model in (None, record.cell["model"], display_name(record)) for record in records]
    if not any(named):
        there = ", ".join(dict.fromkeys(map(display_name, records)))
        raise _Lacking(f"{run} has no model {model!r}; it has {there}")
    cells = [identity(record) for record in records]
    names = [named_beside(record, records) for record in records]
    wanted = [
        number
        for number, cell in enumerate(cells)
        if named[number]
        and label in (None, cell["label"])
        and ratio in (None, cell["ratio"])
        and rows[number].get(metric) is not None
    ]
    if len({names[number] for number in wanted}) != 1:
        which = "several cells" if wanted else "no cell"
        there = "; ".join(dict.fromkeys(names))
        refusal = UserError if wanted else _Lacking
        raise refusal(f"{run} has {which} of that --label and --ratio with {metric}; it has {there}")
    if reason := _not_alike([records[number] for number in wanted], records):
        raise UserError(f"{run} has {names[wanted[0]]} {reason}")
    keys = list(found)
    run_folder.refuse_unfit_samples(run, {keys[number]: records[number] for number in wanted}, files)
    return [(records[number], rows[number]) for number in wanted]


def _not_alike(wanted: Sequence[Record], records: Sequence[Record]) -> str:
    """Say what keeps cells of one name in a run from being draws of one cell; empty where nothing does."""
    of = {id(record): setup for record, setup in zip(records, setups(records), strict=True)}
    found = {of[id(record)]: record for record in wanted}
    if len(found) == 1:
        return ""
    models = {str(record.cell["model"]): display_name(record) for record in wanted}
    if len(models) > 1:
        names = models.values() if len(set(models.values())) == len(models) else models
        return f"on several models, whose mean says nothing: {', '.join(names)}; --model names one"
    said, ways = apart(records), list[str]()
    for setup, record in found.items():
        ways.append(", ".join([record.cell["device"], record.cell["dtype"], *said[setup]]))
    return f"under several conditions, whose mean says nothing: {'; '.join(ways)}; name runs of one"


def _interval(row: Mapping[str, Any], metric: str) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of a metric, by its standard error where it has none of its own."""
    spread = (row.get(f"{metric}_{end}") for end in ("low", "high", "stderr"))
    low, high, stderr = (math.nan if figure is None else float(figure) for figure in spread)
    value = float(row[metric])
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    return (value - NORMAL_95 * stderr, value + NORMAL_95 * stderr) if math.isfinite(stderr) else (None, None)
