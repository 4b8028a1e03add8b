"""In which order the rows of a table stand: by the measure that separates them, and not by the alphabet.

The dense model is on top, then the best first; what has no figure comes next and what failed last, ties by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bench.records.columns import texts
from bench.records.record import Record
from reports.blocks import TableGroup
from reports.metrics import finite, metric
from reports.tables.table import Row

Key = tuple[int, float, str]


def measure(group: TableGroup, *preferred: str) -> str:
    """Return the column of the frame that orders a group: the first that any row has a finite figure in, or "".

    preferred  columns to look at before the perplexity on the first text, the divergence and the average
    """
    names = [*preferred, *(f"perplexity_{text}" for text in texts(group.records)), "kl", "average"]
    return next((name for name in names if any(finite(row.get(name)) for row in group.rows)), "")


def ordered(group: TableGroup, name: str) -> TableGroup:
    """Sort the rows of a group by the column `name` of the frame."""

    def key(place: int) -> Key:
        record, figure = group.records[place], group.rows[place].get(name)
        failed = record.status != "ok"
        return row_key(group.label(place), record.cell["method"], figure, metric(name).better if name else None, failed)

    order = sorted(range(len(group.records)), key=key)
    return replace(
        group,
        records=[group.records[at] for at in order],
        rows=[group.rows[at] for at in order],
        numbers=[group.numbers[at] for at in order],
        drawn=[group.drawn[at] for at in order],
        each=[group.each[at] for at in order],
    )


def records(groups: Iterable[TableGroup]) -> list[Record]:
    """Return the records of several groups in the order of their rows, each once."""
    return list({id(one): one for group in groups for drawn in group.drawn for one in drawn}.values())


def row_key(label: str, method: str, figure: Any, better: str | None, failed: bool) -> Key:
    """Return what a row is sorted by."""
    if method == "dense":
        return 0, 0.0, ""
    if failed or figure is None or math.isnan(figure):
        return 3 if failed else 2, 0.0, label
    return 1, -figure if better == "higher" else figure, label


def said(group: TableGroup, name: str, where: str = "rows") -> list[str]:
    """Say by which column of the frame the rows of a group are sorted, where there are several."""
    rows = [Row(group.label(place), record.cell["method"], None) for place, record in enumerate(group.records)]
    return sorting_note(rows, metric(name).label, metric(name).better, where) if name else []


def sorting_note(rows: Sequence[Row], by: str, better: str | None, where: str = "rows") -> list[str]:
    """Return the sentence that says how rows are sorted, where there are several."""
    several = sum(row.method != "dense" for row in rows) > 1
    return [f"{where} are sorted by {by}, the {'highest' if better == 'higher' else 'lowest'} first."] * several
