"""Tells how well a figure over documents separates models: the spread between them beside what chance adds.

The figure x of model i on document d is taken apart into a mean, what is the model's, what is the document's, and the
rest, whose variance s^2 is that of both together (analysis of variance of two ways, once in each cell):

    signal   sqrt(var(mean of i over d) - s^2 / N), the standard deviation between models on all N documents, of which
             what N documents add is taken away
    noise    s / sqrt(n), what a draw of n documents adds to the figure of a model beside the others'; what a document
             does to all of them is in no comparison

Of several tasks the figure is the mean of the tasks' means, so that variances are divided by their number squared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.stats.intervals import NORMAL_95

Figures = NDArray[np.float64]  # (models, documents)
DRAWS, SEED = 200, 0
POWER = 0.8416  # the standard normal's quantile at 80 %


@dataclass(frozen=True)
class Separation:
    """Holds how a figure tells models apart.

    signal     the standard deviation between models, 0 where chance alone explains what is seen
    noise      the standard deviation that `drawn` documents of each task add
    agreement  Kendall's tau-b between the order of models on `drawn` documents and on those left, the mean of draws;
               NaN where no document is left
    needed     documents of each task on which a difference as large as the signal is found in 80 % of draws, by a
               two-sided test at 5 %; infinite where there is no signal
    """

    signal: float
    noise: float
    drawn: int
    agreement: float
    needed: float

    @property
    def ratio(self) -> float:
        """Return signal over noise; infinite where there is none of the latter."""
        return self.signal / self.noise if self.noise else math.inf


def separation(tasks: Sequence[Figures], drawn: int) -> Separation:
    """Return how the mean over tasks separates models; of each task (models, documents), at least 2 by 2.

    drawn  documents of each task
    """
    count = len(tasks)
    rest = [_rest(figures) for figures in tasks]
    seen = np.mean([figures.mean(1) for figures in tasks], axis=0).var(ddof=1)
    by_chance = sum(one / figures.shape[1] for one, figures in zip(rest, tasks, strict=True)) / count**2
    one_document = sum(rest) / count**2
    signal = math.sqrt(max(0.0, float(seen) - by_chance))
    needed = (NORMAL_95 + POWER) ** 2 * 2 * one_document / signal**2 if signal else math.inf
    return Separation(signal, math.sqrt(one_document / drawn), drawn, _agreement(tasks, drawn), needed)


def _rest(figures: Figures) -> float:
    """Return the variance of what is neither the model's nor the document's."""
    models, documents = figures.shape
    left = figures - figures.mean(1, keepdims=True) - figures.mean(0, keepdims=True) + figures.mean()
    return float((left**2).sum() / ((models - 1) * (documents - 1)))


def _agreement(tasks: Sequence[Figures], drawn: int) -> float:
    """Return the mean of tau-b between the orders by `drawn` documents of each task and by those left."""
    if any(figures.shape[1] <= drawn for figures in tasks):
        return math.nan
    generator = np.random.default_rng(SEED)
    here = there = np.zeros((len(tasks[0]), DRAWS))  # sums over tasks of the means of each model in each draw
    for figures in tasks:
        documents = figures.shape[1]
        chosen = generator.random((DRAWS, documents)).argpartition(drawn - 1, axis=1)[:, :drawn]
        some, every = figures[:, chosen].sum(-1), figures.sum(1, keepdims=True)
        here, there = here + some / drawn, there + (every - some) / (documents - drawn)
    first, second = np.triu_indices(len(tasks[0]), 1)
    one, other = (np.sign(np.round(side[first] - side[second], 12)) for side in (here, there))
    pairs = np.sqrt(np.abs(one).sum(0) * np.abs(other).sum(0))
    known = pairs > 0
    return float(((one * other).sum(0)[known] / pairs[known]).mean()) if known.any() else math.nan
