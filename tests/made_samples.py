"""Samples that lie in no file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from bench.records.samples import Sample, Samples


class MadeSamples(Samples):
    """Gives what a function makes of a record's place, a task's name and a figure's; None for no samples."""

    def __init__(self, made: Callable[[int, str, str], np.ndarray | None]) -> None:
        super().__init__()
        self._made = made

    def of(self, number: int, name: str, figure: str) -> Sample | None:
        figures = self._made(number, name, figure)
        return None if figures is None else Sample(pa.array(range(len(figures))), np.asarray(figures, dtype=float))


def any_figures(number: int, task: str, figure: str) -> np.ndarray:
    """Return 40 figures that differ from record to record."""
    return np.random.default_rng([number, len(task)]).normal(number, 1, 40)
