"""Describes the machine, and checks that it multiplies matrices as exactly as their dtype says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch

from bench.doctor.finding import Finding, judged
from bench.doctor.numbers import apart, named
from bench.system import environment, gpu

SECONDS = 0.3  # of each rate; the fastest call counts, which nothing has disturbed
PRODUCT = {"cpu": 1024, "cuda": 4096}  # rows and columns of the matrices
COPIED = {"cpu": 2**27, "cuda": 2**29}  # bytes, more than a cache holds
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}  # in which models are measured by default
EXACT = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # share by which a product may be off


def describe(device: torch.device) -> dict[str, Any]:
    """Return the environment of a record, and the memory that is free."""
    found = environment.describe(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    return found | {"free_memory_bytes": psutil.virtual_memory().available} | _card(device)


def _card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    cards, missing = gpu.find([device])
    states = {"gpu_state": cards[0].state()} if cards else {"nvml": missing}
    return {"gpus": torch.cuda.device_count(), "free_gpu_memory_bytes": torch.cuda.mem_get_info(device)[0]} | states


def check(device: torch.device) -> Iterator[Finding]:
    """Say what there is, how fast it is, and whether its products are right."""
    found = describe(device)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield Finding("ok", "versions", f"python {found['python']}, {versions}")
    cores = f"{environment.usable_cores()} of {found['logical_cores']} cores, {found['threads']} threads"
    free, whole = found["free_memory_bytes"], found.get("memory_bytes", 0)
    yield Finding("ok", "processor", f"{found.get('cpu', 'unknown')}, {cores}, {_gib(free)} of {_gib(whole)} free")
    yield _gpu(found)
    for dtype in EXACT:
        yield product(device, dtype)
    for dtype in DTYPES[device.type]:
        rate = multiply_rate(device, dtype)
        yield Finding("ok", f"matrix rate, {named(dtype)}", f"{rate / 1e9:,.0f} GFLOP/s", {"flops_per_second": rate})
    rate = copy_rate(device)
    yield Finding("ok", "bandwidth", f"{rate / 1e9:,.0f} GB/s read and written in a copy", {"bytes_per_second": rate})


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _gpu(found: dict[str, Any]) -> Finding:
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


def multiply_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure operations per second of a large product, two for each multiplication."""
    size = PRODUCT[device.type]
    a = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _fastest(lambda: a @ a, device)


def copy_rate(device: torch.device) -> float:
    """Measure bytes per second that a copy within the device's memory reads and writes."""
    a = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    b = torch.zeros_like(a)
    return 2 * a.numel() / _fastest(lambda: b.copy_(a), device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest call, one to warm up left out."""
    call()
    found, end = list[float](), time.perf_counter() + SECONDS
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
