"""What an engine adds to each of many short jobs, on two slots.

tox -e bench -- tests/benchmarks/test_engines_speed.py
PRUNEBENCH_JOBS=1000 tox -e bench -- tests/benchmarks/test_engines_speed.py         as in README.md

A job of the first test does nothing but sleep. One of the second is a whole cell of a tiny model, with its record.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray_jobs
from engine_jobs import job, naps
from made_ray import surround_cluster
from method_source import method_source

from bench.cli.main import main
from bench.engines import Ray
from bench.engines.engine import Conditions, Session
from bench.engines.local import LocalSession, environments_of_slots

JOBS = int(os.environ.get("PRUNEBENCH_JOBS", "8"))
SLEEP = 0.1  # seconds of each
DROP_TAIL = "return make('drop-tail').prune(model, calibration, ratio)"
TESTS = Path(__file__).parents[1]


@contextmanager
def local(folder: Path) -> Iterator[Session]:
    with LocalSession(naps, environments_of_slots(2, "cpu", []), fresh=False) as session:
        yield session


@contextmanager
def cluster() -> Iterator[str]:
    """Two nodes with a core each; the address."""
    with pytest.MonkeyPatch.context() as patch:
        surround_cluster(patch)
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(2):
                made.add_node(num_cpus=1)
            yield str(made.address)
        finally:
            made.shutdown()


@contextmanager
def ray(folder: Path) -> Iterator[Session]:
    asked = Conditions(folder, "cpu", False, False, 1, False, work=naps, measure=ray_jobs.sleeps)
    with cluster() as address, Ray(address).start(asked) as session:
        yield session


@pytest.mark.parametrize("engine", [local, ray])
def test_overhead(engine, tmp_path, benchmark):
    def measure(session: Session, count: int) -> None:
        left, running = [job(str(number), folder=tmp_path, seconds=SLEEP) for number in range(count)], 0
        while left or running:
            if left and session.has_room(timed=False):
                session.submit(left.pop())
                running += 1
            else:
                assert session.next_result().outcome.get("status", "ok") == "ok"
                running -= 1

    with engine(tmp_path) as session:
        measure(session, 4)  # which starts the processes
        before = psutil.Process().memory_info().rss
        benchmark.pedantic(measure, args=(session, JOBS), rounds=1)
        grown = psutil.Process().memory_info().rss - before
    seconds = benchmark.stats.stats.median if benchmark.enabled else 0.0
    benchmark.extra_info |= {"overhead_per_job": 2 * seconds / JOBS - SLEEP, "driver_grew_bytes": grown}


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_overhead_of_a_whole_run(engine, base, tmp_path, benchmark):
    plugin = tmp_path / "mine.py"
    plugin.write_text(method_source("naps", f"time.sleep({SLEEP})", DROP_TAIL))
    asked = [*base, "--methods", "naps", "--plugin", str(plugin), "--threads", "1"]
    asked += ["--ratio", ",".join(f"{0.1 + 0.6 * number / JOBS:.5f}" for number in range(JOBS)), "--slots", "2"]
    asked += ["--max-cells", str(JOBS + 1), "--texts", "none"]

    def run(*more: str) -> None:
        assert main([*asked, *more]) == 0

    before = psutil.Process().memory_info().rss
    if engine == "ray":
        with cluster() as address:
            benchmark.pedantic(run, args=("--engine", "ray", "--ray-address", address), rounds=1)
    else:
        benchmark.pedantic(run, rounds=1)
    grown = psutil.Process().memory_info().rss - before
    seconds = benchmark.stats.stats.median if benchmark.enabled else 0.0
    benchmark.extra_info |= {"overhead_per_cell": 2 * seconds / JOBS - SLEEP, "driver_grew_bytes": grown}
