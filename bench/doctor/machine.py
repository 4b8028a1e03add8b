"""Checks the machine: products, a GPU's limits and neighbours, and how fast a disk gives weights.

It describes the machine, and checks that it multiplies matrices as exactly as their dtype says. Of a GPU it checks
running out of memory, copies, and a second GPU; a CPU has none of these.

A sweep over the layers of a model of P parameters reads b P bytes, in a dtype of b bytes, and computes 2 P T FLOP for T
tokens. At B bytes/s and F FLOP/s reading is hidden behind computing from

    T = b F / (2 B)

on, whatever the model.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.data import assets
from bench.doctor import pruning
from bench.doctor.finding import Finding, difference_of_tensors, dtype_name, finding_of_check
from bench.speed import peaks
from bench.system import environment, failures, gpu
from bench.system.memory import give_back
from bench.system.threads import count_usable_cores

SIZES = {"cpu": {"copied": 2**27, "side": 1024}}  # smaller ones of bench.speed.peaks, for a slower machine
EXACT = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # share by which a product may be off


def describe(device: torch.device) -> dict[str, Any]:
    """Return the environment of a record, and the free memory."""
    facts = environment.describe(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    return facts | {"free_memory_bytes": psutil.virtual_memory().available} | _card(device)


def _card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    try:
        free = torch.cuda.mem_get_info(device)[0]
        cards, missing = gpu.find_gpus([device])
    except RuntimeError as error:  # another program may hold the GPU, or an earlier error has lost it
        return {"gpu_lost": failures.reason_of_error(error)}
    states = {"gpu_state": cards[0].state()} if cards else {"nvml": missing}
    return {"gpus": torch.cuda.device_count(), "free_gpu_memory_bytes": free} | states


def check_machine(device: torch.device) -> Iterator[Finding]:
    """Yield findings on the machine: what it has, how fast it is, and whether its products are right."""
    facts = describe(device)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield Finding("ok", "versions", f"python {facts['python']}, {versions}")
    cores = f"{count_usable_cores()} of {facts['logical_cores']} cores, {facts['threads']} threads"
    free, whole = facts["free_memory_bytes"], facts.get("memory_bytes", 0)
    yield Finding("ok", "processor", f"{facts.get('cpu', 'unknown')}, {cores}, {_gib(free)} of {_gib(whole)} free")
    yield _gpu(facts)
    for dtype in EXACT:
        yield check_product(device, dtype)
    yield from measure_rates(device)


def measure_rates(device: torch.device) -> Iterator[Finding]:
    """Yield the rates of a large product and a copy, in the dtype in which models are measured by default."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    rates = peaks.measure_peak_rates(device, dtype, **SIZES.get(device.type, {}))
    whats = {
        "matmul_flops_per_second": (f"matrix rate, {dtype_name(dtype)}", "GFLOP/s in a large product"),
        "copy_bytes_per_second": ("bandwidth", "GB/s read and written in a copy"),
    }
    for name, (what, unit) in whats.items():
        if name in rates:
            yield Finding("ok", what, f"{rates[name] / 1e9:,.0f} {unit}", {name: rates[name]})
        else:
            yield Finding("not here", what, "there is no room to measure it")
    if (flops := rates.get("matmul_flops_per_second")) is not None:
        yield check_disk(flops, dtype.itemsize, dtype_name(dtype))


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _gpu(description: dict[str, Any]) -> Finding:
    if "gpu_lost" in description:
        return Finding("wrong", "GPU", f"it does not answer: {description['gpu_lost']}")
    if "gpu" not in description and "free_gpu_memory_bytes" in description:
        return Finding("wrong", "GPU", "torch cannot tell its name and memory; see whether nvidia-smi can")
    if "gpu" not in description:
        return Finding("not here", "GPU", "looked at the CPU; --device cuda looks at a GPU")
    free, whole = description["free_gpu_memory_bytes"], description["gpu_memory_bytes"]
    driver = f"driver {description.get('gpu_driver', 'unknown')}, CUDA {description.get('cuda', 'unknown')}"
    missing = f"; {description['nvml']}" if description.get("nvml") else ""
    return Finding("ok", "GPU", f"{description['gpu']}, {driver}, {_gib(free)} of {_gib(whole)} free{missing}")


def check_product(device: torch.device, dtype: torch.dtype) -> Finding:
    """Compare a product in a dtype with that of the same numbers in float64 on the CPU."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    off = difference_of_tensors(a.to(device) @ b.to(device), a.double() @ b.double())
    wrong = [] if off <= EXACT[dtype] else [f"off by {off:.1e} of its size, and {EXACT[dtype]:.0e} is rounding"]
    if wrong and dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        wrong.append("TF32 is on: torch.set_float32_matmul_precision('highest') turns it off")
    return finding_of_check(f"product, {dtype_name(dtype)}", wrong, f"off by {off:.1e} of its size", off=off)


SPREAD = "slicegpt"  # the method that prunes a model whose layers lie on both GPUs
TOO_MUCH = 16  # times the whole memory of the card
COPIED = 2**24  # numbers
SECOND = ("shortgpt", "flap", "slicegpt", "llm-pruner")  # methods that a second GPU is tried with


def check_memory(device: torch.device) -> Iterator[Finding]:
    """Ask a GPU for too much memory. The error must be recognised, and leave the GPU unharmed."""
    what = "out of memory"
    if device.type != "cuda":
        reason = "a CPU's memory is not exhausted on purpose, since the system may kill any process then"
        yield Finding("not here", what, reason)
        return
    size = TOO_MUCH * torch.cuda.get_device_properties(device).total_memory
    wrong = list[str]()
    try:
        torch.empty(size, dtype=torch.uint8, device=device)
        wrong.append(f"the GPU gave {size / 2**30:,.0f} GiB, {TOO_MUCH} times what it has")
    except Exception as error:
        if not failures.is_out_of_memory(error):
            wrong.append(f"not recognised: {failures.reason_of_error(error)}")
    give_back([device])
    after = check_product(device, torch.float32)
    if after.status != "ok":
        wrong.append(f"products afterwards: {after.figure}")
    yield finding_of_check(what, wrong, f"recognised at {size / 2**30:,.0f} GiB, and the GPU works on")


def check_copies(device: torch.device) -> Iterator[Finding]:
    """Copy numbers to the GPU and back, and check a second GPU where there is one."""
    if device.type != "cuda":
        yield Finding("not here", "copies", "a CPU copies nothing to another device")
        yield Finding("not here", "second GPU", "looked at the CPU")
        return
    yield check_copy("copies", torch.device("cpu"), device)
    numbers = [number for number in range(torch.cuda.device_count()) if number != (device.index or 0)]
    if not numbers:
        yield Finding("not here", "second GPU", "torch sees one")
        return
    second = torch.device("cuda", numbers[0])
    yield check_copy("copies between GPUs", device, second)
    stored = pruning.read_answers()
    for name in SECOND:
        finding = pruning.check_method(name, second, stored[name])
        yield Finding(finding.status, f"{name} on {second}", finding.figure, finding.found, finding.where)
    both = [torch.device("cuda", device.index or 0), second]
    finding = pruning.check_method(SPREAD, both, stored[SPREAD])
    yield Finding(finding.status, f"{SPREAD} over both GPUs", finding.figure, finding.found, finding.where)


def check_copy(what: str, source: torch.device, target: torch.device) -> Finding:
    """Copy numbers from one device to another and back. Not a bit may change."""
    numbers = torch.arange(COPIED, dtype=torch.int32)
    first = numbers.to(source)
    second = first.to(target)
    back = second.to(source)
    steps = {f"to {source}": first, f"to {target}": second, f"back to {source}": back}
    wrong = [f"changed on the way {step}" for step, tensor in steps.items() if not torch.equal(tensor.cpu(), numbers)]
    return finding_of_check(
        what, wrong, f"{COPIED * 4 / 2**20:.0f} MiB from {source} to {target} and back, every bit the same"
    )


SIZE, BLOCK = 2**28, 2**22  # bytes that are read, and at once


def check_disk(flops: float, bytes_each: int, dtype: str) -> Finding:
    """Return how fast weights come from the folder of the models; `flops` is the rate of a product per second."""
    what, folder = "weights in files", assets.folder_of_cache()
    try:
        rate = rate_of_reading(folder if folder.is_dir() else Path(tempfile.gettempdir()))
    except OSError as error:
        return Finding("not here", what, f"{SIZE / 1e6:,.0f} MB cannot be written and read: {error.strerror}")
    tokens = bytes_each * flops / (2 * rate)
    figure = f"{rate / 1e9:.1f} GB/s read; hidden behind computing from {tokens:,.0f} tokens of a sweep on, {dtype}"
    return Finding("ok", what, figure, {"read_bytes_per_second": rate, "hidden_from_tokens": tokens})


def rate_of_reading(folder: Path) -> float:
    """Return the bytes per second at which a new file is read that the page cache does not hold. Raises OSError.

    Where the system has no call that lets go of cached pages, or the folder lies in memory, it is memory's rate.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        block = os.urandom(BLOCK)
        for _ in range(SIZE // BLOCK):
            file.write(block)
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(BLOCK):
            pass
        return SIZE / (time.perf_counter() - start)
