"""The stand on which a model is measured alone, for its memory, and then beside another one, for its speed.

Each point (bench.workloads) is an outcome of its own: one that runs out of memory, or that a model cannot do, says so,
and the others go on. After a point that no model had the memory for, larger batches of its kind are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from bench import isolation, memory, nvml, timing
from bench.spec import Protocol
from bench.stats import paired_ratio
from bench.timing import Clock, Pass, WarmUp, Workload
from bench.workloads import Point, points, predicted, workload
from methods import progress
from methods.anatomy import Decoder

# Where a model's weights lie in memory is the same in all rounds of a process and counts as speed there: equal models
# have differed by up to 0.6 %. No interval of a speed-up is therefore narrower than this share on each side.
RESOLUTION = 0.01


@dataclass
class Stand:
    """Where, by which clock and by which protocol; `alive` is told what is about to be done."""

    protocol: Protocol
    clock: Clock
    devices: Sequence[torch.device]
    gpus: Sequence[nvml.Gpu]
    alive: Callable[[str], object]

    def memory(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Peaks and energy at each point, as bench.record has them under `memory`."""
        return self._each(lambda point: self._memory(point, model))

    def time(self, dense: nn.Module, pruned: nn.Module) -> Iterator[dict[str, Any]]:
        """Both models in turns at each point, as bench.record has them under `points`."""
        models, decoders = {"dense": dense, "pruned": pruned}, (Decoder(dense), Decoder(pruned))
        return self._each(lambda point: self._time(point, models) | predicted(*decoders, point))

    @torch.inference_mode()
    def _each(self, measure: Callable[[Point], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        full = set[tuple[str, int]]()
        for point in points(self.protocol):
            if (point.kind, point.tokens) in full:
                continue
            found = measure(point)
            if "out_of_memory" in found and "rounds" not in found:
                full.add((point.kind, point.tokens))
            memory.give_back(self.devices)
            yield point.named | found

    def _memory(self, point: Point, model: nn.Module) -> dict[str, Any]:
        self.alive(f"in the memory pass, {point}")
        try:
            work = workload(model, point, self.protocol)
            peaks = memory.peaks(work, self.devices, self.gpus)
            tokens = point.batch * (point.tokens if point.kind == "prefill" else work.steps)
            return peaks | memory.energy(work, tokens, self.gpus, lambda: wait(self.devices))
        except Exception as error:
            return _lost(error, "pruned")

    def _time(self, point: Point, models: dict[str, nn.Module]) -> dict[str, Any]:
        if self.protocol.compile:
            torch.compiler.reset()
        works, warm, full = dict[str, Workload](), dict[str, WarmUp](), list[str]()
        for name, model in models.items():
            try:
                self.alive(f"while it warmed up the {name} model, {point}")
                work = workload(model, point, self.protocol)
                warm[name] = timing.warm_up(work, self.clock)
                works[name] = work
            except Exception as error:
                lost = _lost(error, name)
                if "failed" in lost:
                    return lost
                full += lost["out_of_memory"]
        ran_out = {"out_of_memory": full} if full else {}
        try:
            return ran_out | (self._rounds(point, works, warm) if works else {})
        except Exception as error:
            return _lost(error, " and ".join(works))

    def _rounds(self, point: Point, works: dict[str, Workload], warm: dict[str, WarmUp]) -> dict[str, Any]:
        number = self.protocol.speed_rounds
        passes = timing.passes_per_turn(works, warm, number)
        with progress.bar(number * len(works), f"timing {point}", "turn") as bar:

            def turn() -> None:
                self.alive(f"while it timed {point}")
                bar.update()

            return summary(timing.rounds(works, self.clock, number, passes, turn), warm)


def _lost(error: Exception, who: str) -> dict[str, Any]:
    """Why there are no figures: memory that ran out is a result, anything else a failure."""
    if isolation.is_out_of_memory(error):
        return {"out_of_memory": [who]}
    return {"failed": f"{who} model: {isolation.reason(error)}"}


def wait(devices: Sequence[torch.device]) -> None:
    """Until every device has done what it was given."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def summary(found: dict[str, list[list[Pass]]], warm: dict[str, WarmUp]) -> dict[str, Any]:
    """All samples, and what follows from them: medians, spread, the speed-up with its interval, and flags."""
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
    if len(rounds) > 1:
        medians = {name: [median(turn) for turn in turns] for name, turns in rounds.items()}
        speedup, low, high = paired_ratio(medians["dense"], medians["pruned"])
        low, high = min(low, speedup * (1 - RESOLUTION)), max(high, speedup * (1 + RESOLUTION))
        result |= {"speedup": speedup, "speedup_low": low, "speedup_high": high}
    return result
