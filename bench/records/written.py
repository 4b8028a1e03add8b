"""Says how many of the answers that a model chooses right it also writes right, from the samples of a cell.

    written = documents whose answer is right in form gen and in this one / documents whose answer is right in this one

This form is rc or mc, of which the model chooses one answer among several. The documents of all forms are the same, so
that they are joined by their number. The interval is Wilson's. No record holds the share, as for bench.records.flips.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from bench.records.samples import Samples
from bench.stats.intervals import wilson

CHOSEN = re.compile(r"_(rc|mc)$")  # the end of the name of a task whose answers are chosen


class WrittenShare(NamedTuple):
    """Holds a share with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def name_of_written_task(task: str) -> str | None:
    """Return the name of a task in form gen; None for a task whose answers are not chosen."""
    return CHOSEN.sub("_gen", task) if CHOSEN.search(task) else None


def find_share_of_written(samples: Samples, cell: int, task: str, metrics: tuple[str, str]) -> WrittenShare | None:
    """Return the share of the answers that are chosen right which are written right too.

    None where no answer is chosen right, and unless both tasks have samples of the same documents.

    cell     its place among the records of the samples
    task     in form rc or mc
    metrics  by which an answer is right, of this task and of the one in form gen
    """
    forms = (task, name_of_written_task(task) or "")
    chosen, written = (_read_right(samples, cell, name, metric) for name, metric in zip(forms, metrics, strict=True))
    if not chosen or chosen.keys() != written.keys():
        return None
    both = [written[number] for number, is_right in chosen.items() if is_right]
    return WrittenShare(sum(both) / len(both), *wilson(sum(both), len(both))) if both else None


def _read_right(samples: Samples, cell: int, task: str, metric: str) -> dict[int, bool]:
    """Return whether each document of a task was answered right, by its number; nothing where that is not known."""
    right, numbers = samples.of(cell, task, metric), samples.of(cell, task, "doc_id")
    if right is None or numbers is None or not right.is_right_or_wrong:
        return {}
    return dict(zip(numbers.values.astype(int).tolist(), right.values.astype(bool).tolist(), strict=True))
