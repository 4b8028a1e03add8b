"""From cells that each say where they stand to a grid: methods by ratios, by compensations, or values by values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from reports.tables.table import Column, Row, TableCell


def pivot(
    cells: Iterable[tuple[Row, Column, TableCell]], columns: Sequence[Column] = ()
) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
    """Return the columns and the filled rows of a grid from cells, each with its column and its row without cells.

    Both stand in the order in which they first occur, behind those of `columns`. A place without a cell holds '-'; of
    several cells for one place the last stays. pandas.pivot_table would need the cells split into numbers and texts.
    """
    found = list(cells)
    heads = tuple(dict.fromkeys([*columns, *(column for _, column, _ in found)]))
    lines: dict[Row, dict[Column, TableCell]] = {}
    for row, column, cell in found:
        lines.setdefault(row, {})[column] = cell
    rows = (replace(row, cells=tuple(line.get(head, TableCell()) for head in heads)) for row, line in lines.items())
    return heads, tuple(rows)
