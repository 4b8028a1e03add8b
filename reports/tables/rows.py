"""From a block of cells to the rows of a table: figures, and the marks that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.records.columns import removed_too_little
from bench.records.record import Record, requested_ratio
from bench.records.samples import Samples
from reports import notes
from reports.blocks import TableGroup
from reports.tables import significance
from reports.tables.table import Column, Entry, Row, figure, ranked

COST = ("prefill_tokens_per_second", "decode_ms_per_token", "weight_bytes", "kv_bytes_per_token", "peak_memory_bytes")
UNRANKED = (
    "ratio",
    "parameters",
    "prune_seconds",
    "heal_seconds",
    *COST,
)  # the cheapest is not what a reader looks for in bold


@dataclass(frozen=True)
class RowSamples:
    """What is known beside the records.

    reference  the label of the method that others are tested against; empty for no tests
    samples    those of the records, read where something is tested
    needs      what each method looks at, by its name: "calibration, gradients"
    """

    reference: str
    samples: Samples
    needs: Mapping[str, str]


def compared(block: TableGroup, columns: Sequence[Column], evidence: RowSamples) -> tuple[list[Row], list[str]]:
    """The rows of a block with the best and second best figures, missed ratios and tested differences marked.

    The second value is what must be said of the tests.
    """
    tested = significance.tested(evidence.reference, block, [column.name for column in columns], evidence.samples)
    rows = [_row(block, place, columns, tested.differs) for place in range(len(block.rows))]
    eligible = [_may_win(record) for record in block.records]
    for number, column in enumerate(columns):
        if column.better and column.name not in UNRANKED:
            rows = ranked(rows, number, column.better, eligible)
    return rows, list(tested.notes)


def conditions(block: TableGroup) -> tuple[str, ...]:
    """Under what a block was measured, and what sets it apart from others in the report."""
    return (*notes.conditions(block.records), *block.apart)


def _may_win(record: Record) -> bool:
    """Whether a cell can be the best of its ratio: not the dense model, and nothing that removed too little."""
    return record.cell["method"] != "dense" and record.status == "ok" and not removed_too_little(record)


def _row(block: TableGroup, place: int, columns: Sequence[Column], differs: set[tuple[int, str]]) -> Row:
    record, row = block.records[place], block.rows[place]
    cells = [figure(row, column.name) for column in columns]
    for number, column in enumerate(columns):
        if column.name == "ratio" and missed(row):
            cells[number] = starred(cells[number])
        if (place, column.name) in differs:
            cells[number] = cells[number].marked("differs")
    failure = None if record.status == "ok" else notes.status(record)
    return Row(block.label(place), record.cell["method"], requested_ratio(record), tuple(cells), failure)


def missed(row: Mapping[str, object]) -> bool:
    """Whether a row of the frame missed its ratio."""
    return "missed_ratio" in str(row["flags"])


def starred(cell: Entry) -> Entry:
    """The cell of a ratio that was missed."""
    return replace(cell, text=f"{cell.text}*", brief=f"{cell.short}*", marks=(*cell.marks, "missed"))


def kind(name: str) -> str:
    """What notes.protocol calls a measure."""
    kinds = {"average": "tasks", "kept": "tasks", "prefill_speed": "speed", "decode_speed": "speed"}
    return "perplexity" if name.startswith("perplexity_") else kinds.get(name, name)
