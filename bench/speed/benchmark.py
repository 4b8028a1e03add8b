"""Measures how fast a pruned model is beside the dense one: prefill and decode apart, the same way for every method.

prefill  one forward over (batch, length) tokens that fills an empty key-value cache; only the last position has logits
decode   forwards of one token for each sequence on a cache that holds `context` tokens at first; each pass of
         `decode_steps` begins at that depth again, so that all samples share their range of contexts

Each cell is timed in a process of its own (bench.system.worker), on a CPU one that begins with what it needs imported.
It gets the pruned model, measures its memory alone, loads the dense model, and times both in turns
(bench.speed.timing). The speed-up is dense over pruned milliseconds, from the medians of each round
(bench.stats.intervals.paired_ratio). Token ids are random and the same for both models, and no end of sequence ends a
pass early. Results have the layout of bench.records.schema.speed; docs/guides/speed.md describes the protocol.

Each point (bench.speed.workloads) is an outcome of its own: one that runs out of memory, or that a model cannot do,
says so, and the others go on. After a point that no model had the memory for, larger batches of its kind are left out.

Where the dense model has no room at all, the pruned one is timed alone: what the removed work alone would bring stands
beside its milliseconds, and there is no speed-up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import methods
from bench.data import pretrained
from bench.plan.cell import Cell
from bench.plan.protocol import Protocol
from bench.speed import dense_model, machine, memory, peak_rates, timing, transfer
from bench.speed.graph import CudaGraph, StepGraph
from bench.speed.placement import Placement
from bench.speed.summary import Sweep, is_narrow, summary
from bench.speed.timing import Clock, EventClock, Pass, WallClock, WarmUp, Workload
from bench.speed.workloads import TimedPoint, points, predicted, workload
from bench.system import environment, failures, gpu, worker
from bench.system.memory import give_back
from bench.system.process_memory import resident_bytes
from methods import progress
from methods.model.decoder import Decoder
from methods.model.layer_store import put
from methods.model.spread import gpus_of

IMPORTED = (__name__,)  # by the server from which processes that time on a CPU are forked
SPREAD = "a model that is spread over several GPUs is not timed; say --speed-rounds 0, or --gpus-per-cell 1"
NO_ROOM = "the dense model has no room where cells compute, and is not timed"


def measure(model: nn.Module, cell: Cell, threads: int, *, alone: bool = False) -> dict[str, Any]:
    """Time `model` beside the dense one and return SpeedFound of bench.records.schema; a failure is `failed` in it.

    alone  whether there is no room for the dense model, so that the pruned one is timed without it. Its weights may lie
           in files then, and its layers on the host although they compute on a GPU
    """
    found: dict[str, Any] = {"points": []}
    if alone and cell.method == "dense":
        return found | {"failed": NO_ROOM}
    if len(gpus_of(model)) > 1:
        return found | {"failed": SPREAD}
    device = next(model.parameters()).device
    there = [part for part in model.modules() if all(one.device == device for one in _tensors(part))]
    model.to("cpu")  # the process that times needs the room
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        failure = worker.run(
            _work,
            (cell, threads, methods.plugins(), alone),
            limits=worker.Limits(silence=cell.protocol.speed_limit),
            hear=lambda news: _merge(found, news),
            give=lambda pipe: transfer.send(pipe, model),
            imported=() if device.type == "cuda" else IMPORTED,
        )
        failed = failure.reason if failure else None
    except transfer.NotPortable as error:
        failed = str(error)
    finally:
        put(there, device)
    return found | ({"failed": failed} if failed else {})


def begin(device: str) -> None:
    """Start what a process that times begins with, while a model is loaded and pruned for it."""
    if torch.device(device).type == "cpu":
        worker.begin_server(IMPORTED)


def _merge(found: dict[str, Any], news: dict[str, Any]) -> None:
    """Add what the process tells to `found`: points to those that are there, anything else under its own name."""
    found["points"] += news.pop("points", [])
    found.update(news)


def _work(line: worker.Line, cell: Cell, threads: int, plugins: list[str], alone: bool) -> None:
    """Do all of it in a process of its own, from the pruned model's arrival to the last round."""
    protocol, device, dtype = cell.protocol, torch.device(cell.device), getattr(torch, cell.dtype)
    if protocol.pin:
        os.sched_setaffinity(0, protocol.pin)
    torch.set_num_threads(min(threads, environment.usable_cores()))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the compiler's workers would outlive it and disturb
    methods.load(plugins)
    if cell.trust_remote_code:
        pretrained.shell(cell.model, trust_remote_code=True)  # makes the classes known that came with the model
    gpus, no_gpus = gpu.find([device])
    resident = resident_bytes()
    pruned = transfer.receive(line.ask(), device).eval()
    before = machine.state(gpus)
    devices = sorted({parameter.device for parameter in pruned.parameters()}, key=str)
    clock, rates = clock_of(devices), dict[str, float]()
    if [one.type for one in devices] == ["cuda"]:
        line.alive("while it measured what the GPU reaches at most")
        rates = peak_rates.measure(devices[0], dtype)
        give_back(devices)
    benchmark = SpeedBenchmark(protocol, clock, devices, gpus, line.alive, rates)
    line.tell({"setup": machine.setup(pruned, devices, clock, rates), "widths": machine.widths(Decoder(pruned))})
    line.tell({"memory": {"resident_before_bytes": resident, "points": list(benchmark.memory(pruned))}})
    line.alive("while it loaded the dense model")
    dense = dense_model.without_weights(cell) if alone else dense_model.loaded(cell, device)
    if device.type == "cpu" and not alone:
        dense_model.own_memory(dense, pruned)
    Decoder(dense)  # makes it of the same kind of matrices as the pruned model is
    slowed_by = set[str]()
    for point in benchmark.time(dense, pruned, alone=alone):
        slowed_by |= {reason for card in point.get("gpus", ()) for reason in card.get("slowed_by", ())}
        line.tell({"points": [point]})
    others = [gpu.others(card, os.getpid(), os.getppid(), device.type == "cuda") for card in gpus]
    found = machine.between(before, machine.state(gpus), others, slowed_by)
    line.tell({"machine": found | ({"nvml": no_gpus} if no_gpus else {})})


def _tensors(part: nn.Module) -> Iterator[Tensor]:
    yield from part.parameters()
    yield from part.buffers()


def clock_of(devices: Sequence[torch.device]) -> Clock:
    """Choose the clock: events for one CUDA device, the wall clock for several of them and for the CPU."""
    if len(devices) == 1 and devices[0].type == "cuda":
        torch.cuda.set_device(devices[0])
        event = partial(torch.cuda.Event, enable_timing=True)
        return EventClock(event, lambda: wait(devices))
    return WallClock(lambda: wait(devices))


@dataclass
class SpeedBenchmark:
    """Measures one model alone, for its memory, or two in turns, for their speed, at every point of a protocol.

    alive  is told what is about to be done, as "while it ..."
    rates  what the GPU reaches at most, of bench.speed.peak_rates
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
        """Whether models lie on a GPU, of which more is measured."""
        return any(device.type == "cuda" for device in self.devices)

    def memory(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Measure peaks and energy at each point, as bench.records.schema.speed has them."""
        return self._each(lambda point: self._memory(point, model))

    def time(self, dense: nn.Module, pruned: nn.Module, *, alone: bool = False) -> Iterator[dict[str, Any]]:
        """Time both models in turns at each point, as bench.records.schema.speed has them.

        alone  whether only the pruned one is timed, since there is no room for the dense one, which has no weights here
        """
        models = {"dense": dense, "pruned": pruned}
        place = Placement({"pruned": pruned} if alone else models, self.devices)
        decoders = {name: Decoder(model) for name, model in models.items()}
        captured = dict[TimedPoint, dict[str, Any]]()

        def measure(point: TimedPoint) -> dict[str, Any]:
            found = self._time(point, place) | predicted(decoders["dense"], decoders["pruned"], point)
            if alone:
                found["out_of_memory"] = ["dense", *found.get("out_of_memory", ())]
            if point.mode == "graph":
                captured[point] = found
            beside = captured.get(replace(point, mode="graph"), {}) if point.mode == "eager" else {}
            return found | peak_rates.judged(decoders, point, found, beside, self.rates) if self.on_gpu else found

        return self._each(measure)

    @torch.inference_mode()
    def _each(self, measure: Callable[[TimedPoint], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        full, level = set[tuple[str, int]](), dict[tuple[str, int, str], Sweep]()
        for point in points(self.protocol):
            sweep = level.setdefault((point.kind, point.tokens, point.mode), Sweep())
            swept = point.batch not in self.protocol.batches
            if (point.kind, point.tokens) in full or (self.on_gpu and swept and sweep.is_level):
                continue
            found = measure(point)
            if "out_of_memory" in found and "rounds" not in found:
                full.add((point.kind, point.tokens))
            sweep.add(point.batch, found)
            give_back(self.devices)
            yield point.named | found

    def _memory(self, point: TimedPoint, model: nn.Module) -> dict[str, Any]:
        self.alive(f"in the memory pass, {point}")
        try:
            work = workload(model, point, self.protocol, self.graph)
            peaks = memory.peaks(work, self.devices, self.gpus)
            tokens = point.batch * (point.tokens if point.kind == "prefill" else work.steps)
            return peaks | memory.energy(work, tokens, self.gpus, lambda: wait(self.devices))
        except Exception as error:
            return _lost(error, "pruned")

    def _time(self, point: TimedPoint, place: Placement) -> dict[str, Any]:
        """Time both models in turns; where they do not fit on a GPU together, one after the other."""
        if self.protocol.compile:
            torch.compiler.reset()
        if place.together:
            found = self._in_turns(point, place.models)
            if not (place.separable and "out_of_memory" in found):
                return found
        found = self._in_blocks(point, place)
        place.gather()
        return found

    def _in_turns(self, point: TimedPoint, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        works, warm, full = dict[str, Workload](), dict[str, WarmUp](), list[str]()
        for name, model in models.items():
            try:
                works[name], warm[name] = self._warmed(point, name, model)
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

    def _warmed(self, point: TimedPoint, name: str, model: nn.Module) -> tuple[Workload, WarmUp]:
        self.alive(f"while it warmed up the {name} model, {point}")
        work = workload(model, point, self.protocol, self.graph)
        return work, timing.warm_up(work, self.clock, long=self.on_gpu)

    def _rounds(self, point: TimedPoint, works: dict[str, Workload], warm: dict[str, WarmUp]) -> dict[str, Any]:
        number, sampler = self.protocol.speed_rounds, gpu.Sampler(self.gpus)
        with progress.bar(number * len(works), f"timing {point}", "turn") as bar, sampler:
            found = self._turns(point, works, warm, number, bar.update, enough=is_narrow)
        return self._summed(found, warm, sampler)

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
        """Time `number` rounds of what is warm, or half if those are `enough`; `done` is called before each turn."""

        def turn() -> None:
            self.alive(f"while it timed {point}")
            done()

        passes = timing.passes_per_turn(works, warm, number)
        return timing.rounds(works, self.clock, number, passes, turn, enough=enough)

    def _in_blocks(self, point: TimedPoint, place: Placement) -> dict[str, Any]:
        """Time one model alone on the device, then the other, then the first again, so that a drift meets both alike.

        The one in the middle has as many rounds as the other has in both its blocks. One that does not fit even alone
        leaves the other.
        """
        number, sampler = self.protocol.speed_rounds, gpu.Sampler(self.gpus)
        found, warm, full = dict[str, list[list[Pass]]](), dict[str, WarmUp](), list[str]()
        first, second = place.models
        with progress.bar(2 * number, f"timing {point}", "turn") as bar:
            for name, rounds in ((first, number // 2), (second, number), (first, number - number // 2)):
                if name in full:
                    continue
                try:
                    works = dict[str, Workload]()
                    works[name], warm[name] = self._warmed(point, name, place.alone(name))
                    with sampler:
                        timed = self._turns(point, works, warm, rounds, bar.update)
                    found[name] = found.get(name, []) + timed[name]
                except Exception as error:
                    lost = _lost(error, name)
                    if "failed" in lost:
                        return lost
                    full.append(name)
                    found.pop(name, None)
                    warm.pop(name, None)
                works.clear()  # whose cache the next model needs the room of
        ran_out = {"out_of_memory": full} if full else {}
        result = ran_out | (self._summed(found, warm, sampler) if found else {})
        if len(found) > 1:
            result["flags"].append("in_blocks")
        return result

    def _summed(
        self, found: dict[str, list[list[Pass]]], warm: dict[str, WarmUp], sampler: gpu.Sampler
    ) -> dict[str, Any]:
        result = summary(found, warm, percentiles=self.on_gpu)
        if self.gpus:
            result["gpus"] = sampler.found()
            result["flags"] += ["slowed"] * sampler.throttled
        return result


def _lost(error: Exception, who: str) -> dict[str, Any]:
    """Say why there are no figures: memory that ran out is a result, anything else a failure.

    What leaves the GPU unusable is raised again, since there are no more figures in this process.
    """
    if failures.loses_the_gpu(error):
        raise error
    if failures.is_out_of_memory(error):
        return {"out_of_memory": [who]}
    return {"failed": f"{who} model: {failures.reason(error)}"}


def wait(devices: Sequence[torch.device]) -> None:
    """Wait until every device has done what it was given."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
