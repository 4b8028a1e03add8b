"""Where a cell ran: versions, commit, device, threads, memory. No host name, no user name, no paths.

What cannot be found out is absent. Nothing here fails: a run is worth more than its description.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

KEPT = 256 * 2**20  # bytes that a process may keep of what it has freed
FROM_HEAP = 64 * 2**20, 32 * 2**20  # a tensor up to here is taken from them; the second where glibc is before 2.35
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


PACKAGES = ("prunebench", "torch", "transformers", "lm_eval", "datasets")
CHECKOUT = Path(__file__).resolve().parents[2]


def describe(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The environment block of a record, as plain JSON values.

    date                             UTC, ISO 8601, to the second
    python                           its version
    platform                         system, processor and C library; no kernel build, which tells who runs it
    cpu, physical_cores, logical_cores, memory_bytes   of the whole machine
    threads                          torch's, within one operation
    omp_wait_policy, gomp_spincount  whether they spin while they wait, and for how many turns, where that was said
    device, dtype                    of the model
    gpu, gpu_memory_bytes, gpu_driver, cuda            on CUDA only
    versions                         {package: version}
    commit, dirty                    of the prunebench checkout, where it is one
    """
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()} {''.join(platform.libc_ver())}".strip(),
        "cpu": _cpu(),
        "physical_cores": _physical_cores(),
        "logical_cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "threads": torch.get_num_threads(),
        **waiting(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        **(_gpu(device) if device.type == "cuda" else {}),
        "versions": _versions(),
        **_commit(),
    }
    return {name: value for name, value in found.items() if value is not None}


def waiting() -> dict[str, str]:
    """How threads wait, where that was said; it decides how fast small operations are on a CPU."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name.lower(): os.environ[name] for name in names if name in os.environ}


def processor(device: torch.device) -> str | None:
    """The name of what computes on `device`: the GPU's, or else the CPU's."""
    return str(torch.cuda.get_device_properties(device).name) if device.type == "cuda" else _cpu()


def peak_memory_bytes(device: torch.device) -> int:
    """The highest memory since `reset_peak_memory`: allocated on CUDA, else resident of this process.

    Linux is asked through VmHWM, because getrusage also counts the process that started this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if peak := re.search(r"^VmHWM:\s+(\d+) kB", _read("/proc/self/status"), re.MULTILINE):
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int | None:
    """What this process has in the machine's memory now; only Linux tells."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", _read("/proc/self/status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def reset_peak_memory(device: torch.device) -> None:
    """Start the peak anew at what is in use now. Outside CUDA and Linux the process's peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5: only the peak


def state() -> dict[str, float]:
    """What the machine is doing at this moment; two of them tell what happened in between, see `between`.

    seconds                                by a clock that only goes forward
    cpu_mhz, cpu_celsius                   mean clock, highest temperature
    cpu_throttled                          how often cores were slowed down for their heat, since the machine started
    load                                   runnable processes, averaged over a minute
    busy_seconds, own_seconds              of all cores together since the machine started; of this process
    stolen_seconds                         that a hypervisor kept cores from this machine
    """
    ticks = [float(number) for number in re.findall(r"\d+", _read("/proc/stat").partition("\n")[0])]
    second = os.sysconf("SC_CLK_TCK")
    mhz = [float(number) for number in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _read("/proc/cpuinfo"), re.MULTILINE)]
    heat = _integers(Path("/sys/class/thermal").glob("*/temp"))
    throttled = _integers(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    own = os.times()
    found = {
        "seconds": time.monotonic(),
        "cpu_mhz": sum(mhz) / len(mhz) if mhz else None,
        "cpu_celsius": max(heat) / 1e3 if heat else None,
        "cpu_throttled": sum(throttled) if throttled else None,
        "load": os.getloadavg()[0],
        "busy_seconds": (sum(ticks[:3]) + sum(ticks[5:8])) / second if len(ticks) > 7 else None,
        "stolen_seconds": ticks[7] / second if len(ticks) > 7 else None,
        "own_seconds": own.user + own.system,
    }
    return {name: value for name, value in found.items() if value is not None}


def between(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """From two states, in cores: how many other processes kept busy on average, and how many were stolen."""
    spent = {name: after[name] - before[name] for name in before if name in after}
    if "busy_seconds" not in spent or spent["seconds"] <= 0:
        return {}
    other = max(0.0, spent["busy_seconds"] - spent["stolen_seconds"] - spent["own_seconds"])
    return {
        "other_cores": round(other / spent["seconds"], 3),
        "stolen_cores": round(spent["stolen_seconds"] / spent["seconds"], 3),
    }


def usable_cores() -> int:
    """Cores that this process may run on; all, where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _commit() -> dict[str, Any]:
    """Commit and whether files differ from it; empty for an installed package, even inside another repository."""
    if not (CHECKOUT / ".git").exists():
        return {}
    commit = _output("git", "-C", str(CHECKOUT), "rev-parse", "HEAD")
    status = _output("git", "--no-optional-locks", "-C", str(CHECKOUT), "status", "--porcelain")
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
    }


def _cpu() -> str | None:
    if model := re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE):
        return model[1].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or None
    return platform.processor() or platform.machine() or None


def _physical_cores() -> int | None:
    """Distinct pairs of socket and core, which hyperthreads share."""
    cores = re.findall(r"^physical id\s*:\s*(\d+)$.*?^core id\s*:\s*(\d+)$", _read("/proc/cpuinfo"), re.M | re.S)
    if not cores and sys.platform == "darwin":
        count = _output("sysctl", "-n", "hw.physicalcpu")
        return int(count) if count else None
    return len(set(cores)) or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _read(path: str) -> str:
    """The text of a file of the kernel, or nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _integers(paths: Iterable[Path]) -> list[int]:
    """The whole numbers that are alone in their files."""
    texts = [_read(str(path)).strip() for path in paths]
    return [int(text) for text in texts if re.fullmatch(r"-?\d+", text)]


def _output(*command: str) -> str | None:
    """What a command prints, or None if it is missing, fails or takes longer than 5 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def give_back(devices: Sequence[torch.device]) -> None:
    """Return what is free to the system, so that the next peak does not stand on the last one's."""
    if any(device.type == "cuda" for device in devices):
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # only glibc can
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Let this process reuse the memory of freed tensors, which glibc returns to the system by default.

    Fresh pages have to be zeroed: on SmolLM2-135M that is 3 % of the processor time of scoring, and 10 to 20 % of that
    of a greedy search. Processes that time a model are left as every user's are.
    """
    with contextlib.suppress(OSError, AttributeError):  # only glibc can
        libc = ctypes.CDLL(None)
        any(libc.mallopt(MMAP_THRESHOLD, size) for size in FROM_HEAP)
        libc.mallopt(TRIM_THRESHOLD, KEPT)
