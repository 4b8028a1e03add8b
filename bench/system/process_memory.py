"""Reads how much memory a process holds, this one or another: all of it, or what lies in no file."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import psutil


def resident_bytes() -> int:
    """Return what this process has in the machine's memory now."""
    return int(psutil.Process().memory_info().rss)


def highest_resident_bytes() -> int:
    """Return the most that this process has had in the machine's memory, since its peak was reset where it was.

    Linux is asked through VmHWM, because getrusage also counts the process that started this one.
    """
    with contextlib.suppress(OSError):
        if peak := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def anonymous_bytes(pid: int) -> int:
    """Return the bytes that a process has in memory now and in no file, which the system cannot drop.

    Left out are pages of files that are mapped, such as weights that are read from there. Linux alone tells them apart;
    elsewhere all of it counts. Raises psutil.NoSuchProcess.
    """
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        if found := re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE):
            return sum(map(int, found)) * 1024
    return int(psutil.Process(pid).memory_info().rss)


def with_children(pid: int | None) -> int:
    """Return `anonymous_bytes` of a process and of those that it has started; 0 when gone."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += anonymous_bytes(process.pid)
    return total
