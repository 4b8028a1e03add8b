"""Says under what conditions a model was timed, and measures what timing does not: memory, energy, and highest rates.

The conditions are how the models lie, and what the machine did meanwhile (`setup_of_timing`, `load_between_states`).

Memory and energy are measured in a pass of their own: no other model is loaded, and nothing is timed.

peak_allocated_bytes, peak_reserved_bytes   by torch on CUDA, over all devices
process_bytes                               of the process on the GPUs, by the driver
peak_resident_bytes                         of the process in the machine's memory, on the CPU
joules_per_token                            by the GPU's own counter, over a window of seconds

The highest rates of the device are measured too, since no table of cards is used:

copy_bytes_per_second    read and written, of a copy within its memory
matmul_flops_per_second  of a product of two square matrices in the model's dtype, two for each multiply-accumulate
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.plan.kinds import to_plain, value_from_plain
from bench.records.speed_results import (
    GpuState,
    MachineMeanwhile,
    MachineState,
    MachineThen,
    MatrixWidths,
    PointTiming,
    TimedSetup,
)
from bench.speed.timing import Clock, Workload
from bench.speed.workloads import TimedPoint, bytes_of_step, macs_of_point
from bench.system import environment, failures, gpu, memory
from bench.system.gpu import Gpu
from bench.system.rates import rate_of_copy, rate_of_product
from bench.system.threads import count_usable_cores
from methods.model.decoder import Decoder
from methods.model.inserted import factors_of

BUSY = 0.25  # cores that other work, or a limit of processor time, may take on average before the machine is marked
TILES = (128, 64, 8)  # multiples that kernels are cut for


def setup_of_timing(
    model: Any, devices: Sequence[torch.device], clock: Clock, rates: Mapping[str, float]
) -> TimedSetup:
    """Return how the models are timed, as far as the protocol does not say it; `rates` of `measure_peak_rates`."""
    return TimedSetup(
        threads=torch.get_num_threads(),
        cores=count_usable_cores(),
        devices=tuple(str(device) for device in devices),
        clock=clock.name,
        attention=model.config._attn_implementation,
        copy_bytes_per_second=rates.get("copy_bytes_per_second"),
        matmul_flops_per_second=rates.get("matmul_flops_per_second"),
    )


def widths_of_model(model: Decoder) -> dict[str, MatrixWidths]:
    """Return {role: the widths of its matrices}."""
    roles = {"head": [model.head.weight]}
    for layer in model.layers:
        read = "qkv" if layer.has_heads else "mixer"
        matrices_by_role = {read: layer.qkv, "out": layer.writers(0)} if layer.has_attention else {}
        if layer.mixer_beside is not None and layer.has_attention:
            matrices_by_role["mixer"] = [layer.named_matrices()[path] for path in layer.paths_of_mixer[:-1]]
        if layer.experts is not None:
            matrices_by_role["shared"] = list(layer.experts.shared)
        elif layer.has_mlp:
            matrices_by_role |= {"up": layer.up, "down": [layer.down]}
        mine = {id(matrix) for matrices in matrices_by_role.values() for matrix in factors_of(matrices)}
        added = [m for m in layer.module.modules() if isinstance(m, nn.Linear) and id(m) not in mine]
        for role, matrices in (matrices_by_role | {"added": added}).items():
            roles.setdefault(role, []).extend(matrix.weight for matrix in factors_of(matrices))
        for role, weights in ({} if layer.experts is None else layer.experts.matrices).items():
            roles.setdefault(role, []).extend(weights)
    return {role: _widths(weights) for role, weights in roles.items() if weights}


def _widths(weights: list[torch.Tensor]) -> MatrixWidths:
    out, read = {weight.shape[0] for weight in weights}, {weight.shape[1] for weight in weights}
    common = math.gcd(*out, *read)
    tile = next((tile for tile in TILES if common % tile == 0), 1)
    return MatrixWidths(read=tuple(sorted(read)), out=tuple(sorted(out)), multiple_of=tile)


def state_with_gpus(gpus: Sequence[gpu.Gpu]) -> MachineThen:
    """Return what the machine and its GPUs do at this moment."""
    machine = value_from_plain(MachineState, environment.state_of_machine())
    return MachineThen(machine=machine, gpus=tuple(value_from_plain(GpuState, card.state()) for card in gpus) or None)


def load_between_states(
    before: MachineThen,
    after: MachineThen,
    processes: list[int | None],
    slowed_by: Collection[str] = (),
    *,
    nvml: str | None = None,
) -> MachineMeanwhile:
    """Return the load of the machine by other work between two states, with flags on what may have spoilt the figures.

    processes  of other programs on each GPU
    slowed_by  what held GPUs down while models were timed
    nvml       why GPUs say nothing, where they do not
    """
    first, last = before.machine or MachineState(), after.machine or MachineState()
    shares = environment.load_between_states(to_plain(first), to_plain(last))
    counts = [count for count in processes if count is not None]
    hot = (last.cpu_throttled or 0) > (first.cpu_throttled or 0)
    flags = {
        "busy": sum(shares.get(f"{who}_cores", 0.0) for who in ("other", "stolen")) > BUSY,
        "shared_gpu": sum(counts) > 0,
        "slowed": hot or shares.get("held_cores", 0.0) > BUSY or bool(set(slowed_by) & set(gpu.THROTTLED)),
    }
    return MachineMeanwhile(
        before=before,
        after=after,
        other_cores=shares.get("other_cores"),
        stolen_cores=shares.get("stolen_cores"),
        held_cores=shares.get("held_cores"),
        other_gpu_processes=sum(counts) if counts else None,
        nvml=nvml,
        flags=tuple(name for name, holds in flags.items() if holds),
    )


ENERGY_SECONDS = 3.0  # the counter moves only some ten times a second


def measure_peaks(work: Workload, devices: Sequence[torch.device], gpus: Sequence[Gpu]) -> dict[str, int]:
    """Return the highest memory during one pass, by the names at the head of this file. Its state is set up before.

    A replay allocates nothing: what tensors take within a captured step shows where it is launched kernel by kernel.
    """
    work.reset()
    memory.give_back(devices)
    memory.reset_peaks(devices)
    for _ in range(work.steps):
        work.step()
    peaks = _peaks(devices)
    if work.launched is not None and "peak_allocated_bytes" in peaks:
        work.reset()
        memory.reset_peaks(devices)
        work.launched()
        peaks["peak_allocated_bytes"] = max(size["peak_allocated_bytes"] for size in (peaks, _peaks(devices)))
    if "peak_resident_bytes" in peaks:
        return peaks
    sizes = [(gpu.processes() or {}).get(os.getpid()) for gpu in gpus]
    own_bytes = [size for size in sizes if size is not None]
    return peaks | ({"process_bytes": sum(own_bytes)} if len(own_bytes) == len(gpus) > 0 else {})


def _peaks(devices: Sequence[torch.device]) -> dict[str, int]:
    return {f"peak_{name}": size for name, size in memory.peaks_of_devices(devices).items() if name != "each"}


def measure_energy(
    work: Workload,
    tokens: int,
    gpus: Sequence[Gpu],
    wait: Callable[[], object],
    now: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """Return joules for each of a pass's `tokens`, and the seconds of the measurement; {} without a counter.

    The joules of as many resets are measured by themselves and subtracted.
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
    """Return how often `call` was called, its joules, None without a counter, and its seconds.

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


COPIED = 2**29  # bytes, more than any cache of a GPU holds
SIDE = 8192  # rows and columns
SECONDS = 1.0  # of each: the clocks of a GPU rise while it works
LOW = 0.4  # share below which a prefill, by the matrix rate, and a step, by both, are marked: the GPU was waiting
LAUNCH_BOUND = 1.1  # times the captured step's milliseconds above which an eager one is marked


def measure_peak_rates(
    device: torch.device, dtype: torch.dtype, *, copied: int = COPIED, side: int = SIDE
) -> dict[str, float]:
    """Return the rates of the fastest call, by the names at the head of this file; what has no room is left out."""
    rates: dict[str, Callable[[], float]] = {
        "copy_bytes_per_second": lambda: rate_of_copy(device, copied, SECONDS),
        "matmul_flops_per_second": lambda: 2 * rate_of_product(device, dtype, side, side, SECONDS),
    }
    rate_by_name = dict[str, float]()
    for name, measured in rates.items():
        try:
            rate_by_name[name] = measured()
        except Exception as error:
            if not failures.is_out_of_memory(error):
                raise
    return rate_by_name


def shares_of_peak(model: Decoder, point: TimedPoint, ms: float, rates: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of the peak rates that one call reaches.

    bandwidth    of a decode step: the weights and the cache that it must read, of the bytes copied in that time
    matrix_rate  its multiply-accumulates, of those of the product
    """
    shares = {}
    if point.kind == "decode" and "copy_bytes_per_second" in rates:
        shares["bandwidth"] = bytes_of_step(model, point) / (ms / 1e3) / rates["copy_bytes_per_second"]
    if "matmul_flops_per_second" in rates:
        flops = 2 * point.batch * macs_of_point(model, point)
        shares["matrix_rate"] = flops / (ms / 1e3) / rates["matmul_flops_per_second"]
    return shares


def compare_with_peak(
    models: Mapping[str, Decoder],
    point: TimedPoint,
    timing: PointTiming,
    captured: PointTiming | None,
    rates: Mapping[str, float],
) -> PointTiming:
    """Return the timing with what each model reaches of the rates, and with the flags that follow from that.

    captured  for an eager point, the timing of the same point with captured steps
    """
    ms = {name: each for name, each in timing.ms_by_model().items() if name in models}
    ms_of_captured = captured.ms_by_model() if captured else {}
    reached = {name: shares_of_peak(models[name], point, ms[name], rates) for name in ms}
    flags = {
        "low_bandwidth": point.kind == "decode"
        and any(shares and max(shares.values()) < LOW for shares in reached.values()),
        "low_matrix_rate": point.kind == "prefill"
        and any(shares.get("matrix_rate", LOW) < LOW for shares in reached.values()),
        "launch_bound": any(ms[name] > LAUNCH_BOUND * ms_of_captured.get(name, math.inf) for name in ms),
    }
    if not ms:
        return timing
    result: dict[str, Any] = {
        f"{name}_{rate}": share for name, shares in reached.items() for rate, share in shares.items()
    }
    further = [name for name, holds in flags.items() if holds]
    return replace(timing, flags=(*(timing.flags or ()), *further), **result)
