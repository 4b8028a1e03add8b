"""Measures how fast this machine multiplies matrices and reads memory, in a third of a second."""

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
    here = torch.device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, w = torch.ones(TOKENS, WIDTH, dtype=dtype, device=here), torch.ones(WIDTH, WIDTH, dtype=dtype, device=here)
        row, large = x.new_ones(1, READ), x.new_ones(READ, READ)
        product = _fastest(lambda: x @ w.T, here)
        read = _fastest(lambda: row @ large.T, here)
    finally:
        torch.set_num_threads(before)
    return Rates(FORWARD * TOKENS * WIDTH**2 / product, large.numel() * large.element_size() / read)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest call, one to warm up left out."""
    found, end = list[float](), time.perf_counter() + SECONDS
    call()
    while not found or time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
