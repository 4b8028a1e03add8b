"""Keeps on disk what a sweep over the layers has found, so that a sweep that was interrupted goes on where it stood.

A sweep takes layer after layer, and has of each a few tensors that it needs later (statistics, a basis) and, between
two layers, the states of all tokens. Both are written every few seconds: the findings of the layers since the last time
to one file, the states to another, which takes the place of the states before. What follows from them is computed
again, by the same products, so that the model that is pruned is the same to the last bit.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from methods.files import write_atomically
from methods.model.calibration import Wait, in_memory

SECONDS = 15.0  # between two times that a sweep is written down


class SweepLog:
    """Says where a sweep stands, and keeps that in a folder.

    folder  keeps what layers have given, and may have some; None: nothing is kept
    states  what the sweep begins with, a tensor for each micro-batch, sequences first; none where each of the findings
            stands for itself
    wait    keeps states that have been read, as `Calibration.wait` does

    done     layers whose findings `kept` has
    seconds  that the interrupted sweep has taken for them
    """

    def __init__(self, folder: Path | None, states: Sequence[Tensor], wait: Wait = in_memory) -> None:
        self.folder, self.done, self.seconds = folder, 0, 0.0
        self._states = list(states)
        self._new: list[list[Tensor]] = []  # findings that are not written yet
        if folder is not None:
            with suppress(OSError, SafetensorError, KeyError, ValueError):  # what cannot be read has not been found
                self._read(folder, wait)
        self._written, self._start = self.done, time.perf_counter()
        self._last = self._start

    def take(self) -> list[Tensor]:
        """Return the states behind the layers that are done, and keep them in memory no longer."""
        states, self._states = self._states, []
        return states

    def kept(self) -> Iterator[list[Tensor]]:
        """Yield what each of the layers that are done has given, on the CPU, in the order of the sweep."""
        read = 0
        while self.folder is not None and read < self.done:
            layers, _ = _load(_found_file(self.folder, read))
            yield from layers
            read += len(layers)

    def add(self, found: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        """Take in what the next layer has given, and the states behind it. Raises Unwritable."""
        if self.folder is None:
            return
        self._new.append([one.cpu() for one in found])
        if time.perf_counter() - self._last >= SECONDS:
            self._write(self.folder, states)
            self._last = time.perf_counter()

    def _write(self, folder: Path, states: Sequence[Tensor]) -> None:
        """Write the states first: findings count with the states behind them alone."""
        before, self._written = self._written, self._written + len(self._new)
        _save(_states_file(folder, self._written), [states], 0.0)
        _save(_found_file(folder, before), self._new, self.seconds + time.perf_counter() - self._start)
        _states_file(folder, before).unlink(missing_ok=True)
        self._new = []

    def _read(self, folder: Path, wait: Wait) -> None:
        done, seconds = 0, 0.0
        while (file := _found_file(folder, done)).exists():
            layers, seconds = _load(file)
            done += len(layers)
        if not done:
            return
        (states,), _ = _load(_states_file(folder, done))
        if self._states:
            rows = [row for one in states for row in torch.split(one, 1)]
            ends = list(accumulate(map(len, self._states)))  # of the micro-batches of this time
            parts = (torch.cat(rows[start:end]) for start, end in pairwise([0, *ends]))
            self._states = [wait(kept.to(one.device)) for kept, one in zip(parts, self._states, strict=True)]
        self.done, self.seconds = done, seconds


class SweepLogs:
    """Gives each sweep of a cell its log, in a folder of the cell.

    seconds  that sweeps of interrupted attempts had taken for what has been read of their logs
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, 0.0
        self._asked = set[Path]()  # whose further seconds are of this attempt, and counted there

    def log(self, states: Sequence[Tensor], *of: Any, wait: Wait = in_memory) -> SweepLog:
        """Return the log of the sweep that begins with `states`; `repr` of `of` says all else that it depends on."""
        folder = self.folder / hashlib.sha256(repr(of).encode()).hexdigest()[:16]
        found = SweepLog(folder, states, wait)
        if folder not in self._asked:
            self.seconds += found.seconds
            self._asked.add(folder)
        return found


def _found_file(folder: Path, first: int) -> Path:
    return folder / f"found-{first:04}.safetensors"


def _states_file(folder: Path, behind: int) -> Path:
    return folder / f"states-{behind:04}.safetensors"


def _save(file: Path, groups: Sequence[Sequence[Tensor]], seconds: float) -> None:
    named = {(layer, number): one for layer, group in enumerate(groups) for number, one in enumerate(group)}
    tensors = {f"{layer}.{number}": one.detach().cpu().contiguous() for (layer, number), one in named.items()}
    told = {"sizes": " ".join(str(len(group)) for group in groups), "seconds": repr(seconds)}

    def write(path: Path) -> None:
        try:
            save_file(tensors, path, told)  # with no copy of them in memory
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error

    write_atomically(file, write)


def _load(file: Path) -> tuple[list[list[Tensor]], float]:
    with safe_open(file, "pt") as stored:
        told = stored.metadata()
        sizes = enumerate(map(int, told["sizes"].split()))
        groups = [[stored.get_tensor(f"{layer}.{number}") for number in range(size)] for layer, size in sizes]
        return groups, float(told["seconds"])
