"""All figures of a report as files, drawn beside other work on the cores that are there.

On Linux processes are forked for it, which costs nothing and takes only what must be drawn along; elsewhere, and where
threads forbid it, the figures are drawn one after the other. The bytes are the same.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.records.record import Record
from bench.records.samples import Samples
from reports.blocks import blocks
from reports.figures.figure import Figure, save
from reports.text import printable


class Gallery:
    """The figures of a folder: `start` begins to write them, `drawings` waits for them."""

    def __init__(self, figures: Sequence[Figure], folder: Path) -> None:
        self.figures, self.folder = figures, folder
        self._shares: list[tuple[BaseProcess, Sequence[Figure]]] = []
        count = min(_processes(), len(figures))
        shares = [figures[first::count] for first in range(count)] if count > 1 else []
        for share in shares:
            process = get_context("fork").Process(target=_save_all, args=(share, folder))
            process.start()
            self._shares.append((process, share))
        if not shares:
            self._again(figures)

    def drawings(self) -> Iterator[tuple[Figure, str]]:
        """Every figure with its SVG, when all are written. Raises Unwritable where the disk does not take them."""
        for process, share in self._shares:
            process.join()
            if process.exitcode:
                self._again(share)  # which says what is wrong, if it still is
        for figure in self.figures:
            yield figure, (self.folder / f"{figure.name}.svg").read_text(encoding="utf-8")

    def _again(self, figures: Sequence[Figure]) -> None:
        for figure in figures:
            save(figure, self.folder)


def _processes() -> int:
    """How many may be forked: as many as this process may use cores, none beside other threads."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return len(os.sched_getaffinity(0))


def _save_all(figures: Sequence[Figure], folder: Path) -> None:
    """What a process does: all it has is its share, so that garbage is not worth looking for."""
    gc.disable()
    try:
        for figure in figures:
            save(figure, folder)
    except BaseException:  # an interruption, or a disk that is full: the process that asked says so
        sys.exit(1)


def figures(records: Sequence[Record], samples: Samples | None = None) -> list[Figure]:
    """Those for which there is data, in the order of a report; `samples` are those of the records."""
    from reports.figures import ablation, compensation, heatmaps, pareto, quality, traces

    setups = blocks(records)
    found = [*quality.figures(setups), *compensation.figures(setups, samples or Samples())]
    found += [figure for part in (pareto, heatmaps, traces, ablation) for figure in part.figures(setups)]
    return [replace(one, title=printable(one.title), description=printable(one.description)) for one in found]
