"""Describes the machine that a cell ran on, and what the machine does while a model is timed.

A description holds versions, commit, device, threads and memory, but no host name, user name or path. Unknown values
are absent. No function that describes raises an error, since a run is worth more than its description, but
`name_of_processor`: its answer decides which records may serve.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from bench.system import gpu, memory, threads

T = TypeVar("T")

PACKAGES = ("prunebench", "torch", "transformers", "lm_eval", "datasets")
CUBLAS = ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12")
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # the first two of x86, the last of ARM
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # what cores do when they are neither idle nor waiting
CHECKOUT = Path(__file__).resolve().parents[2]


def describe(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return the environment of a record as plain JSON values (bench.records.speed_results.Environment)."""
    facts = {
        "date": date_in_utc(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()} {''.join(platform.libc_ver())}".strip(),
        "cpu": _cpu(),
        "physical_cores": _answer_or_none(lambda: psutil.cpu_count(logical=False)),
        "logical_cores": os.cpu_count(),
        "memory_bytes": _answer_or_none(lambda: psutil.virtual_memory().total),
        "threads": torch.get_num_threads(),
        **threads.settings_of_waiting(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        **(_gpu(device) if device.type == "cuda" else {}),
        "versions": _versions(PACKAGES),
        **_commit(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def date_in_utc() -> str:
    """Return the date and time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def name_of_processor(device: torch.device) -> str | None:
    """Return the name of the processor that computes on `device`: the GPU, or else the CPU.

    Raises torch's error where there is no such GPU.
    """
    return str(torch.cuda.get_device_properties(device).name) if device.type == "cuda" else _cpu()


def has_bfloat16() -> bool:
    """Say whether the CPU has instructions that multiply bfloat16, as far as torch knows. Others emulate it slowly."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch lack it
        return False
    return any(torch.cpu.get_capabilities().get(name) for name in NATIVE_BFLOAT16)


def state_of_machine() -> dict[str, float]:
    """Return what the machine does at this moment (bench.records.speed_results.MachineState).

    `load_between_states` compares two states.
    """
    times, own = _answer_or_none(lambda: psutil.cpu_times()._asdict()), os.times()
    heat = _integers(Path("/sys/class/thermal").glob("*/temp"))  # psutil has sensors of disks and GPUs too
    throttled = _integers(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    state = {
        "seconds": time.monotonic(),
        "cpu_mhz": _answer_or_none(lambda: psutil.cpu_freq().current) or None,
        "cpu_celsius": max(heat) / 1e3 if heat else None,
        "cpu_throttled": sum(throttled) if throttled else None,
        "load": os.getloadavg()[0],
        "busy_seconds": sum(times.get(name, 0.0) for name in BUSY) if times else None,
        "stolen_seconds": times.get("steal", 0.0) if times else None,
        "own_seconds": own.user + own.system,
        "held_seconds": memory.throttled_seconds(),
    }
    return {name: value for name, value in state.items() if value is not None}


def load_between_states(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return how many cores other programs used between two states, were stolen and were held by limits."""
    spent = {name: after[name] - before[name] for name in before if name in after}
    if spent["seconds"] <= 0:
        return {}
    throttled = {"held_cores": round(spent["held_seconds"] / spent["seconds"], 3)} if "held_seconds" in spent else {}
    if "busy_seconds" not in spent:
        return throttled
    busy_elsewhere = max(0.0, spent["busy_seconds"] - spent["stolen_seconds"] - spent["own_seconds"])
    return {
        "other_cores": round(busy_elsewhere / spent["seconds"], 3),
        "stolen_cores": round(spent["stolen_seconds"] / spent["seconds"], 3),
        **throttled,
    }


def join_machines(loads: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the most cores of each kind over several answers of `load_between_states`."""
    highest: dict[str, float] = {}
    for load in loads:
        for kind, cores in load.items():
            highest[kind] = max(cores, highest.get(kind, cores))
    return highest


def _versions(packages: Iterable[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def is_edited(folder: str) -> bool:
    """Say whether files in a folder of this checkout differ from its commit; False for an installed package."""
    if not (CHECKOUT / ".git").exists():
        return False
    return bool(_output("git", "--no-optional-locks", "-C", str(CHECKOUT), "status", "--porcelain", "--", folder))


def _commit() -> dict[str, Any]:
    """Return the commit and whether files differ from it; {} for a package installed inside another repository."""
    if not (CHECKOUT / ".git").exists():
        return {}
    commit = _output("git", "-C", str(CHECKOUT), "rev-parse", "HEAD")
    status = _output("git", "--no-optional-locks", "-C", str(CHECKOUT), "status", "--porcelain")
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = _answer_or_none(lambda: torch.cuda.get_device_properties(device))
    if properties is None:
        return {}
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    cards = _answer_or_none(lambda: gpu.find_gpus([device])[0]) or []
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "gpus": _answer_or_none(torch.cuda.device_count),
        **{f"gpu_{name}": value for card in cards for name, value in card.limits().items()},
        "float32_products": torch.get_float32_matmul_precision(),
        "bf16_reduction": _answer_or_none(
            lambda: bool(torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction)
        ),
        "cudnn": _answer_or_none(torch.backends.cudnn.version),
        "cublas": next(iter(_versions(CUBLAS).values()), None),
        "cuda_alloc_conf": os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF"),
    }


def _cpu() -> str | None:
    if model := re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE):
        return model[1].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or None
    return platform.processor() or platform.machine() or None


def _answer_or_none(question: Callable[[], T]) -> T | None:
    """Return the answer of psutil or torch, or None where the system does not give it."""
    try:
        return question()
    except (AssertionError, AttributeError, NotImplementedError, OSError, RuntimeError, psutil.Error):
        return None


def _read(path: str) -> str:
    """Return the text of a file of the kernel, or "" where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _integers(paths: Iterable[Path]) -> list[int]:
    """Return the whole number of each file that holds nothing else."""
    texts = [_read(str(path)).strip() for path in paths]
    return [int(text) for text in texts if re.fullmatch(r"-?\d+", text)]


def _output(*command: str) -> str | None:
    """Return what a command prints, or None if it is missing, fails or takes longer than 5 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
