"""Says when a run will end, by estimates that are corrected by what its finished cells really took.

A method's pruning, and every other stage, is off by one factor for all cells that are left: the sum of what finished
cells took over the sum of their estimates. What a cell takes beside its stages, such as starting a process, is the
median of the finished ones. Cells that wait share the slots, those that are timed come alone, and no run ends before
the cell that has longest to go.
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


class Forecast:
    """Follows the cells of a run from estimate to end.

    slots  how many cells run at once
    alone  keys of the cells beside which none does
    now    gives the seconds of a clock that only goes forward
    """

    def __init__(
        self,
        estimates: Mapping[str, Estimate],
        slots: int,
        alone: frozenset[str] = frozenset(),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots, self._alone, self._now = slots, alone, now
        self._estimates = dict(estimates)
        self._left: dict[bool, Counter[tuple[str, str]]] = {False: Counter(), True: Counter()}
        self._count = Counter[bool]()
        self._work: dict[str, dict[tuple[str, str], float]] = {}
        self._began: dict[str, float] = {}
        self._real: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._said: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._beside: list[float] = []
        self._most_alone = 1

    def add(self, cell: Cell) -> None:
        """Note a cell that is to be measured."""
        work = {_kind(stage, cell): seconds for stage, seconds in self._estimates[cell.key].stages.items()}
        self._work[cell.key] = work
        self._left[cell.key in self._alone].update(work)
        self._count[cell.key in self._alone] += 1

    def begin(self, key: str) -> None:
        """Note that a cell runs."""
        self._began[key] = self._now()
        self._take(key)
        self._most_alone = max(self._most_alone, sum(other in self._alone for other in self._began))

    def end(self, cell: Cell, record: Record) -> None:
        """Note the record of a cell, whether it ran or not."""
        work = self._work.pop(cell.key)
        began = self._began.pop(cell.key, None)
        if began is None:
            self._take(cell.key, work)
            return
        real = record.measured.get("seconds", {})
        if record.status == "ok":
            for stage, seconds in real.items():
                if (kind := _kind(stage, cell)) in work:
                    self._real[kind] += seconds
                    self._said[kind] += work[kind]
            self._beside = [*self._beside[1 - RECENT :], max(0.0, self._now() - began - sum(real.values()))]

    def seconds(self) -> float | None:
        """Return in how many seconds the run ends; None before the first cell has ended."""
        if not self._beside:
            return None
        beside, now, every = median(self._beside), self._now(), self._factor()
        left = {at: self._total(work, every) + beside * self._count[at] for at, work in self._left.items()}
        rest, longest = 0.0, 0.0
        for key, began in self._began.items():
            here = max(0.0, began + self._total(self._work[key], every) + beside - now)
            longest = max(longest, here)
            rest += here
        return (
            max(longest, (rest + left[False]) / self.slots if left[False] else longest) + left[True] / self._most_alone
        )

    def line(self, clock: Callable[[], float] = time.time) -> str:
        """Say when the run ends: 'ends about 14:32, in 12 min'; nothing before the first cell has ended."""
        if (seconds := self.seconds()) is None:
            return ""
        end = time.localtime(clock() + seconds)
        return f"ends about {time.strftime('%H:%M' if seconds < DAY else '%d %b %H:%M', end)}, in {duration(seconds)}"

    def _take(self, key: str, work: Mapping[tuple[str, str], float] | None = None) -> None:
        """Remove a cell from those that are left."""
        alone = key in self._alone
        self._left[alone].subtract(work or self._work[key])
        self._count[alone] -= 1

    def _factor(self) -> float:
        """Return by what all finished cells together correct the estimates."""
        return sum(self._real.values()) / sum(self._said.values()) if self._said else 1.0

    def _total(self, work: Mapping[tuple[str, str], float], every: float) -> float:
        """Return the seconds of some work as the finished cells correct them, `every` where none was of its kind."""
        return sum(
            seconds * (self._real[kind] / said if (said := self._said.get(kind)) else every)
            for kind, seconds in work.items()
        )


def _kind(stage: str, cell: Cell) -> tuple[str, str]:
    """Return what shares a factor: a method's pruning, or a stage of any cell."""
    return stage, cell.method if stage == "prune" else ""


def duration(seconds: float) -> str:
    """Write seconds as a reader wants them: '40 s', '12 min', '3.4 h', '2.1 days'."""
    for unit, size, digits in (("days", DAY, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= (2 * size if size > 60 else 1.5 * size):
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
