"""Trains one model in several processes, each with a part of every weight and of the sequences of a step (FSDP).

Each process loads the pruned model from a folder, and gives away all but its part of it (torch's `fully_shard`, which
accelerate calls too). They talk by gloo on a CPU, and by NCCL on GPUs, of which each has one. What they come to lies in
the checkpoint of bench.healing.training, with whole tensors: the process of the cell goes on from it, and so may any
number of processes.

S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC 2020; Y. Zhao et al.,
"PyTorch FSDP", VLDB 2023.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import distributed, nn

from bench.healing.teacher import DensePredictions
from bench.healing.trainable import make_trainable
from bench.healing.training import CHECKPOINT, Text, Training
from bench.plan.protocol import Recipe
from methods.checkpoint import save_load
from methods.model.decoder import Decoder, gpus_of

MODEL = "model"


class Order(NamedTuple):
    """Holds what all processes of a training get; `scratch` has the pruned model, and `file` is the checkpoint."""

    scratch: Path
    text: Text
    recipe: Recipe
    dense: DensePredictions | None
    file: Path
    gpus: list[int]
    threads: int


def train_in_processes(
    model: Decoder, text: Text, recipe: Recipe, dense: DensePredictions | None, folder: Path
) -> None:
    """Train a copy of the model to the last step, which is in the checkpoint of a folder then.

    Raises RuntimeError, with the process's own words, where one of them fails; the others are ended then.
    """
    from torch.multiprocessing.spawn import ProcessException, spawn

    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, torch.get_num_threads() // recipe.processes)
    with TemporaryDirectory() as scratch:
        order = Order(Path(scratch), text, recipe, dense, folder / CHECKPOINT, gpus_of(model.model), threads)
        save_load.save(model, order.scratch / MODEL)
        try:
            spawn(_train_part, (order,), nprocs=recipe.processes)  # type: ignore[no-untyped-call]
        except ProcessException as error:
            last_line = str(error).strip().rpartition("\n")[2]
            raise RuntimeError(f"one of {recipe.processes} processes of healing has failed: {last_line}") from error


def _train_part(rank: int, order: Order) -> None:
    """Train the part of process `rank`, 0 .. processes - 1; the first one writes the checkpoint, and shows progress."""
    recipe, device = order.recipe, torch.device("cpu")
    torch.set_num_threads(order.threads)
    if rank:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
    if order.gpus:
        device = torch.device("cuda", order.gpus[rank])
        torch.cuda.set_device(device)
    meeting = f"file://{order.scratch}/meeting"
    backend = "nccl" if order.gpus else "gloo"
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=recipe.processes)
    model = save_load.load(order.scratch / MODEL, device=device, check_hashes=False)
    half = recipe.kind != "lora" and model.embed.weight.dtype == torch.bfloat16
    whole = ExitStack().enter_context(make_trainable(model, recipe))  # until the process ends
    identity = Training(model, order.text, recipe, order.dense, whole).compute_identity()
    _divide(model, device, recipe.processes)
    parts = {name: weight for name, weight in model.model.named_parameters() if weight.requires_grad}
    training = Training(model, order.text, recipe, order.dense, parts)
    training.rank, training.processes, training.half = rank, recipe.processes, half
    training.run(order.file, identity)
    distributed.destroy_process_group()


def _divide(model: Decoder, device: torch.device, processes: int) -> None:
    """Divide every weight among the processes, layer by layer; while a layer computes, each has all of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh: Any = init_device_mesh(device.type, (processes,))
    modules: list[nn.Module] = [*(layer.module for layer in model.layers), model.model]
    for module in modules:
        fully_shard(module, mesh=mesh)
