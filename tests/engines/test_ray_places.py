"""On a Ray cluster a cell's process sees the GPUs that its task was given, and holds them no longer than that."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
import ray_jobs
from engine_jobs import job
from made_ray import MadeCluster, made_cluster, measured, session

from bench.engines import Ray, ray
from methods.errors import UserError


@pytest.fixture(scope="module")
def cluster() -> Iterator[MadeCluster]:
    with made_cluster() as made:
        yield made


def test_a_cell_on_a_gpu_has_a_process_of_its_own_that_sees_the_gpu_of_its_task(cluster, tmp_path):
    found = []
    with session(Ray(cluster.address), tmp_path, ray_jobs.tells_child, device="cuda") as started:
        for number, seconds in enumerate((0.6, 0.1, 0.4, 0.1, 0.3, 0.1, 0.2, 0.1, 0.1, 0.1)):
            if not started.has_room(timed=False):
                found += measured(started, 1).values()
                assert not psutil.pid_exists(found[-1]["child"])  # or it would hold memory of another cell's GPU
            started.submit(job(str(number), folder=tmp_path, gpus=1, seconds=seconds))
        found += measured(started, 10 - len(found)).values()
    assert [one["child_gpus"] for one in found] == [one["gpus"] for one in found]
    assert len({one["child"] for one in found}) == len(found)


def test_cells_on_the_cpu_share_a_process_that_sees_no_gpu(cluster, tmp_path):
    with session(Ray(cluster.address, slots=1), tmp_path, ray_jobs.tells_child) as started:
        found = []
        for key in "abc":
            started.submit(job(key, folder=tmp_path, seconds=0.0))
            found += measured(started, 1).values()
    assert {one["child_gpus"] for one in found} == {""}
    assert len({one["child"] for one in found}) < len(found)


def test_a_part_that_another_task_measures_is_lost_and_ends_no_run(cluster, tmp_path):
    with session(Ray(cluster.address), tmp_path, ray_jobs.is_in_use) as started:
        started.submit(job("a", folder=tmp_path))
        assert started.next_result().outcome == {"status": "lost", "error": "the part is in use"}


@pytest.mark.parametrize("count", [1, 2])
def test_timed_cells_are_not_waited_for_where_no_node_is_left_that_times(cluster, tmp_path, monkeypatch, count):
    monkeypatch.setattr(ray, "WAIT", 0.5)
    monkeypatch.setattr(ray, "NO_NODE", 2.0)
    with (
        cluster.nodes(1, num_cpus=3),
        cluster.nodes(count, num_cpus=3, resources={"timing": 1}) as timing,
        session(Ray(cluster.address), tmp_path, ray_jobs.naps, threads=3, timed=True) as started,
    ):
        for node in timing.values():
            cluster.made.remove_node(node, allow_graceful=False)
        started.submit(job("a", folder=tmp_path, threads=3, timed=True))
        with pytest.raises(UserError, match="no node is left that can take a cell"):
            started.next_result()
