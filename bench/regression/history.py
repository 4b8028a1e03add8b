"""Follows a metric over the commits that it was measured at, and finds where it changed for good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

FEWEST = 5  # runs, below which no change is marked
BOTH_SIDES = 2  # runs that a level must have held for: the newest run alone is no new level
PENALTY = 3.0  # times noise times log(runs), that a further level must save of the sum of distances to the medians;
# marks 4 % of series of 6 runs of noise alone, 1 % from 12 on, and 9 of 10 steps of six times the noise in their middle


@dataclass(frozen=True)
class HistoryPoint:
    """Hold the metric of one run.

    low, high   the 95 % interval, None where the metric has none
    draws       cells whose mean the value is; above 1 there is no interval
    apart       conditions that differ from the run before, with which a step may have nothing to do with the code
    change      whether a new level begins here
    """

    run: str
    date: str
    commit: str
    value: float
    low: float | None
    high: float | None
    draws: int
    conditions: dict[str, Any]
    apart: tuple[str, ...] = ()
    change: bool = False


def series(points: Sequence[HistoryPoint]) -> list[HistoryPoint]:
    """Return the points by date, each with what differs from the one before it, and with the marks of change."""
    ordered = sorted(points, key=lambda point: (point.date, point.run))
    marked = changes([point.value for point in ordered])
    found = []
    for number, point in enumerate(ordered):
        before = ordered[number - 1].conditions if number else point.conditions
        names = sorted(before.keys() | point.conditions.keys())
        apart = tuple(name for name in names if before.get(name) != point.conditions.get(name))
        found.append(replace(point, apart=apart, change=number in marked))
    return found


def changes(values: Sequence[float]) -> list[int]:
    """Return the places where new levels begin, of at least FEWEST values in the order of time.

    R. Killick, P. Fearnhead, I. A. Eckley, "Optimal detection of changepoints with a linear computational cost", 2012
    (ruptures.Pelt), with the distance to a level's median as its cost, so that one odd run makes no level. The noise is
    the median distance of neighbours, 1.4826 / sqrt(2) of it: a figure that repeats exactly has none, and any lasting
    step of it is marked.
    """
    import ruptures

    finite = np.asarray(values, dtype=float)
    if len(finite) < FEWEST or not np.isfinite(finite).all():
        return []
    noise = 1.4826 / math.sqrt(2) * float(np.median(np.abs(np.diff(finite))))
    penalty = max(PENALTY * noise * math.log(len(finite)), 1e-9 * float(np.abs(finite).max()), 1e-300)
    found = ruptures.Pelt(model="l1", min_size=BOTH_SIDES, jump=1).fit(finite.reshape(-1, 1)).predict(pen=penalty)
    return [int(end) for end in found[:-1]]
