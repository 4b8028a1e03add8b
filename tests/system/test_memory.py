"""Memory of a process: its peak, which is its own and starts anew, and what is kept of what it frees."""

import mmap
import os
import platform
import subprocess
import sys
import time
from unittest import mock

import psutil
import pytest
import torch
from emulated import EmulatedGpus

from bench.system import environment, memory
from bench.system.memory import (
    anonymous_bytes_of,
    merge_peaks,
    peaks_of_devices,
    reset_peaks,
    resident_bytes_of_process,
    watch_peaks,
)

CPU = [torch.device("cpu")]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads files of the Linux kernel")


def test_resident_memory_grows_with_what_is_used():
    before = resident_bytes_of_process()
    with mmap.mmap(-1, 2**26) as block:  # pages of its own, and none that the process has freed before
        block.write(b"x" * 2**26)
        assert resident_bytes_of_process() >= before + 2**26 - 2**22


def test_peak_memory_grows_with_what_is_used():
    before = peaks_of_devices(CPU)["resident_bytes"]
    block = bytearray(b"x") * (before + 2**26)  # touches every page
    assert peaks_of_devices(CPU)["resident_bytes"] >= before + 2**26
    del block


@LINUX
@pytest.mark.parametrize("private", [True, False])
def test_pages_of_a_file_are_no_anonymous_memory_until_they_are_written(private, tmp_path):
    size = 2**26
    (tmp_path / "file").write_bytes(bytes(size))
    with (tmp_path / "file").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE if private else mmap.MAP_SHARED)
    before = anonymous_bytes_of(os.getpid())
    assert sum(mapped[:: mmap.PAGESIZE]) == 0
    read = anonymous_bytes_of(os.getpid())
    for place in range(0, size, mmap.PAGESIZE):
        mapped[place] = 1
    assert abs(read - before) < size / 4
    assert (anonymous_bytes_of(os.getpid()) - read > size * 3 / 4) == private
    mapped.close()


@LINUX
def test_what_is_gone_at_the_end_of_the_block_was_watched():
    with watch_peaks(CPU) as found:
        before = anonymous_bytes_of(os.getpid())
        with mmap.mmap(-1, 2**26) as block:
            block.write(b"x" * 2**26)
            time.sleep(0.5)
    assert found.peaks()["anonymous_bytes"] >= before + 2**26 - 2**22


@LINUX
def test_peak_memory_starts_anew():
    block = bytearray(b"x") * 2**28
    high = peaks_of_devices(CPU)["resident_bytes"]
    del block
    reset_peaks(CPU)
    assert peaks_of_devices(CPU)["resident_bytes"] < high - 2**27


@LINUX
def test_peak_memory_is_of_this_process_and_not_of_its_parent():
    block = bytearray(b"x") * 2**28  # more than its imports take
    code = "from bench.system.memory import peak_bytes_of_process; print(peak_bytes_of_process())"
    done = subprocess.run([sys.executable, "-c", code], cwd=environment.CHECKOUT, capture_output=True, check=True)
    assert 2**22 < int(done.stdout) < len(block)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can")
def test_freed_memory_is_kept_and_used_again():
    code = (
        "import resource, torch; from bench.system.memory import keep_freed\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): three = [torch.ones(2**22) for _ in range(3)]; del three\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults(); fresh = faults(); keep_freed(); faults(); print(fresh, faults())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=environment.CHECKOUT, capture_output=True, check=True)
    fresh, kept = map(int, done.stdout.split())
    assert kept < 2**22 * 4 / 4096  # less than one tensor's pages
    assert 10 * kept < fresh  # however large the pages of this machine are


def test_peaks_of_gpus_are_those_of_the_allocator_summed_and_each(monkeypatch):
    calls, both = [], [torch.device("cuda", number) for number in range(2)]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 + device.index)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 200 + device.index)
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    first, second = ({"allocated_bytes": 100 + n, "reserved_bytes": 200 + n} for n in range(2))
    assert peaks_of_devices(both) == {"allocated_bytes": 201, "reserved_bytes": 401, "each": [first, second]}
    assert peaks_of_devices(both[1:]) == second
    reset_peaks(both[1:])
    assert calls == ["init", both[1]]
    later = peaks_of_devices(both) | {"allocated_bytes": 1, "each": [first | {"reserved_bytes": 900}, first]}
    higher = [first | {"reserved_bytes": 900}, second]
    assert merge_peaks(peaks_of_devices(both), later) == {
        "allocated_bytes": 201,
        "reserved_bytes": 900 + 201,
        "each": higher,
    }


def test_states_may_take_an_eighth_of_what_is_free_where_there_is_least():
    """In powers of two, and with what torch holds of a GPU without using it."""
    every = [torch.device("cuda", 0), torch.device("cuda", 1)]
    with EmulatedGpus(count=2, memory=9 * 2**20) as gpus:
        assert memory.bytes_for_states(every) == 2**20
        gpus.memories[0].size = 40 * 2**20
        taken = torch.empty(2**20, device="cuda:0")  # 4 MiB of 40, and an eighth of the rest is 4.5
        assert memory.bytes_for_states(every[:1]) == 2**22
        assert memory.bytes_for_states(every) == 2**20
        gpus.memories[0].size = 35 * 2**20
        assert memory.bytes_for_states(every[:1]) == 2**21
        with mock.patch.object(torch.cuda, "memory_reserved", lambda _: 8 * 2**20):
            assert memory.bytes_for_states(every[:1]) == 2**22
        del taken


@pytest.mark.parametrize(
    ("line", "files", "wanted"),
    [
        ("0::/user/job", {"user/job/memory.max": "max", "user/memory.max": "4096"}, 4096),
        ("0::/", {"memory.max": "8192"}, 8192),  # as a container sees its own
        ("0::/gone", {"memory.max": "8192"}, 8192),
        (
            "7:blkio:/b\n4:cpu,memory:/a",
            {f"memory/{of}memory.limit_in_bytes": limit for of, limit in (("a/", 512), ("", 9000), ("b/", 7))},
            512,
        ),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("0::/", {}, None),
    ],
)
def test_the_memory_of_a_job_is_what_its_control_group_allows(line, files, wanted, tmp_path):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    (tmp_path / "of").write_text(f"{line}\n")
    whole = psutil.virtual_memory().total
    assert memory.bytes_of_host(tmp_path / "of", tmp_path / "groups") == (whole if wanted is None else wanted)
    assert memory.bytes_of_host(tmp_path / "none", tmp_path / "groups") == whole
    assert 0 < memory.bytes_of_host() <= whole


@pytest.mark.parametrize(
    ("line", "files", "wanted"),
    [
        ("0::/job", {"job/memory.max": 9000, "job/memory.current": 5000, "job/memory.stat": "inactive_file 500"}, 4500),
        ("0::/job", {"job/memory.max": 9000, "memory.max": 9500, "memory.current": 9400}, 100),
        ("0::/", {"memory.max": 9000, "memory.current": 9400}, 0),
        ("0::/", {"memory.max": 9000}, 9000),
        (
            "4:memory:/a",
            {
                "memory/a/memory.limit_in_bytes": 9000,
                "memory/a/memory.usage_in_bytes": 5000,
                "memory/a/memory.stat": "inactive_file 7\ntotal_inactive_file 500",
            },
            4500,
        ),
        ("0::/", {"memory.current": 1}, None),
    ],
)
def test_free_in_a_container_is_what_is_left_of_its_limit(line, files, wanted, tmp_path):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    (tmp_path / "of").write_text(f"{line}\n")
    found = memory.free_bytes_of_host(tmp_path / "of", tmp_path / "groups")
    assert found == wanted if wanted is not None else 2**20 < found <= psutil.virtual_memory().total
    assert memory.bytes_for_states(CPU) <= max(2**20, memory.free_bytes_of_host() // 4)
