"""Measures nothing: a session whose clock goes on to the end of the next cell, for plans, and for tests of the driver.

Its jobs take what they are said to take. Nothing works beside one while it is timed, as on one machine
(bench.engines.local, bench.system.gate).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Any

from bench.engines.engine import Job, Machine, Result

Found = Callable[[str], dict[str, Any]]


class SimulatedSession:
    """Has slots, and a clock in seconds.

    seconds  that each job takes, by its key
    alone    how many of them, at the end, it is timed, by its key; 0 for one that is missing
    found    what is found of a job; by default nothing but a good status
    start    what a slot takes before its first job
    spans    (slot, begin, end) of each job, by its key
    """

    def __init__(
        self,
        slots: int,
        seconds: Mapping[str, float],
        alone: Mapping[str, float] | None = None,
        *,
        found: Found | None = None,
        start: float = 0.0,
    ) -> None:
        self.slots, self.machine = slots, Machine(None, 1)
        self.now = 0.0
        self.spans: dict[str, tuple[int, float, float]] = {}
        self._seconds, self._alone, self._found, self._start = seconds, alone or {}, found or _fine, start
        self._idle = list(range(slots))
        self._warm = set[int]()
        self._begun: dict[str, tuple[int, float]] = {}
        self._next: list[tuple[float, int, str, bool]] = []  # when a job comes to its timing (False) or ends (True)
        self._at_gate: list[str] = []

    def threads(self, timed: bool) -> int:
        return 1

    def has_room(self, timed: bool) -> bool:
        return bool(self._idle) and not self._at_gate

    def submit(self, job: Job) -> None:
        self.begin(job.key)

    def begin(self, key: str) -> None:
        """Let a job run in the first slot that is idle."""
        slot = heapq.heappop(self._idle)
        alone = self._alone.get(key, 0.0)
        comes = self.now + self._seconds[key] - alone + (0.0 if slot in self._warm else self._start)
        self._warm.add(slot)
        self._begun[key] = slot, self.now
        heapq.heappush(self._next, (comes, slot, key, not alone))

    def next_result(self) -> Result:
        while True:
            self.now, slot, key, ends = heapq.heappop(self._next)
            if not ends:
                self._at_gate.append(key)
            else:
                self.spans[key] = (*self._begun.pop(key), self.now)
                heapq.heappush(self._idle, slot)
            if self._at_gate and not self._next:  # all others have ended, or come to theirs
                self._time_all()
            if ends:
                return Result(key, self._found(key))

    def _time_all(self) -> None:
        """Time those at the gate one after the other, who then leave it together."""
        over = self.now + sum(self._alone[key] for key in self._at_gate)
        for key in self._at_gate:
            heapq.heappush(self._next, (over, self._begun[key][0], key, True))
        self._at_gate.clear()

    def cancel(self) -> None:
        self._next.clear()

    def __enter__(self) -> SimulatedSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def _fine(key: str) -> dict[str, Any]:
    """Return what a cell tells that has nothing to tell."""
    return {"status": "ok", "error": None}
