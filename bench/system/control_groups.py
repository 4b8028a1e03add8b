"""Reads the control groups of this process, by which a container or a job has less than the whole machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

PROCESS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
HELD = {"throttled_usec": 1e6, "throttled_time": 1e9}  # lines of cpu.stat, of version 2 and of 1, to a second


def folders(kind: str, process: Path = PROCESS, groups: Path = GROUPS) -> Iterator[tuple[Path, int]]:
    """Yield (folder, version) of each group that limits this process's `memory` or `cpu`, from the innermost outwards.

    process  the file that says which groups it is in, one `number:kinds:path` a line
    groups   the folder of these, of either version
    """
    with contextlib.suppress(OSError):
        for line in process.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and kind not in kinds.split(","):
                continue
            inner = (groups / kind if kinds else groups) / path.lstrip("/")
            for folder in (inner, *inner.parents):
                yield folder, 1 if kinds else 2


def cores(process: Path = PROCESS, groups: Path = GROUPS) -> float | None:
    """Return of how many cores this process may take the time, by the strictest of its groups; None without a limit."""
    return min((allowed for allowed, _ in _quotas(process, groups)), default=None)


def held_seconds(process: Path = PROCESS, groups: Path = GROUPS) -> float | None:
    """Return for how long the groups that have a limit kept cores waiting, all cores together; None without a limit."""
    found = list[float]()
    for _, folder in _quotas(process, groups):
        with contextlib.suppress(OSError, ValueError):
            lines = [line.split() for line in (folder / "cpu.stat").read_text(encoding="ascii").splitlines()]
            found += [int(value) / HELD[name] for name, value in lines if name in HELD]
    return sum(found) if found else None


def _quotas(process: Path, groups: Path) -> Iterator[tuple[float, Path]]:
    """Yield (cores, folder) of each group whose time is limited."""
    for folder, version in folders("cpu", process, groups):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            if version == 1:
                texts = [(folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")]
            else:
                texts = (folder / "cpu.max").read_text(encoding="ascii").split()
            quota, period = map(int, texts)
            if quota > 0 < period:
                yield quota / period, folder
