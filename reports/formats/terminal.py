"""Tables for a terminal: lines of at most 100 columns, wrapped and never cut; colour where it is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from reports.tables.table import Column, Entry, Row, Table, written
from reports.text import printable, width, wrap

LINE = 100  # columns of a terminal
LABEL = 28  # columns of a method's name, before it goes on in the next line
WORDS = 34  # columns of a cell of words, before it goes on in the next line
GAP = "  "
COLOURS = {"missed": "33", "doubtful": "33", "second": "4", "best": "1"}  # escape codes by mark, the last one wins
FAILED = "31"
LEGENDS = {
    "best": "bold: the best of the methods that removed enough.",
    "second": "underlined: the second best.",
}

Column_ = list[list[str]]  # a heading and a cell for each row, of one or more lines each, all equally wide


def render(tables: Sequence[Table], *, colour: bool = False) -> str:
    """The tables one below the other, each with its notes, and at the end how to read them and how they were measured.

    What is too wide goes on in a grid below. With `colour`, escape codes show which figures are best.
    """
    parts = []
    for table in tables:
        parts.append(_heading(table))
        parts += _pages(table, colour)
        parts.append(_bullets(table.notes))
    if colour:
        found = {mark for table in tables for mark in table.marks()}
        parts.append(_bullets(sentence for mark, sentence in LEGENDS.items() if mark in found))
    said = dict.fromkeys(sentence for table in tables for sentence in table.protocol)
    parts.append(_bullets([*said, *_left_out(tables)]))
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _heading(table: Table) -> list[str]:
    """One line if it fits, else one for model and title and one for the conditions."""
    halves = [
        printable("   ".join(part for part in half if part))
        for half in ([table.model, table.title], list(table.conditions))
    ]
    line = "   ".join(halves)
    return [line] if width(line) <= LINE else [line for half in halves for line in wrap(half, LINE)]


def _left_out(tables: Sequence[Table]) -> Iterator[str]:
    """What the other formats have room for."""
    columns = [(column, at, table) for table in tables for at, column in enumerate(table.columns)]
    spreads = dict.fromkeys(
        "the tasks" if column.name.startswith(("task_", "score_")) else column.label
        for column, at, table in columns
        if column.brief and any(row.cells[at].short != row.cells[at].text for row in table.rows)
    )
    details = dict.fromkeys(column.label for column, _, _ in columns if column.detail)
    if spreads:
        yield f"the ± of {', '.join(spreads)} stands in the Markdown report."
    if details:
        yield f"the Markdown report also has: {', '.join(details)}."


def _bullets(sentences: Iterable[str]) -> list[str]:
    return [line for sentence in sentences for line in wrap(printable(sentence), LINE, indent=GAP)]


def _pages(table: Table, colour: bool) -> Iterator[list[str]]:
    """The table as one grid if it fits, else group by group, as much as fits beside the methods' names."""
    kept = table.only([number for number, column in enumerate(table.columns) if not column.detail])
    names = [wrap(printable(row.label), LABEL, breaks=",", indent=GAP) for row in kept.rows]
    head = printable(table.head)
    room = LINE - _wide([[head], *names])
    columns = [_column(kept.rows, number, column, colour) for number, column in enumerate(kept.columns)]
    if _total(columns) <= room:
        yield _grid(head, kept.rows, names, columns, colour)
        return
    groups = list(dict.fromkeys(column.group for column in kept.columns))
    order = sorted(range(len(columns)), key=lambda number: groups.index(kept.columns[number].group))
    keys = [columns[number] for number in order if kept.columns[number].key]
    rest = [columns[number] for number in order if not kept.columns[number].key]
    while rest:
        page, rest = _fill(rest, room - _total(keys))
        yield _grid(head, kept.rows, names, [*keys, *page], colour)


def _fill(columns: list[Column_], room: int) -> tuple[list[Column_], list[Column_]]:
    """Split columns into those that fit into `room`, at least one, and the rest."""
    most = next((number for number in range(1, len(columns)) if _total(columns[: number + 1]) > room), len(columns))
    return columns[:most], columns[most:]


def _total(columns: Sequence[Column_]) -> int:
    return sum(len(GAP) + _wide(column) for column in columns)


def _wide(cells: Iterable[Sequence[str]]) -> int:
    return max(width(_plain(line)) for lines in cells for line in lines)


def _column(rows: Sequence[Row], number: int, column: Column, colour: bool) -> Column_:
    """Figures are right- and what follows them (unit, ±, star) left-aligned; words are left-aligned and wrapped."""
    cells = [row.cells[number] for row in rows]
    texts = [printable(written(cell, brief=column.brief)) for cell in cells]
    head = printable(column.label)
    if column.words:
        lines = [wrap(text, WORDS) for text in texts]
        wide = max(width(head), _wide([[""], *lines]))
        return [[_padded(line, wide) for line in each] for each in ([head], *lines)]
    parts = [re.match(r"([-<]?[\d.,e]+x?)(.*)", text) for text in texts]
    left, right = (max((width(part[side]) for part in parts if part), default=0) for side in (1, 2))
    wide = max(left + right, width(head), *map(width, texts))
    aligned = [head.rjust(wide + len(head) - width(head))]
    for text, part in zip(texts, parts, strict=True):
        figure, behind = (part[1], part[2]) if part else (text, "")
        behind = _padded(behind, right) if part or width(text) <= left else ""  # a word that is no figure takes all
        aligned.append((" " * (wide - width(figure) - width(behind))) + figure + behind)
    return [[aligned[0]], *([_styled(text, cell, colour)] for text, cell in zip(aligned[1:], cells, strict=True))]


def _padded(text: str, wide: int) -> str:
    return text + " " * (wide - width(text))


def _styled(text: str, cell: Entry, colour: bool) -> str:
    """The figure with the escape code of its weightiest mark around what is no space."""
    codes = [code for mark, code in COLOURS.items() if mark in cell.marks]
    return _coloured(text, codes[-1]) if colour and codes else text


def _coloured(text: str, code: str) -> str:
    core = text.strip()
    return text.replace(core, f"\x1b[{code}m{core}\x1b[0m", 1)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


def _grid(head: str, rows: Sequence[Row], names: list[list[str]], columns: list[Column_], colour: bool) -> list[str]:
    """Lines of one grid; a failed cell shows its status word instead of figures."""
    first = _wide([[head], *names])
    lines = [GAP.join([_padded(head, first), *(column[0][0] for column in columns)]).rstrip()]
    for number, (row, name) in enumerate(zip(rows, names, strict=True), start=1):
        failed = _coloured(row.failure, FAILED) if row.failure and colour else row.failure
        cells = [[failed]] if failed else [column[number] for column in columns]
        blank = [" " * _wide(each) for each in cells]
        for line in zip_longest(name, *cells):
            here = [blank[at] if text is None else text for at, text in enumerate(line[1:])]
            lines.append(GAP.join([_padded(line[0] or "", first), *here]).rstrip())
    return lines
