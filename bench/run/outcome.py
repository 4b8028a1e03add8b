"""Collects what is found of a cell, stage by stage, and passes it on: figures, seconds and peaks of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.evaluation.forwards import Sweeping
from bench.speed import benchmark
from bench.system import memory
from bench.system.threads import FreeCores
from methods.model.layer_store import LayerStore

DOING = {
    "load": "while it loaded the model",
    "prune": "while it pruned",
    "heal": "while it healed",
    "save": "while it saved the model and loaded it again",
    "perplexity": "while it measured perplexity",
    "tasks": "while it answered tasks",
    "speed": "while it was timed",
    "checks": "while it ran the checks",
}


@dataclass
class Outcome:
    """Collects what is found of a cell, and passes it on.

    tell     hears all of it before each stage, and at the end
    doing    hears what is about to be done, as "while it ..."
    say      is for the user
    alone    is entered while nothing else may work on the machine
    devices  on which the model lies: a stage ends when they have done what they were given, so that its seconds are of
             its own work, and its peaks of memory are of them
    cores    by which the number of threads goes in each stage but timing; None: it stays as it is
    files    where the model's weights lie instead of the memory, and sweeping how it is scored then; None: in memory
    timed_alone  whether the dense model is not timed, since there is no room for it
    """

    tell: Callable[[dict[str, Any]], object]
    doing: Callable[[str], object]
    say: Callable[[str], object]
    alone: Callable[[], AbstractContextManager[None]]
    devices: Sequence[torch.device] = (torch.device("cpu"),)
    files: LayerStore | None = None
    sweeping: Sweeping | None = None
    timed_alone: bool = False
    cores: FreeCores | None = None
    decisions: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    peaks: Callable[[], dict[str, Any]] = dict  # of the stage that is going on

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Tell what has been found and what is about to be done; count its seconds and its peaks of memory."""
        self.doing(DOING[stage])
        if self.cores is not None and stage != "speed":
            torch.set_num_threads(threads := self.cores.left())
            fewest = self.measured.setdefault("threads", {})
            fewest[stage] = min(fewest.get(stage, threads), threads)
        self.tell({"decisions": self.decisions, "measured": self.measured})
        benchmark.wait(self.devices)
        with memory.watched(self.devices) as watched:
            self.peaks = watched.peaks
            start = time.perf_counter()
            yield
            benchmark.wait(self.devices)
        seconds = self.measured.setdefault("seconds", {})
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
        peaks, peak = self.measured.setdefault("peak_memory", {}), watched.peaks()
        peaks[stage] = memory.highest(peaks.get(stage, peak), peak)
