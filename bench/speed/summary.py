"""Makes figures of the samples of a point: medians, spread, percentiles, the speed-up, and what is in doubt.

`Sweep` says of the points of rising batches where more no longer help.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median, quantiles
from typing import Any

from bench.speed import timing
from bench.speed.timing import Pass, WarmUp
from bench.stats.intervals import paired_ratio

# Where a model's weights lie in memory is the same in all rounds of a process and counts as speed there: equal models
# have differed by up to 0.6 %. No interval of a speed-up is therefore narrower than this share on each side.
RESOLUTION = 0.01
NARROW = 0.03  # an interval within this share on each side after half of the rounds ends them
RISE = 1.05  # times as many tokens per second as at the batch before, or the sweep of a GPU ends
PERCENTILES = {90: 10, 99: 100}  # of all calls on a GPU, beside the median: the fewest calls of which one is beyond


def summary(
    found: dict[str, list[list[Pass]]], warm: dict[str, WarmUp], *, percentiles: bool = False
) -> dict[str, Any]:
    """Return all samples and what follows from them: medians, spread, the speed-up with its interval, and flags."""
    rounds = {name: [[ms for one in turn for ms in one.ms] for turn in turns] for name, turns in found.items()}
    calls = {name: [ms for turn in turns for ms in turn] for name, turns in rounds.items()}
    spread = {name: timing.variation(samples) for name, samples in calls.items()}
    apart = max(timing.disagreement([one for turn in turns for one in turn]) for turns in found.values())
    flags = {
        "noisy": max(spread.values()) > timing.NOISY,
        "not_warm": not all(one.stable for one in warm.values()),
        "clocks_disagree": apart > timing.CLOCKS_AGREE,
    }
    result: dict[str, Any] = {
        "warm_up": {name: one.calls for name, one in warm.items()},
        "rounds": {name: [[round(ms, 5) for ms in turn] for turn in turns] for name, turns in rounds.items()},
        **{f"{name}_ms": median(samples) for name, samples in calls.items()},
        **{f"{name}_cv": one for name, one in spread.items()},
        "clocks_apart": apart,
        "flags": [name for name, holds in flags.items() if holds],
    }
    if percentiles:
        for name, samples in calls.items():
            cuts = quantiles(samples, n=100, method="inclusive")
            result |= {
                f"{name}_p{share}": cuts[share - 1] for share, least in PERCENTILES.items() if len(samples) >= least
            }
    if len(rounds) > 1:
        speedup, low, high = _speedup(found)
        low, high = min(low, speedup * (1 - RESOLUTION)), max(high, speedup * (1 + RESOLUTION))
        result |= {"speedup": speedup, "speedup_low": low, "speedup_high": high}
    return result


def is_narrow(found: dict[str, list[list[Pass]]]) -> bool:
    """Say whether the rounds so far, of both models, give a speed-up with an interval within NARROW on each side."""
    if len(found) < 2:
        return False
    speedup, low, high = _speedup(found)
    return low >= speedup * (1 - NARROW) and high <= speedup * (1 + NARROW)


def _speedup(found: dict[str, list[list[Pass]]]) -> tuple[float, float, float]:
    """Return the speed-up, dense over pruned, and its 95 % interval, from the median call of each round."""
    medians = {name: [median(ms for one in turn for ms in one.ms) for turn in turns] for name, turns in found.items()}
    return paired_ratio(medians["dense"], medians["pruned"])


class Sweep:
    """Follows tokens per second over rising batches."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.is_level = False

    def add(self, batch: int, found: Mapping[str, Any]) -> None:
        """Take in a point; it is level where no model that was timed has become faster by enough."""
        ms = {name: found[f"{name}_ms"] for name in ("dense", "pruned") if f"{name}_ms" in found}
        rates = {name: batch / one for name, one in ms.items()}
        before = [name for name in rates if name in self.last]
        self.is_level = bool(before) and all(rates[name] < RISE * self.last[name] for name in before)
        self.last = rates
