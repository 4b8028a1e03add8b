"""Samples that lie in no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from bench.records.samples import Sample, Samples
from bench.regression.pairs import Windows
from bench.regression.results import Answers
from bench.stats.clusters import paired_perplexities
from bench.stats.intervals import Contrast


class MadeSamples(Samples):
    """Gives what a function makes of a record's place, a task's name and a figure's; None for no samples.

    Whole rows are those of another function, by place and name.
    """

    def __init__(
        self,
        made: Callable[[int, str, str], np.ndarray | None],
        rows: Callable[[int, str], list[dict[str, Any]]] = lambda *_: [],
    ) -> None:
        super().__init__()
        self._made, self._made_rows = made, rows

    def rows(self, number: int, name: str, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        return self._made_rows(number, name)

    def of(self, number: int, name: str, figure: str) -> Sample | None:
        figures = self._made(number, name, figure)
        if figures is None:
            return None
        units = (
            enumerate([511] * len(figures)) if name.startswith(("perplexity-", "positions-")) else range(len(figures))
        )
        return Sample(tuple(units), np.asarray(figures, dtype=float))


def any_figures(number: int, task: str, figure: str) -> np.ndarray:
    """Return 40 figures that differ from record to record, and the numbers of 40 documents that are right or wrong."""
    if figure == "doc_id":
        return np.arange(40.0)
    if task.startswith("needle_") and figure == "acc":
        return (np.arange(40.0) + number) % 2
    return np.random.default_rng([number, len(task)]).normal(number, 1, 40)


@cache
def units(task: str, count: int) -> tuple[str, ...]:
    """Return what tells the documents of a task apart."""
    return tuple(f"{task} {number}" for number in range(count))


def made_answers(metric: str, values: np.ndarray, documents: str | Sequence[str] = "task") -> Answers:
    """Return the answers to a task by this name, or to these documents."""
    known = units(documents, len(values)) if isinstance(documents, str) else tuple(documents)
    return Answers(known, np.asarray(values, dtype=float), metric=metric, version=1)


def made_windows(nll: np.ndarray, tokens: int = 511, text: str = "text", *, in_a_row: bool = False) -> Windows:
    """Return windows of a text with as many tokens each."""
    return Windows(tuple((place, tokens) for place in range(len(nll))), nll, (text,), in_a_row=in_a_row)


def paired_perplexity(before, after, tokens: Sequence[float], *, in_a_row: bool = False) -> Contrast:
    """Return how many times the first's perplexity the second has, by their nats of each window of so many tokens."""
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    return paired_perplexities(differences[None], np.asarray(tokens, dtype=float), in_a_row=in_a_row)[0]
