"""Finds what pruning goes on from: the removals that cells of the folder have found at other ratios, or that the same
cell had found when it was interrupted, and where its sweeps over the layers stood then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bench.plan.cell import Cell
from bench.records.record import InvalidRecord, Record, load
from bench.run import fingerprint
from bench.run.datasets import Datasets
from bench.run.source_hash import method_sha256
from bench.schedule.order import search_of
from methods.files import write_atomically
from methods.model.sweep_log import SweepLogs

Order = tuple[tuple[str, ...], float]  # the first removals of a search, and the seconds they have cost


class Removals:
    """Knows the longest start of a greedy search's removals that records have, and the seconds it has cost.

    Records may differ from the cell that begins with them in the ratio, in the compensation, which follows the search,
    and in how they are measured; not in what the method is, and what it looks at.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._longest: dict[str, dict[tuple[str, str], Order]] = {}  # {search: {(method, its code): what it found}}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take in a record, if it is a search's."""
        order = record.decisions.get("removal_order", [])[: record.decisions.get("free_removals", 0)]
        if record.status != "ok" or not order:
            return
        known = fingerprint.of_today(record.cell)
        code = known["method"], str(known["inputs"].get("method_sha256"))
        found = self._longest.setdefault(search_of(known), {})
        if len(order) > len(found.get(code, ((), 0.0))[0]):
            found[code] = tuple(order), record.measured["prune_seconds"]

    def of(self, cell: Cell) -> Order:
        """Return what a cell begins with; an empty order where nothing is known."""
        if not self._longest:
            return (), 0.0
        best: Order = (), 0.0
        alike = self._longest.get(search_of(fingerprint.of_today(cell.plain())), {})
        for (method, code), found in alike.items():
            here = cell.inputs.get("method_sha256") if method == cell.method else method_sha256(method)
            if code == str(here) and len(found[0]) > len(best[0]):
                best = found
        return best


def resumed(datasets: Datasets, folder: Path, key: str) -> Datasets:
    """Let pruning of the cell `key` keep on disk what it finds, and begin with what is there.

    An interrupted attempt of the same cell has left removals of its search, and the layers of its sweeps
    (methods.model.sweep_log); a file that cannot be read counts as none. The seconds of the removals are then those
    that the search has inherited.
    """
    place = folder / "partial" / key / "prune"
    file = place / "removals.json"
    order, seconds = tuple[str, ...](), 0.0
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        order, seconds = tuple(map(str, kept["order"])), float(kept["seconds"])
    if len(order) <= len(datasets.calibration.order):  # a cell at another ratio has found as many meanwhile
        order, seconds = datasets.calibration.order, datasets.inherited_seconds
    start = time.perf_counter()

    def note(found: list[str]) -> None:
        write_atomically(file, json.dumps({"order": found, "seconds": seconds + time.perf_counter() - start}))

    sweeps = SweepLogs(place)
    if datasets.statistics:
        datasets.statistics.sweeps = sweeps
    calibration = replace(datasets.calibration, order=order, note=note, sweeps=sweeps)
    return replace(datasets, calibration=calibration, inherited_seconds=seconds)


def valid(folder: Path) -> Iterable[Record]:
    """Yield every record of the folder that can be read and is a result."""
    for path in sorted((folder / "cells").glob("*.json")):
        with suppress(InvalidRecord):
            record = load(path)
            if record.status == "ok":
                yield record
