"""The tables of the page: what the template shows of each, and the raw figures that its script sorts by.

A row and each of its figures lead to the cell that they come from. Several draws of a random method share a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bench.records.record import Record, display_name, named
from reports import notes
from reports.blocks import TableGroup, blocks
from reports.tables.table import Column, Row, Table, TableCell, footnotes, legend, written

SECTIONS = (  # name, title, view, and the group of its columns where it has several
    ("results", "Results", "main", "quality"),
    ("by-ratio", "By ratio", "by-ratio", ""),
    ("grid", "Compensations", "grid", ""),
    ("tasks", "Tasks", "per-task", ""),
    ("answers", "Right answers", "per-task", "answers"),
    ("signal", "Signal and noise", "signal", ""),
    ("checks", "Checks", "main", "checks"),
    ("speed", "Speed", "speed", ""),
    ("size", "Size and throughput", "main", "cost"),
    ("cost", "Cost of pruning", "cost", ""),
    ("decisions", "What went", "decisions", ""),
    ("ablation", "Ablation", "ablation", ""),
    ("seeds", "Draw of the calibration", "seeds", ""),
    ("models", "Several models", "models", "changes"),
    ("places", "Places", "models", "places"),
    ("orders", "Orders", "models", ""),
    ("served", "Served", "served", ""),
)
VIEWS = tuple(dict.fromkeys(view for _, _, view, _ in SECTIONS))
BETTER = {"higher": "higher is better", "lower": "lower is better", None: ""}
MARKS = {"best": "best", "second": "second", "missed": "missed", "doubtful": "missed"}  # and the style of each


@dataclass(frozen=True)
class Group:
    """Records that share a row, and the id of what the page says of them.

    rows         the figures of the records
    dense        the record of the dense model beside them with its figures, where it was measured
    """

    id: str
    label: str
    ratio: str
    records: tuple[Record, ...]
    rows: tuple[dict[str, Any], ...]
    dense: tuple[Record, dict[str, Any]] | None


Targets = Mapping[tuple[str, ...], str]


def groups(records: Sequence[Record]) -> tuple[list[Group], Targets]:
    """Return every row once, and the id that leads to it by (model, conditions, row's label, ratio).

    Where two rows share that, such as those of two protocols in one report, there is no way rather than a wrong one.
    """
    found: dict[tuple[int, ...], Group] = {}
    ways: dict[tuple[str, ...], set[str]] = {}
    for block in chain(*blocks(records)):
        both = zip(block.records, block.rows, strict=True)
        dense = next(((r, row) for r, row in both if r.cell["method"] == "dense" and r.status == "ok"), None)
        for place, numbers in enumerate(block.numbers):
            mine, figures = tuple(block.drawn[place]), tuple(block.each[place])
            ratio = shown_ratio(_ratio(block, place))
            new = Group(f"cell-{len(found)}", block.label(place), ratio, mine, figures, dense)
            group = found.setdefault(tuple(numbers), new)
            for name in (group.label, named(mine[0])):
                way = _way(display_name(mine[0]), notes.conditions(mine), name, group.ratio)
                ways.setdefault(way, set()).add(group.id)
    return list(found.values()), {way: ids.pop() for way, ids in ways.items() if len(ids) == 1}


def _ratio(block: TableGroup, place: int) -> float | None:
    return None if block.records[place].cell["method"] == "dense" else block.ratio


def shown_ratio(ratio: float | None) -> str:
    """Return a ratio as the filter has it; nothing for the dense model and for methods whose parameters decide."""
    return "" if ratio is None else f"{ratio:g}"


def _way(model: str, conditions: Sequence[str], label: str, ratio: str) -> tuple[str, ...]:
    return (model, *conditions, label, ratio)


def sections(views: Mapping[str, Sequence[Table]], targets: Targets) -> list[dict[str, Any]]:
    """Return the sections that have a table, for the template; `views` holds the tables of VIEWS."""
    several = len({(table.model, *table.conditions) for tables in views.values() for table in tables}) > 1
    found = []
    for section, title, name, group in SECTIONS:
        tables = views.get(name, [])
        if name == "speed" and all(table.name.startswith("speed-sizes") for table in tables):
            continue  # nothing was timed; the sizes are a section of their own
        parts = [part for table in tables for part in table.groups() if part.columns[0].group == group]
        parts = [part for part in parts if name != "by-ratio" or len(part.columns) > 1]
        if parts:
            shown = [_table(part, f"{section}-{number}", targets, several=several) for number, part in enumerate(parts)]
            found.append({"name": section, "title": title, "tables": shown, "protocol": footnotes(parts)})
    return found


def _table(table: Table, name: str, targets: Targets, *, several: bool) -> dict[str, Any]:
    ratios = {shown_ratio(row.ratio) for row in table.rows if row.method != "dense"}
    by_ratio = table.view == "by-ratio"
    columns = [_column(column, ratio=column.label if by_ratio else None) for column in table.columns]
    return {
        "id": name,
        "ratio": ratios.pop() if len(ratios) == 1 and table.view != "speed" else "",
        "title": table.heading,
        "conditions": [table.model, *table.conditions] if several else [],
        "columns": [_column(Column("label", table.head, words=True), ratio=None), *columns],
        "rows": [_row(row, table, targets) for row in table.rows],
        "notes": [*table.notes, *legend([table])],
        "figures": [_figures(row) for row in table.rows],
    }


def _column(column: Column, ratio: str | None) -> dict[str, Any]:
    return {
        "label": column.label,
        "unit": column.unit,
        "hint": BETTER[column.better],
        "words": column.words,
        "ratio": ratio,
    }


def _row(row: Row, table: Table, targets: Targets) -> dict[str, Any]:
    def target(label: str, ratio: str) -> str:
        return targets.get(_way(table.model, table.conditions, label, ratio), "")

    here = "" if row.method == "dense" else shown_ratio(row.ratio)

    def lead(cell: TableCell, column: Column) -> str:
        """Return the id of the record that a figure is from."""
        if table.view == "grid":
            return target(cell.of[0], here) if cell.of else ""
        ratio = column.label if table.view == "by-ratio" and row.method != "dense" else here
        return target(row.label, here) or target(row.label, ratio)

    return {
        "label": row.label,
        "name": row.label if table.head == "method" else row.method,
        "dense": row.method == "dense",
        "ratio": here,
        "failure": row.failure,
        "target": target(row.label, here),
        "cells": [
            _cell(cell, column, lead(cell, column)) for cell, column in zip(row.cells, table.columns, strict=True)
        ],
    }


def _cell(cell: TableCell, column: Column, target: str) -> dict[str, Any]:
    """Return the figure and, apart, what follows it, such as '92.8' and '± 15.6'."""
    text = written(cell)
    spread = text.removeprefix(cell.short) if text.startswith(cell.short) else ""
    classes = [*(MARKS[mark] for mark in cell.marks if mark in MARKS), *["words"] * column.words]
    return {
        "figure": text.removesuffix(spread) if spread else text,
        "beside": spread.strip(),
        "classes": " ".join(dict.fromkeys(classes)),
        "target": target,
    }


def _figures(row: Row) -> list[Any]:
    """Return the label, then each cell as [figure, low, high, standard error], as words, or as null, for the script."""
    if row.failure:
        return [row.label, *[None] * len(row.cells)]
    return [row.label, *(_raw(cell) for cell in row.cells)]


def _raw(cell: TableCell) -> Any:
    if cell.value is None or isinstance(cell.value, str):
        return cell.value
    ends = [None if end is None or not math.isfinite(end) else float(end) for end in (cell.low, cell.high, cell.stderr)]
    return [float(cell.value), *ends] if math.isfinite(cell.value) else None
