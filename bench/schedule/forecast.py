"""Says when a run will end, by estimates that are corrected by what its finished cells really took.

A method's pruning, and every other stage, is off by one factor for all cells that are left: the sum of what finished
cells took over the sum of their estimates. What a cell takes beside its stages, such as starting a process, is the
median of the finished ones. The slots share what is left but the timing, which comes one after the other on one
machine, and no run ends before the cell that has longest to go.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from statistics import median

from bench.plan.cell import Cell
from bench.records.record import Record
from bench.schedule.estimator import Estimate

RECENT = 32  # finished cells whose time beside their stages is looked at
DAY = 24 * 3600
TIMING = ("speed", "")  # kind of work that comes alone on its machine


class Forecast:
    """Follows the cells of a run from estimate to end.

    slots        how many cells run at once
    one_machine  whether nothing works beside a cell that is timed
    queues       whether a cell that has begun may wait for others' work, so that nobody knows when the run ends
    now          gives the seconds of a clock that only goes forward
    """

    def __init__(
        self,
        estimates: Mapping[str, Estimate],
        slots: int,
        *,
        one_machine: bool = True,
        queues: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots, self._now, self._queues = slots, now, queues
        self._alone = (TIMING,) if one_machine else ()
        self._estimates = dict(estimates)
        self._left = Counter[tuple[str, str]]()
        self._count = 0
        self._work: dict[str, dict[tuple[str, str], float]] = {}
        self._began: dict[str, float] = {}
        self._real: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._said: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._beside: list[float] = []

    def add(self, cell: Cell) -> None:
        """Note a cell that is to be measured."""
        work = {_kind(stage, cell): seconds for stage, seconds in self._estimates[cell.key].stages.items()}
        self._work[cell.key] = work
        self._left.update(work)
        self._count += 1

    def begin(self, key: str) -> None:
        """Note that a cell runs."""
        self._began[key] = self._now()
        self._take(self._work[key])

    def end(self, cell: Cell, record: Record) -> None:
        """Note the record of a cell, whether it ran or not."""
        work = self._work.pop(cell.key)
        began = self._began.pop(cell.key, None)
        if began is None:
            self._take(work)
            return
        real = record.measured.get("seconds", {})
        if record.status == "ok":
            for stage, seconds in real.items():
                if (kind := _kind(stage, cell)) in work:
                    self._real[kind] += seconds
                    self._said[kind] += work[kind]
            self._beside = [*self._beside[1 - RECENT :], max(0.0, self._now() - began - sum(real.values()))]

    def seconds(self) -> float | None:
        """Return in how many seconds the run ends; None before the first cell has ended, and where cells queue."""
        if self._queues or not self._beside:
            return None
        beside, now, every = median(self._beside), self._now(), self._factor()
        shared, alone = self._total(self._left, every)
        shared += beside * self._count
        longest = 0.0
        for key, began in self._began.items():
            own, timing = self._total(self._work[key], every)
            here = max(0.0, began + own + beside - now)
            longest, shared, alone = max(longest, here), shared + here, alone + timing
        return max(longest, shared / self.slots) + alone

    def line(self, clock: Callable[[], float] = time.time) -> str:
        """Say when the run ends: 'ends about 14:32, in 12 min'; nothing where that is not known."""
        if (seconds := self.seconds()) is None:
            return ""
        end = time.localtime(clock() + seconds)
        return f"ends about {time.strftime('%H:%M' if seconds < DAY else '%d %b %H:%M', end)}, in {duration(seconds)}"

    def _take(self, work: Mapping[tuple[str, str], float]) -> None:
        """Remove a cell's work from what is left."""
        self._left.subtract(work)
        self._count -= 1

    def _factor(self) -> float:
        """Return by what all finished work was longer than it was said to be."""
        return sum(self._real.values()) / sum(self._said.values()) if self._said else 1.0

    def _total(self, work: Mapping[tuple[str, str], float], every: float) -> tuple[float, float]:
        """Return the seconds of some work, corrected by the finished cells: what slots share, and what comes alone."""
        found = {True: 0.0, False: 0.0}
        for kind, seconds in work.items():
            factor = self._real[kind] / said if (said := self._said.get(kind)) else every
            found[kind in self._alone] += seconds * factor
        return found[False], found[True]


def _kind(stage: str, cell: Cell) -> tuple[str, str]:
    """Return what shares a factor: a method's pruning, or a stage of any cell."""
    return stage, cell.method if stage == "prune" else ""


def duration(seconds: float) -> str:
    """Write seconds as a reader wants them: '40 s', '12 min', '3.4 h', '2.1 days'."""
    for unit, size, digits in (("days", DAY, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= (2 * size if size > 60 else 1.5 * size):
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
