"""A Ray cluster measures what this machine does, each cell on GPUs of its own; what it loses costs time alone.

One cluster serves all tests: a head without CPUs, and two nodes. Their GPUs are made up, which Ray does not mind.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray_jobs
from conftest import refused
from engine_jobs import job
from made_ray import MARK, MadeCluster, cells_of, made_cluster, measured, session, until
from method_source import KILL, method_source, write_helped_method
from ray_jobs import tries
from run_contents import contents

from bench.cli.main import main
from bench.engines import Ray, ray
from bench.runs import runner
from methods.errors import UserError

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("PRUNEBENCH_KILLS", "1"))


@pytest.fixture(scope="module")
def started_cluster() -> Iterator[MadeCluster]:
    with made_cluster() as made:
        yield made


@pytest.fixture
def connected(started_cluster) -> MadeCluster:
    """The cluster with a connection that tests share, since Ray starts other processes for each."""
    started_cluster.connect()
    return started_cluster


@pytest.fixture
def cluster(started_cluster) -> MadeCluster:
    """The cluster without a connection, for tests of what a run does at its beginning and its end."""
    started_cluster.disconnect()
    return started_cluster


def test_a_cell_on_a_gpu_has_a_process_of_its_own_that_sees_the_gpu_of_its_task(connected, tmp_path):
    found = []
    with session(Ray(connected.address), tmp_path, ray_jobs.tells_child, device="cuda") as started:
        for number, seconds in enumerate((0.6, 0.1, 0.4, 0.1, 0.1, 0.1)):
            if not started.has_room(timed=False):
                found += measured(started, 1).values()
                assert not psutil.pid_exists(found[-1]["child"])  # or it would hold memory of another cell's GPU
            started.submit(job(str(number), folder=tmp_path, gpus=1, seconds=seconds))
        found += measured(started, 6 - len(found)).values()
    assert [one["child_gpus"] for one in found] == [one["gpus"] for one in found]
    assert len({one["child"] for one in found}) == len(found)


def test_cells_on_gpus_have_those_of_their_own_and_cells_on_the_cpu_see_none(connected, tmp_path):
    with session(Ray(connected.address), tmp_path, ray_jobs.meets, device="cuda") as started:
        assert (started.slots, started.threads(timed=False)) == (4, 1)
        for key in "abcd":
            assert started.has_room(timed=False)
            started.submit(job(key, folder=tmp_path, gpus=1, seconds=4.0))
        assert not started.has_room(timed=False)
        found = measured(started, 4).values()  # each of which waits until all have begun
    assert len({(one["node"], one["gpus"]) for one in found}) == 4
    assert {one["gpus"] for one in found} == {"0", "1"}
    with session(Ray(connected.address, gpus_per_cell=2), tmp_path, ray_jobs.naps, device="cuda") as started:
        assert (started.slots, started.machine.gpus) == (2, 2)
        started.submit(job("both", folder=tmp_path, gpus=2, seconds=0.0))
        assert measured(started, 1)["both"]["gpus"] in ("0,1", "1,0")
    with session(Ray(connected.address, slots=3), tmp_path, ray_jobs.naps) as started:
        assert started.slots == 3
        started.submit(job("cpu", folder=tmp_path, seconds=0.0))
        found = measured(started, 1)["cpu"]
        assert (found["gpus"], found["directory"]) == ("", str(Path.cwd()))
        assert found["slots"] == 2  # of the three on its node, whose memory they share
        (tmp_path / ".seen" / "text").write_text("another run's")
        started.submit(job("sent", folder=tmp_path, seconds=0.0))
        sent = started.next_result().part
        assert [*sent] == ["cells/sent.json"]  # of a part that nobody else sees its cell is sent, and nothing else
        assert json.loads(sent["cells/sent.json"])["gpus"] == ""
    assert not (tmp_path / ".seen").exists()


def test_cells_on_the_cpu_share_a_process_that_sees_no_gpu(connected, tmp_path):
    with session(Ray(connected.address, slots=1), tmp_path, ray_jobs.tells_child) as started:
        found = []
        for key in "abc":
            started.submit(job(key, folder=tmp_path, seconds=0.0))
            found += measured(started, 1).values()
    assert {one["child_gpus"] for one in found} == {""}
    assert len({one["child"] for one in found}) < len(found)


def test_a_part_that_another_task_measures_is_lost_and_ends_no_run(connected, tmp_path):
    with session(Ray(connected.address), tmp_path, ray_jobs.is_in_use) as started:
        started.submit(job("a", folder=tmp_path))
        assert started.next_result().outcome == {"status": "lost", "error": "the part is in use"}


def test_a_timed_cell_has_its_node_to_itself(connected, tmp_path):
    with session(Ray(connected.address), tmp_path, ray_jobs.naps, timed=True) as started:
        assert started.machine.threads == 1  # as the user said; the node's CPUs are its own nevertheless
        assert started.machine.processor
        assert started.slots == 4
        for key in "ab":
            assert started.has_room(timed=True)
            started.submit(job(key, folder=tmp_path, seconds=2.0, timed=True))
        assert not started.has_room(timed=True)
        assert not started.has_room(timed=False)
        found = measured(started, 2)
        assert found["a"]["node"] != found["b"]["node"]
        assert {one["slots"] for one in found.values()} == {1}
        for key in "cde":  # more than there is room for: the third one waits
            started.submit(job(key, folder=tmp_path, seconds=1.0, timed=True))
        last = sorted(measured(started, 3).values(), key=lambda one: one["began"])
        assert any(last[2]["began"] >= one["ended"] and last[2]["node"] == one["node"] for one in last[:2])


@pytest.mark.nightly  # tests/runs/test_store.py kills runs
def test_a_node_that_is_killed_costs_time_and_no_result(connected, tmp_path):
    kind = {"num_cpus": 1, "num_gpus": 1, "resources": {"accelerator_type:made-up": 1}}
    with connected.nodes(2, **kind) as nodes:
        engine = Ray(connected.address, accelerator="made-up")
        with session(engine, tmp_path, ray_jobs.stays_once, device="cuda") as started:
            assert started.slots == 2
            started.submit(job("a", folder=tmp_path, gpus=1, seconds=0.0))
            assert until(lambda: tries(tmp_path, "a"))
            first = tries(tmp_path, "a")[0]
            connected.made.remove_node(nodes[first["node"]], allow_graceful=False)
            found = measured(started, 1)["a"]
            assert len(tries(tmp_path, "a")) == 2
            assert found["node"] in nodes
            assert found["node"] != first["node"]
            assert until(lambda: not psutil.pid_exists(first["pid"]))


@pytest.mark.nightly
@pytest.mark.parametrize("count", [1, 2])
def test_timed_cells_are_not_waited_for_where_no_node_is_left_that_times(connected, tmp_path, monkeypatch, count):
    monkeypatch.setattr(ray, "WAIT", 0.5)
    monkeypatch.setattr(ray, "NO_NODE", 2.0)
    with (
        connected.nodes(1, num_cpus=3),
        connected.nodes(count, num_cpus=3, resources={"timing": 1}) as timing,
        session(Ray(connected.address), tmp_path, ray_jobs.naps, threads=3, timed=True) as started,
    ):
        for node in timing.values():
            connected.made.remove_node(node, allow_graceful=False)
        started.submit(job("a", folder=tmp_path, threads=3, timed=True))
        with pytest.raises(UserError, match="no node is left that can take a cell"):
            started.next_result()


@pytest.mark.nightly  # tests/runs/test_store.py has cells whose processes are killed
def test_a_node_without_memory_ends_a_cell_twice_and_not_for_ever(connected, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    for pause in (5, 25):  # between two looks at the memory: a busy machine may need more of it to begin a try
        folder = tmp_path / str(pause)
        folder.mkdir()
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", str(1000 * pause))
        with connected.nodes(1, num_cpus=1, num_gpus=1, resources={"accelerator_type:small": 1}):
            engine = Ray(connected.address, accelerator="small")
            with session(engine, folder, ray_jobs.fills_memory, device="cuda") as started:
                started.submit(job("a", folder=folder, gpus=1))
                assert started.next_result().outcome["status"] == "out_of_memory"
        if (begun := len(tries(folder, "a"))) == 2:
            break
    assert begun == 2


@pytest.mark.nightly
def test_what_is_lost_again_and_again_is_lost_and_what_fails_by_itself_is_an_error(connected, tmp_path):
    with session(Ray(connected.address), tmp_path, ray_jobs.falls) as started:
        started.submit(job("a", folder=tmp_path))
        result = started.next_result()
        assert (result.outcome["status"], result.part) == ("lost", None)
        assert "after 2 more tries" in result.outcome["error"]
        assert len(tries(tmp_path, "a")) == 3
    with session(Ray(connected.address), tmp_path, ray_jobs.fails) as started:
        started.submit(job("b", folder=tmp_path))
        assert started.next_result().outcome == {"status": "error", "error": "RuntimeError: no such thing"}


def test_what_runs_when_a_session_ends_is_gone_with_its_children(cluster, tmp_path):
    with session(Ray(cluster.address), tmp_path, ray_jobs.has_child) as started:
        for key in "ab":
            started.submit(job(key, folder=tmp_path, seconds=600.0))
        assert until(lambda: len(list(tmp_path.glob("?.child"))) == 2)
        time.sleep(0.5)
        pids = [int(path.read_text()) for path in tmp_path.glob("?.child")]
        assert all(map(psutil.pid_exists, pids))
    assert until(lambda: not any(map(psutil.pid_exists, pids)))
    assert until(lambda: not cells_of(os.environ[MARK]))


def test_the_same_run_gives_the_same_as_on_this_machine_and_a_cell_that_dies_is_not_tried_again(
    cluster, base, tmp_path, capfd
):
    died = f"with Path({str(tmp_path / 'died')!r}).open('a') as file: file.write('once more ')"
    (tmp_path / "mine.py").write_text(method_source("dies", died, KILL))
    asked = [*base, "--ratio", "0.2,0.4", "--threads", "1", "--then", "shortgpt:ratio=0.7"]
    assert main([*asked, "--methods", "sleb", "--out", str(tmp_path / "here")]) == 0
    capfd.readouterr()
    more = ["--methods", "dies,sleb", "--plugin", str(tmp_path / "mine.py"), "--engine", "ray"]
    more += ["--ray-address", cluster.address, "--slots", "2", "--out", str(tmp_path / "there")]
    assert main([*asked, *more]) == 3
    said = capfd.readouterr().err
    expected, found = contents(tmp_path / "here"), contents(tmp_path / "there")
    dead = [name for name in found if name.startswith("cells/dies")]
    assert sorted(found.pop(name)["status"] for name in dead) == ["crashed", "crashed", "error", "error"]
    assert (tmp_path / "died").read_text() == "once more once more "  # once for each ratio
    assert sum(name.startswith("cells/") for name in expected) == 1 + 2 * 2
    assert found == expected
    assert "9 of 9 cells done, 0 running, 0 waiting, 4 failed" in said
    assert not (tmp_path / "there" / "parts").exists()
    strange = [line for line in said.splitlines() if not line.startswith("[") and " cells done, " not in line]
    assert [line for line in strange if "ray" in line.lower() or "raylet" in line] == []


def test_a_plugin_takes_along_what_it_imports_from_beside_it(cluster, base, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    plugin = ["--plugin", write_helped_method(tmp_path, "helped"), "--methods", "helped", "--ratio", "0.2"]
    engine = ["--engine", "ray", "--ray-address", cluster.address, "--threads", "1"]
    assert main([*base, *plugin, *engine, "--out", str(tmp_path / "run")]) == 0


def records(folder: Path) -> dict[str, int]:
    """When each record was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("cells/*.json")}


@pytest.mark.nightly
def test_a_run_that_is_killed_at_any_moment_goes_on_from_there(cluster, base, tmp_path):
    ratios = ",".join(f"{0.2 + 0.1 * number / KILLS:.4f}" for number in range(2 * KILLS))  # something is left to do
    asked = [*base, "--methods", "shortgpt", "--ratio", ratios, "--threads", "1"]
    assert main([*asked, "--out", str(tmp_path / "here")]) == 0
    folder = tmp_path / "there"
    command = [sys.executable, "-m", "bench", *asked, "--out", str(folder)]
    command += ["--engine", "ray", "--ray-address", cluster.address, "--slots", "2"]
    draw, first = random.Random(0), dict[str, int]()
    for number in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as run:
            wanted = len(first) + (draw.randrange(3) if number else 1)  # records, before it is killed
            assert until(lambda run=run, wanted=wanted: len(records(folder)) >= wanted or run.poll() is not None, 180)
            time.sleep(draw.uniform(0, 5))
            run.send_signal(signal.SIGKILL)
        assert until(lambda: not cells_of(os.environ[MARK])), "the cluster's processes go with the run's"
        stamps = records(folder)
        assert first.items() <= stamps.items()  # nothing that has a record is measured again
        first = stamps
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert first.items() <= records(folder).items()
    assert contents(folder) == contents(tmp_path / "here")


@pytest.mark.nightly
def test_asks_that_no_node_can_meet_and_nodes_of_another_kind_are_refused(cluster, base, tmp_path, capsys, monkeypatch):
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2", "--engine", "ray", "--ray-address", cluster.address]

    def refuses(*flags: str) -> str:
        said = refused(capsys, [*asked, *flags])
        assert [path.name for path in tmp_path.glob("run/*") if path.name != ".lock"] == []
        return said

    gpus = ("--device", "cuda")
    assert "--gpus-per-cell 3 is more than a node has; the largest has 2" in refuses(*gpus, "--gpus-per-cell", "3")
    assert "--accelerator H100: no node has it" in refuses(*gpus, "--accelerator", "H100")
    assert "a cell of 99 threads is more than a node has; the largest has 2" in refuses("--threads", "99")
    assert "--gpus-per-cell is of GPUs, and cells run on the CPU" in refuses("--gpus-per-cell", "2")
    overlay = tmp_path / "other"
    (overlay / "torch-1.0.0.dist-info").mkdir(parents=True)
    (overlay / "torch-1.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(overlay), os.environ["PYTHONPATH"]]))
        with cluster.nodes(1, num_cpus=1):
            said = refuses()
    assert " has torch 1.0.0 and not " in said
    assert "which the run has; install the same there" in said
    monkeypatch.setattr(runner.inputs, "sha256_of_code", lambda: "0" * 64)
    assert main(asked) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("prunebench: on node ")
    assert " and not 000000000000, which the run has; install the same there" in said
    assert list(tmp_path.glob("run/cells/*")) == []


def test_what_is_no_cluster_is_refused(cluster, base, tmp_path, capsys, monkeypatch):
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2"]
    on_ray = [*asked, "--engine", "ray", "--ray-address"]
    assert ":1 (Connection refused); start one with" in refused(capsys, [*on_ray, "127.0.0.1:1"])
    assert "--ray-address is auto or HOST:PORT; got 'here'" in refused(capsys, [*on_ray, "here"])
    with socket.create_server(("", 0)) as other, monkeypatch.context() as patch:
        patch.setattr(ray, "HEALTH", 4.0)
        port = other.getsockname()[1]
        assert f":{port} is no Ray cluster" in refused(capsys, [*on_ray, f"127.0.0.1:{port}"])
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        assert "does not accept this machine's token" in refused(capsys, [*on_ray, cluster.address])
    with monkeypatch.context() as patch:
        patch.setattr("ray._private.services.canonicalize_bootstrap_address", lambda address: None)
        said = refused(capsys, [*on_ray, "auto"])
        assert "no Ray cluster runs here; start one with `ray get-auth-token --generate; " in said
        assert "ray start --head`" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine", "ray", "--slots", "0"], "--slots is auto or a positive number; got 0"),
        (["--engine", "ray", "--gpus-per-cell", "0"], "--gpus-per-cell is "),
        (["--ray-address", "auto"], "--ray-address is for --engine ray, not for local; leave it out"),
        (["--accelerator", "H100"], "--accelerator is for --engine ray or slurm, not for local; leave it out"),
        (["--engine", "ray", "--partition", "a"], "--partition is for --engine slurm, not for ray; leave it out"),
        (["--engine", "ray", "--no-isolate"], "--engine ray measures each cell in a process of its own; leave "),
        (["--engine", "rey"], "--engine: invalid choice: 'rey'"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, said, base, capsys, tmp_path):
    assert said in refused(capsys, [*base, "--methods", "drop-tail", "--ratio", "0.2", *flags])
    assert not (tmp_path / "run").exists()


def test_who_has_not_the_package_is_told_how_to_get_it(base, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = [*base, "--methods", "drop-tail", "--ratio", "0.2", "--engine", "ray"]
    assert "pip install 'prunebench[ray]'" in refused(capsys, asked)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--slots is a positive number; got 0"):
        Ray(slots=0)
