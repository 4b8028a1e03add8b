"""Measures how long a generated token takes by the sizes of a model's parts, for budgets of latency.

The dense model is timed in turns with copies of it. Every layer of a copy has lost the same: a number of heads or
channels, or its attention or its MLP whole. What one part takes at a size is a share of what the copy takes beyond the
copy without that part:

    ms(size) = (T(size) - T(without)) / L,    rest = T(dense) - L (ms(attention) + ms(MLP))

T = milliseconds of a step of generation, L = layers. Turns are those of every timed cell (bench.speed.benchmark); T of
a copy is its ratio to the dense model in the same turns, times the median of the dense model's over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from statistics import fmean, median
from typing import Any

import torch

from bench.data import pretrained
from bench.plan.kinds import to_plain
from bench.plan.protocol import protocol_for_cuda, protocol_of_profile
from bench.records.speed_results import PointTiming
from bench.speed import peaks
from bench.speed.benchmark import SpeedBenchmark, clock_of
from bench.speed.timed_cell import copy_to_own_memory
from bench.system import environment, gpu
from methods.errors import UserError
from methods.model.decoder import Decoder, make_twin
from methods.model.structures import Sublayer, remove_sublayers, structures_of, sublayers_of

KINDS = {"attention": "kv_heads", "mlp": "channels"}  # what a part consists of
SHARES = (0.25, 0.5, 0.75)  # of a part that stay
SIZES = ("prefill", "decode", "batches", "max_batch")  # sizes of timed points, which keep the given values


def measure_latencies(name: str, device: torch.device, dtype: torch.dtype, depth: int, rounds: int) -> dict[str, Any]:
    """Return a table as JSON values: parts and rest of methods.counted.LatencyTable, and `about`, what was measured.

    depth   tokens of context behind which a token is generated, one sequence at a time
    rounds  in which a copy and the dense model are timed

    Raises UserError where a copy cannot be timed.
    """
    dense = pretrained.load(name, device, dtype)[0]
    if device.type == "cpu":
        copy_to_own_memory(dense)
    model = Decoder(dense)
    protocol = replace(
        protocol_of_profile("quick"), prefill=(), decode=(depth,), batches=(1,), max_batch=0, speed_rounds=rounds
    )
    if device.type == "cuda":  # as cells are timed there
        protocol = protocol_for_cuda(protocol, SIZES, None)
    gpus, no_gpus = gpu.find_gpus([device])
    before, timer = (
        peaks.state_with_gpus(gpus),
        SpeedBenchmark(protocol, clock_of([device]), [device], gpus, lambda _: None),
    )
    timed = list[dict[str, Any]]()
    for part, copy in _copies(model):
        point = next(timer.time(dense, copy.model))  # captured steps come first where there are any
        if point.interval is None:
            raise UserError(f"a model without some of its {part}s cannot be timed: {point.failed or to_plain(point)}")
        size = fmean(layer.sizes()[part] for layer in copy.layers)
        timed.append({"part": part, "parameters": size, **_figures(point, *point.interval)})
    processes = [gpu.count_other_processes(card, os.getpid(), os.getppid(), parent_is_there=False) for card in gpus]
    meanwhile = peaks.load_between_states(before, peaks.state_with_gpus(gpus), processes, nvml=no_gpus)
    whole, L = median(point["dense_ms"] for point in timed), len(model.layers)
    parts = {part: _points(model, part, timed, whole) for part in KINDS}
    return {
        "parts": parts,
        "rest": whole - L * sum(points[-1][1] for points in parts.values()),
        "about": {
            "model": pretrained.name_of_model(name),
            "weights_sha256": pretrained.sha256_of_weights(name),
            "dtype": str(dtype).removeprefix("torch."),
            "device": device.type,
            "mode": protocol.mode,
            "threads": torch.get_num_threads(),
            "environment": environment.describe(device, dtype),
            "depth": depth,
            "rounds": rounds,
            "dense_ms": whole,
            "copies": timed,
            "machine": to_plain(meanwhile),
        },
    }


def _copies(model: Decoder) -> Iterator[tuple[str, Decoder]]:
    """Yield for each part copies of the model: one without it, then with shares of its heads or channels."""
    for part, kind in KINDS.items():
        without = make_twin(model)
        remove_sublayers(without, [Sublayer(part, block.layer) for block in sublayers_of(without, part)])
        yield part, without
        sizes = {structure.size for structure in structures_of(model, kind)}
        for kept in sorted({round(share * size) for share in SHARES for size in sizes} - {0, *sizes}):
            copy = make_twin(model)
            for structure in structures_of(copy, kind):
                structure.remove(torch.arange(structure.size), max(0, structure.size - kept))
            yield part, copy


def _points(model: Decoder, part: str, timed: list[dict[str, Any]], whole: float) -> list[list[float]]:
    """Return [parameters, ms] of a part, rising. Noise that would make a larger part faster is left out."""
    own = [(point["parameters"], point["times_dense"] * whole) for point in timed if point["part"] == part]
    own.append((fmean(layer.sizes()[part] for layer in model.layers), whole))
    (_, without), *larger = sorted(own)
    ms = accumulate(((each - without) / len(model.layers) for _, each in larger), max, initial=0.0)
    sizes = [0.0] + [size for size, _ in larger]
    return [[size, each] for size, each in zip(sizes, ms, strict=True)]


def _figures(point: PointTiming, speedup: float, low: float, high: float) -> dict[str, Any]:
    """Return what a copy takes, as a multiple of the dense model's, with its 95 % interval and flags."""
    times = {"times_dense": 1 / speedup, "low": 1 / high, "high": 1 / low}
    return {"dense_ms": point.dense_ms, **times, "flags": list(point.flags or ())}
