"""Measures how fast a device multiplies matrices and moves memory: in a layer's sizes for estimates, and at most."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SECONDS = 0.15  # of each measurement; the fastest call counts, which is the one that nothing has disturbed
TOKENS, WIDTH = 256, 1024  # of a product as a layer has it
READ = 4096  # rows and columns of a matrix that no cache holds
FORWARD = 0.72  # of the rate of a large product is a forward's (tests/benchmarks/README.md, "Scoring")


class Rates(NamedTuple):
    """Holds multiply-accumulates per second in a forward, and bytes of weights per second where tokens come singly."""

    macs: float
    bytes: float


@functools.cache
def rates(device: str, dtype: torch.dtype, threads: int) -> Rates:
    """Measure both in a dtype with this many of torch's threads."""
    here, before = torch.device(device), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        forward, single = product(here, dtype, TOKENS, WIDTH), product(here, dtype, 1, READ)
    finally:
        torch.set_num_threads(before)
    return Rates(FORWARD * forward, dtype.itemsize * single)


def product(device: torch.device, dtype: torch.dtype, rows: int, side: int, seconds: float = SECONDS) -> float:
    """Return the multiply-accumulates per second of (rows, side) @ (side, side); with one row each weight is one."""
    x, w = torch.ones(rows, side, dtype=dtype, device=device), torch.ones(side, side, dtype=dtype, device=device)
    out = torch.empty_like(x)
    return rows * side**2 / fastest(lambda: torch.mm(x, w.T, out=out), device, seconds)


def copy(device: torch.device, size: int, seconds: float = SECONDS) -> float:
    """Return the bytes per second, read and written, of a copy of `size` bytes within the device's memory."""
    here, there = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / fastest(lambda: there.copy_(here), device, seconds)


def fastest(call: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Return the seconds of the fastest of the calls that fit in `seconds`, one to warm up left out."""
    once = _on_gpu if device.type == "cuda" else _on_cpu
    found, end = list[float](), time.perf_counter() + seconds
    call()
    while not found or time.perf_counter() < end:
        found.append(once(call))
    return min(found)


def _on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _on_gpu(call: Callable[[], object]) -> float:
    """Return the seconds that the GPU worked, by its own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
