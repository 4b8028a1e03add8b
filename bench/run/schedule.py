"""Orders the cells of a run: which one starts next, and which one waits for another.

- A cell that goes on from another one (--then) waits for its record, and begins with the model that was kept.
- A greedy search begins with the removals that the longest search of another ratio has found. Which cells search shows
  in their records, so that the first cell of a method and its parameters goes first; where its record has an order of
  removals, each waits for those in front of it. What a cell begins with is so the same with one slot and with many.
- Nothing waits for the dense model's predictions: each process writes them unless they are there. Texts and tasks are
  read once in each process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.plan.cell import Cell
from bench.records import comparability
from bench.records.record import FAILED, InvalidRecord, Record, load
from bench.run import fingerprint
from bench.run.source_hash import method_sha256


class Schedule:
    """Keeps which cells are done, run, and wait. `cells` have their inputs, and parents come in front of children.

    records  of the cells that are done, by key
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = {cell.key: cell for cell in cells}
        self.records: dict[str, Record] = {}
        self.running = set[str]()
        self._left = list(self.cells)
        self._search_of = {key: str(_search(cell.plain())) for key, cell in self.cells.items() if cell.ratio}
        self._no_searches = set[str]()  # as a record says that has no order of removals
        self._before, last = dict[str, str](), dict[str, str]()  # {key: the one in front of it in its search}
        for key, search in self._search_of.items():
            if search in last:
                self._before[key] = last[search]
            last[search] = key

    def next(self, may_start: Callable[[Cell], bool]) -> Cell | None:
        """Return the first cell that waits for no other one and may start; None where there is none now."""
        for key in self._left:
            if may_start(self.cells[key]) and not self._waits(key):
                return self.cells[key]
        return None

    def start(self, key: str) -> None:
        """Note that a cell runs."""
        self._left.remove(key)
        self.running.add(key)

    def finish(self, key: str, record: Record) -> None:
        """Note the record of a cell."""
        if key in self.running:
            self.running.remove(key)
        else:
            self._left.remove(key)
        self.records[key] = record
        if key in self._search_of and _shows_no_search(record):
            self._no_searches.add(self._search_of[key])

    def may_search(self, key: str) -> bool:
        """Say whether a cell may begin with the removals of another one, as far as is known."""
        return key in self._search_of and self._search_of[key] not in self._no_searches

    def _waits(self, key: str) -> bool:
        """Say whether a cell waits for its parent, or for the one in front of it whose removals it may begin with."""
        parent = self.cells[key].inputs.get("parent")
        if parent is not None and parent not in self.records:
            return True
        return key in self._before and self.may_search(key) and self._before[key] not in self.records

    def progress(self) -> str:
        """Say in one line how many cells are done, run and wait, and how many have failed."""
        failed = sum(record.status in FAILED for record in self.records.values())
        counts = f"{len(self.records)} of {len(self.cells)} cells done, {len(self.running)} running"
        return f"{counts}, {len(self._left)} waiting, {failed} failed"


def _shows_no_search(record: Record) -> bool:
    """Say whether the method of a record has removed something, and not by a search that others can go on from."""
    removed = record.measured.get("parameters") != record.measured.get("dense_parameters")
    return record.status == "ok" and removed and "removal_order" not in record.decisions


def _search(plain: Mapping[str, Any]) -> list[Any]:
    """Return what cells share whose searches find the same: not the ratio, nor what follows, nor how is measured."""
    pruner = {name: value for name, value in plain["parameters"].items() if "." not in name}
    return [plain["method"].partition("+")[0], pruner, comparability.shared(plain, "decision")]


def removals(cell: Cell, records: Sequence[Record]) -> tuple[tuple[str, ...], float]:
    """Return the longest start of a greedy search's removals that other cells of the folder found, and its seconds.

    They may differ in the ratio, in the compensation, which follows the search, and in how they are measured; not in
    what the method is, and what it looks at.
    """

    def by_this_source(plain: dict[str, Any]) -> bool:
        here = cell.inputs.get("method_sha256")
        wanted = here if plain["method"] == cell.method else method_sha256(plain["method"])
        return bool(plain["inputs"].get("method_sha256") == wanted)

    best: tuple[tuple[str, ...], float] = ((), 0.0)
    search = _search(fingerprint.of_today(cell.plain()))
    for record in records:
        order = record.decisions.get("removal_order", [])[: record.decisions.get("free_removals", 0)]
        known = fingerprint.of_today(record.cell)
        if len(order) > len(best[0]) and _search(known) == search and by_this_source(known):
            best = tuple(order), record.measured["prune_seconds"]
    return best


def valid(folder: Path) -> list[Record]:
    """Load every record of the folder that can be read and is a result."""
    found = []
    for path in sorted((folder / "cells").glob("*.json")):
        with suppress(InvalidRecord):
            found.append(load(path))
    return [record for record in found if record.status == "ok"]
