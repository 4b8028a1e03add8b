"""From a group of cells that are compared to the rows of a table: figures, the marks that compare them, the table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from bench.records.columns import amount_column
from bench.records.guessing import may_be_guessed
from bench.records.record import Record, display_name, ratio_of, requested_ratio, share
from bench.records.samples import Samples
from bench.records.served import ServedRecord
from reports import notes
from reports.blocks import TableGroup, blocks
from reports.metrics import METRICS, metric
from reports.tables import order, significance
from reports.tables.table import Column, Row, Table, TableCell, figure, with_best_marked

COST = ("prefill_tokens_per_second", "decode_ms_per_token", "weight_bytes", "kv_bytes_per_token", "peak_memory_bytes")
SIZES = ("ratio", "parameters", "active_parameters")
UNRANKED = (*SIZES, "prune_seconds", "heal_seconds", *COST)  # nobody looks for the cheapest in bold


@dataclass(frozen=True)
class ReportData:
    """What the tables of a report are made from.

    reference  the label or the row's name of the method that the others are tested against; empty for no tests
    samples    those of the records, read where something is tested
    needs      what each method looks at, by its name: "calibration, gradients"
    served     what inference engines made of the models
    """

    records: Sequence[Record]
    reference: str = ""
    samples: Samples = field(default_factory=Samples)
    needs: Mapping[str, str] = field(default_factory=dict)
    served: Sequence[ServedRecord] = ()

    @cached_property
    def setups(self) -> list[list[TableGroup]]:
        """Return the groups of cells of each setup, one for each ratio, their rows in the order of the tables."""
        return [[order.ordered(one, order.measure(one)) for one in groups] for groups in blocks(self.records)]

    @property
    def groups(self) -> list[TableGroup]:
        """Return the groups of all setups."""
        return list(chain(*self.setups))


def compared(group: TableGroup, columns: Sequence[Column], data: ReportData) -> tuple[list[Row], list[str]]:
    """Return the rows of a group and what must be said of the tests.

    The best figures, missed ratios and differences from the reference are marked, the first and the last as tests show.
    """
    tested = significance.tested(data.reference, group, [column.name for column in columns], data.samples)
    rows, amount = [], amount_column(group.ratio_of)
    for place, (record, figures) in enumerate(zip(group.records, group.rows, strict=True)):
        cells = [figure(figures, column.name) for column in columns]
        for number, column in enumerate(columns):
            cells[number] = starred(cells[number], figures) if column.name == amount else cells[number]
            if (place, column.name) in tested.differs:
                cells[number] = cells[number].marked("differs")
            if not group.is_drawn(place) and may_be_guessed(figures, column.name):
                cells[number] = cells[number].marked("guess")
        rows.append(row_of(record, group.label(place), cells))
    eligible = [_may_win(group, place) for place in range(len(group.records))]
    for number, column in enumerate(columns):
        if column.better and column.name not in UNRANKED:
            is_better = significance.shown_better(group, column.name, column.better, data.samples)
            rows = with_best_marked(rows, number, column.better, eligible, is_better)
    return rows, [*tested.notes, *_guesses(rows, columns, group)]


def _guesses(rows: Sequence[Row], columns: Sequence[Column], group: TableGroup) -> list[str]:
    """Say what the mark of an accuracy that may be that of guesses means, where a cell has it."""
    marked = [
        column.name for number, column in enumerate(columns) if any("guess" in row.cells[number].marks for row in rows)
    ]
    chances = {name: next(row[f"{name}_chance"] for row in group.rows if f"{name}_chance" in row) for name in marked}
    each = ", ".join(f"{metric(name).label} {METRICS['average'].show(chance)}" for name, chance in chances.items())
    return [f"‡: not shown to be above the accuracy of guesses, in %: {each}."] if each else []


def _may_win(group: TableGroup, place: int) -> bool:
    """Return whether a row can be the best of its ratio: the dense model and what removed too little cannot."""
    record = group.records[place]
    return record.cell["method"] != "dense" and record.status == "ok" and not group.removed_too_little(place)


def row_of(record: Record, label: str, cells: Sequence[TableCell]) -> Row:
    """Make the row of a record; one that failed says so in a word instead of figures."""
    failure = None if record.status == "ok" else notes.status(record)
    return Row(label, record.cell["method"], requested_ratio(record), tuple(cells), failure, ratio_of(record.cell))


def starred(cell: TableCell, *rows: Mapping[str, object]) -> TableCell:
    """Add a star to a cell if one of the rows of the frame that it comes from missed its ratio."""
    if not any("missed_ratio" in str(row["flags"]) for row in rows):
        return cell
    return replace(cell, text=f"{cell.text}*", brief=f"{cell.short}*", marks=(*cell.marks, "missed"))


def removed(record: Record) -> TableCell:
    """Make the cell of the share of the parameters that a record says was removed."""
    ratio = record.measured.get("ratio")
    return TableCell() if ratio is None else TableCell(METRICS["ratio"].show(ratio), value=ratio)


def kind(name: str) -> str:
    """Return what notes.protocol calls the kind of a column of the frame."""
    kinds = {
        "average": "tasks",
        "kept": "tasks",
        "answer_bpb": "tasks",
        "prefill_speed": "speed",
        "decode_speed": "speed",
    }
    return "perplexity" if name.startswith("perplexity_") else kinds.get(name, name)


def ratio_word(group: TableGroup) -> str:
    """Return the ratio of a group as its tables are named: '0.3', '0.3 of the decoder', or 'fixed'."""
    return share(group.ratio, group.ratio_of) or "fixed"


def of_group(
    view: str,
    group: TableGroup,
    columns: Sequence[Column],
    rows: Sequence[Row],
    footnotes: Collection[str],
    *,
    name: str = "",
    title: str = "",
    said: Sequence[str] | None = None,
) -> Table:
    """Make the table of a view for one group; by default it is named and titled by the ratio.

    said  its notes, in place of those of the cells that missed the ratio or have no figures
    """
    return Table(
        name=name or f"{view}-{ratio_word(group)}",
        view=view,
        model=display_name(group.records[0]),
        title=title or notes.ratio(group.records),
        conditions=(*notes.conditions(list(chain(*group.drawn))), *group.apart),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(notes.exceptions(group.spoken_of(), beside=group.beside) if said is None else said),
        footnotes=tuple(footnotes),
    )
