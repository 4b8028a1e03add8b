"""What stands in one table: cells of one setup and one ratio, with the dense model on top; draws share a row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from bench.records.record import Record, label
from reports import columns, healing_notes
from reports.columns import conditions_of, requested_ratio, setup

MOST = 4  # fields that are named where setups differ in many


@dataclass(frozen=True)
class TableGroup:
    """Rows that are compared: one setup, one ratio, the dense model on top; several draws share a row.

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
        """The method's name, with the seed where the block has several, and with what sets its recipe apart."""
        record = self.records[place]
        seeds = {other.cell["seed"] for other in self.records}
        seed = f" (seed {record.cell['seed']})" if len(seeds) > 1 else ""
        return label(record.cell) + healing_notes.apart(record.cell, [other.cell for other in self.records]) + seed


def blocks(records: Sequence[Record]) -> list[list[TableGroup]]:
    """For each setup a block per ratio, rising, methods of a fixed ratio last, dense on top of each."""
    rows, different = columns.rows(records), apart(records)
    groups: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        groups.setdefault(setup(record), []).append(number)
    return [list(_of_setup(records, rows, cells, different[key])) for key, cells in groups.items()]


def _of_setup(
    records: Sequence[Record], rows: Sequence[dict[str, Any]], cells: Sequence[int], different: tuple[str, ...]
) -> Iterator[TableGroup]:
    """The blocks of the records at the places `cells`."""
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


def apart(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """For each setup what it has otherwise than the others; model, device, dtype and profile are always said.

    What the inputs have is left out where it tells nothing apart that the rest does not.
    """
    setups = {setup(record): flat(conditions_of(record)) for record in records}
    said = ("model", "device", "dtype", "protocol.profile")
    varying = differing(list(setups.values()))
    asked = [name for name in varying if name.partition(".")[0] != "inputs"]
    if len({json.dumps([fields.get(name) for name in asked]) for fields in setups.values()}) == len(setups):
        varying = asked
    named = [name for name in varying if name not in said][:MOST]
    return {
        key: tuple(f"{name.rpartition('.')[2]} {brief(fields.get(name))}" for name in named)
        for key, fields in setups.items()
    }


def differing(conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which flat conditions differ; a text or task that only some have is named by the protocol alone."""
    names = dict.fromkeys(name for fields in conditions for name in fields)
    values = {name: [json.dumps(fields.get(name)) for fields in conditions] for name in names}
    return [
        name
        for name in names
        if len(set(values[name])) > 1
        and not (name.startswith(("inputs.texts", "inputs.tasks")) and any(name not in fields for fields in conditions))
    ]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if isinstance(value, dict) and value:
        return {name: one for key, inner in value.items() for name, one in flat(inner, f"{path}.{key}").items()}
    return {path.lstrip("."): value}


def brief(value: Any) -> str:
    """A value of a condition, not too long for a sentence."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "+".join(value) or "none"
    text = json.dumps(value)
    if len(text) <= 40:
        return text
    return json.dumps(f"{value[:12]}...") if isinstance(value, str) else f"{text[:12]}..."


def draws(records: Sequence[Record]) -> list[list[int]]:
    """The numbers of the records that share a row: measured cells that differ in a random method's seed alone.

    One that was timed comes first.
    """
    rows: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        stages = [*record.cell.get("earlier", ()), record.cell]
        if record.status == "ok" and any(map(_is_draw, stages)):
            *earlier, cell = [
                {**stage, "parameters": {**stage["parameters"], "seed": None}} if _is_draw(stage) else stage
                for stage in stages
            ]
            inputs = {name: value for name, value in cell.get("inputs", {}).items() if name != "parent"}
            rows.setdefault(json.dumps({**cell, "earlier": earlier, "inputs": inputs}, sort_keys=True), []).append(
                number
            )
        else:
            rows[str(number)] = [number]
    return [sorted(numbers, key=lambda n: "speed" not in records[n].measured) for numbers in rows.values()]


def _is_draw(stage: Mapping[str, Any]) -> bool:
    return "draws" in stage["parameters"] and "seed" not in stage.get("given", ())


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for several draws: of each figure the mean, and with it the standard deviation between the draws.

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
