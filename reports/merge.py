"""Several runs as one: cells that occur twice once, and what keeps runs from being compared, by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records.record import Record, load
from bench.records.samples import Samples
from reports.blocks import MOST, brief, differing, flat
from reports.columns import conditions_of


@dataclass(frozen=True)
class Merged:
    """Records with their samples, and what is to be said of their being together."""

    records: list[Record]
    samples: Samples
    remarks: list[str]


def load_runs(runs: Sequence[Path]) -> Merged:
    """The records of all runs. Raises InvalidRecord, and FileNotFoundError with the run that has no record."""
    cells: dict[str, tuple[Record, Path]] = {}
    setups: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    again = 0
    for run in runs:
        paths = sorted((run / "cells").glob("*.json"))
        if not paths:
            raise FileNotFoundError(run)
        for path in paths:
            record = load(path)
            conditions = conditions_of(record)
            setups.setdefault(json.dumps(conditions, sort_keys=True), (run, conditions))
            same = json.dumps(record.cell, sort_keys=True)
            again += same in cells
            if same not in cells or _rank(record) > _rank(cells[same][0]):
                cells[same] = (record, run / "samples" / path.stem)
    records = [record for record, _ in cells.values()]
    samples = Samples([folder for _, folder in cells.values()])
    return Merged(records, samples, [*_twice(again), *_apart(list(setups.values()))])


def _rank(record: Record) -> tuple[bool, str]:
    """A measured cell counts before a failed one, then the newest."""
    return record.status == "ok", str(record.environment.get("date", ""))


def _twice(count: int) -> list[str]:
    if not count:
        return []
    noun = "cell stands" if count == 1 else "cells stand"
    return [f"{count} {noun} in several runs; of each the newest that was measured is reported."]


def _apart(setups: Sequence[tuple[Path, Mapping[str, Any]]]) -> Iterator[str]:
    """For each setup but the first why it stands apart."""
    for run, conditions in setups[1:]:
        first, other = flat(setups[0][1]), flat(conditions)
        fields = differing([first, other])
        shown = [f"{name} is {brief(other.get(name))}, not {brief(first.get(name))}" for name in fields[:MOST]]
        more = f", and {len(fields) - MOST} more fields" if len(fields) > MOST else ""
        where = "within one run" if run == setups[0][0] else f"with those of {setups[0][0].name}"
        yield f"{run.name}: cells are not compared {where} and stand in tables of their own: {', '.join(shown)}{more}."
