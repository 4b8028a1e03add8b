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
    """Return the highest memory during one pass, by the names at the head of this file; its state is there before.

    A replay allocates nothing: what tensors take within a captured step shows where it is launched kernel by kernel.
    """
    work.reset()
    memory.give_back(devices)
    memory.reset_peaks(devices)
    for _ in range(work.steps):
        work.step()
    found = _peaks(devices)
    if work.launched is not None and "peak_allocated_bytes" in found:
        work.reset()
        memory.reset_peaks(devices)
        work.launched()
        found["peak_allocated_bytes"] = max(size["peak_allocated_bytes"] for size in (found, _peaks(devices)))
    if "peak_resident_bytes" in found:
        return found
    held = [(gpu.processes() or {}).get(os.getpid()) for gpu in gpus]
    known = [size for size in held if size is not None]
    return found | ({"process_bytes": sum(known)} if len(known) == len(gpus) > 0 else {})


def _peaks(devices: Sequence[torch.device]) -> dict[str, int]:
    return {f"peak_{name}": size for name, size in memory.peaks(devices).items() if name != "each"}


def energy(
    work: Workload,
    tokens: int,
    gpus: Sequence[Gpu],
    wait: Callable[[], object],
    now: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """Return joules for each of a pass's `tokens`, and the seconds they were counted for; {} without a counter.

    Those of as many resets, counted by themselves, are subtracted.
    """

    def once() -> None:
        work.reset()
        for _ in range(work.steps):
            work.step()

    passes, joules, seconds = _spent(once, gpus, wait, lambda calls, seconds: seconds < ENERGY_SECONDS, now)
    if joules is None:
        return {}
    _, resets, _ = _spent(work.reset, gpus, wait, lambda calls, seconds: calls < passes, now)
    joules -= resets or 0.0
    return {"joules_per_token": joules / (passes * tokens), "energy_seconds": seconds} if joules > 0 else {}


def _spent(
    call: Callable[[], object],
    gpus: Sequence[Gpu],
    wait: Callable[[], object],
    more: Callable[[int, float], bool],
    now: Callable[[], float],
) -> tuple[int, float | None, float]:
    """Return how often `call` was called, the joules of that, None without a counter, and the seconds it took.

    more  whether to go on after so many calls and seconds
    """
    wait()
    before, start, calls = [gpu.energy_joules() for gpu in gpus], now(), 0
    if not gpus or None in before:
        return 0, None, 0.0
    while more(calls, now() - start):
        call()
        wait()
        calls += 1
    seconds, after = now() - start, [gpu.energy_joules() for gpu in gpus]
    pairs = zip(before, after, strict=True)
    return calls, sum(end - begin for begin, end in pairs if begin is not None and end is not None), seconds
