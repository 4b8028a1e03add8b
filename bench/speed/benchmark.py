"""Measures how fast a pruned model is beside the dense one: prefill and decode apart, the same way for every method.

prefill  one forward over (batch, length) tokens that fills an empty key-value cache; only the last position has logits
decode   forwards of one token for each sequence on a cache that holds `context` tokens at first; each pass of
         `decode_steps` begins at that depth again, so that all samples share their range of contexts

Each cell is timed in a process of its own (bench.system.worker). It gets the pruned model, measures its memory alone,
loads the dense model, and times both in turns (bench.speed.timing). The speed-up is dense over pruned milliseconds,
from the medians of each round (bench.stats.intervals.paired_ratio). Token ids are random and the same for both models,
and no end of sequence ends a pass early. Results have the layout of `speed` in bench.records.record;
docs/guides/speed.md describes the protocol.

Each point (bench.speed.workloads) is an outcome of its own: one that runs out of memory, or that a model cannot do,
says so, and the others go on. After a point that no model had the memory for, larger batches of its kind are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

import methods
from bench.data import pretrained
from bench.plan.cell import Cell
from bench.plan.protocol import Protocol
from bench.speed import memory, timing, transfer
from bench.speed.timing import Clock, EventClock, Pass, WallClock, WarmUp, Workload
from bench.speed.workloads import TimedPoint, points, predicted, workload
from bench.stats.intervals import paired_ratio
from bench.system import environment, gpu, worker
from bench.system.memory import give_back, resident_bytes
from methods import progress
from methods.model.decoder import Decoder

# Where a model's weights lie in memory is the same in all rounds of a process and counts as speed there: equal models
# have differed by up to 0.6 %. No interval of a speed-up is therefore narrower than this share on each side.
RESOLUTION = 0.01
BUSY = 0.25  # cores that other work may take on average before the machine is marked as busy
TILES = (128, 64, 8)  # multiples that kernels are cut for


def measure(model: nn.Module, cell: Cell, threads: int) -> dict[str, Any]:
    """Time `model` beside the dense one and return `speed` of bench.records.record; a failure is `failed` in it."""
    found: dict[str, Any] = {"points": []}
    device = next(model.parameters()).device
    model.to("cpu")  # the process that times needs the room
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        failure = worker.run(
            _work,
            (cell, threads, methods.plugins(), device.type == "cuda"),
            limits=worker.Limits(silence=cell.protocol.speed_limit),
            hear=lambda news: _merge(found, news),
            give=lambda pipe: transfer.send(pipe, model),
        )
        failed = failure.reason if failure else None
    except transfer.NotPortable as error:
        failed = str(error)
    finally:
        model.to(device)
    return found | ({"failed": failed} if failed else {})


def _merge(found: dict[str, Any], news: dict[str, Any]) -> None:
    """Add what the process tells to `found`: points to those that are there, anything else under its own name."""
    found["points"] += news.pop("points", [])
    found.update(news)


def _work(line: worker.Line, cell: Cell, threads: int, plugins: list[str], parent_on_gpu: bool) -> None:
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
    pruned = transfer.receive(line.ask()).to(device).eval()
    before = _state(gpus)
    devices = sorted({parameter.device for parameter in pruned.parameters()}, key=str)
    benchmark = SpeedBenchmark(protocol, clock_of(devices), devices, gpus, line.alive)
    line.tell({"setup": _setup(pruned, devices, benchmark.clock), "widths": widths(Decoder(pruned))})
    line.tell({"memory": {"resident_before_bytes": resident, "points": list(benchmark.memory(pruned))}})
    line.alive("while it loaded the dense model")
    dense, _ = pretrained.load(cell.model, torch.device("cpu"), dtype, cell.trust_remote_code)
    if device.type == "cpu":
        _own_memory(dense, pruned)
    Decoder(dense)  # makes it of the same kind of matrices as the pruned model is
    for point in benchmark.time(dense.to(device), pruned):
        line.tell({"points": [point]})
    others = [gpu.others(card, os.getpid(), os.getppid(), parent_on_gpu) for card in gpus]
    line.tell({"machine": _machine(before, _state(gpus), others) | ({"nvml": no_gpus} if no_gpus else {})})


def _own_memory(*models: nn.Module) -> None:
    """Copy every tensor into plain memory: a model that lies in a mapped file would be timed differently."""
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()


def clock_of(devices: Sequence[torch.device]) -> Clock:
    """Choose the clock: events for one CUDA device, the wall clock for several of them and for the CPU."""
    if len(devices) == 1 and devices[0].type == "cuda":
        torch.cuda.set_device(devices[0])
        event = partial(torch.cuda.Event, enable_timing=True)
        return EventClock(event, lambda: wait(devices))
    return WallClock(lambda: wait(devices))


def _setup(model: Any, devices: Sequence[torch.device], clock: Clock) -> dict[str, Any]:
    """Return what the protocol does not say of how the models were timed."""
    return {
        "threads": torch.get_num_threads(),
        "cores": environment.usable_cores(),
        "devices": [str(device) for device in devices],
        "clock": clock.name,
        "attention": model.config._attn_implementation,
    }


def widths(model: Decoder) -> dict[str, dict[str, Any]]:
    """Return {role: {in, out: widths that occur, multiple_of: the largest of 128, 64, 8, 1 that divides them all}}."""
    roles: dict[str, list[nn.Linear]] = {"head": [model.head]}
    for layer in model.layers:
        known = {"qkv": layer.qkv, "out": [layer.out]} if layer.has_attention else {}
        known |= {"up": layer.up, "down": [layer.down]} if layer.has_mlp else {}
        mine = {id(matrix) for matrix in layer.matrices}
        added = [m for m in layer.module.modules() if isinstance(m, nn.Linear) and id(m) not in mine]
        for role, matrices in (known | {"added": added}).items():
            roles.setdefault(role, []).extend(matrices)
    return {role: _widths([matrix.weight for matrix in matrices]) for role, matrices in roles.items() if matrices}


def _widths(weights: list[torch.Tensor]) -> dict[str, Any]:
    out, read = ({weight.shape[axis] for weight in weights} for axis in (0, 1))
    tile = next((tile for tile in TILES if all(width % tile == 0 for width in out | read)), 1)
    return {"in": sorted(read), "out": sorted(out), "multiple_of": tile}


def _machine(before: dict[str, Any], after: dict[str, Any], others: list[int | None]) -> dict[str, Any]:
    """Return what else the machine did between two states; `flags` say what may have spoilt the figures."""
    shares = environment.between(before["machine"], after["machine"])
    found: dict[str, Any] = {"before": before, "after": after} | shares
    known = [count for count in others if count is not None]
    if known:
        found["other_gpu_processes"] = sum(known)
    slowed = {reason for card in after.get("gpus", []) for reason in card.get("slowed_by", [])}
    hot = after["machine"].get("cpu_throttled", 0) > before["machine"].get("cpu_throttled", 0)
    flags = {
        "busy": sum(shares.values()) > BUSY,
        "shared_gpu": sum(known) > 0,
        "slowed": hot or bool(slowed & set(gpu.THROTTLED)),
    }
    return found | {"flags": [name for name, holds in flags.items() if holds]}


def _state(gpus: Sequence[gpu.Gpu]) -> dict[str, Any]:
    return {"machine": environment.state()} | ({"gpus": [card.state() for card in gpus]} if gpus else {})


@dataclass
class SpeedBenchmark:
    """Measures one model alone, for its memory, or two in turns, for their speed, at every point of a protocol.

    `alive` is told what is about to be done, as "while it ...".
    """

    protocol: Protocol
    clock: Clock
    devices: Sequence[torch.device]
    gpus: Sequence[gpu.Gpu]
    alive: Callable[[str], object]

    def memory(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Measure peaks and energy at each point, as bench.records.record has them under `memory`."""
        return self._each(lambda point: self._memory(point, model))

    def time(self, dense: nn.Module, pruned: nn.Module) -> Iterator[dict[str, Any]]:
        """Time both models in turns at each point, as bench.records.record has them under `points`."""
        models, decoders = {"dense": dense, "pruned": pruned}, (Decoder(dense), Decoder(pruned))
        return self._each(lambda point: self._time(point, models) | predicted(*decoders, point))

    @torch.inference_mode()
    def _each(self, measure: Callable[[TimedPoint], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        full = set[tuple[str, int]]()
        for point in points(self.protocol):
            if (point.kind, point.tokens) in full:
                continue
            found = measure(point)
            if "out_of_memory" in found and "rounds" not in found:
                full.add((point.kind, point.tokens))
            give_back(self.devices)
            yield point.named | found

    def _memory(self, point: TimedPoint, model: nn.Module) -> dict[str, Any]:
        self.alive(f"in the memory pass, {point}")
        try:
            work = workload(model, point, self.protocol)
            peaks = memory.peaks(work, self.devices, self.gpus)
            tokens = point.batch * (point.tokens if point.kind == "prefill" else work.steps)
            return peaks | memory.energy(work, tokens, self.gpus, lambda: wait(self.devices))
        except Exception as error:
            return _lost(error, "pruned")

    def _time(self, point: TimedPoint, models: dict[str, nn.Module]) -> dict[str, Any]:
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

    def _rounds(self, point: TimedPoint, works: dict[str, Workload], warm: dict[str, WarmUp]) -> dict[str, Any]:
        number = self.protocol.speed_rounds
        passes = timing.passes_per_turn(works, warm, number)
        with progress.bar(number * len(works), f"timing {point}", "turn") as bar:

            def turn() -> None:
                self.alive(f"while it timed {point}")
                bar.update()

            return summary(timing.rounds(works, self.clock, number, passes, turn), warm)


def _lost(error: Exception, who: str) -> dict[str, Any]:
    """Say why there are no figures: memory that ran out is a result, anything else a failure."""
    if worker.is_out_of_memory(error):
        return {"out_of_memory": [who]}
    return {"failed": f"{who} model: {worker.reason(error)}"}


def wait(devices: Sequence[torch.device]) -> None:
    """Wait until every device has done what it was given."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def summary(found: dict[str, list[list[Pass]]], warm: dict[str, WarmUp]) -> dict[str, Any]:
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
    if len(rounds) > 1:
        medians = {name: [median(turn) for turn in turns] for name, turns in rounds.items()}
        speedup, low, high = paired_ratio(medians["dense"], medians["pruned"])
        low, high = min(low, speedup * (1 - RESOLUTION)), max(high, speedup * (1 + RESOLUTION))
        result |= {"speedup": speedup, "speedup_low": low, "speedup_high": high}
    return result
