"""Reads and steers memory: of control groups, of this process and its devices, and on the disk for states that wait.

The file holds, in this order: control groups, by which a container or a job has less than the whole machine; free
memory, peaks, and what becomes of freed memory; the folder in which states of a cell wait; the memory of a process.

States of a cell wait in a folder of their own, which goes with the cell. Its name says which run and which cell, so
that the leftovers of a killed attempt go when the cell begins again. Its files have no name where the system allows
that (methods.model.layer_store), and end with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.errors import UserError, first_line_of
from methods.files import WRITING

if TYPE_CHECKING:
    import torch

PROCESS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
TICKS_PER_SECOND = {"throttled_usec": 1e6, "throttled_time": 1e9}  # by the line of cpu.stat, of version 2 and of 1


def folders_of_groups(kind: str, process: Path = PROCESS, groups: Path = GROUPS) -> Iterator[tuple[Path, int]]:
    """Yield (folder, version) of each group that limits this process's `memory` or `cpu`, from the innermost outwards.

    process  the file that lists its groups, one `number:kinds:path` a line
    groups   the folder of all groups, of either version
    """
    with contextlib.suppress(OSError):
        for line in process.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and kind not in kinds.split(","):
                continue
            inner = (groups / kind if kinds else groups) / path.lstrip("/")
            for folder in (inner, *inner.parents):
                yield folder, 1 if kinds else 2


def count_cores(process: Path = PROCESS, groups: Path = GROUPS) -> float | None:
    """Return how many cores' time this process may take, by the strictest of its groups; None without a limit."""
    return min((allowed for allowed, _ in _quotas(process, groups)), default=None)


def throttled_seconds(process: Path = PROCESS, groups: Path = GROUPS) -> float | None:
    """Return how long the groups with a limit kept cores waiting, summed over cores; None without a limit."""
    seconds = list[float]()
    for _, folder in _quotas(process, groups):
        with contextlib.suppress(OSError, ValueError):
            lines = [line.split() for line in (folder / "cpu.stat").read_text(encoding="ascii").splitlines()]
            seconds += [int(value) / TICKS_PER_SECOND[name] for name, value in lines if name in TICKS_PER_SECOND]
    return sum(seconds) if seconds else None


def _quotas(process: Path, groups: Path) -> Iterator[tuple[float, Path]]:
    """Yield (cores, folder) of each group whose time is limited."""
    for folder, version in folders_of_groups("cpu", process, groups):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            if version == 1:
                texts = [(folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")]
            else:
                texts = (folder / "cpu.max").read_text(encoding="ascii").split()
            quota, period = map(int, texts)
            if quota > 0 < period:
                yield quota / period, folder


KEPT = 256 * 2**20  # bytes that a process may keep of what it has freed
FROM_HEAP = 64 * 2**20, 32 * 2**20  # a tensor up to here is taken from them; the second where glibc is before 2.35
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)
NAMES_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"  # of either version: limit, use, and
NAMES_2 = "memory.max", "memory.current", "inactive_file"  # in memory.stat what of that is given up
LOOK = 0.02  # seconds between two looks at the memory while it is watched


def set_gpu(device: torch.device) -> None:
    """Make a numbered GPU the current one of this process."""
    import torch

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def bytes_for_states(devices: Sequence[torch.device]) -> int:
    """Return the bytes that the states of a micro-batch may take: an eighth of what the fullest device has free.

    Rounded down to a power of two, so that the same model is read in the same micro-batches although a little more or
    less is free, and 1 MiB at least.
    """
    return int(2 ** max(20, math.floor(math.log2(max(1, min(map(_free, devices)) // 8)))))


def _free(device: torch.device) -> int:
    """Return the bytes that tensors can still take, torch's reserve on a GPU included."""
    import torch

    if device.type != "cuda":
        return free_bytes_of_host()
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached)


def bytes_of_host(process: Path = PROCESS, groups: Path = GROUPS) -> int:
    """Return the bytes of the host's memory that this process may take: all, or the limit of its container or job."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits(process, groups))])


def free_bytes_of_host(process: Path = PROCESS, groups: Path = GROUPS) -> int:
    """Return the bytes that are free of the machine's memory and of `bytes_of_host`."""
    import psutil

    rooms = [limit - used for limit, used in _limits(process, groups)]
    return max(0, min([int(psutil.virtual_memory().available), *rooms]))


def _limits(process: Path, groups: Path) -> list[tuple[int, int]]:
    """Return (limit, bytes in use) of each control group that has a limit."""
    limits = []
    for folder, version in folders_of_groups("memory", process, groups):
        names = NAMES_1 if version == 1 else NAMES_2
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limit = int((folder / names[0]).read_text(encoding="ascii"))
            limits.append((limit, _used(folder, *names[1:])))
    return limits


def _used(folder: Path, usage: str, inactive: str) -> int:
    """Return the bytes that a control group uses, without pages of files that nobody reads, which are given up."""
    used = 0
    with contextlib.suppress(OSError, ValueError):
        used = int((folder / usage).read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        used -= sum(int(line.split()[1]) for line in lines if line.split()[:1] == [inactive])
    return used


@dataclass
class WatchedPeaks:
    """Holds the highest memory of the devices while they were watched.

    anonymous  of this process, by `anonymous_bytes_of`, read every LOOK seconds
    """

    devices: Sequence[torch.device]
    anonymous: int = 0

    def peaks(self) -> dict[str, Any]:
        """Return the values of `peaks_of_devices`, and on the CPU `anonymous_bytes`."""
        peaks = peaks_of_devices(self.devices)
        return peaks | ({"anonymous_bytes": self.anonymous} if "resident_bytes" in peaks else {})


@contextlib.contextmanager
def watch_peaks(devices: Sequence[torch.device]) -> Iterator[WatchedPeaks]:
    """Reset the peaks, and watch the memory until the end of the block."""
    reset_peaks(devices)
    peaks, done = WatchedPeaks(devices), threading.Event()

    def look() -> None:
        peaks.anonymous = max(peaks.anonymous, anonymous_bytes_of(os.getpid()))

    def watch() -> None:
        while not done.wait(LOOK):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()
        look()


def peaks_of_devices(devices: Sequence[torch.device]) -> dict[str, Any]:
    """Return the highest memory since `reset_peaks`, over all devices together.

    resident_bytes    of this process in the machine's memory, on the CPU, with pages of files that are mapped
    allocated_bytes, reserved_bytes   by torch on CUDA: what tensors took, and what torch held of the GPU in reserve
    each              {allocated_bytes, reserved_bytes} of each of several GPUs
    """
    import torch

    each = [
        {
            "allocated_bytes": torch.cuda.max_memory_allocated(device),
            "reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
        for device in devices
        if device.type == "cuda"
    ]
    if not each:
        return {"resident_bytes": peak_bytes_of_process()}
    return _sum_sizes(each) | ({"each": each} if len(each) > 1 else {})


def _sum_sizes(each: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """Return the sums over devices, by the names of the first."""
    return {name: sum(map(itemgetter(name), each)) for name in each[0]}


def merge_peaks(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the higher of two peaks of the same devices, value by value. Those of several GPUs are summed anew."""
    merged = {
        name: list(map(merge_peaks, first[name], size)) if isinstance(size, list) else max(first[name], size)
        for name, size in second.items()
    }
    return merged | _sum_sizes(merged.get("each", [{}]))


def reset_peaks(devices: Sequence[torch.device]) -> None:
    """Reset the peaks to what is in use now. Outside CUDA and Linux the process's peak cannot be reset."""
    import torch

    for device in devices:
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]  # a reset by the number of a device leaves it to others
            torch.cuda.reset_peak_memory_stats(device)
    if all(device.type == "cpu" for device in devices):
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5: only the peak


def give_back(devices: Sequence[torch.device]) -> None:
    """Return free memory to the system, so that the next peak does not include what earlier work has left."""
    import torch

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


STATES = ".states-"  # begins the names of those folders


def check_offload(folder: Path) -> None:
    """Raise UserError where states cannot be put into a folder."""
    if not folder.is_dir():
        raise UserError(f"--offload {folder} is no folder; name one on a disk that has room for states")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=WRITING):
            pass
    except OSError as error:
        raise UserError(f"--offload {folder} takes no files: {first_line_of(error)}; name another folder") from None


@contextmanager
def make_folder_of_cell(folder: Path, run: Path, key: str) -> Iterator[Path]:
    """Make an empty folder for the states of a cell of a run, and remove it at the end.

    Raises UserError where the folder in which it is made is none, or takes no files.
    """
    check_offload(folder)
    name = hashlib.sha256(f"{platform.node()} {run.resolve()} {key}".encode()).hexdigest()[:16]
    place = folder / f"{STATES}{name}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir()
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def resident_bytes_of_process() -> int:
    """Return the bytes that this process has in the machine's memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes_of_process() -> int:
    """Return the most bytes that this process has had in the machine's memory, since the last reset if there was one.

    On Linux this is VmHWM, because getrusage also counts the process that started this one. Windows has no getrusage,
    and counts by itself.
    """
    with contextlib.suppress(OSError):
        if peak := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(peak[1]) * 1024
    try:
        import resource
    except ImportError:
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def anonymous_bytes_of(pid: int) -> int:
    """Return the bytes that a process has in memory and in no file, so that the system cannot drop them.

    Pages of mapped files are left out, such as weights that are read from there. Linux alone tells them apart;
    elsewhere all of it counts. Raises psutil.NoSuchProcess.
    """
    import psutil

    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        if sizes := re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE):
            return sum(map(int, sizes)) * 1024
    return int(psutil.Process(pid).memory_info().rss)


def anonymous_bytes_with_children(pid: int | None) -> int:
    """Return `anonymous_bytes_of` a process and of its children; 0 when it has ended."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += anonymous_bytes_of(process.pid)
    return total
