"""What a table is before it is written down: columns, and rows of cells with their raw figures and marks.

Every table of the suite is a `Table`; reports.formats writes it for a terminal, as Markdown, LaTeX, HTML and CSV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.records.quantities import MISSING, format_value, metric_of

SIGNS = {"differs": "†", "guess": "‡"}  # of marks that stand behind a figure
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    name     the column of the frame (bench.records.frame) that it shows, else a word of its own
    label    the heading
    unit     said in the heading; empty where it stands in the cells or there is none
    better   which way is better, None where neither is
    group    columns of a group stay together where a table has to be split
    brief    whether a terminal leaves out the spread, which the other formats have room for
    detail   whether a terminal leaves out the column
    words    whether the cells are words, which are aligned on the left
    key      whether it tells apart what has the same label, and is repeated where a table goes on below
    asked    the ratio of its cells and of what it is a share, where that is another one in each column
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
    ratio_and_base: tuple[float | None, str] | None = None

    @property
    def head(self) -> str:
        """Return the whole heading, such as 'average (%) ↑'."""
        return f"{self.label}{f' ({self.unit})' if self.unit else ''}{ARROWS[self.better]}"


@dataclass(frozen=True)
class TableCell:
    """One figure: the text that is read, and the raw value.

    text, brief        with and without its spread; brief is empty where both are the same
    value              the raw figure; None where there is none, a text where the cell is words
    low, high, stderr  its 95 % interval and its standard error, where there are
    marks              best (of the methods at this ratio, shown to be better than the next), differs (from what it was
                       tested against, p < 0.05), guess (an accuracy that is not shown to be above that of guesses),
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
        """Return the text without its spread."""
        return self.brief or self.text

    def with_mark(self, mark: str) -> TableCell:
        """Return the cell with one mark more."""
        return replace(self, marks=(*self.marks, mark))


@dataclass(frozen=True)
class Row:
    """One line of a table.

    label    what is shown in front of the cells;  method  the name of the method that it is about
    ratio    the one that was asked for, None for the dense model and for fixed ones
    failure  why there are no figures, in a word or two; None where there are
    ratio_of what the ratio is a share of, as bench.plan.cell.base_of_ratio says
    """

    label: str
    method: str
    ratio: float | None
    cells: tuple[TableCell, ...] = ()
    failure: str | None = None
    ratio_of: str = "all"


@dataclass(frozen=True)
class Table:
    """A table with everything that a reader must know.

    name        for a file: "main-0.3"
    view        which view it belongs to
    model       the model's name for a reader
    title       what this table shows: "ratio 0.3: 11 of 30 layers, 95.6 M parameters"
    conditions  "cpu, float32, 2 threads", "quick"
    notes       sentences about this table alone: cells without figures, missed ratios, doubts
    footnotes   sentences about all tables of the view: how to read them and how they were measured
    head        the heading of the rows' labels: "method", or the name of a parameter
    """

    name: str
    view: str
    model: str
    title: str
    conditions: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()
    head: str = "method"

    @property
    def heading(self) -> str:
        """Return the title as the heading of a section; what is not about one model is titled by names."""
        return self.title[:1].upper() + self.title[1:] or "Dense model" if self.model else self.title

    def groups(self) -> list[Table]:
        """Split the table by the groups of its columns, in their order."""
        groups = dict.fromkeys(column.group for column in self.columns)
        return [self.only([at for at, column in enumerate(self.columns) if column.group == group]) for group in groups]

    def marks(self) -> set[str]:
        """Return the marks that any cell has."""
        return {mark for row in self.rows for cell in row.cells for mark in cell.marks}

    def only(self, chosen: Sequence[int]) -> Table:
        """Return the table with the columns of these numbers."""
        rows = [replace(row, cells=tuple(row.cells[number] for number in chosen)) for row in self.rows]
        return replace(self, columns=tuple(self.columns[number] for number in chosen), rows=tuple(rows))


def legend_of(tables: Iterable[Table]) -> list[str]:
    """Return what the mark of the best means, where a table has it."""
    is_marked = any("best" in table.marks() for table in tables)
    return ["Bold: the best of the methods that removed enough, shown to be better than the next one."] * is_marked


def footnotes_of(tables: Iterable[Table]) -> list[str]:
    """Return the footnotes of several tables, each once."""
    return list(dict.fromkeys(sentence for table in tables for sentence in table.footnotes))


def column_of(name: str, group: str = "", *, brief: bool = False, detail: bool = False) -> Column:
    """Make the column of a figure of the frame, headed as bench.records.quantities says."""
    metric = metric_of(name)
    unit = metric.unit if metric.unit and not metric.unit_in_cell else ""
    return Column(name, metric.label, unit, metric.better, group, brief, detail)


def cell_of(row: Mapping[str, Any], name: str) -> TableCell:
    """Make the cell for the column `name` of a row of the frame, with its interval and standard error."""
    value = row.get(name)
    if value is None:
        return TableCell()
    low, high, stderr = (
        None if (figure := row.get(f"{name}{end}")) is None else float(figure) for end in ("_low", "_high", "_stderr")
    )
    return TableCell(format_value(row, name), format_value(row, name, spread=False), value, low, high, stderr)


def cell_text(cell: TableCell, *, brief: bool = False) -> str:
    """Return the text of a cell with the signs of its marks."""
    return (cell.short if brief else cell.text) + signs_of(cell)


def signs_of(cell: TableCell) -> str:
    """Return the signs of the marks of a cell."""
    return "".join(sign for mark, sign in SIGNS.items() if mark in cell.marks)


def column_of_words(name: str, label: str | None = None) -> Column:
    """Make a column of words."""
    return Column(name, label or name, words=True)


def cell_of_text(value: str | None) -> TableCell:
    """Make a cell of words, '-' where there are none."""
    return TableCell(value or MISSING, value=value)


def mark_best(
    rows: Sequence[Row], number: int, better: str, eligible: Sequence[bool], is_better: Callable[[int, int], bool]
) -> list[Row]:
    """Mark the best of the finite figures that eligible rows have in a column, where it is shown to be the better one.

    is_better  says of the places of two rows whether the first is shown to be better than the second

    That is asked of the next figure. Equal figures share the mark; one figure alone is no comparison, and has none.
    """
    figures = dict[int, float]()
    for place, (row, may) in enumerate(zip(rows, eligible, strict=True)):
        value = row.cells[number].value
        if may and isinstance(value, int | float) and math.isfinite(value):
            figures[place] = value
    order = sorted(set(figures.values()), reverse=better == "higher")
    best, following = ([place for place in figures if figures[place] in order[at : at + 1]] for at in (0, 1))
    if not following or not all(is_better(first, second) for first in best for second in following):
        return list(rows)
    return [
        replace(row, cells=(*row.cells[:number], row.cells[number].with_mark("best"), *row.cells[number + 1 :]))
        if place in best
        else row
        for place, row in enumerate(rows)
    ]
