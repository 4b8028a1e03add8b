"""Says how many threads a CPU has, how they wait without work, and how many have a core to themselves.

The first two are read once, when torch is imported.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

SHORTEST = 0.25  # seconds over which it is told what others use; the system counts in hundredths


def set_up_threads() -> None:
    """Set how torch's threads wait and how many there are, unless the user has set it."""
    _let_threads_wait()
    _keep_to_quota()


def _let_threads_wait() -> None:
    """Have threads without work wait 0.1 ms awake and then asleep.

    Asleep at once they slow an idle machine down, awake for long a shared one, by much (tests/benchmarks/README.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # for libgomp, which torch's own packages have on Linux


def _keep_to_quota() -> None:
    """Begin with a thread for each usable core where a limit of processor time leaves fewer than the machine has.

    More than these would all be stopped together for the rest of each period, which is 0.1 s by default.
    """
    from bench.system import memory  # here, since --help and list count no cores

    if "OMP_NUM_THREADS" in os.environ or memory.count_cores() is None:
        return
    import psutil

    if (cores := count_usable_cores()) >= (psutil.cpu_count(logical=False) or cores):
        return
    os.environ["OMP_NUM_THREADS"] = str(cores)
    if torch := sys.modules.get("torch"):  # torch reads the variable only once
        torch.set_num_threads(min(torch.get_num_threads(), cores))


def count_usable_cores() -> int:
    """Count the cores that this process may run on, or whose time its container or job may take, if fewer."""
    from bench.system import memory

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = memory.count_cores()
    return usable if allowed is None else max(1, min(usable, int(allowed)))


def settings_of_waiting() -> dict[str, str]:
    """Return the variables by which threads wait, where they are set. Small operations on a CPU depend on them."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name.lower(): os.environ[name] for name in names if name in os.environ}


class FreeCores:
    """Says how many cores are free, by what other programs have used since the last call.

    Two threads that share one of two cores with another program of their priority take a quarter longer than one thread
    (tests/benchmarks/README.md): each operation waits for the part of it that has no core. A call costs no waiting,
    since it looks at the time that has passed anyway.

    most  threads, where nobody else works
    """

    def __init__(self, most: int) -> None:
        self._most = most
        every = range(os.cpu_count() or 1)
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(every)
        self._last_reading = self._read()
        self._cores_of_others = 0.0

    def count_free_cores(self) -> int:
        """Return how many threads, of `most`, find a core to themselves, at least one."""
        now, before = self._read(), self._last_reading
        wall, busy, own = (end - start for end, start in zip(now, before, strict=True))
        if wall >= SHORTEST:
            self._last_reading, self._cores_of_others = now, max(0.0, busy - own) / wall
        return max(1, min(self._most, round(len(self._cores) - self._cores_of_others)))

    def _read(self) -> tuple[float, float, float]:
        """Return three counts of seconds: of the clock, of work by all cores, and of work by this process."""
        import psutil

        every = psutil.cpu_times(percpu=True)
        cores = [every[core] for core in self._cores if core < len(every)]
        idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in cores)
        own = psutil.Process().cpu_times()
        return time.monotonic(), sum(_all(core) for core in cores) - idle, own.user + own.system


def _all(core: Any) -> float:
    """Return the seconds of a core; those of guests are in `user` and `nice` already."""
    return float(sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0))
