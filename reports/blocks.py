"""Groups records into tables: cells of one setup and one ratio, with the dense model on top; draws share a row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from bench.records import columns
from bench.records.comparability import apart, draws, setup
from bench.records.record import Record, label, requested_ratio
from reports import healing_notes


@dataclass(frozen=True)
class TableGroup:
    """Hold rows that are compared: one setup, one ratio, the dense model on top; several draws share a row.

    records  the record of each row, of several draws the first
    rows     its figures, of several draws their means
    numbers  for each row the places of its records among all records
    drawn    for each row its records, one where there is one cell;  each  their figures
    apart    what the setup has otherwise than the others in the report: "documents 200"
    """

    records: list[Record]
    rows: list[dict[str, Any]]
    numbers: list[list[int]]
    ratio: float | None
    drawn: list[list[Record]]
    each: list[list[dict[str, Any]]]
    apart: tuple[str, ...] = ()

    def label(self, place: int) -> str:
        """Return the method's name, with the seed where the group has several, and what sets its recipe apart."""
        record = self.records[place]
        seeds = {other.cell["seed"] for other in self.records}
        seed = f" (seed {record.cell['seed']})" if len(seeds) > 1 else ""
        return label(record.cell) + healing_notes.apart(record.cell, [other.cell for other in self.records]) + seed


def blocks(records: Sequence[Record]) -> list[list[TableGroup]]:
    """Return for each setup a group for each ratio, rising, methods of a fixed ratio last, dense on top of each."""
    rows, different = columns.rows(records), apart(records)
    groups: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        groups.setdefault(setup(record), []).append(number)
    return [list(_of_setup(records, rows, cells, different[key])) for key, cells in groups.items()]


def _of_setup(
    records: Sequence[Record], rows: Sequence[dict[str, Any]], cells: Sequence[int], different: tuple[str, ...]
) -> Iterator[TableGroup]:
    """Give the groups of the records at the places `cells`."""
    dense = [number for number in cells if records[number].cell["method"] == "dense"]
    pruned = [number for number in cells if records[number].cell["method"] != "dense"]
    ratios = {requested_ratio(records[number]) for number in pruned}
    for ratio in sorted(ratios, key=lambda ratio: (ratio is None, ratio or 0)) or [None]:
        block = [*dense, *(number for number in pruned if requested_ratio(records[number]) == ratio)]
        shared = [[block[place] for place in places] for places in draws([records[number] for number in block])]
        together = [[rows[number] for number in numbers] for numbers in shared]
        yield TableGroup(
            [records[numbers[0]] for numbers in shared],
            [pooled(several) if len(several) > 1 else several[0] for several in together],
            shared,
            ratio,
            [[records[number] for number in numbers] for numbers in shared],
            together,
            different,
        )


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row for several draws: of each figure the mean, with the standard deviation between the draws.

    Both are taken of a perplexity's logarithm, since draws lie orders of magnitude apart. What is no number, or is
    missing in a draw, is the first draw's.
    """
    row = dict(rows[0])
    for name in rows[0]:
        found = [one.get(name) for one in rows]
        values = [value for value in found if isinstance(value, int | float) and math.isfinite(value)]
        if len(values) < len(rows) or name == "seed" or name.endswith(("_low", "_high", "_stderr")):
            continue
        logarithmic = "perplexity_" in name
        numbers = [math.log(value) if logarithmic else value for value in values]
        middle, spread = fmean(numbers), stdev(numbers)
        low, mean, high = (math.exp(x) if logarithmic else x for x in (middle - spread, middle, middle + spread))
        beside = {f"{name}_low": low, f"{name}_high": high, f"{name}_stderr": spread}
        row |= {name: mean} | {column: value for column, value in beside.items() if column in row}
    return row
