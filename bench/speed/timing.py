"""Times calls so that two models can be compared: clocks, warm-up and rounds.

A workload is a pass of one or more calls from a known state. Both models of a pair are warmed up until they are stable
and then timed in rounds; in each round both have one turn, and who goes first changes from round to round, so that a
machine that slows down, or a neighbour that wakes up, meets both alike. Every call is kept, in milliseconds.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import fmean, median, stdev
from typing import Any, Protocol

from bench.plan.protocol import MIN_ROUNDS

WARM_UP_CALLS, WARM_UP_MS = 10, 1_000  # the fewest of each model, and how long slower calls go on at least
STABLE = 0.05  # warm once the median of a block of calls is that close to the one of the block before
BLOCK_CALLS, BLOCK_MS = 5, 500  # a block ends with whichever comes first, so that slow calls need fewer
CAP_CALLS, CAP_MS = 200, 6_000  # where warming up ends although nothing is stable
MIN_CALLS, MIN_MS = 10, 500  # what each model is timed for at least, all its rounds together
NOISY = 0.1  # coefficient of variation above which a figure is marked
CLOCKS_AGREE = 0.05  # the largest share by which wall clock and events may differ unmarked


@dataclass(frozen=True)
class Workload:
    """Makes a pass of `steps` calls of `step`. `reset` goes before it, is never timed, and restores the state.

    launched  does what a captured step does, kernel by kernel; None where no step is captured
    """

    step: Callable[[], object]
    reset: Callable[[], object]
    steps: int = 1
    launched: Callable[[], object] | None = None


@dataclass(frozen=True)
class Pass:
    """Holds the milliseconds of each call, and of all together by the wall clock."""

    ms: list[float]
    wall_ms: float


class Clock(Protocol):
    """Times one pass of a workload."""

    name: str

    def run(self, work: Workload) -> Pass:
        """Reset a workload, time each of its calls, and return the milliseconds."""


class WallClock:
    """Reads the system's monotonic clock, each time after `wait`, which returns once every device has finished."""

    name = "monotonic"

    def __init__(self, wait: Callable[[], object] | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self.wait, self.now = wait or (lambda: None), now

    def run(self, work: Workload) -> Pass:
        """Return the milliseconds of each step of a workload, read while the device is idle."""
        work.reset()
        self.wait()
        stamps = [self.now()]
        for _ in range(work.steps):
            work.step()
            self.wait()
            stamps.append(self.now())
        return Pass([1e3 * (end - start) for start, end in pairwise(stamps)], 1e3 * (stamps[-1] - stamps[0]))


class EventClock:
    """Records events in the stream of one CUDA device, and reads them after a single wait at the end of the pass."""

    name = "cuda events"

    def __init__(
        self, event: Callable[[], Any], wait: Callable[[], object], now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.event, self.wait, self.now = event, wait, now

    def run(self, work: Workload) -> Pass:
        """Return the milliseconds of each step of a workload, between events in the GPU's own queue."""
        work.reset()
        events = [self.event() for _ in range(work.steps + 1)]
        self.wait()
        start = self.now()
        events[0].record()
        for event in events[1:]:
            work.step()
            event.record()
        self.wait()
        wall_ms = 1e3 * (self.now() - start)
        return Pass([start.elapsed_time(end) for start, end in pairwise(events)], wall_ms)


class ClockOfEngine:
    """Reads what an inference engine, or who asks it, has timed: the step's answer is the pass."""

    name = "monotonic"

    def run(self, work: Workload) -> Pass:
        """Return the pass that is the step's answer."""
        answer = work.step()
        assert isinstance(answer, Pass)
        return answer


@dataclass(frozen=True)
class WarmUp:
    """Says how many calls it took, whether they became stable, and the milliseconds of one call in the last block."""

    calls: int
    stable: bool
    ms: float


def warm_up(work: Workload, clock: Clock, *, long: bool = False) -> WarmUp:
    """Run passes that do not count until two blocks in a row take equally long or a cap is reached; return how it went.

    The very first pass counts for nothing, since compilation and allocation happen in it.

    long  whether fast calls, too, go on for WARM_UP_MS, as on a GPU, whose clocks need that long to rise
    """
    met = all if long else any
    clock.run(work)
    blocks, calls, spent = [], 0, 0.0
    while True:
        block, block_ms = list[float](), 0.0
        while len(block) < BLOCK_CALLS and block_ms < BLOCK_MS:
            timed = clock.run(work)
            block += timed.ms
            block_ms += timed.wall_ms
        blocks.append(median(block))
        calls, spent = calls + len(block), spent + block_ms
        capped = calls >= CAP_CALLS or spent >= CAP_MS
        if len(blocks) > 1 and met((calls >= WARM_UP_CALLS, spent >= WARM_UP_MS)):
            stable = abs(blocks[-1] / blocks[-2] - 1) <= STABLE
            if stable or capped:
                return WarmUp(calls, stable, blocks[-1])


def passes_per_turn(works: Mapping[str, Workload], warm: Mapping[str, WarmUp], number: int) -> int:
    """Return the passes of one turn, equal for both models, with which `number` rounds reach MIN_CALLS and MIN_MS."""
    needed = [
        max(MIN_CALLS / (number * work.steps), MIN_MS / (number * work.steps * warm[name].ms))
        for name, work in works.items()
    ]
    return math.ceil(max(needed))


def time_rounds(
    works: Mapping[str, Workload],
    clock: Clock,
    number: int,
    passes: int,
    alive: Callable[[], object] | None = None,
    *,
    enough: Callable[[dict[str, list[list[Pass]]]], bool] | None = None,
) -> dict[str, list[list[Pass]]]:
    """Time `number` rounds and return {model: a list of passes for each round}.

    alive   is called before each turn
    enough  is called once, after half of the rounds, and says whether they suffice. They are at least MIN_ROUNDS, even,
            and of MIN_CALLS and MIN_MS for each model
    """
    half = 2 * math.ceil(number / 4)
    names = list(works)
    rounds_by_name: dict[str, list[list[Pass]]] = {name: [] for name in names}
    with _no_collection():
        for index in range(number):
            for name in names if index % 2 == 0 else reversed(names):
                if alive:
                    alive()
                rounds_by_name[name].append([clock.run(works[name]) for _ in range(passes)])
            gc.collect(1)  # what the turns have made; to look through all that is imported takes 0.15 s
            if (
                enough
                and MIN_ROUNDS <= half == index + 1 < number
                and _reach_the_least(rounds_by_name)
                and enough(rounds_by_name)
            ):
                break
    return rounds_by_name


def _reach_the_least(rounds: dict[str, list[list[Pass]]]) -> bool:
    """Say whether each model has been timed for MIN_CALLS and MIN_MS."""
    calls = [ms_of_passes(chain(*turns)) for turns in rounds.values()]
    return all(len(each) >= MIN_CALLS and sum(each) >= MIN_MS for each in calls)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from running within a call; it runs between rounds instead."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def variation_of(samples: list[float]) -> float:
    """Return the coefficient of variation: the sample's standard deviation as a share of its mean."""
    return stdev(samples) / fmean(samples)


def ms_of_passes(passes: Iterable[Pass]) -> list[float]:
    """Return the milliseconds of all calls of some passes."""
    return [ms for single in passes for ms in single.ms]


def disagreement_of(passes: list[Pass]) -> float:
    """Return the share by which the wall clock and the sum of all calls differ."""
    return abs(sum(each.wall_ms for each in passes) / sum(sum(each.ms) for each in passes) - 1)
