"""Measures how fast a pruned model is beside the dense one: prefill and decode apart, the same way for every method.

prefill  one forward over (batch, length) tokens that fills an empty key-value cache; only the last position has logits
decode   forwards of one token for each sequence on a cache that holds `context` tokens at first; each pass of
         `decode_steps` begins at that depth again, so that all samples share their range of contexts

Both models are timed in turns (bench.speed.timing), those of a cell in a process of their own (bench.speed.timed_cell).
The speed-up is dense over pruned milliseconds, from the medians of each round (bench.stats.intervals.paired_ratio).
Token ids are random and the same for both models, and no end of sequence ends a pass early. Results have the layout of
bench.records.speed_results; docs/reference/measures.md describes the protocol.

Each point (bench.speed.workloads) is an outcome of its own. One that runs out of memory, or that a model cannot do,
says so, and the others go on. After a point that no model had the memory for, larger batches of its kind are left out.

`Placement` puts both models of a pair on the device at once where they fit, else one at a time. `summarise_rounds`
makes figures of a point's samples: medians, spread, percentiles, the speed-up, and flags. `Sweep` follows rising
batches, and says when more no longer help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from torch import nn

from bench.plan.kinds import value_from_plain
from bench.plan.protocol import Protocol
from bench.records.speed_results import GpuMeanwhile, PointMemory, PointTiming, Rounds, WarmUps
from bench.speed import peaks as memory
from bench.speed import timing
from bench.speed.peaks import compare_with_peak, measure_energy
from bench.speed.timing import Clock, EventClock, Pass, WallClock, WarmUp, Workload
from bench.speed.workloads import (
    CudaGraph,
    StepGraph,
    TimedPoint,
    points_of_protocol,
    predict_speedup,
    workload_of_point,
)
from bench.stats.intervals import is_inconsistent, join_ratios, paired_ratio
from bench.system import failures, gpu
from bench.system.memory import give_back, set_gpu
from methods import console
from methods.model.decoder import Decoder

OfPoint = TypeVar("OfPoint", PointTiming, PointMemory)


def clock_of(devices: Sequence[torch.device]) -> Clock:
    """Return the clock: events for one CUDA device, the wall clock for several of them and for the CPU."""
    if len(devices) == 1 and devices[0].type == "cuda":
        set_gpu(devices[0])
        event = partial(torch.cuda.Event, enable_timing=True)
        return EventClock(event, lambda: wait_for_devices(devices))
    return WallClock(lambda: wait_for_devices(devices))


@dataclass
class SpeedBenchmark:
    """Measures one model alone, for its memory, or two in turns, for their speed, at every point of a protocol.

    alive  gets what is about to be done, as "while it ..."
    rates  the highest rates of the GPU, of bench.speed.peaks
    graph  makes what captures a step
    """

    protocol: Protocol
    clock: Clock
    devices: Sequence[torch.device]
    gpus: Sequence[gpu.Gpu]
    alive: Callable[[str], object]
    rates: Mapping[str, float] = field(default_factory=dict)
    graph: Callable[[], StepGraph] = CudaGraph

    @property
    def on_gpu(self) -> bool:
        """Say whether models lie on a GPU. More is measured there."""
        return any(device.type == "cuda" for device in self.devices)

    def memory(self, model: nn.Module) -> Iterator[PointMemory]:
        """Yield peaks and energy at each point."""
        return self._each(lambda point: self._memory(point, model))

    def time(self, dense: nn.Module, pruned: nn.Module, *, alone: bool = False) -> Iterator[PointTiming]:
        """Yield the timing of both models in turns at each point.

        alone  whether only the pruned one is timed, since there is no room for the dense one, which has no weights here
        """
        models = {"dense": dense, "pruned": pruned}
        place = Placement({"pruned": pruned} if alone else models, self.devices)
        decoders = {name: Decoder(model) for name, model in models.items()}
        captured = dict[TimedPoint, PointTiming]()

        def measure(point: TimedPoint) -> PointTiming:
            figures = self._time(point, place)
            predicted: dict[str, Any] = predict_speedup(decoders["dense"], decoders["pruned"], point)
            figures = replace(figures, **predicted)
            if alone:
                figures = replace(figures, out_of_memory=("dense", *(figures.out_of_memory or ())))
            if point.mode == "graph":
                captured[point] = figures
            beside = captured.get(replace(point, mode="graph")) if point.mode == "eager" else None
            return compare_with_peak(decoders, point, figures, beside, self.rates) if self.on_gpu else figures

        return self._each(measure)

    @torch.inference_mode()
    def _each(self, measure: Callable[[TimedPoint], OfPoint]) -> Iterator[OfPoint]:
        full, level = set[tuple[str, int]](), dict[tuple[str, int, str], Sweep]()
        for point in points_of_protocol(self.protocol):
            sweep = level.setdefault((point.kind, point.tokens, point.mode), Sweep())
            swept = point.batch not in self.protocol.batches
            if (point.kind, point.tokens) in full or (self.on_gpu and swept and sweep.is_level):
                continue
            figures = measure(point)
            timed = figures if isinstance(figures, PointTiming) else None
            if figures.out_of_memory and not (timed and timed.rounds):
                full.add((point.kind, point.tokens))
            sweep.add(point.batch, timed)
            give_back(self.devices)
            yield figures

    def _memory(self, point: TimedPoint, model: nn.Module) -> PointMemory:
        self.alive(f"in the memory pass, {point}")
        try:
            work = workload_of_point(model, point, self.protocol, self.graph)
            peaks = memory.measure_peaks(work, self.devices, self.gpus)
            tokens = point.batch * (point.tokens if point.kind == "prefill" else work.steps)
            energy = measure_energy(work, tokens, self.gpus, lambda: wait_for_devices(self.devices))
            return point.memory(**peaks, **energy)
        except Exception as error:
            failed = reason_of_failure(error, "pruned")
            return point.memory(failed=failed) if failed else point.memory(out_of_memory=("pruned",))

    def _time(self, point: TimedPoint, place: Placement) -> PointTiming:
        """Time both models in turns; where they do not fit on a GPU together, one after the other."""
        if self.protocol.compile:
            torch.compiler.reset()
        if place.together:
            figures = self._in_turns(point, place.models)
            if not (place.is_separable and figures.out_of_memory):
                return figures
        figures = self._in_blocks(point, place)
        place.gather()
        return figures

    def _in_turns(self, point: TimedPoint, models: Mapping[str, nn.Module]) -> PointTiming:
        works, warm, full = dict[str, Workload](), dict[str, WarmUp](), list[str]()
        for name, model in models.items():
            try:
                works[name], warm[name] = self._warm(point, name, model)
            except Exception as error:
                if failed := reason_of_failure(error, name):
                    return point.timing(failed=failed)
                full.append(name)
        try:
            figures = self._rounds(point, works, warm) if works else point.timing()
        except Exception as error:
            failed = reason_of_failure(error, " and ".join(works))
            return point.timing(failed=failed) if failed else point.timing(out_of_memory=(*full, *works))
        return replace(figures, out_of_memory=tuple(full) or None)

    def _warm(self, point: TimedPoint, name: str, model: nn.Module) -> tuple[Workload, WarmUp]:
        self.alive(f"while it warmed up the {name} model, {point}")
        work = workload_of_point(model, point, self.protocol, self.graph)
        return work, timing.warm_up(work, self.clock, long=self.on_gpu)

    def _rounds(self, point: TimedPoint, works: dict[str, Workload], warm: dict[str, WarmUp]) -> PointTiming:
        number, sampler = self.protocol.speed_rounds, gpu.Sampler(self.gpus)
        with console.make_bar(number * len(works), f"timing {point}", "turn") as bar, sampler:
            rounds = self._turns(point, works, warm, number, bar.update, enough=is_narrow)
        return self._summarise(point, rounds, warm, sampler)

    def _turns(
        self,
        point: TimedPoint,
        works: dict[str, Workload],
        warm: dict[str, WarmUp],
        number: int,
        done: Callable[[], object],
        *,
        enough: Callable[[dict[str, list[list[Pass]]]], bool] | None = None,
    ) -> dict[str, list[list[Pass]]]:
        """Time `number` rounds of warm workloads, or half if those are `enough`; `done` is called before each turn."""

        def turn() -> None:
            self.alive(f"while it timed {point}")
            done()

        passes = timing.passes_per_turn(works, warm, number)
        return timing.time_rounds(works, self.clock, number, passes, turn, enough=enough)

    def _in_blocks(self, point: TimedPoint, place: Placement) -> PointTiming:
        """Time one model alone on the device, then the other, then the first again, so that a drift meets both alike.

        The model in the middle has as many rounds as the other has in both its blocks. A model that does not fit even
        alone leaves the other.
        """
        number, sampler = self.protocol.speed_rounds, gpu.Sampler(self.gpus)
        passes, warm, full = dict[str, list[list[Pass]]](), dict[str, WarmUp](), list[str]()
        first, second = place.models
        with console.make_bar(2 * number, f"timing {point}", "turn") as bar:
            for name, rounds in ((first, number // 2), (second, number), (first, number - number // 2)):
                if name in full:
                    continue
                try:
                    works = dict[str, Workload]()
                    works[name], warmed = self._warm(point, name, place.alone(name))
                    warm[name] = replace(warmed, stable=warmed.stable and (name not in warm or warm[name].stable))
                    with sampler:
                        timed = self._turns(point, works, warm, rounds, bar.update)
                    passes[name] = passes.get(name, []) + timed[name]
                except Exception as error:
                    if failed := reason_of_failure(error, name):
                        return point.timing(failed=failed)
                    full.append(name)
                    passes.pop(name, None)
                    warm.pop(name, None)
                works.clear()  # the next model needs the room of the cache
        result = self._summarise(point, passes, warm, sampler) if passes else point.timing()
        if len(passes) > 1:
            result = replace(result, flags=(*(result.flags or ()), "in_blocks"))
        return replace(result, out_of_memory=tuple(full) or None)

    def _summarise(
        self, point: TimedPoint, rounds: dict[str, list[list[Pass]]], warm: dict[str, WarmUp], sampler: gpu.Sampler
    ) -> PointTiming:
        result = summarise_rounds(point, rounds, warm, percentiles=self.on_gpu)
        if not self.gpus:
            return result
        gpus = tuple(value_from_plain(GpuMeanwhile, each) for each in sampler.summarise())
        return replace(result, gpus=gpus, flags=(*(result.flags or ()), *["slowed"] * sampler.is_throttled))


def reason_of_failure(error: Exception, who: str) -> str:
    """Return why there are no figures; empty for memory that ran out, which is a result and no failure.

    An error that leaves the GPU unusable is raised again, since this process has no more figures.
    """
    if failures.is_loss_of_gpu(error):
        raise error
    return "" if failures.is_out_of_memory(error) else f"{who} model: {failures.reason_of_error(error)}"


def wait_for_devices(devices: Sequence[torch.device]) -> None:
    """Wait until every device has done all its work."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


CPU = torch.device("cpu")


class Placement:
    """Knows where the `models`, by their names, lie: on `devices`, or while they wait in the host's memory."""

    def __init__(self, models: Mapping[str, nn.Module], devices: Sequence[torch.device]) -> None:
        self.models, self.devices = models, devices
        self.together = True
        self.gather()

    @property
    def is_separable(self) -> bool:
        """Say whether one model can make room for the other. On a CPU it would wait in the memory that it lies in."""
        return len(self.models) > 1 and [device.type for device in self.devices] == ["cuda"]

    @torch.inference_mode(mode=False)  # that mode would make inference tensors of the parameters
    def gather(self) -> None:
        """Put all models on the device, unless they turned out to be too large for it together."""
        if not self.together:
            return
        try:
            for model in self.models.values():
                model.to(self.devices[0])
        except Exception as error:
            if not (self.is_separable and failures.is_out_of_memory(error)):
                raise
            self.together = False

    @torch.inference_mode(mode=False)
    def alone(self, name: str) -> nn.Module:
        """Return a model after it has become the only one on the device."""
        for owner, model in self.models.items():
            if owner != name:
                model.to(CPU)
        give_back(self.devices)
        return self.models[name].to(self.devices[0])


# Where a model's weights lie in memory is the same in all rounds of a process and counts as speed there: equal models
# have differed by up to 0.6 %. No interval of a speed-up is therefore narrower than this share on each side.
RESOLUTION = 0.01
NARROW = 0.03  # an interval within this share on each side after half of the rounds ends them
RISE = 1.05  # times as many tokens per second as at the batch before, or the sweep of a GPU ends
PERCENTILES = {90: 10, 99: 100}  # of all calls on a GPU: {percentile: the fewest calls with one beyond it}


def summarise_rounds(
    point: TimedPoint, passes: dict[str, list[list[Pass]]], warm: dict[str, WarmUp], *, percentiles: bool = False
) -> PointTiming:
    """Return all samples and what follows from them: medians, spread, the speed-up with its interval, and flags."""
    calls = {name: timing.ms_of_passes(chain(*turns)) for name, turns in passes.items()}
    spread = {name: timing.variation_of(samples) for name, samples in calls.items()}
    apart = max(timing.disagreement_of(list(chain(*turns))) for turns in passes.values())
    flags = {
        "noisy": max(spread.values()) > timing.NOISY,
        "not_warm": not all(warm_up.stable for warm_up in warm.values()),
        "clocks_disagree": apart > timing.CLOCKS_AGREE,
    }
    result = point.timing(
        warm_up=WarmUps(**{name: warm_up.calls for name, warm_up in warm.items()}),
        rounds=Rounds(**{name: tuple(map(_rounded_ms, turns)) for name, turns in passes.items()}),
        **{f"{name}_ms": median(samples) for name, samples in calls.items()},
        **{f"{name}_cv": variation for name, variation in spread.items()},
        clocks_apart=apart,
        flags=tuple(name for name, holds in flags.items() if holds),
    )
    if percentiles:
        for name, samples in calls.items():
            cuts = quantiles(samples, n=100, method="inclusive")
            shares = [share for share, least in PERCENTILES.items() if len(samples) >= least]
            highest: dict[str, Any] = {f"{name}_p{share}": cuts[share - 1] for share in shares}
            result = replace(result, **highest)
    if len(passes) > 1:
        speedup, low, high = widen_interval(*_speedup(passes))
        result = replace(result, speedup=speedup, speedup_low=low, speedup_high=high)
    return result


def join_processes(timings: Sequence[PointTiming]) -> PointTiming:
    """Return the timing of a point that several processes have timed, each with both models in turns.

    All calls are kept. One process alone, or one in which the point has no speed-up, is the answer as it is.
    """
    intervals = [each.interval for each in timings]
    if len(timings) == 1:
        return timings[0]
    if None in intervals:
        return timings[intervals.index(None)]
    by_process = tuple(interval for interval in intervals if interval)
    rounds, medians = dict[str, tuple[tuple[float, ...], ...]](), dict[str, Any]()
    for name in ("dense", "pruned"):
        rounds[name] = tuple(chain.from_iterable(getattr(each.rounds, name) for each in timings))
        samples = list(chain(*rounds[name]))
        medians |= {f"{name}_ms": median(samples), f"{name}_cv": timing.variation_of(samples)}
    speedup, low, high = join_ratios(by_process)
    flags = [
        *chain.from_iterable(each.flags or () for each in timings),
        *["processes_disagree"] * is_inconsistent(by_process),
    ]
    return replace(
        timings[0],
        rounds=Rounds(**rounds),
        **medians,
        clocks_apart=max(each.clocks_apart or 0.0 for each in timings),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        by_process=by_process,
        flags=tuple(dict.fromkeys(flags)),
    )


def widen_interval(ratio: float, low: float, high: float) -> tuple[float, float, float]:
    """Return a ratio of times with an interval that reaches RESOLUTION to each side at least."""
    return ratio, min(low, ratio * (1 - RESOLUTION)), max(high, ratio * (1 + RESOLUTION))


def is_narrow(passes: dict[str, list[list[Pass]]]) -> bool:
    """Say whether the rounds so far, of both models, give a speed-up with an interval within NARROW on each side."""
    if len(passes) < 2:
        return False
    speedup, low, high = _speedup(passes)
    return low >= speedup * (1 - NARROW) and high <= speedup * (1 + NARROW)


def _speedup(passes: dict[str, list[list[Pass]]]) -> tuple[float, float, float]:
    """Return the speed-up, dense over pruned, and its 95 % interval, from the median call of each round."""
    medians = {name: list(map(_median_ms, turns)) for name, turns in passes.items()}
    return paired_ratio(medians["dense"], medians["pruned"])


def _median_ms(turn: Sequence[Pass]) -> float:
    """Return the median over the calls of a turn."""
    return median(timing.ms_of_passes(turn))


def _rounded_ms(turn: Sequence[Pass]) -> tuple[float, ...]:
    """Return the calls of a turn as a record holds them."""
    return tuple(round(ms, 5) for ms in timing.ms_of_passes(turn))


class Sweep:
    """Follows tokens per second over rising batches."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.is_level = False

    def add(self, batch: int, timing: PointTiming | None) -> None:
        """Take in a point. The sweep is level where no timed model has become faster by enough."""
        ms = timing.ms_by_model() if timing else {}
        rates = {name: batch / milliseconds for name, milliseconds in ms.items()}
        before = [name for name in rates if name in self.last]
        self.is_level = bool(before) and all(rates[name] < RISE * self.last[name] for name in before)
        self.last = rates
