"""The tables of the page: the parts that the template shows, and the raw values that its script sorts by.

A row and each of its values link to the cell that they come from. Several draws share a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

from bench.plan.cell import words_of_ratio
from bench.records.quantity import is_finite
from bench.records.record import Record, name_of_model
from reports import protocol
from reports.groups import TableGroup, group_records, name_with_ratio, seeds_of
from reports.tables.table import Column, Row, Table, TableCell, cell_text, footnotes_of, legend_of, protocol_of

SECTIONS = (  # name, title, view, and the group of columns if the view has several
    ("results", "Results", "main", "quality"),
    ("by-ratio", "By ratio", "by-ratio", ""),
    ("grid", "Compensations", "grid", ""),
    ("positions", "By position", "positions", ""),
    ("needle", "Needle by depth", "needle", "accuracy"),
    ("needle-bits", "Bits of the needle", "needle", "bits"),
    ("tasks", "Tasks", "per-task", ""),
    ("answers", "Right answers", "per-task", "answers"),
    ("flips", "Flips", "per-task", "flips"),
    ("written", "Chosen and written", "per-task", "written"),
    ("signal", "Signal and noise", "signal", ""),
    ("skills", "Skills", "skills", ""),
    ("checks", "Checks", "main", "checks"),
    ("speed", "Speed", "speed", ""),
    ("size", "Size and throughput", "main", "cost"),
    ("cost", "Cost of pruning", "cost", ""),
    ("recovery", "Recovery", "recovery", ""),
    ("decisions", "What went", "decisions", ""),
    ("ablation", "Ablation", "ablation", ""),
    ("calibration", "Calibration tokens", "calibration", ""),
    ("seeds", "Draw of the calibration", "seeds", ""),
    ("models", "Several models", "models", "changes"),
    ("places", "Places", "models", "places"),
    ("orders", "Orders", "models", ""),
    ("served", "Served", "served", ""),
)
VIEWS = tuple(dict.fromkeys(view for _, _, view, _ in SECTIONS))
BETTER = {"higher": "higher is better", "lower": "lower is better", None: ""}
MARKS = {"best": "best", "missed": "missed", "doubtful": "missed"}  # the style of each mark


@dataclass(frozen=True)
class PageRow:
    """Records that share a row, and the id of their part of the page.

    label        the label of the row
    ratio        the number that tables are filtered by: "0.2"
    rows         the values of the records
    dense        the record of the dense model beside them with its values; None if it was not measured
    deviating    the columns whose value is a mean over random choices with its standard deviation
    ratio_title  the ratio in words: "macs=0.8" or "0.3 of the decoder"
    """

    id: str
    label: str
    ratio: str
    records: tuple[Record, ...]
    rows: tuple[dict[str, Any], ...]
    dense: tuple[Record, dict[str, Any]] | None
    deviating: tuple[str, ...] = ()
    ratio_title: str = ""


Targets = Mapping[tuple[str, ...], str]


def list_rows(records: Sequence[Record]) -> tuple[list[PageRow], Targets]:
    """Return every row once, and {(model, conditions, label, ratio): id of the row}.

    A row has several keys: the conditions of a table of one ratio and of a table of all ratios, and the ratio in both
    forms. A key that two rows share is left out, so that no link is wrong.
    """
    row_by_numbers: dict[tuple[int, ...], PageRow] = {}
    ways: dict[tuple[str, ...], set[str]] = {}
    for groups_of_setup, group in ((several, group) for several in group_records(records) for group in several):
        own = list(chain(*group.drawn))
        whole = [record for member in groups_of_setup for record in chain(*member.drawn)]
        where = [(*protocol.conditions_of(several), *group.apart) for several in (whole, own)]
        both = zip(group.records, group.rows, strict=True)
        dense = next(((r, row) for r, row in both if r.cell.method == "dense" and r.status == "ok"), None)
        for place, numbers in enumerate(group.numbers):
            mine, figures = tuple(group.drawn[place]), tuple(group.each[place])
            ratio, ratio_title = (
                ratio_for_filter(_ratio(group, place)),
                words_of_ratio(_ratio(group, place), group.ratio_of),
            )
            spread = _deviating(mine, figures)
            new = PageRow(
                f"cell-{len(row_by_numbers)}", group.label(place), ratio, mine, figures, dense, spread, ratio_title
            )
            page_row = row_by_numbers.setdefault(tuple(numbers), new)
            names = (page_row.label, name_with_ratio(mine[0], group.beside))
            for conditions, name, at in product(where, names, (page_row.ratio, _column_of(page_row.ratio_title))):
                way = _way(name_of_model(mine[0]), conditions, name, at)
                ways.setdefault(way, set()).add(page_row.id)
    return list(row_by_numbers.values()), {way: ids.pop() for way, ids in ways.items() if len(ids) == 1}


def _deviating(records: Sequence[Record], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns in which reports.groups.pool_draws gives a standard deviation and not an interval.

    There are none unless all draws have one seed. Columns that a draw lacks, such as speed, are left out.
    """
    if len(records) == 1 or len(seeds_of(records)) > 1:
        return ()
    beside = {name.removesuffix(end) for name in rows[0] for end in ("_low", "_stderr") if name.endswith(end)}
    missing = {name for name in beside for row in rows if not is_finite(row.get(name))}
    return tuple(sorted(beside - missing))


def _ratio(group: TableGroup, place: int) -> float | None:
    return None if group.records[place].cell.method == "dense" else group.ratio


def ratio_for_filter(ratio: float | None) -> str:
    """Return a ratio as the filter has it; empty for the dense model and for methods whose parameters decide."""
    return "" if ratio is None else f"{ratio:g}"


def _column_of(ratio_title: str) -> str:
    """Return the key of a ratio in words, which differs from the key of its number: 0.2 may also be macs=0.8."""
    return f"column {ratio_title}"


def _way(model: str, conditions: Sequence[str], label: str, ratio: str) -> tuple[str, ...]:
    return (model, *conditions, label, ratio)


def ratios_of(rows: Sequence[PageRow]) -> dict[str, list[str]]:
    """Return {ratio that tables are filtered by: all its forms in words}, rising."""
    titles_by_ratio: dict[str, list[str]] = {}
    for row in rows:
        if row.ratio and row.ratio_title not in titles_by_ratio.setdefault(row.ratio, []):
            titles_by_ratio[row.ratio].append(row.ratio_title)
    return dict(sorted(titles_by_ratio.items(), key=lambda item: float(item[0])))


def sections_of_views(
    views: Mapping[str, Sequence[Table]], targets: Targets, ratio_titles: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return the sections that have a table, for the template.

    views         the tables of VIEWS
    targets       the ids of rows, see `list_rows`
    ratio_titles  {ratio in words: the number that tables are filtered by}
    """
    several = len({(table.model, *table.conditions) for tables in views.values() for table in tables}) > 1
    sections = []
    for section, title, name, group in SECTIONS:
        tables = views.get(name, [])
        if name == "speed" and all(table.name.startswith("speed-sizes") for table in tables):
            continue  # nothing was timed; the sizes are a section of their own
        parts = [part for table in tables for part in table.groups() if part.columns[0].group == group]
        parts = [part for part in parts if name != "by-ratio" or len(part.columns) > 1]
        if parts:
            shown_tables = [
                _table(part, f"{section}-{number}", targets, ratio_titles or {}, several=several)
                for number, part in enumerate(parts)
            ]
            reading = {"reading": footnotes_of(parts), "protocol": protocol_of(parts)}
            sections.append({"name": section, "title": title, "tables": shown_tables} | reading)
    return sections


def tables_of_summary(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return the tables of the summary for the template; their footnotes stand among the notes."""
    whole = [replace(table, notes=(*table.notes, *table.footnotes)) for table in tables]
    return [_table(table, f"summary-{number}", {}, {}, several=len(tables) > 1) for number, table in enumerate(whole)]


def _table(
    table: Table, name: str, targets: Targets, ratio_titles: Mapping[str, str], *, several: bool
) -> dict[str, Any]:
    ratios = {ratio_for_filter(row.ratio) for row in table.rows if row.method != "dense"}
    by_ratio = table.view == "by-ratio"
    columns = [
        _column(column, ratio=ratio_titles.get(column.label, column.label) if by_ratio else None)
        for column in table.columns
    ]
    return {
        "id": name,
        "ratio": ratios.pop() if len(ratios) == 1 and table.view != "speed" else "",
        "title": table.heading,
        "conditions": [table.model, *table.conditions] if several else [],
        "columns": [_column(Column("label", table.head, words=True), ratio=None), *columns],
        "rows": [_row(row, table, targets) for row in table.rows],
        "notes": [*table.notes, *legend_of([table])],
        "names": ["label", *(column.name for column in table.columns)],
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

    own_ratio = "" if row.method == "dense" else ratio_for_filter(row.ratio)

    def lead(cell: TableCell, column: Column) -> str:
        """Return the id of the row that a value comes from; empty without one."""
        if table.view == "grid":
            return target(cell.of[0], own_ratio) if cell.of else ""
        ratio = _column_of(column.label) if table.view == "by-ratio" and row.method != "dense" else own_ratio
        return target(row.label, own_ratio) or target(row.label, ratio)

    return {
        "label": row.label,
        "name": row.label if table.head == "method" else row.method,
        "dense": row.method == "dense",
        "ratio": own_ratio,
        "failure": row.failure,
        "target": target(row.label, own_ratio),
        "cells": [
            _cell(cell, column, lead(cell, column)) for cell, column in zip(row.cells, table.columns, strict=True)
        ],
    }


def _cell(cell: TableCell, column: Column, target: str) -> dict[str, Any]:
    """Return a cell for the template, with its value and its spread apart, such as '92.8' and '± 15.6'."""
    text = cell_text(cell)
    spread = text.removeprefix(cell.short) if text.startswith(cell.short) else ""
    classes = [*(MARKS[mark] for mark in cell.marks if mark in MARKS), *["words"] * column.words]
    return {
        "figure": text.removesuffix(spread) if spread else text,
        "beside": spread.strip(),
        "classes": " ".join(dict.fromkeys(classes)),
        "target": target,
    }


def _figures(row: Row) -> list[Any]:
    """Return the label and the raw cells of a row: each [value, low, high, standard error], words, or None."""
    if row.failure:
        return [row.label, *[None] * len(row.cells)]
    return [row.label, *(_raw(cell) for cell in row.cells)]


def _raw(cell: TableCell) -> Any:
    if cell.value is None or isinstance(cell.value, str):
        return cell.value
    ends = [None if end is None or not math.isfinite(end) else float(end) for end in (cell.low, cell.high, cell.stderr)]
    return [float(cell.value), *ends] if math.isfinite(cell.value) else None
