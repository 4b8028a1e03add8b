"""Keeps the removals of greedy searches, from which pruning goes on.

Removals come from cells of the folder at other ratios, or from an interrupted attempt of the same cell. The latter also
left where its sweeps over the layers stood.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.engines.engine import SearchStart
from bench.plan.cell import Cell
from bench.records.record import InvalidRecord, Record, load
from bench.runs.datasets import Datasets
from bench.schedule.order import search_of
from methods.files import write_atomically
from methods.model.calibration import SweepLogs

Seconds = tuple[float, ...]  # until each removal of a search
REMOVALS = "removals.json"  # of an interrupted attempt, in its folder


class KnownSearches:
    """Knows the longest start of a greedy search's removals that records have, and the seconds until each.

    Records may differ from the cell that begins with them in the ratio, in the compensation, which follows the search,
    and in how they are measured, but not in the method and its calibration.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._longest: dict[tuple[str, str], SearchStart] = {}  # by search and revision of its method
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take in a record, if it is one of a search."""
        order = record.decisions.get("removal_order", [])[: record.decisions.get("free_removals", 0)]
        seconds: Seconds = (record.measured.search_seconds or ())[: len(order)]
        if record.status != "ok" or not order or len(seconds) < len(order):
            return
        search = _search(record.cell)
        if len(order) > len(self._longest.get(search, SearchStart()).order):
            self._longest[search] = SearchStart(tuple(order), seconds)

    def start_of(self, cell: Cell) -> SearchStart:
        """Return the longest list of removals that a cell's search can begin with; empty without any."""
        return self._longest.get(_search(cell), SearchStart()) if self._longest else SearchStart()


def _search(cell: Cell) -> tuple[str, str]:
    """Return what cells share whose searches are the same, with the revision of their method alone."""
    numbers, *more = (cell.inputs.revision if cell.inputs else "").split(", ")
    return search_of(cell), ", ".join([numbers.partition("+")[0], *more])


class SearchTimes:
    """Keeps when a greedy search made its removals, in seconds of search, and in a file the longest start of it.

    The first removals are those that it begins with, from other cells. Behind them are those of an interrupted attempt
    that began alike, `again`, which the search takes from its own log (methods.model.calibration).
    """

    def __init__(self, begin: SearchStart, again: SearchStart, file: Path) -> None:
        (self.order, seconds), self.file = begin, file
        self._inherited = _by_start(self.order, seconds)
        self._seconds_by_start = _by_start(*again) | self._inherited
        self._last = time.perf_counter()

    def note(self, removals: Sequence[str]) -> None:
        """Take in all removals so far. The last of them has just been made, now or by an interrupted attempt."""
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        if tuple(removals) in self._seconds_by_start:
            return
        self._seconds_by_start[tuple(removals)] = _until(removals[:-1], self._seconds_by_start) + spent
        seconds = [self._seconds_by_start.get(tuple(removals[: n + 1])) for n in range(len(removals))]
        kept = {"order": list(removals), "seconds": seconds, "inherited": len(self.order)}
        write_atomically(self.file, json.dumps(kept))

    def inherited_seconds(self, decisions: Mapping[str, Any]) -> float:
        """Return the seconds of those removals that the search began with and that are among its decisions."""
        return _until(decisions.get("removal_order", ()), self._inherited)

    def seconds_until_each(self, decisions: Mapping[str, Any]) -> Seconds:
        """Return the seconds until each removal that another ratio may begin with; () where one was not noted."""
        free = decisions.get("removal_order", [])[: decisions.get("free_removals", 0)]
        seconds = [self._seconds_by_start.get(tuple(free[: n + 1])) for n in range(len(free))]
        return tuple(spent for spent in seconds if spent is not None) if None not in seconds else ()


def _by_start(order: Sequence[str], seconds: Seconds) -> dict[tuple[str, ...], float]:
    """Return the seconds until the last removal of each start of an order."""
    return {tuple(order[: n + 1]): spent for n, spent in enumerate(seconds)}


def _until(order: Sequence[str], seconds_by_start: Mapping[tuple[str, ...], float]) -> float:
    """Return the seconds until the longest known start of an order; 0 where none is known."""
    longest = next((tuple(order[:n]) for n in range(len(order), 0, -1) if tuple(order[:n]) in seconds_by_start), None)
    return 0.0 if longest is None else seconds_by_start[longest]


def resume_search(datasets: Datasets, folder: Path, key: str) -> tuple[Datasets, SearchTimes]:
    """Return data with which pruning of the cell `key` keeps its progress on disk and goes on from there.

    An interrupted attempt of the same cell has left the logs of its search and its sweeps (methods.model.calibration);
    a file that cannot be read counts as none. A search goes on with what it began with, unless another cell has more
    removals by now, so that its record is that of a search without interruption. The second value says when the search
    made its removals, and which of them it has inherited.
    """
    place = folder / "partial" / key / "prune"
    begin, file = SearchStart(datasets.calibration.order, datasets.search_seconds), place / REMOVALS
    again, inherited = _read_order(file)
    if len(again.order) >= len(begin.order):
        begin = SearchStart(again.order[:inherited], again.seconds[:inherited])
    times, sweeps = SearchTimes(begin, again, file), SweepLogs(place)
    if datasets.statistics:
        datasets.statistics.sweeps = sweeps
    calibration = replace(datasets.calibration, order=begin.order, note=times.note, sweeps=sweeps)
    return replace(datasets, calibration=calibration, search_seconds=begin.seconds), times


def _read_order(file: Path) -> tuple[SearchStart, int]:
    """Return the removals of an interrupted attempt, and how many of them it began with."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        order, seconds = tuple(map(str, kept["order"])), kept["seconds"]
        if len(seconds) == len(order):
            return SearchStart(order, tuple(map(float, seconds))), int(kept["inherited"])
    return SearchStart(), 0


def read_valid_records(folder: Path) -> Iterable[Record]:
    """Yield every record of the folder that can be read and is a result."""
    for path in sorted((folder / "cells").glob("*.json")):
        with suppress(InvalidRecord):
            record = load(path)
            if record.status == "ok":
                yield record
