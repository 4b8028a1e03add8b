"""Tables as HTML fragments: plain <table> elements without style or script, to be put into a page of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from reports.tables.table import Row, Table, TableCell, footnotes, legend, written
from reports.text import printable


def render(tables: Sequence[Table]) -> str:
    """Return a <table> with a caption for each group of columns, its notes behind it, and at the end the footnotes."""
    parts = []
    for table in tables:
        parts += [*map(grid, table.groups()), bullets([*table.notes, *legend([table])])]
    return "\n".join(filter(None, [*parts, bullets(footnotes(tables))])) + "\n"


def grid(table: Table) -> str:
    """Return one <table>. A data element holds the raw value of a figure, so that a script can sort by it."""
    import pandas as pd

    caption = "; ".join(filter(None, [table.model, table.title or "dense model", *table.conditions]))
    heads = [_escaped(column.head) for column in table.columns]
    frame = pd.DataFrame([_cells(row, len(heads)) for row in table.rows], columns=heads)
    frame.index = pd.Index([_escaped(row.label) for row in table.rows])
    frame.columns.name = _escaped(table.head)
    text = frame.style.set_caption(_escaped(caption)).to_html(exclude_styles=True).replace("<td >", "<td>").rstrip()
    head, body = text.split("<tbody>")
    return head.replace("<th >", '<th scope="col">') + "<tbody>" + body.replace("<th >", '<th scope="row">')


def _cells(row: Row, count: int) -> list[str]:
    """Return the cells of a row; the first of a failed one says why."""
    return [_escaped(row.failure), *[""] * (count - 1)] if row.failure else [_cell(cell) for cell in row.cells]


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
