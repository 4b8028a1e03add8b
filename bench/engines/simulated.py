"""Measures nothing: a session whose clock goes on to the end of the next cell, for plans, and for tests of the driver.

Its jobs take what they are said to take. A timed one is alone, as on one machine (bench.engines.local).
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
    found    what is found of a job; by default nothing but a good status
    start    what a slot takes before its first job
    spans    (slot, begin, end) of each job, by its key
    """

    def __init__(
        self, slots: int, seconds: Mapping[str, float], found: Found | None = None, start: float = 0.0
    ) -> None:
        self.slots, self.machine = slots, Machine(None, 1)
        self.now = 0.0
        self.spans: dict[str, tuple[int, float, float]] = {}
        self._seconds, self._found, self._start = seconds, found or _fine, start
        self._idle = list(range(slots))
        self._warm = set[int]()
        self._ends: list[tuple[float, int, str]] = []
        self._alone = False

    def threads(self, timed: bool) -> int:
        return 1

    def has_room(self, timed: bool) -> bool:
        return bool(self._idle) and not self._alone and not (timed and self._ends)

    def submit(self, job: Job) -> None:
        self.begin(job.key, job.timed and self.slots > 1)

    def begin(self, key: str, alone: bool) -> None:
        """Let a job run in the first slot that is idle."""
        slot = heapq.heappop(self._idle)
        end = self.now + self._seconds[key] + (0.0 if slot in self._warm else self._start)
        self._warm.add(slot)
        self._alone = alone
        self.spans[key] = slot, self.now, end
        heapq.heappush(self._ends, (end, slot, key))

    def next_result(self) -> Result:
        self.now, slot, key = heapq.heappop(self._ends)
        heapq.heappush(self._idle, slot)
        self._alone = False
        return Result(key, self._found(key))

    def cancel(self) -> None:
        self._ends.clear()

    def __enter__(self) -> SimulatedSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def _fine(key: str) -> dict[str, Any]:
    """Return what a cell tells that has nothing to tell."""
    return {"status": "ok", "error": None}
