"""The table of latencies: what a part of each size takes of a generated token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reports import doubts
from reports.metrics import METRICS
from reports.tables.table import Column, Row, Table, TableCell

COLUMNS = (Column("parameters", "parameters"), Column("ms", "ms"), Column("share", "of a token"))
ABOUT = (
    "ms: of one layer's part, by the difference to the model in which that part is gone from every layer; in between, "
    "straight lines.",
)


def table(found: dict[str, Any]) -> Table:
    """Return a row for each size of each part, for the layers' share of a token and for all else."""
    about, rows = found["about"], list[Row]()
    whole = about["dense_ms"]
    for part, points in found["parts"].items():
        rows += [_row(part, size, ms, whole) for size, ms in points[1:]]
    rows.append(_row("all but the layers", None, found["rest"], whole))
    rows.append(_row("the model", None, whole, whole))
    return Table(
        name="latency-table",
        view="latency-table",
        model=about["model"],
        title=f"milliseconds of a token behind {about['depth']} tokens",
        conditions=(
            f"{about['device']}, {about['dtype']}, {about['threads']} threads",
            f"{about['rounds']} rounds{' of captured steps' if about.get('mode') == 'graph' else ''}",
        ),
        columns=COLUMNS,
        rows=tuple(rows),
        footnotes=(*ABOUT, *_how_well_known(about)),
        head="part",
    )


def _how_well_known(about: dict[str, Any]) -> Iterator[str]:
    """Yield how wide the intervals of the copies are, and what is in doubt about the table."""
    widest = max(abs(one[end] / one["times_dense"] - 1) for one in about["copies"] for end in ("low", "high"))
    yield (
        f"What a step of a copy takes, as a share of the model's, has a 95 % interval, which of {len(about['copies'])} "
        f"copies reaches {METRICS['ratio'].show(widest)} of it to a side at most."
    )
    yield from doubts.doubts_of_latencies(about)


def _row(part: str, size: float | None, ms: float, whole: float) -> Row:
    sized = TableCell(METRICS["parameters"].show(size), value=size) if size is not None else TableCell()
    share = TableCell(METRICS["ratio"].show(ms / whole), value=ms / whole)
    return Row(part, part, None, (sized, TableCell(f"{ms:.3f}", value=ms), share))
