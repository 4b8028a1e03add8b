"""Orders the cells of a run: which one starts next, and which one waits for another.

- A cell that goes on from another one (--then) waits for its record, and begins with the model that was kept.
- A greedy search begins with the removals of the longest search at another ratio. Only records show which cells search,
  so that the first cell of a method and its parameters goes first. Where its record has an order of removals, each
  waits for those in front of it. A cell so begins with the same removals with one slot and with many.
- Of those that wait for none, the one with the longest way to go is first where several run at once: its own seconds
  and those of the cells that wait for it, as they are estimated (bench.schedule.estimate). With one slot the order is
  that of the cells.
- Nothing waits for the dense model's predictions: each process writes them unless they are there. Texts and tasks are
  read once in each process.

A step costs the logarithm of the number of cells. Of a cell that has ended a few words are kept. Ten thousand cells are
therefore no more work for each of them than ten are.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.engines.engine import Result, Session
from bench.plan.cell import Cell
from bench.records import comparability
from bench.records.record import FAILED, Record


@dataclass(frozen=True)
class CellEnd:
    """Holds the values of a cell's record that other cells wait for; the record itself is in the folder.

    error      its first line
    no_search  whether its method has removed something, and not by a search that others can go on from
    """

    status: str
    error: str = ""
    no_search: bool = False

    @classmethod
    def of(cls, record: Record) -> CellEnd:
        """Return how the cell of a record has ended."""
        removed = record.measured.parameters != record.measured.dense_parameters
        no_search = record.status == "ok" and removed and "removal_order" not in record.decisions
        return cls(record.status, (record.error or "").partition("\n")[0], no_search)


class Schedule:
    """Knows which cells are done, run, and wait. `cells` have their inputs, and parents come in front of children.

    seconds  that each cell is likely to take, by key; None: the cells keep their order
    ended    {key: end} of the cells that are done
    """

    def __init__(self, cells: Sequence[Cell], seconds: Mapping[str, float] | None = None) -> None:
        self.cells = {cell.key: cell for cell in cells}
        self.ended: dict[str, CellEnd] = {}
        self.running = set[str]()
        self.failed = 0
        self._search_of = search_groups(cells)
        self._members: dict[str, list[str]] = {}  # {search: its cells}
        self._no_searches = set[str]()  # searches of which a record has no order of removals
        self._before = predecessors_of(self._search_of)
        self._behind: dict[str, list[str]] = {}  # {key: those that wait for it}
        for key, search in self._search_of.items():
            self._members.setdefault(search, []).append(key)
        for key, before in self._before.items():
            self._behind.setdefault(before, []).append(key)
        for key, cell in self.cells.items():
            if parent := cell.parent_key:
                self._behind.setdefault(parent, []).append(key)
        self._timed = {key for key, cell in self.cells.items() if cell.is_timed}
        way = self._ways(seconds) if seconds is not None else {}
        self._rank = {key: (-way.get(key, 0.0), at) for at, key in enumerate(self.cells)}
        self._ready: dict[bool, list[tuple[tuple[float, int], str]]] = {False: [], True: []}
        self._freed = set[str]()  # those that wait for nothing any more
        for key in self.cells:
            self._free(key)

    def _ways(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Return {key: seconds of the cell and of the longest chain of cells behind it}."""
        ways = dict[str, float]()
        for key in reversed(self.cells):  # a cell that waits comes behind
            ways[key] = seconds.get(key, 0.0) + max(
                (ways[follower] for follower in self._behind.get(key, ())), default=0.0
            )
        return ways

    @property
    def waiting(self) -> int:
        """Return the number of cells that have not begun."""
        return len(self.cells) - len(self.ended) - len(self.running)

    def next(self, has_room: Callable[[bool], bool]) -> Cell | None:
        """Return the first cell that waits for no other one and has room; None where there is none now.

        has_room  says whether a cell may start, given whether it is timed
        """
        for _, key in sorted(heap[0] for heap in self._ready.values() if heap):
            if has_room(key in self._timed):
                return self.cells[key]
        return None

    def start(self, key: str) -> None:
        """Note that the cell that `next` has returned runs."""
        self._take(key)
        self.running.add(key)

    def finish(self, key: str, end: CellEnd) -> None:
        """Note how a cell has ended that runs, or that `next` has returned."""
        if key in self.running:
            self.running.remove(key)
        else:
            self._take(key)
        self.ended[key] = end
        self.failed += end.status in FAILED
        freed = self._behind.get(key, [])
        search = self._search_of.get(key)
        if search is not None and end.no_search and search not in self._no_searches:
            self._no_searches.add(search)
            freed = freed + self._members[search]
        for follower in freed:
            self._free(follower)

    def predecessor(self, key: str) -> str | None:
        """Return the key of the cell that this one waits for, done or not; None where it waits for none."""
        parent = self.cells[key].parent_key
        return parent or (self._before.get(key) if self.may_search(key) else None)

    def may_search(self, key: str) -> bool:
        """Say whether a cell may begin with the removals of another one, as far as records say."""
        return key in self._search_of and self._search_of[key] not in self._no_searches

    def _take(self, key: str) -> None:
        """Remove the first cell of a kind from the cells that may start."""
        _, first = heapq.heappop(self._ready[key in self._timed])
        assert first == key, f"{first} starts before {key}"

    def _free(self, key: str) -> None:
        """Let a cell start if it waits for nothing any more."""
        if key not in self._freed and not self._waits(key):
            self._freed.add(key)
            heapq.heappush(self._ready[key in self._timed], (self._rank[key], key))

    def _waits(self, key: str) -> bool:
        """Say whether a cell waits for its parent, or for a cell whose removals it may begin with."""
        parent = self.cells[key].parent_key
        if parent is not None and parent not in self.ended:
            return True
        return key in self._before and self.may_search(key) and self._before[key] not in self.ended

    def progress(self, *, queues: bool = False) -> str:
        """Return one line: how many cells are done, run and wait, and how many have failed.

        queues  whether those that have been submitted may wait elsewhere
        """
        running = f"{len(self.running)} {'in the queue or running' if queues else 'running'}"
        counts = f"{len(self.ended)} of {len(self.cells)} cells done, {running}"
        return f"{counts}, {self.waiting} waiting, {self.failed} failed"


def drive(
    schedule: Schedule, session: Session, begin: Callable[[Cell], object], end: Callable[[Result], object]
) -> None:
    """Begin every cell as soon as it may start and has room, and end the cells that the session has measured.

    `begin` either submits the cell and starts it in the schedule, or finishes it there at once.
    """
    while (cell := schedule.next(session.has_room)) or schedule.running:
        if cell is None:
            end(session.next_result())
        else:
            begin(cell)


def search_groups(cells: Sequence[Cell]) -> dict[str, str]:
    """Return {key: its search}, for each cell that may search; cells of one search find the same removals."""
    return {cell.key: search_of(cell) for cell in cells if cell.ratio}


def predecessors_of(searches: Mapping[str, str]) -> dict[str, str]:
    """Return {key: the key in front of it in its search}, without the first cell of each search."""
    predecessors, last = dict[str, str](), dict[str, str]()
    for key, search in searches.items():
        if search in last:
            predecessors[key] = last[search]
        last[search] = key
    return predecessors


def search_of(cell: Cell) -> str:
    """Return the search of a cell as one text: method, parameters and conditions, no ratio and no compensation."""
    pruner = {name: value for name, value in cell.parameters.items() if "." not in name}
    own = [cell.method.partition("+")[0], pruner, comparability.conditions_for(cell, "decision")]
    return json.dumps(own, sort_keys=True)
