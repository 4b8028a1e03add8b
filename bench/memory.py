"""Memory and energy of a model, in a pass of its own: nothing else is loaded, and nothing is timed.

peak_allocated_bytes, peak_reserved_bytes   by torch on CUDA, over all devices
process_bytes                               of the process on the GPUs, by the driver
peak_resident_bytes                         of the process in the machine's memory, on the CPU
joules_per_token                            by the GPU's own counter, over a window of seconds
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Sequence

import torch

from bench import environment
from bench.nvml import Gpu
from bench.timing import Workload

ENERGY_SECONDS = 3.0  # the counter moves only some ten times a second
KEPT = 256 * 2**20  # bytes that a process may keep of what it has freed
FROM_HEAP = 64 * 2**20, 32 * 2**20  # a tensor up to here is taken from them; the second where glibc is before 2.35
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def peaks(work: Workload, devices: Sequence[torch.device], gpus: Sequence[Gpu]) -> dict[str, int]:
    """The highest memory during one pass, its state being there before, by the names at the head of this file."""
    work.reset()
    give_back(devices)
    for device in devices:
        environment.reset_peak_memory(device)
    for _ in range(work.steps):
        work.step()
    cuda = [device for device in devices if device.type == "cuda"]
    if not cuda:
        return {"peak_resident_bytes": environment.peak_memory_bytes(devices[0])}
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
    """Joules for each of the `tokens` of a pass, and the seconds they were watched for; empty without a counter."""
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


def give_back(devices: Sequence[torch.device]) -> None:
    """Return what is free to the system, so that the next peak does not stand on the last one's."""
    if any(device.type == "cuda" for device in devices):
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # only glibc can
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Let this process reuse the memory of freed tensors, which glibc returns to the system by default.

    Fresh pages have to be zeroed: on SmolLM2-135M that is 3 % of the processor time of scoring, and 10 to 20 % of that
    of a greedy search. Processes that time a model are left as every user's are.
    """
    with contextlib.suppress(OSError, AttributeError):  # only glibc can
        libc = ctypes.CDLL(None)
        any(libc.mallopt(MMAP_THRESHOLD, size) for size in FROM_HEAP)
        libc.mallopt(TRIM_THRESHOLD, KEPT)
