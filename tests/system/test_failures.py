"""A process that is killed has run out of memory where the system says so, and has crashed otherwise."""

from __future__ import annotations

import os
import signal

import pytest

from bench.system import failures, worker


def killed(line, counters, count):
    """Kill this process by SIGKILL once the system's counter stands at `count`."""
    counters.write_text(f"pgfault 7\noom_kill {count}\n")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("count", "status"), [(4, "out_of_memory"), (3, "crashed")])
def test_sigkill_is_lack_of_memory_where_the_system_has_counted_it(tmp_path, monkeypatch, count, status):
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 5\noom_kill 3\n")
    monkeypatch.setattr(failures, "COUNTERS", counters)
    limits = worker.Limits(silence=60)
    failure = worker.run(killed, (counters, count), limits=limits, hear=print)
    assert failure is not None
    assert failure.status == status
    assert "SIGKILL" in failure.reason


@pytest.mark.parametrize("said", ["pgfault 5", "oom_kill many", "odd"])
def test_sigkill_is_taken_for_lack_of_memory_where_the_system_does_not_say(tmp_path, monkeypatch, said):
    monkeypatch.setattr(failures, "COUNTERS", tmp_path / "vmstat")
    assert failures.count_kills() is None
    (tmp_path / "vmstat").write_text(f"{said}\n")
    assert failures.count_kills() is None
    assert failures.failure_of_death(-signal.SIGKILL, "there", None).status == "out_of_memory"
    assert failures.failure_of_death(-signal.SIGSEGV, "there", None).status == "crashed"
    assert failures.failure_of_death(7, "there", None).reason == "the process ended with code 7 there"
