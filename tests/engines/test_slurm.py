"""Cells that Slurm runs are those of a local run, each measured once, whatever happens to the run or to a node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked
import psutil
import pytest
import torch
from conftest import refused
from engine_jobs import job
from made_cells import made_cell
from made_slurm import Enough, MadeSlurm, wait_a_little
from method_source import KILL, SHORTGPT, method_source, write_helped_method
from run_contents import contents
from slurm_jobs import session_needs

from bench import engines
from bench.cli.main import main
from bench.engines.engine import PARTS, Machine
from bench.engines.slurm import ELEMENTS, LOGS, Slurm
from bench.engines.slurm_queue import ProcessQueue
from bench.plan.protocol import protocol_of_profile
from bench.runs.job import run_job_text
from bench.system import environment
from methods.errors import UserError

ROOT = Path(__file__).parents[2]
HERE = Slurm(cluster="local", slots=2)
DRIVER = """
import sys
from pathlib import Path
from engine_jobs import job
from slurm_jobs import session_needs
from bench.engines.slurm import Slurm

with Slurm(cluster="local", slots=3).start(session_needs(Path(sys.argv[1]))) as session:
    for key, seconds in (("first", 0.0), ("second", 6.0), ("third", 6.0)):
        session.submit(job(key, seconds=seconds))
    print(session.next_result().key, flush=True)
    session.next_result()
"""
CLI = """
import sys
from bench.cli.main import main
from bench import engines
from bench.engines.slurm import Slurm

engines.engine_of_spec = lambda spec: Slurm(cluster="local", slots=2)
sys.exit(main(sys.argv[1:]))
"""
NOTED = "with Path(os.environ['NOTED']).open('a') as file: file.write(f'{ratio}\\n')"
MINE = method_source("sleeps", NOTED, "time.sleep(8)", SHORTGPT) + method_source("dies", KILL)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """What other processes import is found there."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


@pytest.fixture
def made(tmp_path, monkeypatch):
    return MadeSlurm.put_in_place(monkeypatch, tmp_path / "slurm")


def processes_of(folder: Path) -> list[psutil.Process]:
    """What runs for a run in this folder."""
    found = []
    for one in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(one.info["cmdline"] or ())
        if str(folder) in line and "submitit" in line and one.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(one)
    return found


def begun(folder: Path) -> list[str]:
    return sorted((folder / "begun").read_text().split())


class ForkedQueue(ProcessQueue):
    """Starts processes as submitit does, but from the server of the tests: torch is imported in none of them anew."""

    def submit(self, calls, needs):
        self.started = [*getattr(self, "started", ()), *(forked.start(*call) for call in calls)]
        return [str(process.pid) for process in self.started[-len(calls) :]]

    def list_waiting(self):
        return {str(process.pid): "" for process in self.started if process.is_alive()}

    def cancel(self, names):
        for process in self.started:
            if str(process.pid) in names:
                process.kill()
        return ()


def test_a_run_through_slurm_is_the_local_one_and_a_cell_that_dies_is_an_outcome(base, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("PYTHONPATH")  # so that the environment is that of the server, and processes are forked
    (tmp_path / "mine.py").write_text(MINE)
    asked = [*base, "--ratio", "0.2", "--threads", "1", "--save-models", "--plugin", str(tmp_path / "mine.py")]
    asked += ["--methods", "shortgpt,dies", "--then", "shortgpt:ratio=0.6"]
    assert main([*asked, "--isolate", "--out", str(tmp_path / "here")]) == 3
    capfd.readouterr()
    monkeypatch.setattr(engines, "engine_of_spec", lambda spec: HERE)
    monkeypatch.setattr("bench.engines.slurm.ProcessQueue", ForkedQueue)
    assert main([*asked, "--out", str(tmp_path / "there")]) == 3
    found = contents(tmp_path / "there")
    assert found == contents(tmp_path / "here")
    assert sorted(one["status"] for one in found.values() if isinstance(one, dict)) == [
        *("crashed", "error", "ok", "ok", "ok"),
    ]
    assert not (tmp_path / "there" / PARTS).exists()
    out, said = capfd.readouterr()
    assert "submitit" not in out + said


def test_a_plugin_takes_along_what_it_imports_from_beside_it(base, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.syspath_prepend(tmp_path)
    plugin = ["--plugin", write_helped_method(tmp_path, "helped"), "--methods", "helped", "--ratio", "0.2"]
    monkeypatch.setattr(engines, "engine_of_spec", lambda spec: HERE)
    monkeypatch.setattr("bench.engines.slurm.ProcessQueue", ForkedQueue)
    assert main([*base, *plugin, "--threads", "1", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.nightly
def test_a_run_that_is_killed_goes_on_and_measures_nothing_twice(base, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setenv("NOTED", str(tmp_path / "noted"))
    run = tmp_path / "run"
    asked = [*base, "--methods", "sleeps", "--ratio", "0.2", "--plugin", str(tmp_path / "mine.py"), "--threads", "1"]
    driver = subprocess.Popen([sys.executable, "-c", CLI, *asked], stderr=subprocess.DEVNULL)
    while not (tmp_path / "noted").exists():
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert processes_of(run)
    subprocess.run([sys.executable, "-c", CLI, *asked], stderr=subprocess.DEVNULL, check=True)
    assert len((tmp_path / "noted").read_text().split()) == 1
    assert sum(name.startswith("cells/") for name in contents(run)) == 2
    _, left = psutil.wait_procs(processes_of(run), timeout=60.0)  # an element ends after its part is taken in
    assert not left
    assert not (run / PARTS).exists()


def test_elements_of_a_run_that_was_killed_are_waited_for(tmp_path):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "first\n"
    driver.kill()
    driver.wait()
    with replace(HERE, slots=3).start(session_needs(tmp_path)) as session:
        for key, seconds in (("first", 0.0), ("second", 6.0), ("third", 6.0)):
            session.submit(replace(job(key, seconds=seconds), title="[2/7] of a longer list"))
        assert {session.next_result().key for _ in range(3)} == {"first", "second", "third"}
        assert begun(tmp_path) == ["first", "second", "third"]
        session.submit(job("second", seconds=6.0, keep_model=True))  # whose part has no model
        assert not session.has_room(timed=True)
        time.sleep(1)
    assert not processes_of(tmp_path)
    with HERE.start(session_needs(tmp_path)) as session:
        session.submit(job("second", seconds=0.0, keep_model=True))  # otherwise than before
        assert session.next_result().key == "second"
    assert begun(tmp_path)[:2] == ["first", "second"]


def test_whatever_leaves_no_record_is_lost_and_says_what_it_said_last(tmp_path):
    with HERE.start(session_needs(tmp_path)) as session:
        for key in ("dead", "broken"):
            session.submit(job(key))
        assert not session.has_room(timed=False)
        found = {result.key: result.outcome for result in (session.next_result(), session.next_result())}
    assert {one["status"] for one in found.values()} == {"lost"}
    assert found["broken"]["error"].endswith("has left no record; RuntimeError: what nobody has foreseen")
    assert list((tmp_path / PARTS / LOGS).glob("*.err"))
    with HERE.start(session_needs(tmp_path)) as session:  # as with --retry-failed
        session.submit(job("dead"))
        assert session.next_result().outcome["status"] == "lost"
    assert begun(tmp_path) == ["broken", "dead", "dead"]


def test_a_mistake_that_is_no_cells_alone_ends_the_run_and_is_forgotten_when_it_is_mended(tmp_path):
    refused_alike = pytest.raises(UserError, match="there is no such text")
    with refused_alike, HERE.start(session_needs(tmp_path)) as session:
        session.submit(job("beside", seconds=600.0))
        session.submit(job("wrong"))
        session.next_result()
    _, left = psutil.wait_procs(processes_of(tmp_path), timeout=60.0)  # the one that is refused ends by itself
    assert not left
    (tmp_path / "right").touch()
    with HERE.start(session_needs(tmp_path)) as session:
        session.submit(job("wrong"))
        result = session.next_result()
        assert (result.key, result.part) == ("wrong", tmp_path / PARTS / "wrong")


def test_what_sbatch_is_given(made, tmp_path):
    options = {"time": "120", "account": "abc", "mem_per_cpu": "4G"}
    engine = Slurm("gpu", gpus_per_cell=2, accelerator="h100", slots=5, options=options)
    with engine.start(session_needs(tmp_path, device="cuda", threads=4)) as session:
        assert session.machine.gpus == 2  # which the run asks for each job
        for key in ("a", "b", "c"):
            session.submit(job(key, gpus=2, threads=4, timed=key == "c"))
        assert session.has_room(timed=True)  # on a node of its own
        made.place.joinpath("states/77_1").write_text("COMPLETED\n")
        with pytest.raises(Enough):
            wait_a_little(session)
        session.submit(job("d", threads=4))
        with pytest.raises(Enough):
            wait_a_little(session)
        session.submit(job("e", threads=4))
        assert not session.has_room(timed=False)
    alike = {
        **{"job-name": "prunebench", "nodes": "1", "requeue": "", "partition": "gpu", "cpus-per-task": "4"},
        **{"time": "120", "account": "abc", "mem-per-cpu": "4G"},
    }
    assert made.asked(77) == alike | {"gpus-per-node": "h100:2", "array": "0-1%2"}
    assert made.asked(78) == alike | {"gpus-per-node": "h100:2", "exclusive": ""}
    assert made.asked(79) == alike
    assert "srun" not in (made.place / "77.sh").read_text()
    assert made.cancelled() == {"77_0", "77_1", "78", "79"}
    known = json.loads((tmp_path / PARTS / LOGS / ELEMENTS).read_text())
    assert known["b"] == {"cluster": "slurm", "id": "77_1"}
    plain = replace(engine, gpus_per_cell=1, accelerator=None, slots=None, options={}, partition=None)
    with plain.start(session_needs(tmp_path / "plain", threads=None)) as session:
        assert (session.slots, session.threads(timed=False)) == (1000, 8)
        session.submit(job("a", threads=8))
        with pytest.raises(Enough):
            wait_a_little(session)
    assert set(made.asked(80)) == {"job-name", "nodes", "requeue", "cpus-per-task"}  # no time of submitit's, no wckey


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ("TIMEOUT", "timed_out", "Slurm ended it at the time limit of its job; --slurm time=MINUTES sets another"),
        ("OUT_OF_MEMORY", "out_of_memory", "which took more memory than its job has"),
        ("NODE_FAIL", "lost", "its job 77 has left no record, Slurm says NODE_FAIL; its log is empty"),
        ("CANCELLED by 1000", "lost", "Slurm says CANCELLED;"),
        ("", "lost", "its job 77 has left no record; its log is empty"),
    ],
)
def test_slurms_word_for_an_end_is_the_status(made, tmp_path, state, status, said):
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        made.place.joinpath("down").touch()  # when nothing can be said of what is in the queue
        with pytest.raises(Enough):
            wait_a_little(session)
        made.ends("77", state)
        with pytest.raises(Enough):
            wait_a_little(session)
        made.place.joinpath("down").unlink()
        found = session.next_result().outcome
    assert (found["status"], said in found["error"]) == (status, True)
    assert made.cancelled() == set()


def test_an_array_of_slurm_measures_its_elements_and_one_that_was_cancelled_is_submitted_again(made, tmp_path):
    with Slurm().start(session_needs(tmp_path)) as session:
        session.submit(job("a"))
        with pytest.raises(Enough):
            wait_a_little(session)
    assert made.cancelled() == {"77"}
    made.place.joinpath("held").unlink()
    with Slurm().start(session_needs(tmp_path)) as session:
        assert session.machine == Machine(None, 1, queues=True)
        for key in ("a", "b", "c"):
            session.submit(job(key))
        assert {session.next_result().key for _ in range(3)} == {"a", "b", "c"}
    assert made.asked(78)["array"] == "0-1%2"  # b and c, while it was seen that a is gone
    assert begun(tmp_path) == ["a", "b", "c"]


def test_timed_cells_stand_on_what_a_node_says_it_is(tmp_path, capsys):
    alone = Slurm(cluster="local", slots=2)
    with alone.start(session_needs(tmp_path, timed=True, threads=None)) as session:
        assert session.machine.processor == environment.name_of_processor(torch.device("cpu"))
        assert session.machine.threads >= 1
        assert "a node is asked what it is" in capsys.readouterr().err
        session.submit(job("a", timed=True))
        assert not session.has_room(timed=False)
    assert not (tmp_path / PARTS / ".machine").exists()
    with alone.start(session_needs(tmp_path)) as session:
        assert session.machine == Machine(None, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--engine", "slurm", "--slurm", "tme=3"],
            "--slurm tme=...: there is no such option here; there are account,",
        ),
        (
            ["--engine", "slurm", "--slurm", "partition=a"],
            "--slurm partition=...: there is no such option here; say --par",
        ),
        (["--engine", "slurm", "--slurm", "time"], "--slurm is NAME=VALUE, as in time=120; got 'time'"),
        (["--engine", "slurm", "--slurm", "time="], "--slurm is NAME=VALUE, as in time=120; got 'time='"),
        (
            ["--engine", "slurm", "--slurm", "mem-per-cpu=64G", "--slurm", "mem_per_cpu=8G"],
            "--slurm mem_per_cpu= is given twice, as '64G' and '8G'; say one",
        ),
        (["--engine", "slurm", "--slots", "0"], "--slots is auto or a positive number; got 0"),
        (
            ["--engine", "slurm", "--ray-address", "auto"],
            "--ray-address is for --engine ray, not for slurm; leave it out",
        ),
        (
            ["--gpus-per-cell", "2"],
            "--gpus-per-cell is of GPUs, and cells run on the CPU; leave it out, or say --device",
        ),
        (["--partition", "gpu"], "--partition is for --engine slurm, not for local; leave it out"),
        (["--slurm", "time=3"], "--slurm is for --engine slurm, not for local; leave it out"),
        (["--engine", "slurm"], "--engine slurm: there is no sbatch on this machine; run it where Slurm takes jobs"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(given, said, base, capsys, tmp_path):
    assert shutil.which("sbatch") is None
    assert said in refused(capsys, [*base, "--methods", "shortgpt", "--ratio", "0.2", *given])
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(base, capsys, monkeypatch):
    monkeypatch.setattr("bench.engines.slurm.find_spec", lambda name: None)
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2", "--engine", "slurm", "--partition", "gpu"]
    assert "pip install 'prunebench[slurm]'" in refused(capsys, asked)


def test_what_slurm_refuses_and_gpus_of_cells_on_the_cpu_end_the_run(made, base, capsys, tmp_path):
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2", "--engine", "slurm"]
    assert "cells run on the CPU; leave it out, or say --device cuda" in refused(
        capsys, [*asked, "--gpus-per-cell", "2"]
    )
    command = made.place / "bin" / "sbatch"
    command.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    assert main([*asked, "--partition", "gpu"]) == 2
    said = capsys.readouterr().err
    assert "prunebench: sbatch takes no cells: sbatch: error: invalid partition specified: gpu; see --partition" in said


def test_a_part_of_another_run_is_refused(tmp_path):
    cell = made_cell("shortgpt", 0.3, protocol_of_profile("smoke"))
    other = tmp_path / PARTS / cell.key / "cells" / "laco--0.3--1234.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    refused_alike = pytest.raises(UserError, match="belongs to another run, it holds laco--0")
    with refused_alike, HERE.start(session_needs(tmp_path, measure=run_job_text)) as session:
        session.submit(job(cell.key, cell=cell))
        session.next_result()
    assert other.exists()
