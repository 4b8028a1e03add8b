"""Measures how fast a device multiplies matrices and moves memory: for estimates, and at most."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from bench.system import worker
from bench.system.memory import give_back

SECONDS = 0.15  # of each measurement; the fastest call counts, since nothing has disturbed it
PATIENCE = 120.0  # of another process that measures them
TOKENS, WIDTH = {"cpu": 512, "cuda": 2048}, 1024  # of the MLP, which is 4 * WIDTH wide, and of the float64 product
COPIED = 2**26  # bytes that no cache holds


class Rates(NamedTuple):
    """Holds what a device reaches per second.

    macs   multiply-accumulates in a forward
    exact  multiply-accumulates in float64, in which methods sum and solve
    bytes  of memory, read or written
    """

    macs: float
    exact: float
    bytes: float


@functools.cache
def measure_rates(device: str, dtype: torch.dtype, threads: int) -> Rates:
    """Return the rates of a device with `threads` of torch's threads, in a dtype.

    A GPU is measured in a process of its own. A process that has computed there counts as a neighbour of cells that are
    timed later.
    """
    arguments = device, dtype, threads
    if torch.device(device).type == "cuda":
        answer = dict[str, float]()
        limits = worker.Limits(silence=PATIENCE)
        if worker.run(_send_rates, arguments, limits=limits, hear=answer.update) is None:
            return Rates(**answer)
    return _measure_in_process(*arguments)


def _send_rates(line: worker.Channel, *arguments: Any) -> None:
    line.send(_measure_in_process(*arguments)._asdict())


def _measure_in_process(device: str, dtype: torch.dtype, threads: int) -> Rates:
    target, before = torch.device(device), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = rate_of_product(target, torch.float64, WIDTH, WIDTH)
        return Rates(rate_of_mlp(target, dtype), exact, rate_of_copy(target, COPIED))
    finally:
        torch.set_num_threads(before)
        give_back([target])  # cells need all memory of a GPU


@torch.inference_mode()
def rate_of_mlp(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS) -> float:
    """Return the multiply-accumulates per second of an MLP with its norm and activation.

    These take about as long as the products where products are fast, as of bfloat16.
    """
    tokens = TOKENS[device.type]
    x = torch.ones(tokens, WIDTH, dtype=dtype, device=device)
    up = torch.full((4 * WIDTH, WIDTH), 1 / WIDTH, dtype=dtype, device=device)
    down = up.T.contiguous()

    def call() -> torch.Tensor:
        return x + F.linear(F.silu(F.linear(F.rms_norm(x, (WIDTH,)), up)), down)

    return tokens * 2 * up.numel() / time_fastest(call, device, seconds)


def rate_of_product(device: torch.device, dtype: torch.dtype, rows: int, side: int, seconds: float = SECONDS) -> float:
    """Return the multiply-accumulates per second of (rows, side) @ (side, side). With one row each weight is one.

    The numbers differ, as weights do: a GPU draws less power for equal ones, and multiplies them faster.
    """
    sines = torch.arange(side, dtype=torch.float32, device=device).sin().to(dtype)
    x, w = sines.expand(rows, side).contiguous(), torch.outer(sines, sines)
    out = torch.empty_like(x)
    return rows * side**2 / time_fastest(lambda: torch.mm(x, w.T, out=out), device, seconds)


def rate_of_copy(device: torch.device, size: int, seconds: float = SECONDS) -> float:
    """Return the bytes per second, read and written, of a copy of `size` bytes within the device's memory."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / time_fastest(lambda: target.copy_(source), device, seconds)


def time_fastest(call: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Return the seconds of the fastest call among all calls that fit in `seconds`, after one call to warm up."""
    once = partial(_on_gpu, device) if device.type == "cuda" else _on_cpu
    times, end = list[float](), time.perf_counter() + seconds
    call()
    while not times or time.perf_counter() < end:
        times.append(once(call))
    return min(times)


def _on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _on_gpu(device: torch.device, call: Callable[[], object]) -> float:
    """Return the seconds that the GPU worked, by its own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream(device)  # `device` need not be the current one of this process
    start.record(stream)
    call()
    end.record(stream)
    end.synchronize()
    return start.elapsed_time(end) / 1e3
