"""Measures memory and energy of a model, in a pass of its own: no other model is loaded, and nothing is timed.

peak_allocated_bytes, peak_reserved_bytes   by torch on CUDA, over all devices
process_bytes                               of the process on the GPUs, by the driver
peak_resident_bytes                         of the process in the machine's memory, on the CPU
joules_per_token                            by the GPU's own counter, over a window of seconds
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import torch

from bench.speed.timing import Workload
from bench.system import memory
from bench.system.gpu import Gpu

ENERGY_SECONDS = 3.0  # the counter moves only some ten times a second


def peaks(work: Workload, devices: Sequence[torch.device], gpus: Sequence[Gpu]) -> dict[str, int]:
    """Return the highest memory during one pass, by the names at the head of this file; its state is there before."""
    work.reset()
    memory.give_back(devices)
    for device in devices:
        memory.reset_peak_memory(device)
    for _ in range(work.steps):
        work.step()
    cuda = [device for device in devices if device.type == "cuda"]
    if not cuda:
        return {"peak_resident_bytes": memory.peak_memory_bytes(devices[0])}
    found = {
        "peak_allocated_bytes": sum(torch.cuda.max_memory_allocated(device) for device in cuda),
        "peak_reserved_bytes": sum(torch.cuda.max_memory_reserved(device) for device in cuda),
    }
    held = [(gpu.processes() or {}).get(os.getpid()) for gpu in gpus]
    known = [size for size in held if size is not None]
    return found | ({"process_bytes": sum(known)} if len(known) == len(gpus) > 0 else {})


def energy(
    work: Workload,
    tokens: int,
    gpus: Sequence[Gpu],
    wait: Callable[[], object],
    now: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """Return joules for each of a pass's `tokens`, and the seconds they were counted for; {} without a counter."""
    wait()
    before, start, passes = [gpu.energy_joules() for gpu in gpus], now(), 0
    if not gpus or None in before:
        return {}
    while now() - start < ENERGY_SECONDS:
        work.reset()
        for _ in range(work.steps):
            work.step()
        wait()
        passes += 1
    seconds, after = now() - start, [gpu.energy_joules() for gpu in gpus]
    joules = sum(end - begin for begin, end in zip(before, after, strict=True) if begin is not None and end is not None)
    return {"joules_per_token": joules / (passes * tokens), "energy_seconds": seconds} if joules > 0 else {}
