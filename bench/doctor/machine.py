"""Describes the machine, and checks that it multiplies matrices as exactly as their dtype says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import torch

from bench.doctor import disk
from bench.doctor.finding import Finding, judged
from bench.doctor.numbers import apart, named
from bench.speed import peak_rates
from bench.system import environment, failures, gpu
from bench.system.threads import usable_cores

SIZES = {"cpu": {"copied": 2**27, "side": 1024}}  # smaller ones of bench.speed.peak_rates, for a slower machine
EXACT = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # share by which a product may be off


def describe(device: torch.device) -> dict[str, Any]:
    """Return the environment of a record, and the memory that is free."""
    found = environment.describe(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    return found | {"free_memory_bytes": psutil.virtual_memory().available} | _card(device)


def _card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    try:
        free = torch.cuda.mem_get_info(device)[0]
        cards, missing = gpu.find([device])
    except RuntimeError as error:  # of a GPU that another program holds, or that an earlier error has lost
        return {"gpu_lost": failures.reason(error)}
    states = {"gpu_state": cards[0].state()} if cards else {"nvml": missing}
    return {"gpus": torch.cuda.device_count(), "free_gpu_memory_bytes": free} | states


def check(device: torch.device) -> Iterator[Finding]:
    """Say what there is, how fast it is, and whether its products are right."""
    found = describe(device)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield Finding("ok", "versions", f"python {found['python']}, {versions}")
    cores = f"{usable_cores()} of {found['logical_cores']} cores, {found['threads']} threads"
    free, whole = found["free_memory_bytes"], found.get("memory_bytes", 0)
    yield Finding("ok", "processor", f"{found.get('cpu', 'unknown')}, {cores}, {_gib(free)} of {_gib(whole)} free")
    yield _gpu(found)
    for dtype in EXACT:
        yield product(device, dtype)
    yield from rates(device)


def rates(device: torch.device) -> Iterator[Finding]:
    """Measure what a large product and a copy reach, in the dtype in which models are measured by default."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    found = peak_rates.measure(device, dtype, **SIZES.get(device.type, {}))
    whats = {
        "matmul_flops_per_second": (f"matrix rate, {named(dtype)}", "GFLOP/s in a large product"),
        "copy_bytes_per_second": ("bandwidth", "GB/s read and written in a copy"),
    }
    for name, (what, unit) in whats.items():
        if name in found:
            yield Finding("ok", what, f"{found[name] / 1e9:,.0f} {unit}", {name: found[name]})
        else:
            yield Finding("not here", what, "there is no room to measure it")
    if (flops := found.get("matmul_flops_per_second")) is not None:
        yield disk.check(flops, dtype.itemsize, named(dtype))


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _gpu(found: dict[str, Any]) -> Finding:
    if "gpu_lost" in found:
        return Finding("wrong", "GPU", f"it does not answer: {found['gpu_lost']}")
    if "gpu" not in found and "free_gpu_memory_bytes" in found:
        return Finding("wrong", "GPU", "torch cannot tell its name and memory; see whether nvidia-smi can")
    if "gpu" not in found:
        return Finding("not here", "GPU", "looked at the CPU; --device cuda looks at a GPU")
    free, whole = found["free_gpu_memory_bytes"], found["gpu_memory_bytes"]
    driver = f"driver {found.get('gpu_driver', 'unknown')}, CUDA {found.get('cuda', 'unknown')}"
    missing = f"; {found['nvml']}" if found.get("nvml") else ""
    return Finding("ok", "GPU", f"{found['gpu']}, {driver}, {_gib(free)} of {_gib(whole)} free{missing}")


def product(device: torch.device, dtype: torch.dtype) -> Finding:
    """Compare a product in a dtype with that of the same numbers in float64 on the CPU."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    off = apart(a.to(device) @ b.to(device), a.double() @ b.double())
    wrong = [] if off <= EXACT[dtype] else [f"off by {off:.1e} of its size, and {EXACT[dtype]:.0e} is rounding"]
    if wrong and dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        wrong.append("TF32 is on: torch.set_float32_matmul_precision('highest') turns it off")
    return judged(f"product, {named(dtype)}", wrong, f"off by {off:.1e} of its size", off=off)
