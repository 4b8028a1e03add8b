"""Published figures beside measured ones: both, their difference, and why they are not the same figure.

papers (reports.printed), records -> for each printed row that a cell is of, a table: a row for each measure

A printed row is of a cell if the model and one of the methods are the same, and the ratio: within CLOSE where the cell
was asked for one; a cell whose parameters alone decide is shown whatever it removed. Beside each figure stands its
share of the dense model's, of either side's own, since that differs least between two ways to ask the same question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from statistics import fmean
from typing import Any

from bench.record import Record, label
from reports import frame, notes
from reports.frame import (
    by_setup,
    dense_peer,
    display_name,
    is_accuracy,
    named,
    requested_ratio,
    setup,
    task_column,
)
from reports.metrics import METRICS, percent, short
from reports.printed import Paper, Printed
from reports.tables import Cell, Column, Row, Table, figure

CLOSE = 0.03  # of the dense model, between the printed ratio and that of a cell that is set beside it
APART = 0.005  # from which on another ratio is said
KINDS = ("perplexity", "tasks")
COLUMNS = (
    Column("published", "published"),
    Column("here", "here"),
    Column("difference", "difference"),
    Column("published_of_dense", "published, of dense"),
    Column("here_of_dense", "here, of dense"),
)


@dataclass(frozen=True)
class Pair:
    """A printed row and a cell of the same model, method and about the ratio, each with its dense model.

    row  the cell's of the frame
    """

    paper: Paper
    printed: Printed
    printed_dense: Printed
    record: Record
    row: Mapping[str, Any]
    dense: Record | None


def tables(records: Sequence[Record], papers: Sequence[Paper]) -> list[Table]:
    """A table for each pair. Raises ValueError where no cell is of a published model and method."""
    pairs = list(_pairs(records, papers))
    measured = [record for record in records if any(pair.record is record for pair in pairs)]
    here = notes.protocol(measured, (), KINDS) if measured else []
    found = [_table(pair, number, here) for number, pair in enumerate(pairs, start=1)]
    if not found:
        published = ", ".join(dict.fromkeys(model for paper in papers for model, _, _ in paper.models))
        models = ", ".join(dict.fromkeys(display_name(record) for record in records))
        raise ValueError(f"no cell of these runs has a published row: there are {published}; the runs have {models}")
    return found


def _pairs(records: Sequence[Record], papers: Sequence[Paper]) -> Iterator[Pair]:
    rows, peers = frame.rows(records), by_setup(records)
    for paper in papers:
        for _, names, printed_rows in paper.models:
            dense = next((row for row in printed_rows if "dense" in row.methods), Printed(("dense",)))
            for printed in printed_rows:
                for record, row in zip(records, rows, strict=True):
                    pair = Pair(paper, printed, dense, record, row, dense_peer(record, peers[setup(record)]))
                    if _is_of(record, names, printed) and _both(pair):
                        yield pair


def _is_of(record: Record, names: Sequence[str], printed: Printed) -> bool:
    here = {display_name(record), PurePath(record.cell["model"]).name}
    if record.status != "ok" or not here & {*names, *(PurePath(name).name for name in names)}:
        return False
    if record.cell["method"] not in printed.methods:
        return False
    asked = requested_ratio(record)
    return asked is None or printed.ratio is None or abs(record.measured["ratio"] - printed.ratio) <= CLOSE


def _both(pair: Pair) -> bool:
    """Whether anything but the size is printed and has been measured."""
    return any(row.cells[1].value is not None for row in (*_perplexities(pair), *_accuracies(pair)))


def _table(pair: Pair, number: int, here: Sequence[str]) -> Table:
    """`here` says how the figures of these runs came about."""
    rows = (*_sizes(pair), *_perplexities(pair), *_accuracies(pair))
    table = Table(
        name=f"against-{pair.paper.name}-{number}",
        view="against",
        model=display_name(pair.record),
        title=f"{named(pair.record)}, published ({pair.paper.name}) and here",
        conditions=tuple(notes.conditions([pair.record])),
        columns=COLUMNS,
        rows=tuple(replace(row, method=pair.record.cell["method"]) for row in rows),
        notes=tuple(_notes(pair)),
        protocol=(*here, *(f"{pair.paper.name}: {said}" for said in (f"{pair.paper.source}.", *pair.paper.notes))),
        head="measure",
    )
    return table.only([at for at in range(len(COLUMNS)) if any(row.cells[at].value is not None for row in rows)])


def _sizes(pair: Pair) -> Iterator[Row]:
    for name in ("ratio", "layers", "prune_seconds"):
        printed = getattr(pair.printed, name)
        if printed is not None:
            yield _row(METRICS[name].label, printed, figure(pair.row, name), METRICS[name].show)


def _perplexities(pair: Pair) -> Iterator[Row]:
    """Of the first text whose name holds the printed word."""
    for word, printed in pair.printed.perplexity.items():
        text = next((name for name in pair.record.measured.get("perplexity", {}) if word in name), None)
        here = Cell() if text is None else figure(pair.row, f"perplexity_{text}")
        measured = pair.dense.measured.get("perplexity", {}) if pair.dense else {}
        dense = measured[text]["perplexity"] if text in measured else None
        others = pair.printed_dense.perplexity.get(word), dense
        yield _row(f"ppl {word}", printed, here, METRICS["perplexity_"].show, dense=others)


def _accuracies(pair: Pair) -> Iterator[Row]:
    """Of the tasks, and of the average that was printed."""
    here, dense = (_right(record) if record else {} for record in (pair.record, pair.dense))
    for name, printed in pair.printed.tasks.items():
        column = task_column(name, pair.record.measured["tasks"][name]) if name in here else ""
        cell = figure(pair.row, column) if column else _share(_mean(here, [name]))
        others = pair.printed_dense.tasks.get(name), _mean(dense, [name])
        yield _row(short(name), printed, cell, percent, dense=others)
    if pair.printed.average:
        over, printed = pair.printed.average
        theirs = pair.printed_dense.average
        others = theirs[1] if theirs and theirs[0] == over else None, _mean(dense, over)
        said = f"average of {', '.join(map(short, over))}"
        yield _row(said, printed, _share(_mean(here, over)), percent, dense=others)


def _right(record: Record) -> dict[str, float]:
    """The share of each task's documents that were right."""
    tasks = record.measured.get("tasks", {})
    return {name: task[task["main"]]["value"] for name, task in tasks.items() if is_accuracy(task)}


def _mean(right: Mapping[str, float], names: Sequence[str]) -> float | None:
    """The mean over tasks, a group such as mmlu being the mean of its own; None unless each was measured."""
    values = []
    for name in names:
        own = [right[name]] if name in right else [value for one, value in right.items() if one.startswith(f"{name}_")]
        if not own:
            return None
        values.append(fmean(own))
    return fmean(values)


def _share(value: float | None) -> Cell:
    return Cell() if value is None else Cell(percent(value), value=value)


def _row(
    name: str,
    printed: float,
    here: Cell,
    show: Callable[[float], str],
    *,
    dense: tuple[float | None, float | None] = (None, None),
) -> Row:
    """`dense` are the printed and the measured figure of the dense model."""
    difference = Cell()
    if isinstance(here.value, int | float):
        apart = float(here.value) - printed
        difference = Cell(f"{'+' if apart >= 0 else '-'}{show(abs(apart))}", value=apart)
    kept = [_kept(figure, beside) for figure, beside in zip((printed, here.value), dense, strict=True)]
    return Row(name, "", None, (Cell(show(printed), value=printed), here, difference, *kept))


def _kept(value: Any, dense: float | None) -> Cell:
    """'80 %' of the dense model's, or of a perplexity, which grows, '2.55x'."""
    if not isinstance(value, int | float) or not dense:
        return Cell()
    share = value / dense
    return Cell(f"{100 * share:.0f} %" if share < 1.5 else f"{share:.3g}x", value=share)


def _notes(pair: Pair) -> Iterator[str]:
    """What is known to be otherwise in this cell."""
    removed, printed = pair.record.measured["ratio"], pair.printed.ratio
    if printed is not None and abs(removed - printed) > APART:
        show = METRICS["ratio"].show
        yield f"another ratio: {show(printed)} published, {show(removed)} here."
    layers = pair.record.measured["layers"]
    if pair.printed.layers not in (None, layers):
        yield f"another depth: {pair.printed.layers} layers are published, {label(pair.record.cell)} leaves {layers}."
    yield from _dense_apart(pair)
    missing = [name for name in pair.printed.tasks if _mean(_right(pair.record), [name]) is None]
    if missing:
        yield f"not measured here: {', '.join(missing)}."


def _dense_apart(pair: Pair) -> Iterator[str]:
    """By how much the dense models differ before anything is pruned: what the way of measuring alone does."""
    right = _right(pair.dense) if pair.dense else {}
    here = {name: _mean(right, [name]) for name in pair.printed_dense.tasks}
    gaps = {
        name: 100 * abs(value - pair.printed_dense.tasks[name]) for name, value in here.items() if value is not None
    }
    if gaps:
        most = max(gaps, key=lambda name: gaps[name])
        yield (
            f"another way to ask: already the dense models differ by up to {gaps[most]:.1f} points ({short(most)}), "
            f"{fmean(gaps.values()):.1f} on average over {len(gaps)} tasks."
        )
