"""Says which cells are draws of one row: those that differ in what a seed chooses alone.

That is the choice of a random method, whose cells have a parameter for its seed; and what a cell's own seed draws, the
calibration text and the documents of the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bench.records.record import Record


def draws(records: Sequence[Record], *, seeds: bool = True) -> list[list[int]]:
    """Return the places of the records that share a row: measured cells that differ in what was drawn alone.

    That is the choice of a random method, whose cells have a parameter for its seed, and what the cell's own seed
    draws, the calibration and the documents; without `seeds` the choice alone. Cells that cannot be measured share a
    row over the seeds too. One that was timed comes first, then the lowest seed.
    """
    rows: dict[str, list[int]] = {}
    seeds = seeds and len({record.cell["seed"] for record in records}) > 1
    for number, record in enumerate(records):
        random = record.status == "ok" and any(map(is_draw, (*record.cell.get("earlier", ()), record.cell)))
        key = _undrawn_cell(record, random=random, seeds=seeds) if random or seeds else str(number)
        others = {records[other].cell["seed"] for other in rows.get(key, ())}
        rows.setdefault(key if random or record.cell["seed"] not in others else str(number), []).append(number)
    return [
        sorted(numbers, key=lambda n: ("speed" not in records[n].measured, records[n].cell["seed"]))
        for numbers in rows.values()
    ]


def _undrawn_cell(record: Record, *, random: bool, seeds: bool) -> str:
    """Return all that was asked for and that it stands on but for what was drawn, as one text."""
    *earlier, cell = [
        {**stage, "parameters": {**stage["parameters"], "seed": None}} if random and is_draw(stage) else stage
        for stage in (*record.cell.get("earlier", ()), record.cell)
    ]
    inputs = {name: value for name, value in cell.get("inputs", {}).items() if name != "parent"}
    drawn = {"seed": None, "inputs": undrawn(inputs)} if seeds else {"inputs": inputs}
    return json.dumps([record.status, {**cell, "earlier": earlier, **drawn}], sort_keys=True)


def is_draw(stage: Mapping[str, Any]) -> bool:
    """Say whether a cell, or one that it goes on from, is one of several draws of a random method."""
    return is_drawn(stage["parameters"], stage.get("given", ()))


def is_drawn(parameters: Mapping[str, Any], given: Collection[str]) -> bool:
    """Say whether a method with these parameters draws its seeds itself, none having been given."""
    return "draws" in parameters and "seed" not in given


def undrawn(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs without what the seed draws: the calibration, and of each task the documents."""
    found = {name: value for name, value in inputs.items() if name != "calibration_sha256"}
    if "tasks" in found:
        found["tasks"] = {name: task.get("version") for name, task in found["tasks"].items()}
    return found
