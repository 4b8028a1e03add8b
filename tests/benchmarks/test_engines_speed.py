"""What an engine adds to each of many short jobs, on two slots.

tox -e bench -- tests/benchmarks/test_engines_speed.py
PRUNEBENCH_JOBS=1000 tox -e bench -- tests/benchmarks/test_engines_speed.py         as in README.md
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray_jobs
from engine_jobs import job, naps

from bench.engines import Ray
from bench.engines.engine import Conditions, Session
from bench.engines.local import LocalSession, environments

JOBS = int(os.environ.get("PRUNEBENCH_JOBS", "100"))
SLEEP = 0.1  # seconds of each
TESTS = Path(__file__).parents[1]


@contextmanager
def local(folder: Path) -> Iterator[Session]:
    with LocalSession(naps, environments(2, "cpu", []), fresh=False) as session:
        yield session


@contextmanager
def ray(folder: Path) -> Iterator[Session]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        patch.setenv("RAY_worker_niceness", "0")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            asked = Conditions(folder, "cpu", False, False, 1, False, work=naps, measure=ray_jobs.sleeps)
            with Ray(str(cluster.address)).start(asked) as session:
                yield session
        finally:
            cluster.shutdown()


@pytest.mark.parametrize("engine", [local, ray])
def test_overhead(engine, tmp_path, benchmark):
    def measure(session: Session, count: int) -> None:
        left, running = [job(str(number), folder=str(tmp_path), seconds=SLEEP) for number in range(count)], 0
        while left or running:
            if left and session.has_room(timed=False):
                session.submit(left.pop())
                running += 1
            else:
                assert session.next_result().found.get("status", "ok") == "ok"
                running -= 1

    with engine(tmp_path) as session:
        measure(session, 4)  # which starts the processes
        before = psutil.Process().memory_info().rss
        benchmark.pedantic(measure, args=(session, JOBS), rounds=1)
        grown = psutil.Process().memory_info().rss - before
    seconds = benchmark.stats.stats.median if benchmark.enabled else 0.0
    benchmark.extra_info |= {"overhead_per_job": 2 * seconds / JOBS - SLEEP, "driver_grew_bytes": grown}
