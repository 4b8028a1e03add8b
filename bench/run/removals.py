"""Finds what pruning goes on from: the removals that cells of the folder have found at other ratios, or that the same
cell had found when it was interrupted, and where its sweeps over the layers stood then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.plan.cell import Cell
from bench.records.record import InvalidRecord, Record, load
from bench.run import fingerprint
from bench.run.datasets import Datasets
from bench.run.source_hash import method_sha256
from bench.schedule.order import search_of
from methods.files import write_atomically
from methods.model.sweep_log import SweepLogs

Seconds = tuple[float | None, ...]  # that a search took until each of its removals was found; None: unknown
Order = tuple[tuple[str, ...], Seconds]  # the first removals of a search, and when it had them


class Removals:
    """Knows the longest start of a greedy search's removals that records have, and the seconds until each was found.

    Those of a record of an earlier version are unknown: its `prune_seconds` are of all removals, and of fits beside.

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
        seconds: Seconds = tuple(record.measured.get("search_seconds", ()))[: len(order)]
        if len(seconds) < len(order):
            seconds = (None,) * len(order)
        best = found.get(code, ((), ()))
        if (len(order), None not in seconds) > (len(best[0]), None not in best[1]):
            found[code] = tuple(order), seconds

    def of(self, cell: Cell) -> Order:
        """Return what a cell begins with; an empty order where nothing is known."""
        if not self._longest:
            return (), ()
        best: Order = (), ()
        alike = self._longest.get(search_of(fingerprint.of_today(cell.plain())), {})
        for (method, code), found in alike.items():
            here = cell.inputs.get("method_sha256") if method == cell.method else method_sha256(method)
            if code == str(here) and len(found[0]) > len(best[0]):
                best = found
        return best


class SearchTimes:
    """Keeps when a greedy search has found its removals, in seconds of search, and in a file the longest start of it.

    The first ones are those that it begins with, which other cells or an interrupted attempt have found.
    """

    def __init__(self, order: Sequence[str], seconds: Seconds, file: Path) -> None:
        self.order, self.file = tuple(order), file
        self._inherited = {self.order[: n + 1]: spent for n, spent in enumerate(seconds)}
        self._found = dict(self._inherited)
        self._last = time.perf_counter()

    def note(self, found: Sequence[str]) -> None:
        """Take in all removals so far, of which the last has just been found."""
        now = time.perf_counter()
        self._found[tuple(found)] = (_until(found[:-1], self._found) or 0.0) + now - self._last
        self._last = now
        seconds = [self._found.get(tuple(found[: n + 1])) for n in range(len(found))]
        write_atomically(self.file, json.dumps({"order": list(found), "seconds": seconds}))

    def inherited(self, decisions: Mapping[str, Any]) -> float:
        """Return what the removals have cost that the search began with and that are among those it decided on."""
        return _until(decisions.get("removal_order", self.order), self._inherited) or 0.0

    def until_each(self, decisions: Mapping[str, Any]) -> list[float]:
        """Return when each removal was found that another ratio may begin with; nothing where one is unknown."""
        free = decisions.get("removal_order", [])[: decisions.get("free_removals", 0)]
        found = [self._found.get(tuple(free[: n + 1])) for n in range(len(free))]
        return [spent for spent in found if spent is not None] if None not in found else []


def _until(order: Sequence[str], known: Mapping[tuple[str, ...], float | None]) -> float | None:
    """Return when the longest start of an order was found that is known; None where its seconds are not."""
    longest = next((tuple(order[:n]) for n in range(len(order), 0, -1) if tuple(order[:n]) in known), None)
    return 0.0 if longest is None else known[longest]


def resumed(datasets: Datasets, folder: Path, key: str) -> tuple[Datasets, SearchTimes]:
    """Let pruning of the cell `key` keep on disk what it finds, and begin with what is there.

    An interrupted attempt of the same cell has left removals of its search, and the layers of its sweeps
    (methods.model.sweep_log); a file that cannot be read counts as none. The second value says when the search has
    found what, and what of that it has inherited.
    """
    place = folder / "partial" / key / "prune"
    order, seconds = _kept(place / "removals.json")
    if len(order) <= len(datasets.calibration.order):  # a cell at another ratio has found as many meanwhile
        order, seconds = datasets.calibration.order, datasets.search_seconds
    times, sweeps = SearchTimes(order, seconds, place / "removals.json"), SweepLogs(place)
    if datasets.statistics:
        datasets.statistics.sweeps = sweeps
    calibration = replace(datasets.calibration, order=order, note=times.note, sweeps=sweeps)
    return replace(datasets, calibration=calibration), times


def _kept(file: Path) -> Order:
    """Return what an interrupted attempt has left; of one of an earlier version the seconds of all removals alone."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        order, seconds = tuple(map(str, kept["order"])), kept["seconds"]
        if isinstance(seconds, float):
            seconds = [None] * (len(order) - 1) + [seconds]
        if len(seconds) == len(order):
            return order, tuple(None if spent is None else float(spent) for spent in seconds)
    return (), ()


def valid(folder: Path) -> Iterable[Record]:
    """Yield every record of the folder that can be read and is a result."""
    for path in sorted((folder / "cells").glob("*.json")):
        with suppress(InvalidRecord):
            record = load(path)
            if record.status == "ok":
                yield record
