"""Knows what samples of a task with choices give beside accuracy: the bits per byte of the right answer, and chance.

    bits per byte = -log2 p(right continuation | question) / its bytes
    chance        = mean over documents of 1 / choices, the accuracy of guesses

The continuation is the text that was scored, with the space in front of it, in UTF-8. A task's figure is the mean over
its documents, so that a long answer counts as much as a short one: OLMES' bits_per_byte_corr (Y. Gu et al., "OLMES: a
standard for language model evaluations", 2024), which D. Heineman et al., "Signal and noise", 2025, hold against
accuracy.

Samples hold it in the column NAME. Samples of earlier versions hold the likelihoods and not the bytes; those are known
of every document of bench.data.task_sources.OFFLINE, from answer_bytes.parquet: (task, first 32 bits of the document's
hash, bytes). So a record of an earlier version gets its figure when it is read, and its files stay as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.records.record import ANSWER_BPB, InvalidRecord, Record
from bench.stats.intervals import mean_stderr

NAME = ANSWER_BPB
NEEDED = ("doc_hash", "target", "loglikelihoods")  # columns of the samples that it follows from
CHANCE = "chance"
BYTES = Path(__file__).with_name("answer_bytes.parquet")


def bits_per_byte(loglikelihood: float, size: int) -> float:
    """Return the bits per byte of a continuation of `size` bytes from its log-likelihood in nats."""
    return -loglikelihood / (math.log(2) * size)


def of_documents(task: str, table: Any) -> NDArray[np.float64] | None:
    """Return the figure of each document in a pyarrow.Table of samples of a task; None where one has none."""
    if NAME in table.column_names:
        return np.array(table[NAME].to_pylist(), dtype=float)
    sizes = _known_bytes().get(task)
    if sizes is None or not table.num_rows or any(name not in table.column_names for name in NEEDED):
        return None
    found = [sizes.get(_number(document), 0) for document in table["doc_hash"].to_pylist()]
    right, scored = table["target"].to_pylist(), table["loglikelihoods"].to_pylist()
    several = list(zip(found, right, scored, strict=True))
    if not all(size and isinstance(place, int) and 0 <= place < len(every) for size, place, every in several):
        return None
    likely = [math.nan if every[place] is None else every[place] for _, place, every in several]
    return np.array([bits_per_byte(nats, size) for nats, size in zip(likely, found, strict=True)])


def chance(loglikelihoods: Sequence[Sequence[float]]) -> float | None:
    """Return the accuracy of guesses from the likelihoods of each document's choices; None where there are no two."""
    choices = [len(every) for every in loglikelihoods]
    return fmean(1 / count for count in choices) if choices and min(choices) > 1 else None


def completed(record: Record, folder: Path, files: Any) -> Record:
    """Return a record with what the samples of each task give and what it does not have itself.

    folder, files   of its samples, see bench.records.samples.SampleFiles
    """
    tasks: Mapping[str, Any] = record.measured.get("tasks", {})
    found = {}
    for name, task in tasks.items():
        if NAME in task or name not in _known_bytes():
            continue
        with suppress(InvalidRecord):  # damaged samples are refused where they are what was asked for
            table = files.table(record, folder, name, (NAME, *NEEDED))
            figures = None if table is None else of_documents(name, table)
            if figures is not None and np.isfinite(figures).all():
                found[name] = {CHANCE: chance(table["loglikelihoods"].to_pylist())} | task | {NAME: figure(figures)}
    return replace(record, measured=record.measured | {"tasks": {**tasks, **found}}) if found else record


def figure(figures: NDArray[np.float64]) -> dict[str, float]:
    """Return {value, stderr} of a task from the figures of its documents; of one document there is no error."""
    value, stderr = mean_stderr(figures.tolist())
    return {"value": value} if stderr is None else {"value": value, "stderr": stderr}


@functools.cache
def _known_bytes() -> dict[str, dict[int, int]]:
    """Return {task: {the number of a document: bytes of its right continuation}}."""
    from pyarrow.parquet import read_table

    found: dict[str, dict[int, int]] = {}
    for task, document, size in zip(*read_table(BYTES).to_pydict().values(), strict=True):
        found.setdefault(task, {})[document] = size
    return found


def _number(document: str) -> int:
    """Return the first 32 bits of a document's hash, by which it is known among those of its task; -1 for no hash."""
    try:
        return int(document[:8], 16)
    except ValueError:
        return -1
