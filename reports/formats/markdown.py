"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from reports.tables.table import Entry, Row, Table, written
from reports.text import markdown_escaped

LEGENDS = {
    "best": "Bold: the best of the methods that removed enough.",
    "second": "Italic: the second best.",
}


def render(tables: Sequence[Table]) -> str:
    """A section for each table with its notes, and at the end how to read them and how they were measured."""
    parts = [part for table in tables for part in section(table)]
    protocol = dict.fromkeys(sentence for table in tables for sentence in table.protocol)
    return "\n\n".join(part for part in [*parts, bullets(protocol)] if part) + "\n"


def section(table: Table) -> list[str]:
    """Heading, conditions, a grid for each group of columns, notes."""
    title = markdown_escaped(table.title or "dense model")
    return [
        f"## {title[:1].upper()}{title[1:]}",
        markdown_escaped(", ".join([table.model, *table.conditions])),
        *(grid(part) for part in table.groups()),
        bullets([*table.notes, *legend(table)]),
    ]


def legend(table: Table) -> list[str]:
    """What bold and italic mean, where they occur."""
    found = table.marks()
    return [sentence for mark, sentence in LEGENDS.items() if mark in found]


def grid(table: Table) -> str:
    """The columns and rows alone; a failed cell holds its status word in the first column of figures."""
    sides = ["left" if column.words else "right" for column in table.columns]
    return tabulate(
        [[markdown_escaped(row.label), *_cells(row, len(sides))] for row in table.rows],
        headers=[markdown_escaped(head) for head in (table.head, *(column.head for column in table.columns))],
        tablefmt="pipe",
        colalign=("left", *sides),
        disable_numparse=True,
    )


def _cells(row: Row, count: int) -> list[str]:
    return [row.failure, *[""] * (count - 1)] if row.failure else [_cell(cell) for cell in row.cells]


def _cell(cell: Entry) -> str:
    text = markdown_escaped(written(cell))
    return f"**{text}**" if "best" in cell.marks else f"*{text}*" if "second" in cell.marks else text


def bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_escaped(sentence)}" for sentence in sentences)
