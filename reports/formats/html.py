"""Tables as HTML fragments: plain <table> elements without style or script, to be put into a page of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from reports.tables.table import Column, Row, Table, TableCell, footnotes, legend, written
from reports.text import printable


def render(tables: Sequence[Table]) -> str:
    """Return a <table> with a caption for each group of columns, its notes behind it, and at the end the footnotes."""
    parts = [
        part for table in tables for part in (*map(grid, table.groups()), bullets([*table.notes, *legend([table])]))
    ]
    return "\n".join(part for part in [*parts, bullets(footnotes(tables))] if part) + "\n"


def grid(table: Table) -> str:
    """Return one <table>; every figure's raw value is in a data element, so that a script can sort by it."""
    caption = "; ".join(part for part in (table.model, table.title or "dense model", *table.conditions) if part)
    heads = "".join(f'<th scope="col">{_escaped(head)}</th>' for head in (table.head, *(c.head for c in table.columns)))
    rows = "\n".join(_row(row, table.columns) for row in table.rows)
    return (
        f"<table>\n<caption>{_escaped(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>"
    )


def _row(row: Row, columns: Sequence[Column]) -> str:
    name = f'<th scope="row">{_escaped(row.label)}</th>'
    if row.failure:
        return f'<tr>{name}<td colspan="{len(columns)}">{_escaped(row.failure)}</td></tr>'
    return f"<tr>{name}{''.join(f'<td>{_cell(cell)}</td>' for cell in row.cells)}</tr>"


def _cell(cell: TableCell) -> str:
    text = _escaped(written(cell))
    if isinstance(cell.value, int | float):
        text = f'<data value="{cell.value!r}">{text}</data>'
    return f"<strong>{text}</strong>" if "best" in cell.marks else text


def bullets(sentences: Iterable[str]) -> str:
    """Return sentences as a <ul>; empty where there are none."""
    items = "".join(f"<li>{_escaped(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _escaped(text: str) -> str:
    return escape(printable(text))
