"""Says how threads of a CPU wait while they have no work, and how many have a core to themselves.

The former is read once, when torch is imported.
"""

from __future__ import annotations

import os
import time
from typing import Any

SHORTEST = 0.25  # seconds over which it is told what others use; the system counts in hundredths


def let_threads_wait() -> None:
    """Have threads without work wait 0.1 ms awake and then asleep, unless the user has said how they wait.

    Asleep at once they slow an idle machine down, awake for long a shared one, by much (tests/benchmarks/README.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # of libgomp, which torch's own packages have for Linux


def waiting() -> dict[str, str]:
    """Return how threads wait, where that was said; it decides how fast small operations are on a CPU."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name.lower(): os.environ[name] for name in names if name in os.environ}


class FreeCores:
    """Tells how many cores other programs leave, by what they have used since it was last asked.

    Two threads that share one of two cores with another program of their priority take a quarter longer than one thread
    (tests/benchmarks/README.md): each operation waits for the part of it that has no core. No time is spent on waiting,
    since what is looked at is the time that has passed anyway.

    most  threads, where nobody else works
    """

    def __init__(self, most: int) -> None:
        self._most = most
        every = range(os.cpu_count() or 1)
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(every)
        self._seen = self._read()
        self._others = 0.0

    def left(self) -> int:
        """Return how many threads, of `most`, find a core to themselves, at least one."""
        now, before = self._read(), self._seen
        wall, busy, own = (one - other for one, other in zip(now, before, strict=True))
        if wall >= SHORTEST:
            self._seen, self._others = now, max(0.0, busy - own) / wall
        return max(1, min(self._most, round(len(self._cores) - self._others)))

    def _read(self) -> tuple[float, float, float]:
        """Return the seconds of the clock, those that the cores have worked, and those of this process."""
        import psutil

        every = psutil.cpu_times(percpu=True)
        cores = [every[core] for core in self._cores if core < len(every)]
        idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in cores)
        own = psutil.Process().cpu_times()
        return time.monotonic(), sum(_all(core) for core in cores) - idle, own.user + own.system


def _all(core: Any) -> float:
    """Return the seconds of a core; those of guests are in `user` and `nice` already."""
    return float(sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0))
