"""Tables as tidy CSV: one line per figure, in full precision, so that any tool can read it."""

from __future__ import annotations

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
    import pandas as pd

    frame = pd.DataFrame(list(lines), columns=range(len(heads)), dtype=object)
    return frame.map(_text).to_csv(header=[_text(head) for head in heads], index=False, lineterminator="\n")


def _text(value: object) -> str:
    """Return what stands in a place of the file, numbers in full precision."""
    if value is None or not isinstance(value, str):
        return "" if value is None else str(value)
    text = printable(value)
    is_formula = text.startswith(FORMULA) and any(map(str.isalnum, text)) and not _is_number(text)
    return f"'{text}" if is_formula else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def render(tables: Sequence[Table]) -> str:
    """Return all figures of all tables; a place of a grid that nobody asked for has no line."""
    lines = []
    for table in tables:
        for row in table.rows:
            cells = zip(table.columns, row.cells, strict=True)
            lines += [_line(table, row, column, cell) for column, cell in cells if table.view != "grid" or cell.of]
    return written(COLUMNS, lines)


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
