"""Tables as data: columns, and rows of cells with their raw values and marks.

Every table of the suite is a `Table`. reports.formats writes it for a terminal, as Markdown, LaTeX, HTML and CSV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.records.quantities import format_value, quantity_of_column
from bench.records.quantity import MISSING

SIGNS = {"differs": "†", "guess": "‡"}  # of marks that stand behind a figure
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    name            the column of the frame (bench.records.frame) that it shows, or a word of its own
    label           the heading
    unit            the unit in the heading; empty if it stands in the cells or there is none
    better          which way is better; None if neither is
    group           the name of its group; a table that is split keeps the columns of a group together
    brief           whether a terminal leaves out the spread
    detail          whether a terminal leaves out the column
    words           whether the cells are words, which are aligned on the left
    key             whether it tells rows of one label apart; it is repeated in each part of a split table
    ratio_and_base  the ratio of its cells and what it is a share of, if each column has another; otherwise None
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
    """One cell of a table: its text, and the raw value.

    text, brief        the text with and without its spread; brief is empty if both are the same
    value              the raw value; a text for a cell of words, None without one
    low, high, stderr  the 95 % interval and the standard error; None without them
    marks              best (of the methods at this ratio, shown to be better than the next), differs (from the cell it
                       was tested against, p < 0.05), guess (an accuracy that is not shown to be above that of guesses),
                       missed (the ratio), doubtful (a timing)
    of                 the label and the name of its method, if the row holds several methods
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
        """Return the cell with one more mark."""
        return replace(self, marks=(*self.marks, mark))


@dataclass(frozen=True)
class Row:
    """One line of a table.

    label     the text in front of the cells
    method    the name of its method
    ratio     the requested ratio; None for the dense model and for fixed ratios
    failure   why there are no figures, in a word or two; None if there are
    ratio_of  what the ratio is a share of, as in bench.plan.cell.Cell
    """

    label: str
    method: str
    ratio: float | None
    cells: tuple[TableCell, ...] = ()
    failure: str | None = None
    ratio_of: str = "all"

    def only(self, chosen: Sequence[int]) -> Row:
        """Return the row with the cells of these numbers."""
        return replace(self, cells=tuple(self.cells[number] for number in chosen))


@dataclass(frozen=True)
class Table:
    """A table with everything that a reader must know.

    name        the name of its file: "main-0.3"
    view        the name of its view
    model       the model's name for a reader
    title       its content: "ratio 0.3: 11 of 30 layers, 95.6 M parameters"
    conditions  the conditions of all cells: "cpu, float32, 2 threads", "quick"
    notes       sentences about this table alone: cells without figures, missed ratios, doubts
    footnotes   sentences about all tables of the view: how to read them and how they were measured
    head        the heading of the rows' labels: "method", or the name of a parameter
    protocol    how the values were measured: pairs of a quantity and the words on it
    lead        sentences on which row is first and how surely, for a terminal
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
    protocol: tuple[tuple[str, str], ...] = ()
    lead: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """Return the title as the heading of a section, with a capital if the table is about one model."""
        return self.title[:1].upper() + self.title[1:] or "Dense model" if self.model else self.title

    def groups(self) -> list[Table]:
        """Return a table for each group of columns, in their order."""
        places_by_group: dict[str, list[int]] = {}
        for at, column in enumerate(self.columns):
            places_by_group.setdefault(column.group, []).append(at)
        return list(map(self.only, places_by_group.values()))

    def marks(self) -> set[str]:
        """Return the marks that any cell has."""
        return {mark for row in self.rows for cell in row.cells for mark in cell.marks}

    def only(self, chosen: Sequence[int]) -> Table:
        """Return the table with the columns of these numbers."""
        rows = [row.only(chosen) for row in self.rows]
        return replace(self, columns=tuple(self.columns[number] for number in chosen), rows=tuple(rows))


def legend_of(tables: Iterable[Table]) -> list[str]:
    """Return the meaning of the mark of the best; empty if no table has it."""
    is_marked = any("best" in table.marks() for table in tables)
    return ["Bold: the best of the methods that removed enough, shown to be better than the next one."] * is_marked


def footnotes_of(tables: Iterable[Table]) -> list[str]:
    """Return the footnotes of several tables, each once."""
    return list(dict.fromkeys(sentence for table in tables for sentence in table.footnotes))


def protocol_of(tables: Iterable[Table]) -> list[tuple[str, str]]:
    """Return the protocol of several tables, each row once."""
    return list(dict.fromkeys(row for table in tables for row in table.protocol))


def column_of(name: str, group: str = "", *, brief: bool = False, detail: bool = False) -> Column:
    """Return the column for a column of the frame, with the heading of bench.records.quantities."""
    quantity = quantity_of_column(name)
    unit = quantity.unit if quantity.unit and not quantity.unit_in_cell else ""
    return Column(name, quantity.heading, unit, quantity.better, group, brief, detail)


def cell_of(row: Mapping[str, Any], name: str) -> TableCell:
    """Return the cell for the column `name` of a row of the frame, with its interval and standard error."""
    value = row.get(name)
    if value is None:
        return TableCell()
    ends = [row.get(f"{name}{end}") for end in ("_low", "_high", "_stderr")]
    low, high, stderr = [None if end is None else float(end) for end in ends]
    return TableCell(format_value(row, name), format_value(row, name, spread=False), value, low, high, stderr)


def is_apart(first: TableCell, second: TableCell, better: str) -> bool:
    """Say whether the interval of a value lies on the better side of another's; False without an interval."""
    above, below = (first, second) if better == "higher" else (second, first)
    return above.low is not None and below.high is not None and above.low > below.high


def cell_text(cell: TableCell, *, brief: bool = False) -> str:
    """Return the text of a cell with the signs of its marks."""
    return (cell.short if brief else cell.text) + signs_of(cell)


def signs_of(cell: TableCell) -> str:
    """Return the signs of the marks of a cell."""
    return "".join(sign for mark, sign in SIGNS.items() if mark in cell.marks)


def column_of_words(name: str, label: str | None = None) -> Column:
    """Return a column of words; its heading is `name` without a `label`."""
    return Column(name, label or name, words=True)


def cell_of_text(value: str | None) -> TableCell:
    """Return a cell of words; '-' for None or an empty text."""
    return TableCell(value or MISSING, value=value)


def mark_best(
    rows: Sequence[Row], number: int, better: str, eligible: Sequence[bool], is_better: Callable[[int, int], bool]
) -> list[Row]:
    """Return the rows with a mark on the best finite value of the eligible rows in a column.

    The value is marked only if it is shown to be better than the next one. Equal values share the mark. A single value
    has no mark, since it is compared with nothing.

    is_better  takes the places of two rows, and says whether the first is shown to be better than the second
    """
    figures = dict[int, float]()
    for place, (row, may) in enumerate(zip(rows, eligible, strict=True)):
        value = row.cells[number].value
        if may and isinstance(value, int | float) and math.isfinite(value):
            figures[place] = value
    order = sorted(set(figures.values()), reverse=better == "higher")
    best = [place for place, figure in figures.items() if figure in order[:1]]
    following = [place for place, figure in figures.items() if figure in order[1:2]]
    marked = list(rows)
    if following and all(is_better(first, second) for first in best for second in following):
        for place in best:
            cells = list(rows[place].cells)
            cells[number] = cells[number].with_mark("best")
            marked[place] = replace(rows[place], cells=tuple(cells))
    return marked
