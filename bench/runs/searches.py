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
from bench.runs.datasets import Datasets
from bench.schedule.order import search_of
from methods.files import write_atomically
from methods.model.calibration import SweepLogs

Seconds = tuple[float, ...]  # that a search took until each of its removals was found
REMOVALS = "removals.json"  # of an interrupted attempt, in its folder
Order = tuple[tuple[str, ...], Seconds]  # the first removals of a search, and when it had them
NOTHING: Order = (), ()


class KnownSearches:
    """Knows the longest start of a greedy search's removals that records have, and the seconds until each was found.

    Records may differ from the cell that begins with them in the ratio, in the compensation, which follows the search,
    and in how they are measured; not in what the method is, and what it looks at.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._longest: dict[tuple[str, str], Order] = {}  # by search and revision of its method
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take in a record, if it is a search's."""
        order = record.decisions.get("removal_order", [])[: record.decisions.get("free_removals", 0)]
        seconds: Seconds = tuple(record.measured.get("search_seconds", ()))[: len(order)]
        if record.status != "ok" or not order or len(seconds) < len(order):
            return
        search = _search(record.cell)
        if len(order) > len(self._longest.get(search, NOTHING)[0]):
            self._longest[search] = tuple(order), seconds

    def of(self, cell: Cell) -> Order:
        """Return what a cell begins with; an empty order where nothing is known."""
        return self._longest.get(_search(cell.plain()), NOTHING) if self._longest else NOTHING


def _search(cell: Mapping[str, Any]) -> tuple[str, str]:
    """Return what cells share whose searches find the same, with the revision of their method alone."""
    numbers, *more = str(cell["inputs"].get("revision", "")).split(", ")
    return search_of(cell), ", ".join([numbers.partition("+")[0], *more])


class SearchTimes:
    """Keeps when a greedy search has found its removals, in seconds of search, and in a file the longest start of it.

    The first ones are those that it begins with, which other cells have found. Behind them are those of an interrupted
    attempt that began alike, `again`, which the search takes from its own log (methods.model.calibration).
    """

    def __init__(self, begin: Order, again: Order, file: Path) -> None:
        (self.order, seconds), self.file = begin, file
        self._inherited = _by_start(self.order, seconds)
        self._seconds_by_start = _by_start(*again) | self._inherited
        self._last = time.perf_counter()

    def note(self, removals: Sequence[str]) -> None:
        """Take in all removals so far, of which the last has just been found, now or by an interrupted attempt."""
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        if tuple(removals) in self._seconds_by_start:
            return
        self._seconds_by_start[tuple(removals)] = _until(removals[:-1], self._seconds_by_start) + spent
        seconds = [self._seconds_by_start.get(tuple(removals[: n + 1])) for n in range(len(removals))]
        kept = {"order": list(removals), "seconds": seconds, "inherited": len(self.order)}
        write_atomically(self.file, json.dumps(kept))

    def inherited_seconds(self, decisions: Mapping[str, Any]) -> float:
        """Return what the removals have cost that the search began with and that are among those it decided on."""
        return _until(decisions.get("removal_order", ()), self._inherited)

    def seconds_until_each(self, decisions: Mapping[str, Any]) -> list[float]:
        """Return when each removal was found that another ratio may begin with; nothing where one was not noted."""
        free = decisions.get("removal_order", [])[: decisions.get("free_removals", 0)]
        seconds = [self._seconds_by_start.get(tuple(free[: n + 1])) for n in range(len(free))]
        return [spent for spent in seconds if spent is not None] if None not in seconds else []


def _by_start(order: Sequence[str], seconds: Seconds) -> dict[tuple[str, ...], float]:
    """Return when the last removal of each start of an order was found."""
    return {tuple(order[: n + 1]): spent for n, spent in enumerate(seconds)}


def _until(order: Sequence[str], known: Mapping[tuple[str, ...], float]) -> float:
    """Return when the longest start of an order was found that is known; 0 where none is."""
    longest = next((tuple(order[:n]) for n in range(len(order), 0, -1) if tuple(order[:n]) in known), None)
    return 0.0 if longest is None else known[longest]


def resume_search(datasets: Datasets, folder: Path, key: str) -> tuple[Datasets, SearchTimes]:
    """Let pruning of the cell `key` keep on disk what it finds, and begin with what is there.

    An interrupted attempt of the same cell has left what its search and its sweeps have found, in their logs
    (methods.model.calibration); a file that cannot be read counts as none. A search goes on with what it began with, as
    long as no other cell has found more meanwhile, so that its record is that of one which nothing has interrupted. The
    second value says when the search has found what, and what of that it has inherited.
    """
    place = folder / "partial" / key / "prune"
    begin, again, file = (
        (datasets.calibration.order, datasets.search_seconds),
        _read_order(place / REMOVALS),
        place / REMOVALS,
    )
    order, seconds = again[0]
    if len(order) >= len(begin[0]):
        begin = order[: again[1]], seconds[: again[1]]
    times, sweeps = SearchTimes(begin, again[0], file), SweepLogs(place)
    if datasets.statistics:
        datasets.statistics.sweeps = sweeps
    calibration = replace(datasets.calibration, order=begin[0], note=times.note, sweeps=sweeps)
    return replace(datasets, calibration=calibration, search_seconds=begin[1]), times


def _read_order(file: Path) -> tuple[Order, int]:
    """Return what an interrupted attempt has found, and how many of that it began with."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        order, seconds = tuple(map(str, kept["order"])), kept["seconds"]
        if len(seconds) == len(order):
            return (order, tuple(map(float, seconds))), int(kept["inherited"])
    return ((), ()), 0


def read_valid_records(folder: Path) -> Iterable[Record]:
    """Yield every record of the folder that can be read and is a result."""
    for path in sorted((folder / "cells").glob("*.json")):
        with suppress(InvalidRecord):
            record = load(path)
            if record.status == "ok":
                yield record
