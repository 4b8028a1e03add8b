"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from reports.tables.table import Row, Table, TableCell, footnotes, legend, written
from reports.text import markdown_escaped


def render(tables: Sequence[Table], level: int = 2, title: str = "") -> str:
    """Return a section for each table with its notes, and at the end how to read them and how they were measured."""
    parts = [f"# {markdown_escaped(title)}" if title else ""]
    parts += [part for table in tables for part in section(table, level)]
    return "\n\n".join(part for part in [*parts, bullets(footnotes(tables))] if part) + "\n"


def section(table: Table, level: int = 2) -> list[str]:
    """Return a heading of this level, the conditions, a grid for each group of columns, and the notes."""
    return [
        f"{'#' * level} {markdown_escaped(table.heading)}" if table.heading else "",
        markdown_escaped(", ".join(filter(None, [table.model, *table.conditions]))),
        *(grid(part) for part in table.groups()),
        bullets([*table.notes, *legend([table])]),
    ]


def grid(table: Table) -> str:
    """Return the columns and rows alone; a failed cell has its status word in the first column of figures."""
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


def _cell(cell: TableCell) -> str:
    text = markdown_escaped(written(cell))
    return f"**{text}**" if "best" in cell.marks else text


def bullets(sentences: Iterable[str]) -> str:
    """Return the sentences as a list."""
    return "\n".join(f"- {markdown_escaped(sentence)}" for sentence in sentences)
