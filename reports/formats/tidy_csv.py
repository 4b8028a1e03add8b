"""Tables as tidy CSV: one line per figure, in full precision, so that any tool can read it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from reports.tables.table import Column, Entry, Row, Table
from reports.text import printable

COLUMNS = (
    "table",
    "model",
    "conditions",
    "label",
    "method",
    "requested_ratio",
    "failure",
    "measure",
    "value",
    "low",
    "high",
    "stderr",
    "shown",
    "marks",
)


def render(tables: Sequence[Table]) -> str:
    """All figures of all tables."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if table.view != "grid" or cell.of:  # what nobody asked for has no line
                    writer.writerow(_line(table, row, column, cell))
    return file.getvalue()


def _line(table: Table, row: Row, column: Column, cell: Entry) -> list[object]:
    numbers = [cell.low, cell.high, cell.stderr]
    ratio = column.label if table.view == "by-ratio" else row.ratio
    label, method = cell.of or (row.label, row.method)
    value = printable(cell.value) if isinstance(cell.value, str) else cell.value
    return [
        table.name,
        printable(table.model),
        printable(", ".join(table.conditions)),
        printable(label if table.head == "method" else f"{table.head}={label}"),
        printable(method),
        *("" if figure is None else figure for figure in (ratio, row.failure)),
        printable(column.name),
        *("" if figure is None else figure for figure in (value, *numbers)),
        printable(cell.text),
        " ".join(cell.marks),
    ]
