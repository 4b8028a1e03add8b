"""Times a cell's pruned model beside the dense one, in a process of its own.

On a CPU the process (bench.system.worker) begins with its modules imported. It gets the pruned model, measures its
memory alone, loads the dense model, and times both (bench.speed.benchmark). It sends its figures point by point, so
that nothing is lost with it.

Where the dense model has no room at all, the pruned one is timed alone. Its milliseconds stand beside what the removed
work alone would bring, and there is no speed-up.

A model goes to the other process through memory: nothing is written to a disk, and no shared memory is needed. The
model's structure is pickled without its tensors, and the tensors follow as raw bytes, each once however often the
model refers to it. The receiver's copies lie in memory of its own, as those of a model that it loads itself do; memory
shared between processes would be paged differently and so be timed differently.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

import methods
from bench.data import pretrained
from bench.plan.cell import Cell
from bench.records.speed_results import MemoryAlone, Speed
from bench.speed import peaks
from bench.speed.benchmark import SpeedBenchmark, clock_of
from bench.system import failures, gpu, worker
from bench.system.memory import give_back, resident_bytes_of_process
from bench.system.threads import count_usable_cores
from methods.model.decoder import Decoder, gpus_of
from methods.model.layer_store import cast, move_modules
from methods.model.precision import dtype_by_name
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


def _is_on(device: torch.device, part: nn.Module) -> bool:
    return all(tensor.device == device for tensor in _tensors(part))


def time_beside_dense(model: nn.Module, cell: Cell, threads: int, *, alone: bool = False) -> Speed:
    """Time `model` beside the dense one and return its speed; a failure is `failed` in it.

    alone  whether there is no room for the dense model, so that the pruned one is timed without it. Its weights may lie
           in files then, and its layers on the host although they compute on a GPU
    """
    speed = Speed(points=())
    if alone and cell.method == "dense":
        return replace(speed, failed=NO_ROOM)
    if len(gpus_of(model)) > 1:
        return replace(speed, failed=SPREAD)
    device = next(model.parameters()).device
    modules = [part for part in model.modules() if _is_on(device, part)]
    model.to("cpu")  # the process that times needs the room
    if device.type == "cuda":
        torch.cuda.empty_cache()

    def hear(news: dict[str, Any]) -> None:
        nonlocal speed
        points = (*(speed.points or ()), *news.pop("points", ()))
        speed = replace(speed, points=points, **news)

    try:
        failure = worker.run(
            _work,
            (cell, threads, methods.files_of_plugins(), alone),
            limits=worker.Limits(silence=cell.protocol.speed_limit),
            hear=hear,
            give=lambda pipe: send_model(pipe, model),
            imported=() if device.type == "cuda" else IMPORTED,
        )
        failed = failure.reason if failure else None
    except NotPortable as error:
        failed = str(error)
    finally:
        move_modules(modules, device)
    return replace(speed, failed=failed)


def begin_timing(device: str) -> None:
    """Start the server of processes that time, while the model is still loaded and pruned."""
    if torch.device(device).type == "cpu":
        worker.begin_server(IMPORTED)


def _work(line: worker.Channel, cell: Cell, threads: int, plugins: list[str], alone: bool) -> None:
    """Do the whole work of the process, from the pruned model's arrival to the last round."""
    protocol, device, dtype = cell.protocol, torch.device(cell.device), getattr(torch, cell.dtype)
    if protocol.pin:
        os.sched_setaffinity(0, protocol.pin)
    torch.set_num_threads(min(threads, count_usable_cores()))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # the compiler's workers would outlive it and disturb
    methods.load(plugins)
    if cell.trust_remote_code:
        pretrained.make_shell(cell.model, trust_remote_code=True)  # makes the classes known that came with the model
    gpus, no_gpus = gpu.find_gpus([device])
    resident = resident_bytes_of_process()
    pruned = receive_model(line.ask(), device).eval()
    before = peaks.state_with_gpus(gpus)
    devices = sorted({parameter.device for parameter in pruned.parameters()}, key=str)
    clock, rates = clock_of(devices), dict[str, float]()
    if [each.type for each in devices] == ["cuda"]:
        line.alive("while it measured what the GPU reaches at most")
        rates = peaks.measure_peak_rates(devices[0], dtype)
        give_back(devices)
    benchmark = SpeedBenchmark(protocol, clock, devices, gpus, line.alive, rates)
    line.send(
        {
            "setup": peaks.setup_of_timing(pruned, devices, clock, rates),
            "widths": peaks.widths_of_model(Decoder(pruned)),
        }
    )
    line.send({"memory": MemoryAlone(resident_before_bytes=resident, points=tuple(benchmark.memory(pruned)))})
    line.alive("while it loaded the dense model")
    dense = without_weights(cell) if alone else load_dense(cell, device)
    if device.type == "cpu" and not alone:
        copy_to_own_memory(dense, pruned)  # by the same copy, so that both lie alike
    Decoder(dense)  # makes it of the same kind of matrices as the pruned model is
    slowed_by = set[str]()
    for point in benchmark.time(dense, pruned, alone=alone):
        slowed_by |= {reason for card in point.gpus or () for reason in card.slowed_by or ()}
        line.send({"points": [point]})
    processes = [gpu.count_other_processes(card, os.getpid(), os.getppid(), device.type == "cuda") for card in gpus]
    after = peaks.state_with_gpus(gpus)
    line.send({"machine": peaks.load_between_states(before, after, processes, slowed_by, nvml=no_gpus)})


def _tensors(part: nn.Module) -> Iterator[Tensor]:
    yield from part.parameters()
    yield from part.buffers()


def load_dense(cell: Cell, device: torch.device) -> nn.Module:
    """Load the dense model onto the device, or into the host's memory where the device has no room for it."""
    how = getattr(torch, cell.dtype), cell.trust_remote_code
    try:
        return pretrained.load(cell.model, device, *how)[0]
    except Exception as error:
        if device.type == "cpu" or not failures.is_out_of_memory(error):
            raise
    give_back([device])
    return pretrained.load(cell.model, torch.device("cpu"), *how)[0]


def without_weights(cell: Cell) -> nn.Module:
    """Return the dense model on the meta device, in the cell's dtype. Its work is counted from shapes alone."""
    model = pretrained.make_shell(cell.model, cell.trust_remote_code)
    cast(model.named_parameters(), dtype_by_name(model, getattr(torch, cell.dtype)))
    return model


def copy_to_own_memory(*models: nn.Module) -> None:
    """Copy every tensor into plain memory. A model that lies in a mapped file would be timed differently."""
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()


CHUNK = 2**18  # bytes in one message; a buffer of that size is made for each, and larger ones take fresh pages


class NotPortable(Exception):
    """Says that a model holds something that cannot be sent to another process."""


class _Structure(pickle.Pickler):
    """Pickles everything but tensors. Each of them leaves a number behind."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.numbers: dict[int, int] = {}

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, Tensor):
            return None
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.tensors)
            self.tensors.append(thing)
        return self.numbers[id(thing)]


class _Restored(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]


def send_model(pipe: Connection, model: nn.Module) -> None:
    """Send `model`, wherever its tensors lie. Raises NotPortable before anything is sent."""
    file = io.BytesIO()
    structure = _Structure(file)
    try:
        structure.dump(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotPortable(f"{type(model).__name__} cannot be sent to another process: {error}") from None
    pipe.send([(tensor.dtype, tensor.shape, _leaf(tensor)) for tensor in structure.tensors])
    for tensor in structure.tensors:
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        for start in range(0, len(values), CHUNK):
            pipe.send_bytes(values[start : start + CHUNK].data)
    pipe.send_bytes(file.getvalue())


def receive_model(pipe: Connection, device: torch.device) -> Any:
    """Return the model that the other side sends. The modules of its classes must be importable here.

    Each tensor goes to the device as it arrives, so that beside a GPU one at a time lies in the host's memory.
    """
    tensors = []
    for dtype, shape, leaf in pipe.recv():
        tensor = _tensor(pipe, dtype, shape).to(device)
        tensors.append(tensor if leaf is None else nn.Parameter(tensor, requires_grad=leaf))
    return _Restored(io.BytesIO(pipe.recv_bytes()), tensors).load()


def _tensor(pipe: Connection, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return the next tensor, in the host's memory."""
    tensor = torch.empty(shape, dtype=dtype)
    values = tensor.flatten().view(torch.uint8).numpy()
    for start in range(0, len(values), CHUNK):
        pipe.recv_bytes_into(values[start : start + CHUNK].data)
    return tensor


def _leaf(tensor: Tensor) -> bool | None:
    """Say whether a parameter wants a gradient; None for what is no parameter."""
    return tensor.requires_grad if isinstance(tensor, nn.Parameter) else None
