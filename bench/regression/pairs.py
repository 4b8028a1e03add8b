"""Tests the difference of two cells by pairs of their samples.

Tables, the view models, `compare` and the gate test here. Margins are the gate's alone.

    Sample, Sample -> Pair (bench.records.samples) -> Contrast   by the tests of bench.stats

perplexity     Student's test on windows (bench.stats.clusters.paired_perplexities)
right answers  McNemar's exact test on documents
other values   a normal test on the differences of documents, every task weighing alike
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from bench.records.measured import RangeScore, TextScore
from bench.records.samples import Pair, Sample
from bench.stats import clusters
from bench.stats import intervals as stats
from bench.stats.intervals import NORMAL_95, Contrast

Item = TypeVar("Item")


@dataclass(frozen=True)
class Windows(Sample):
    """Holds the nats of each window of a text, with sha256, window and stride as the source.

    in_a_row  whether the windows follow each other, or else are drawn
    """

    in_a_row: bool = False

    @property
    def sha256(self) -> str:
        """Return the hash of the text's tokens and of their mask."""
        return str(self.source[0])

    @property
    def tokens(self) -> list[int]:
        """Return the scored tokens of each window."""
        return [tokens for _, tokens in self.units]

    def relative_to(self, base: Sample) -> Windows:
        """Return the nats per token of each window less those of its tokens in another range, as windows of a token."""
        values = self.values / self.tokens - base.values / [tokens for _, tokens in base.units]
        return replace(self, units=tuple((place, 1) for place, _ in self.units), values=values)

    @property
    def perplexity(self) -> float:
        """Return the perplexity per token; infinite where a float cannot hold it."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.values.sum() / sum(self.tokens)))


def to_windows(sample: Sample, score: TextScore | RangeScore) -> Windows:
    """Return a sample as windows of the text, or of the range of positions, that a record's score describes."""
    source = (score.sha256, score.window, score.stride)
    return Windows(sample.units, sample.values, source, in_a_row=not score.drawn)


def compare_perplexities(pairs: Sequence[Pair[Windows]]) -> list[Contrast]:
    """Return for each pair how many times the first's perplexity the second has."""

    def compare(batch: Sequence[Pair[Windows]]) -> list[Contrast]:
        differences = np.array([both.differences for both in batch])
        tokens = np.array([both.first.tokens for both in batch], dtype=float)
        return clusters.paired_perplexities(differences, tokens, in_a_row=batch[0].first.in_a_row)

    return _compare_in_batches(pairs, lambda both: (len(both.first.units), both.first.in_a_row), compare)


def compare_shares(pairs: Sequence[Sequence[Pair[Any]]], *, bounds: bool = True) -> list[Contrast]:
    """Return for each pair the difference of the share of right answers, over the documents of all its tasks.

    bounds  also low and high, two milliseconds for each (bench.stats.intervals.paired_share_interval)
    """
    flips = []
    for tasks in pairs:
        differences = np.concatenate([both.differences for both in tasks])
        flips.append((int((differences < 0).sum()), int((differences > 0).sum()), len(differences)))
    p_values = stats.mcnemars(*np.array(flips).reshape(-1, 3)[:, :2].T).tolist()
    contrasts = []
    for (lost, gained, documents), p in zip(flips, p_values, strict=True):
        low, high = stats.paired_share_interval(lost, gained, documents) if bounds else (math.nan, math.nan)
        estimate = (gained - lost) / documents
        contrasts.append(Contrast(estimate, low, high, p, test="mcnemar", lost=lost, gained=gained))
    return contrasts


def compare_means(pairs: Sequence[Sequence[Pair[Any]]]) -> list[Contrast]:
    """Return for each pair the difference of the mean value, with every one of its tasks weighing alike."""

    def compare(batch: Sequence[Sequence[Pair[Any]]]) -> list[Contrast]:
        means, variances = [], []
        for pairs_of_task in zip(*batch, strict=True):
            differences = np.array([both.differences for both in pairs_of_task])
            means.append(differences.mean(1))
            variances.append(differences.var(1, ddof=1) / differences.shape[1])
        stderrs = (np.sqrt(sum(variances)) / len(variances)).tolist()
        contrasts = []
        for mean, stderr in zip(np.mean(means, axis=0).tolist(), stderrs, strict=True):
            half = NORMAL_95 * stderr
            p = stats.normal_p(mean, stderr)
            contrasts.append(Contrast(mean, mean - half, mean + half, p, stderr, test="normal"))
        return contrasts

    return _compare_in_batches(pairs, lambda tasks: tuple(len(both.first.units) for both in tasks), compare)


def _compare_in_batches(
    pairs: Sequence[Item], key: Callable[[Item], Hashable], compare: Callable[[Sequence[Item]], list[Contrast]]
) -> list[Contrast]:
    """Return the contrasts of pairs in their order, from those of each batch of pairs with one key."""
    places_by_key: dict[Hashable, list[int]] = {}
    for place, item in enumerate(pairs):
        places_by_key.setdefault(key(item), []).append(place)
    contrasts: dict[int, Contrast] = {}
    for places in places_by_key.values():
        contrasts |= zip(places, compare([pairs[place] for place in places]), strict=True)
    return [contrasts[place] for place in range(len(pairs))]
