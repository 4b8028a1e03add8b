"""Measures what a device reaches at most, so that a figure can be seen beside it: no table of cards is asked.

copy_bytes_per_second    read and written, of a copy within its memory
matmul_flops_per_second  of a product of two square matrices in the model's dtype, two for each multiply-accumulate
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.speed.workloads import TimedPoint, bytes_read, macs
from bench.system import failures, rate
from methods.model.decoder import Decoder

COPIED = 2**29  # bytes, more than any cache of a GPU holds
SIDE = 8192  # rows and columns
SECONDS = 1.0  # of each: the clocks of a GPU rise while it works
LOW = 0.4  # share below which a prefill, by the matrix rate, and a step, by both, are marked: the GPU was waiting
LAUNCH_BOUND = 1.1  # times the captured step's milliseconds above which an eager one is marked


def measure(device: torch.device, dtype: torch.dtype, *, copied: int = COPIED, side: int = SIDE) -> dict[str, float]:
    """Return the rates by the names at the head of this file, each of the fastest call; without what has no room."""
    rates: dict[str, Callable[[], float]] = {
        "copy_bytes_per_second": lambda: rate.copy(device, copied, SECONDS),
        "matmul_flops_per_second": lambda: 2 * rate.product(device, dtype, side, side, SECONDS),
    }
    found = dict[str, float]()
    for name, measured in rates.items():
        try:
            found[name] = measured()
        except Exception as error:
            if not failures.is_out_of_memory(error):
                raise
    return found


def shares(model: Decoder, point: TimedPoint, ms: float, rates: Mapping[str, float]) -> dict[str, float]:
    """Return what one call reaches of the rates.

    bandwidth    of a decode step: the weights and the cache that it must read, of the bytes copied in that time
    matrix_rate  its multiply-accumulates, of those of the product
    """
    found = {}
    if point.kind == "decode" and "copy_bytes_per_second" in rates:
        found["bandwidth"] = bytes_read(model, point) / (ms / 1e3) / rates["copy_bytes_per_second"]
    if "matmul_flops_per_second" in rates:
        flops = 2 * point.batch * macs(model, point)
        found["matrix_rate"] = flops / (ms / 1e3) / rates["matmul_flops_per_second"]
    return found


def judged(
    models: Mapping[str, Decoder],
    point: TimedPoint,
    found: Mapping[str, Any],
    captured: Mapping[str, Any],
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """Return what each model reaches of the rates, and all flags of a point; {} where nothing was timed.

    captured  what was found of the same point with captured steps, of an eager one
    """
    ms = {name: found[f"{name}_ms"] for name in models if f"{name}_ms" in found}
    reached = {name: shares(models[name], point, ms[name], rates) for name in ms}
    flags = {
        "low_bandwidth": point.kind == "decode" and any(one and max(one.values()) < LOW for one in reached.values()),
        "low_matrix_rate": point.kind == "prefill"
        and any(one.get("matrix_rate", LOW) < LOW for one in reached.values()),
        "launch_bound": any(ms[name] > LAUNCH_BOUND * captured.get(f"{name}_ms", math.inf) for name in ms),
    }
    result = {f"{name}_{what}": share for name, one in reached.items() for what, share in one.items()}
    return result | ({"flags": found["flags"] + [name for name, holds in flags.items() if holds]} if ms else {})
