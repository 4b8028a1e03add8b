"""Tells which accuracies are above those of guesses, and leaves tasks out on which the dense model's may not be.

An accuracy is above guessing where all of its 95 % interval is: Wilson's of a task, 1.96 standard errors of an average.
The accuracy of guesses is the mean over the documents of 1 / choices (bench.records.answers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.records.columns import rows, task_column
from bench.records.comparability import by_setup
from bench.records.record import Record, display_name
from bench.stats.intervals import NORMAL_95


def may_be_guessed(row: Mapping[str, Any], column: str) -> bool:
    """Say whether a row's accuracy in a column is not shown to be above guessing; no where that is not known."""
    value, chance = row.get(column), row.get(f"{column}_chance")
    if value is None or chance is None:
        return False
    low = row.get(f"{column}_low")
    if low is None:
        low = value - NORMAL_95 * (row.get(f"{column}_stderr") or 0.0)
    return bool(low <= chance)


def above_guessing(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records without the tasks in which their dense model may guess, and a sentence about each of those.

    Where a setup has no dense cell, all of its tasks stay.
    """
    kept, said = list[Record](), dict[str, None]()
    left_out: dict[int, set[str]] = {}
    for group in by_setup(records).values():
        dense = [record for record in group if record.cell["method"] == "dense" and record.status == "ok"]
        guessed = {name: row for record, row in zip(dense, rows(dense), strict=True) for name in _guessed(record, row)}
        left_out |= {id(record): set(guessed) for record in group}
        for name, row in guessed.items():
            column = f"task_{name}"
            low, high = (100 * row[f"{column}_{end}"] for end in ("low", "high"))
            said[
                f"{name} is left out: the dense {display_name(group[0])} has {100 * row[column]:.1f} % "
                f"[{low:.1f}, {high:.1f}], and guesses have {100 * row[f'{column}_chance']:.1f} %"
            ] = None
    for record in records:
        tasks = record.measured.get("tasks", {})
        stay = {name: task for name, task in tasks.items() if name not in left_out[id(record)]}
        kept.append(record if stay == tasks else replace(record, measured=record.measured | {"tasks": stay}))
    return kept, list(said)


def _guessed(record: Record, row: Mapping[str, Any]) -> list[str]:
    """Return the tasks of a cell in which its accuracy may be that of guesses."""
    tasks = record.measured.get("tasks", {})
    return [name for name, task in tasks.items() if may_be_guessed(row, task_column(name, task))]
