"""What a table is before it is written down: columns, rows, cells with their raw figures and marks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from reports.metrics import MISSING, metric, shown

DIFFERS = "†"
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True)
class Column:
    """One column.

    name     the frame's column that it shows, else a word of its own
    label    the heading
    unit     said in the heading; empty where it stands in the cells or there is none
    better   which way is better, None where neither is
    group    columns of a group stay together where a table has to be split
    brief    whether a terminal leaves out the spread, which the other formats have room for
    detail   whether a terminal leaves out the column
    words    whether the cells are words, which are aligned on the left
    key      whether it tells apart what has the same label, and is repeated where a table goes on below
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    group: str = ""
    brief: bool = False
    detail: bool = False
    words: bool = False
    key: bool = False

    @property
    def head(self) -> str:
        """'average (%) ↑'."""
        return f"{self.label}{f' ({self.unit})' if self.unit else ''}{ARROWS[self.better]}"


@dataclass(frozen=True)
class Entry:
    """One figure as it is read, and as it is.

    text, brief        with and without its spread; brief is empty where both are the same
    value              the raw figure; None where there is none, a text where the cell is words
    low, high, stderr  its 95 % interval and its standard error, where there are
    marks              best, second (of the methods at this ratio), differs (from what it was tested against, p < 0.05),
                       missed (the ratio), doubtful (of a timing)
    of                 label and name of the method that it is of, where a row holds several
    """

    text: str = MISSING
    brief: str = ""
    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    stderr: float | None = None
    marks: tuple[str, ...] = ()
    of: tuple[str, str] | None = None

    @property
    def short(self) -> str:
        """Without the spread."""
        return self.brief or self.text

    def marked(self, mark: str) -> Entry:
        """The same with one mark more."""
        return replace(self, marks=(*self.marks, mark))


@dataclass(frozen=True)
class Row:
    """One line of a table.

    label    how the method is shown;  method  its name
    ratio    the one that was asked for, None for the dense model and for fixed ones
    failure  why there are no figures, in a word or two; None where there are
    """

    label: str
    method: str
    ratio: float | None
    cells: tuple[Entry, ...]
    failure: str | None = None


@dataclass(frozen=True)
class Table:
    """A table with everything that must be known to read it.

    name        for a file: "main-0.3"
    view        which view it belongs to
    model       the model's name for a reader
    title       what this table shows: "ratio 0.3: 11 of 30 layers, 95.6 M parameters"
    conditions  "cpu, float32, 2 threads", "quick"
    notes       of this table: cells without figures, missed ratios, doubts, what the marks say
    protocol    of all tables of the view, the same in each: how to read them and how they were measured
    head        what the rows are: methods, or values of a parameter
    """

    name: str
    view: str
    model: str
    title: str
    conditions: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()
    head: str = "method"

    def groups(self) -> list[Table]:
        """The table split by the groups of its columns, in their order."""
        parts = []
        for group in dict.fromkeys(column.group for column in self.columns):
            chosen = [number for number, column in enumerate(self.columns) if column.group == group]
            parts.append(self.only(chosen))
        return parts

    def marks(self) -> set[str]:
        """The marks that occur in it."""
        return {mark for row in self.rows for cell in row.cells for mark in cell.marks}

    def only(self, chosen: Sequence[int]) -> Table:
        """The table with these columns, by number."""
        rows = [replace(row, cells=tuple(row.cells[number] for number in chosen)) for row in self.rows]
        return replace(self, columns=tuple(self.columns[number] for number in chosen), rows=tuple(rows))


def column(name: str, group: str = "", *, brief: bool = False, detail: bool = False) -> Column:
    """The column of a figure of the frame, as reports.metrics has it."""
    found = metric(name)
    unit = found.unit if found.unit and not found.unit_in_cell else ""
    return Column(name, found.label, unit, found.better, group, brief, detail)


def figure(row: Mapping[str, Any], name: str) -> Entry:
    """The cell of a row of the frame in the column `name`, with its interval and standard error."""
    value = row.get(name)
    if value is None:
        return Entry()
    low, high, stderr = (
        None if (found := row.get(f"{name}{end}")) is None else float(found) for end in ("_low", "_high", "_stderr")
    )
    return Entry(shown(row, name), shown(row, name, spread=False), value, low, high, stderr)


def written(cell: Entry, *, brief: bool = False) -> str:
    """The text of a cell with the sign of a difference that was tested."""
    return (cell.short if brief else cell.text) + DIFFERS * ("differs" in cell.marks)


def words(name: str, label: str | None = None) -> Column:
    """A column of words."""
    return Column(name, label or name, words=True)


def text(value: str | None) -> Entry:
    """A cell of words."""
    return Entry(value or MISSING, value=value)


def ranked(rows: Sequence[Row], number: int, better: str, eligible: Sequence[bool]) -> list[Row]:
    """The rows with the best and the second best figure of a column marked, of the eligible ones.

    Equal figures share a mark. One figure alone is no comparison, and is not marked.
    """
    figures = [row.cells[number].value for row in rows]
    chosen = [
        figure
        for figure, may in zip(figures, eligible, strict=True)
        if may and isinstance(figure, int | float) and math.isfinite(figure)
    ]
    if len(chosen) < 2:
        return list(rows)
    order = sorted(set(chosen), reverse=better == "higher")
    marks = {order[0]: "best"} | ({order[1]: "second"} if len(order) > 1 and chosen.count(order[0]) == 1 else {})
    return [
        replace(row, cells=(*row.cells[:number], row.cells[number].marked(marks[figure]), *row.cells[number + 1 :]))
        if may and figure in marks
        else row
        for row, figure, may in zip(rows, figures, eligible, strict=True)
    ]
