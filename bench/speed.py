"""How fast a pruned model is beside the dense one: prefill and decode timed apart, the same way for every method.

prefill  one forward over (batch, length) tokens that fills an empty key-value cache; only the last position has logits
decode   forwards of one token for each sequence on a cache that holds `context` tokens at first; each pass of
         `decode_steps` begins at that depth again, so that all samples share their range of contexts

Each cell is timed in a process of its own (bench.isolation), which gets the pruned model, takes its memory alone, loads
the dense model, and times both in turns (bench.timing). The speed-up is dense over pruned milliseconds, from the
medians of each round (bench.stats.paired_ratio). Ids are random and the same for both, and no end of sequence stops
anything. What comes out is laid down under `speed` in bench.record; docs/speed.md describes the protocol.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

import methods
from bench import environment, handover, isolation, models, nvml
from bench.spec import Cell
from bench.stand import Stand, wait
from bench.timing import Clock, EventClock, WallClock
from methods.anatomy import Decoder

BUSY = 0.25  # cores that other work may take on average before the machine is marked as busy
TILES = (128, 64, 8)  # multiples that kernels are cut for


def measure(model: nn.Module, cell: Cell) -> dict[str, Any]:
    """`model` beside the dense one, as bench.record lays it down; a failure is `failed`, with its reason."""
    found: dict[str, Any] = {"points": []}
    device = next(model.parameters()).device
    model.to("cpu")  # the process that times needs the room
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        failure = isolation.run(
            _work,
            (cell, torch.get_num_threads(), methods.plugins(), device.type == "cuda"),
            limits=isolation.Limits(silence=cell.protocol.speed_limit),
            hear=lambda news: _merge(found, news),
            give=lambda pipe: handover.send(pipe, model),
        )
        failed = failure.reason if failure else None
    except handover.NotPortable as error:
        failed = str(error)
    finally:
        model.to(device)
    return found | ({"failed": failed} if failed else {})


def _merge(found: dict[str, Any], news: dict[str, Any]) -> None:
    """Points are added to those that are there; anything else is new."""
    found["points"] += news.pop("points", [])
    found.update(news)


def _work(line: isolation.Line, cell: Cell, threads: int, plugins: list[str], parent_on_gpu: bool) -> None:
    """In a process of its own: everything from the pruned model's arrival to the last round."""
    protocol, device, dtype = cell.protocol, torch.device(cell.device), getattr(torch, cell.dtype)
    if protocol.pin:
        os.sched_setaffinity(0, protocol.pin)
    torch.set_num_threads(min(threads, environment.usable_cores()))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the compiler's workers would outlive it and disturb
    methods.load(plugins)
    if cell.trust_remote_code:
        models.shell(cell.model, trust_remote_code=True)  # makes the classes known that came with the model
    gpus, no_gpus = nvml.find([device])
    resident = environment.resident_bytes()
    pruned = handover.receive(line.ask()).to(device).eval()
    before = _state(gpus)
    devices = sorted({parameter.device for parameter in pruned.parameters()}, key=str)
    stand = Stand(protocol, _clock(devices), devices, gpus, line.alive)
    line.tell({"setup": _setup(pruned, devices, stand.clock), "widths": widths(Decoder(pruned))})
    line.tell({"memory": {"resident_before_bytes": resident, "points": list(stand.memory(pruned))}})
    line.alive("while it loaded the dense model")
    dense, _ = models.load(cell.model, torch.device("cpu"), dtype, cell.trust_remote_code)
    if device.type == "cpu":
        _own_memory(dense, pruned)
    Decoder(dense)  # makes it of the same kind of matrices as the pruned model is
    for point in stand.time(dense.to(device), pruned):
        line.tell({"points": [point]})
    others = [nvml.others(gpu, os.getpid(), os.getppid(), parent_on_gpu) for gpu in gpus]
    line.tell({"machine": _machine(before, _state(gpus), others) | ({"nvml": no_gpus} if no_gpus else {})})


def _own_memory(*models: nn.Module) -> None:
    """Copy every tensor, so that not one model lies in a mapped file and the other one in plain memory."""
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()


def _clock(devices: Sequence[torch.device]) -> Clock:
    """Events for one CUDA device; for several of them, and for the CPU, the wall clock."""
    if len(devices) == 1 and devices[0].type == "cuda":
        torch.cuda.set_device(devices[0])
        event = partial(torch.cuda.Event, enable_timing=True)
        return EventClock(event, lambda: wait(devices))
    return WallClock(lambda: wait(devices))


def _setup(model: Any, devices: Sequence[torch.device], clock: Clock) -> dict[str, Any]:
    """What the protocol does not say of how it was timed."""
    return {
        "threads": torch.get_num_threads(),
        "cores": environment.usable_cores(),
        "devices": [str(device) for device in devices],
        "clock": clock.name,
        "attention": model.config._attn_implementation,
    }


def widths(model: Decoder) -> dict[str, dict[str, Any]]:
    """{role: {in, out: the widths that occur, multiple_of: the largest of 128, 64, 8 and 1 that divides them all}}."""
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
    """What else the machine did meanwhile; `flags` say what may have spoilt the figures."""
    shares = environment.between(before["machine"], after["machine"])
    found: dict[str, Any] = {"before": before, "after": after} | shares
    known = [count for count in others if count is not None]
    if known:
        found["other_gpu_processes"] = sum(known)
    slowed = {reason for gpu in after.get("gpus", []) for reason in gpu.get("slowed_by", [])}
    hot = after["machine"].get("cpu_throttled", 0) > before["machine"].get("cpu_throttled", 0)
    flags = {
        "busy": sum(shares.values()) > BUSY,
        "shared_gpu": sum(known) > 0,
        "slowed": hot or bool(slowed & set(nvml.THROTTLED)),
    }
    return found | {"flags": [name for name, holds in flags.items() if holds]}


def _state(gpus: Sequence[nvml.Gpu]) -> dict[str, Any]:
    return {"machine": environment.state()} | ({"gpus": [gpu.state() for gpu in gpus]} if gpus else {})
