"""Tables as tidy CSV: one line per figure, in full precision, so that any tool can read it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from reports.metrics import MISSING
from reports.tables.table import Column, Row, Table, TableCell
from reports.text import printable

COLUMNS = (
    *("table", "model", "conditions", "label", "method", "requested_ratio", "ratio_of", "failure"),
    *("measure", "value", "low", "high", "stderr", "shown", "marks"),
)
FORMULA = ("=", "+", "-", "@")  # begin a formula; so does a tab, which is written out


def written(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return CSV with these headings; None is written as nothing, and control characters of a text as \\n and alike.

    A text that a spreadsheet would compute has a ' in front.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([_safe(one) if isinstance(one, str) else one for one in line] for line in (heads, *lines))
    return file.getvalue()


def _safe(text: str) -> str:
    text = printable(text)
    computed = text.startswith(FORMULA) and any(map(str.isalnum, text)) and not _is_number(text)
    return f"'{text}" if computed else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def render(tables: Sequence[Table]) -> str:
    """Return all figures of all tables."""
    return written(
        COLUMNS,
        (
            _line(table, row, column, cell)
            for table in tables
            for row in table.rows
            for column, cell in zip(table.columns, row.cells, strict=True)
            if table.view != "grid" or cell.of  # what nobody asked for has no line
        ),
    )


def _line(table: Table, row: Row, column: Column, cell: TableCell) -> list[object]:
    label, method = cell.of or (row.label, row.method)
    ratio, of = column.asked or (row.ratio, row.ratio_of)
    failed = (column.asked or cell.of) and cell.value is None and cell.text != MISSING
    return [
        table.name,
        table.model,
        ", ".join(table.conditions),
        label if table.head == "method" else f"{table.head}={label}",
        method,
        ratio,
        None if ratio is None else of,
        cell.text if failed else row.failure,
        column.name,
        *(cell.value, cell.low, cell.high, cell.stderr),
        cell.text,
        " ".join(cell.marks),
    ]
