"""Computes the bits per byte of a task's right answers, and the accuracy of guesses.

    bits per byte = -log2 p(right continuation | question) / its bytes
    chance        = mean over documents of 1 / choices, the accuracy of guesses

The continuation is the text that was scored, with the space in front of it, in UTF-8. It is the right choice, or
the one reference of a task without choices. A task's value is the mean over its documents, so that a long answer counts
as much as a short one. It is OLMES' bits_per_byte_corr (Y. Gu et al., "OLMES: a standard for language model
evaluations", 2024). D. Heineman et al., "Signal and noise", 2025, compare it with accuracy.

Samples hold it in the column answer_bpb.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from bench.records.measured import TaskMetric
from bench.stats.intervals import mean_stderr

CHANCE = "chance"
MAIN_METRICS = ("acc_norm", "acc")  # the first that a task has


def bits_per_byte(loglikelihood: float, size: int) -> float:
    """Return the bits per byte of a continuation of `size` bytes from its log-likelihood in nats."""
    return -loglikelihood / (math.log(2) * size)


def count_scored_bytes(context: str, continuation: str) -> int:
    """Return the number of bytes of a continuation, with the spaces at the end of the context, as in lm-eval."""
    return len((context[len(context.rstrip()) :] + continuation).encode())


def find_main_metric(metrics: Iterable[str]) -> str | None:
    """Return the metric of a task that tables show: acc_norm, else acc, else its first; None where it has none."""
    metrics = list(metrics)
    return next((name for name in (*MAIN_METRICS, *metrics) if name in metrics), None)


def accuracy_of_guesses(loglikelihoods: Sequence[Sequence[float]]) -> float | None:
    """Return the accuracy of guesses from the likelihoods of each document's choices; None where one has no two."""
    choices = [len(every) for every in loglikelihoods]
    return fmean(1 / count for count in choices) if choices and min(choices) > 1 else None


def metric_of_documents(values: NDArray[np.float64]) -> TaskMetric:
    """Return the mean over the documents of a task with its standard error; one document has none."""
    value, stderr = mean_stderr(values.tolist())
    return TaskMetric(value=value, stderr=stderr)
