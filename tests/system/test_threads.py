"""How many threads there are and how many find a core to themselves, by made readings of the system's clocks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest
import torch

from bench.cli.main import main
from bench.records.run_folder import load_run
from bench.system import memory, threads
from bench.system.threads import FreeCores, set_up_threads


class CoreTimes(NamedTuple):
    """What psutil says of a core."""

    user: float
    idle: float


@pytest.fixture
def clocks(monkeypatch):
    """A machine of four cores, its seconds, and those that each core and this process have worked."""
    made = SimpleNamespace(now=100.0, busy=[0.0] * 4, own=0.0)

    def core(number):
        return CoreTimes(made.busy[number], made.now - made.busy[number])

    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [core(number) for number in range(4)])
    monkeypatch.setattr(
        psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=made.own, system=0.0))
    )

    def passes(seconds, own, others):
        """Let this process use `own` cores and other programs `others`."""
        made.now += seconds
        made.own += own * seconds
        for number in range(4):
            made.busy[number] += seconds * (own + others) / 4

    made.passes = passes
    return made


def test_cores_that_others_use_are_left_to_them(clocks):
    cores = FreeCores(4)
    for own, others, left in ((4, 0, 4), (2.7, 1.3, 3), (0.1, 3.9, 1), (1, 0.4, 4), (3, 1, 3), (4, 0.02, 4)):
        clocks.passes(2.0, own, others)
        assert cores.count_free_cores() == left


def test_never_more_than_asked_for_and_never_none(clocks):
    few = FreeCores(2)
    assert few.count_free_cores() == 2
    clocks.passes(1.0, 0.0, 4.0)
    assert few.count_free_cores() == 1
    clocks.passes(1.0, 2.0, 1.0)
    assert few.count_free_cores() == 2


def test_a_moment_that_is_too_short_to_tell_changes_nothing(clocks):
    cores = FreeCores(4)
    clocks.passes(1.0, 2.0, 2.0)
    assert cores.count_free_cores() == 2
    clocks.passes(threads.SHORTEST / 2, 4.0, 0.0)
    assert cores.count_free_cores() == 2
    clocks.passes(threads.SHORTEST / 2, 4.0, 0.0)
    assert cores.count_free_cores() == 4  # by all that has passed since the reading that counted


def test_only_cores_that_this_process_may_run_on_count(clocks, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {2, 3})
    cores = FreeCores(2)
    clocks.now += 1.0
    clocks.busy[0] += 1.0
    clocks.busy[1] += 1.0
    assert cores.count_free_cores() == 2
    clocks.now += 1.0
    clocks.busy[3] += 1.0
    assert cores.count_free_cores() == 1


def groups(folder: Path, line: str, files: dict[str, object]) -> tuple[Path, Path]:
    """Write the file that says which control groups a process is in, and theirs."""
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(f"{text}\n")
    (folder / "of").write_text(f"{line}\n")
    return folder / "of", folder / "groups"


STAT_2 = "usage_usec 9\nnr_throttled 3\nthrottled_usec 2500000"
STAT_1 = "nr_periods 9\nnr_throttled 3\nthrottled_time 1500000000"


@pytest.mark.parametrize(
    ("line", "files", "cores", "held"),
    [
        ("0::/", {"cpu.max": "400000 100000", "cpu.stat": STAT_2}, 4, 2.5),  # as a container sees its own
        ("0::/a/b", {"a/cpu.max": "150000 100000", "cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 1.5, None),
        ("0::/", {"cpu.max": "max 100000", "cpu.stat": STAT_2}, None, None),
        (
            "1:cpu,cpuacct:/a\n2:memory:/b",
            {
                "cpu/a/cpu.cfs_quota_us": 50_000,
                "cpu/a/cpu.cfs_period_us": 100_000,
                "cpu/a/cpu.stat": STAT_1,
                "cpu/cpu.cfs_quota_us": -1,
                "cpu/cpu.cfs_period_us": 100_000,
            },
            0.5,
            1.5,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": 100_000}, None, None),
        ("0::/", {}, None, None),
    ],
)
def test_a_container_says_how_much_of_the_processors_it_has(line, files, cores, held, tmp_path):
    process, folder = groups(tmp_path, line, files)
    assert memory.count_cores(process, folder) == cores
    assert memory.throttled_seconds(process, folder) == held
    assert memory.count_cores(tmp_path / "none", folder) is None


@pytest.mark.parametrize(
    ("allowed", "said", "usable", "begun"),
    [
        (4.0, {}, 4, "4"),
        (2.7, {}, 2, "2"),  # a third thread would wait in each period
        (0.5, {}, 1, "1"),
        (4.0, {"OMP_NUM_THREADS": "6"}, 4, "6"),
        (12.0, {}, 12, None),  # torch has a thread for each physical core anyway
        (99.0, {}, 16, None),
        (None, {}, 16, None),
    ],
)
def test_threads_begin_with_what_a_limit_of_time_leaves(monkeypatch, allowed, said, usable, begun):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(threads.os, "environ", dict(said))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(memory, "count_cores", lambda: allowed)
    torch.set_num_threads(3)
    set_up_threads()
    assert (threads.count_usable_cores(), threads.os.environ.get("OMP_NUM_THREADS")) == (usable, begun)
    assert torch.get_num_threads() == (3 if said or begun is None else min(3, usable))


def test_a_program_that_works_is_seen():
    """On this machine: of as many threads as it has cores, what a busy process leaves is fewer."""
    cores = FreeCores(most := len(os.sched_getaffinity(0)))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(most)]
    try:
        time.sleep(1.5)
        assert cores.count_free_cores() <= max(1, most // 2)
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_a_run_says_with_how_few_threads_each_stage_was_measured(base, tmp_path, monkeypatch):
    monkeypatch.setattr(FreeCores, "count_free_cores", lambda self: 1)
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.3", "--threads", "auto"]) == 0
    (pruned,) = [record for record in load_run(tmp_path / "run") if record.cell.method == "drop-tail"]
    assert pruned.measured.threads == dict.fromkeys(pruned.measured.seconds, 1)


def test_auto_is_of_this_machine(base, capsys):
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.3", "--threads", "auto", "--engine", "slurm"]) == 2
    assert "--threads auto looks at the cores of this machine" in capsys.readouterr().err
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.3", "--threads", "some"]) == 2
    assert "--threads" in capsys.readouterr().err
