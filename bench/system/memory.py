"""Reads and steers the memory of this process: its size, its peak, and what becomes of what it frees."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

KEPT = 256 * 2**20  # bytes that a process may keep of what it has freed
FROM_HEAP = 64 * 2**20, 32 * 2**20  # a tensor up to here is taken from them; the second where glibc is before 2.35
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def resident_bytes() -> int:
    """Return what this process has in the machine's memory now."""
    return int(psutil.Process().memory_info().rss)


def use(device: torch.device) -> None:
    """Make a GPU with a number the one that this process means where it names none."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the highest memory since `reset_peak_memory`: allocated on CUDA, else resident of this process.

    Linux is asked through VmHWM, because getrusage also counts the process that started this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        if peak := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Start the peak anew at what is in use now. Outside CUDA and Linux the process's peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # a reset by the number of a device leaves it to others
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5: only the peak


def give_back(devices: Sequence[torch.device]) -> None:
    """Return free memory to the system, so that the next peak does not include what earlier work has left."""
    if any(device.type == "cuda" for device in devices):
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # only glibc can
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Let this process reuse the memory of freed tensors, which glibc returns to the system by default.

    Fresh pages have to be zeroed: on SmolLM2-135M that is 3 % of the processor time of scoring, and 10 to 20 % of that
    of a greedy search. Processes that time a model keep the default, as every user's process does.
    """
    with contextlib.suppress(OSError, AttributeError):  # only glibc can
        libc = ctypes.CDLL(None)
        any(libc.mallopt(MMAP_THRESHOLD, size) for size in FROM_HEAP)
        libc.mallopt(TRIM_THRESHOLD, KEPT)
