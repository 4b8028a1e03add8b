"""Keeps what cells find of the dense model on the calibration tokens, for later cells of the run on the same node."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.system import memory
from methods.model.sweep_log import SweepLogs


class KeptStatistics:
    """Finds statistics, each in a file while the run lasts, and counts for one cell what others have spent on them.

    A file is of one model in one dtype on one kind of device, as its folder is. Cells that run at once may each find
    the same; the last one's file stays.

    peaks    returns the highest memory of the stage so far, as bench.system.memory.Watched has it
    seconds  that other cells took to find what this one has read, each statistic once however often it is read
    peak     the highest memory while they did
    sweeps   where sweeps of the cell stand, whose interrupted ones have taken seconds too; None: that is not kept
    """

    def __init__(self, folder: Path, peaks: Callable[[], dict[str, Any]]) -> None:
        self.folder, self.peaks = folder, peaks
        self.sweeps: SweepLogs | None = None
        self.seconds = 0.0
        self.peak: dict[str, Any] = {}
        self._counted = set[str]()  # names of those that this cell has found or read

    def __call__(self, name: str, find: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the statistics of that name, found by another cell or by `find`."""
        file = self.folder / f"{name}.safetensors"
        counted = name in self._counted
        self._counted.add(name)
        if file.exists():
            return self._read(file, counted=counted)
        start, before = time.perf_counter(), self.sweeps.seconds if self.sweeps else 0.0
        found = find()
        earlier = self.sweeps.seconds - before if self.sweeps else 0.0
        cost = {"seconds": time.perf_counter() - start + earlier, "peak": self.peaks()}
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")  # another process may be about the same
        tensors = {str(number): statistic.contiguous() for number, statistic in enumerate(found)}
        save_file(tensors, unfinished, {"cost": json.dumps(cost)})
        unfinished.replace(file)  # so that a process that is killed leaves no half of it to the next one
        return found

    def _read(self, file: Path, *, counted: bool) -> list[Tensor]:
        with safe_open(file, "pt") as stored:
            cost = json.loads(stored.metadata()["cost"])
            tensors = [stored.get_tensor(str(number)) for number in range(len(stored.keys()))]
        if counted:
            return tensors
        self.seconds += cost["seconds"]
        self.peak = memory.highest(self.peak, cost["peak"]) if self.peak else cost["peak"]
        return tensors
