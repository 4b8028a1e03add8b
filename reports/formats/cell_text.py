"""One cell whole, for a terminal: the tree of reports.tables.cell in lines of at most 100 columns."""

from __future__ import annotations

from collections.abc import Iterator

from bench.records.record import Record
from reports.formats import terminal
from reports.tables.cell import Fact, facts, title
from reports.tables.table import Table
from reports.text import printable, width, wrap

LINE = terminal.LINE
NAME = 30  # columns of a name, before its value starts in the next line
INDENT = "  "


def text(record: Record, key: str) -> str:
    """Return the cell in lines of at most 100 columns, wider tables row by row; `key` is the name of its file."""
    lines = [*wrap(printable(title(record)), LINE, indent=INDENT), *wrap(printable(key), LINE), ""]
    for block in facts(record):
        lines += [block.name.upper(), *_lines(block, 1), ""]
    return "\n".join(lines[:-1]) + "\n"


def _lines(block: Fact, depth: int) -> Iterator[str]:
    """Yield the facts inside `block`, names in one column, values beside them or, where a name is long, below."""
    margin = INDENT * depth
    column = min(NAME, max((width(printable(fact.name)) for fact in block.inside), default=0))
    for fact in block.inside:
        name = printable(fact.name)
        if fact.inside:
            yield from wrap(margin + name, LINE, indent=margin + INDENT)
            yield from _lines(fact, depth + 1)
        elif fact.table:
            yield from wrap(f"{margin}{name}", LINE, indent=margin + INDENT)
            yield from _table_lines(fact.table, margin + INDENT)
        else:
            beside = margin + name + " " * max(0, column - width(name)) + INDENT
            behind = " " * width(beside) if width(beside) < LINE // 2 else margin + INDENT * 2
            first, *more = fact.value.splitlines() or [""]
            yield from wrap(beside + printable(first), LINE, indent=behind)
            for line in more:
                yield from wrap(behind + printable(line), LINE, indent=behind + INDENT)


def _table_lines(table: Table, margin: str) -> Iterator[str]:
    """Yield the table as one grid if it fits; else each row as one wrapped line of 'name value' pairs."""
    lines = terminal.grid(table)
    if width(margin) + max(map(width, lines)) <= LINE:
        yield from (margin + line for line in lines)
        return
    for row in table.rows:
        names, values = (table.head, *(one.label for one in table.columns)), (row.label, *(c.text for c in row.cells))
        pairs = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True) if value)
        yield from wrap(printable(f"{margin}{pairs}"), LINE, indent=margin + INDENT)
