"""Times a cell's pruned model beside the dense one, in a process of its own.

On a CPU the process (bench.system.worker) begins with what it needs imported. It gets the pruned model, measures its
memory alone, loads the dense model, and times both (bench.speed.benchmark). What it finds is told point by point, so
that nothing is lost with it.

Where the dense model has no room at all, the pruned one is timed alone: what the removed work alone would bring stands
beside its milliseconds, and there is no speed-up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import methods
from bench.data import pretrained
from bench.plan.cell import Cell
from bench.speed import dense_model, machine, peak_rates, transfer
from bench.speed.benchmark import SpeedBenchmark, clock_of
from bench.system import gpu, worker
from bench.system.memory import give_back
from bench.system.process_memory import resident_bytes
from bench.system.threads import usable_cores
from methods.model.decoder import Decoder
from methods.model.layer_store import put
from methods.model.spread import gpus_of
from methods.registry import find_method_modules

IMPORTED = (  # by the server from which processes that time on a CPU are forked: what each would else import by itself
    *(f"methods.{name}" for name in find_method_modules()),
    "transformers.generation.utils",
    "transformers.modeling_layers",
    "transformers.models.auto.tokenization_auto",
    __name__,
)
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
    torch.set_num_threads(min(threads, usable_cores()))
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
        dense_model.own_memory(dense, pruned)  # by the same copy, so that both lie alike
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
