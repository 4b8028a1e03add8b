"""Several cells at once give what one after the other gives, each with a GPU of its own, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import engine_jobs
import psutil
import pytest
import torch
from conftest import refused
from emulated import EmulatedGpus
from engine_jobs import dies, job, naps, refuses
from made_cells import made_cell, made_inputs
from method_source import SEGFAULT, method_source
from run_contents import contents

from bench.cli.main import main
from bench.engines.engine import Job, SearchStart, SessionNeeds
from bench.engines.local import VISIBLE, Local, LocalSession, environments_of_slots, names_of_visible_gpus, threads_of
from bench.plan.cell import Stage, TaskInput, TimedOn
from bench.plan.protocol import Recipe, protocol_of_profile
from bench.runs import runner
from bench.system.worker import Limits
from methods.errors import UserError

ROOT = Path(__file__).parents[2]


def session(work: Callable, variables: list[dict[str, str]]) -> LocalSession:
    """A session as a run on a CPU has it: its processes are forked from one that has imported."""
    return LocalSession(work, variables, fresh=False, imported=(runner.job.__name__,))


def environments_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text())["environment"] for path in (folder / "cells").glob("*.json")]


def test_two_slots_give_what_one_gives_and_a_cell_that_dies_disturbs_no_other(base, tmp_path, capfd):
    (tmp_path / "mine.py").write_text(method_source("dies", SEGFAULT))
    asked = [*base, "--ratio", "0.2,0.4", "--then", "shortgpt:ratio=0.7", "--threads", "1"]
    assert main([*asked, "--methods", "shortgpt,sleb", "--out", str(tmp_path / "one")]) == 0
    progress = [line for line in capfd.readouterr().err.splitlines() if " cells done, " in line]
    assert [line.partition(" ")[0] for line in progress] == [str(count) for count in range(1, 10)]
    assert all("; ends about " in line for line in progress[:-1])
    more = ["--methods", "dies,shortgpt,sleb", "--plugin", str(tmp_path / "mine.py"), "--slots", "2"]
    assert main([*asked, *more, "--out", str(tmp_path / "two")]) == 3
    said = capfd.readouterr().err
    expected, found = contents(tmp_path / "one"), contents(tmp_path / "two")
    dead = [name for name in found if name.startswith("cells/dies")]
    assert sorted(found.pop(name)["status"] for name in dead) == ["crashed", "crashed", "error", "error"]
    assert sum(name.startswith("cells/") for name in expected) == 1 + 2 * 4
    assert found == expected
    records = [record for record in expected.values() if isinstance(record, dict)]
    went_on = [record for record in records if record["decisions"].get("losses", [0])[0] is None]
    assert len(went_on) == 1  # of the searches of two cells one was done
    progress = [line for line in said.splitlines() if " cells done, " in line]
    assert len(progress) == 13
    assert progress[-1] == "13 of 13 cells done, 0 running, 0 waiting, 4 failed"
    assert any(" 1 running" in line for line in progress)  # when one has ended the other one runs
    assert {one.get("slots") for one in environments_of(tmp_path / "one")} == {None}
    assert {(one["slots"], one["threads"]) for one in environments_of(tmp_path / "two")} == {(2, 1)}
    assert main([*asked, *more, "--out", str(tmp_path / "two")]) == 3
    assert capfd.readouterr().err.count("has a record") == 13


@pytest.mark.nightly
def test_no_import_of_a_slot_looks_for_a_gpu():
    """From a process that has looked none may be forked, and what a slot sees is hidden behind its imports."""
    code = f"""
import torch
def looks(*_, **__):
    raise AssertionError("an import looks for a GPU")
for name in ("is_available", "device_count", "init", "_lazy_init", "get_device_capability"):
    setattr(torch.cuda, name, looks)
import {runner.job.__name__}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_that_dies_is_the_outcome_of_its_job_and_the_other_slot_goes_on(tmp_path):
    with session(dies, environments_of_slots(2, "cpu", [])) as engine:
        engine.submit(job("beside", seconds=0.0, folder=tmp_path / "go on"))
        engine.submit(job("dead"))
        dead = engine.next_result()
        assert (dead.key, dead.outcome["status"]) == ("dead", "crashed")
        assert "SIGSEGV" in dead.outcome["error"]
        engine.submit(job("next", seconds=0.0))  # in the slot of the dead one
        (tmp_path / "go on").touch()
        found = {result.key: result.outcome for result in (engine.next_result(), engine.next_result())}
        assert {key: one["status"] for key, one in found.items()} == {"beside": "ok", "next": "ok"}
        assert found["beside"]["pid"] != found["next"]["pid"]


def test_a_job_is_json_from_which_it_is_made_again():
    inputs = made_inputs(tasks={"piqa": TaskInput(1.0, "e")}, timed_on=TimedOn(None, 2))
    first = made_cell("sleb", 0.3, protocol_of_profile("smoke"), parameters={"tokens": 64, "layers": (1, 2)})
    stage = Stage("laco", {"C": 3}, 0.1, ("C",), Recipe("lora"))
    cell = replace(first, inputs=inputs, earlier=(stage,), healing=Recipe("full"), given=("tokens",))
    order = job(cell.key, cell=cell, limits=Limits(seconds=3.5), gpus=2)
    order = replace(order, search=SearchStart(("layer 3",), (5.0,)), run=replace(order.run, offload=Path("states")))
    again = Job.from_json(order.to_json())
    assert again == replace(order, cell=again.cell)
    assert again.cell.key == order.key
    assert again.cell.protocol == cell.protocol
    assert again.cell.inputs == inputs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--slots", "0"], "--slots is auto or a positive number; got 0"),
        (["--slots", "many"], "--slots is auto or a positive number; got 'many'"),
        (["--slots", "2", "--no-isolate"], "--slots needs a process for each cell that runs; leave --no-isolate out"),
    ],
)
def test_slots_that_cannot_be_are_refused(given, said, base, capsys, tmp_path):
    assert said in refused(capsys, [*base, "--methods", "drop-tail", "--ratio", "0.2", *given])
    assert not (tmp_path / "run").exists()


def test_threads_are_divided_among_the_slots(base, monkeypatch, tmp_path):
    sessions: list[LocalSession] = []

    def measured(loop):
        sessions.append(loop.session)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.CellLoop, "measure_all", measured)
    (tmp_path / "spec.yaml").write_text("slots: 3\n")
    arguments = [*base, "--methods", "drop-tail", "--ratio", "0.2"]
    assert main([*arguments, "--spec", str(tmp_path / "spec.yaml")]) == 130
    assert (sessions[-1].slots, sessions[-1].threads(timed=False)) == (3, 1)
    assert main([*arguments, "--slots", "auto"]) == 130
    assert sessions[-1].slots == 1


def test_every_slot_has_a_gpu_of_its_own_and_cells_of_the_cpu_see_none(monkeypatch):
    assert [slot[VISIBLE] for slot in environments_of_slots("auto", "cuda", ["4", "7"])] == ["4", "7"]
    assert [slot[VISIBLE] for slot in environments_of_slots(2, "cuda", ["4", "7", "8"])] == ["4", "7"]
    assert [slot[VISIBLE] for slot in environments_of_slots(3, "cpu", ["4", "7"])] == ["", "", ""]
    for one in (
        environments_of_slots(1, "cuda", ["4"]),
        environments_of_slots("auto", "cpu", []),
        environments_of_slots("auto", "cuda:1", ["4"]),
    ):
        assert one == [{}]  # which sees what the run sees
    with pytest.raises(UserError, match="--slots 3 is more than the 2 GPUs here"):
        environments_of_slots(3, "cuda", ["4", "7"])
    assert [slot[VISIBLE] for slot in environments_of_slots("auto", "cuda", ["4", "7", "8", "9", "1"], 2)] == [
        "4,7",
        "8,9",
    ]
    assert environments_of_slots("auto", "cuda", ["4", "7", "8"], 2) == [{}]
    for asked, device, each, said in (
        (2, "cuda", 2, "of which each has 2 of its own"),
        (1, "cuda", 4, "--gpus-per-cell 4 is more than the 3 GPUs here"),
        (1, "cpu", 2, "cells run on the CPU"),
        (1, "cuda:1", 2, "give --device cuda"),
    ):
        with pytest.raises(UserError, match=said):
            environments_of_slots(asked, device, ["4", "7", "8"], each)
    with pytest.raises(UserError, match="give --device cuda and not cuda:1"):
        environments_of_slots(2, "cuda:1", ["4", "7"])
    monkeypatch.setenv(VISIBLE, "GPU-5a, 3")
    assert names_of_visible_gpus(2) == ["GPU-5a", "3"]
    monkeypatch.setenv(VISIBLE, "MIG-a,MIG-b")
    assert (names_of_visible_gpus(1), names_of_visible_gpus(0)) == (
        ["MIG-a", "MIG-b"],
        [],
    )  # of which each process sees the first one
    with pytest.raises(UserError, match="a process sees one MIG instance"):
        environments_of_slots(1, "cuda", names_of_visible_gpus(1), 2)
    monkeypatch.delenv(VISIBLE)
    assert names_of_visible_gpus(2) == ["0", "1"]
    assert [threads_of(2, 8, None), threads_of(16, 8, None), threads_of(2, 8, 8)] == [4, 1, 8]
    with session(naps, environments_of_slots(2, "cuda", ["4", "7"])) as engine:
        for key in ("a", "b"):
            engine.submit(job(key, seconds=0.2))
        assert {engine.next_result().outcome["gpus"] for _ in range(2)} == {"4", "7"}
    assert VISIBLE not in os.environ


@pytest.mark.parametrize(
    ("engine", "timed", "refused_with"),
    [
        (Local("auto"), True, "cells would be timed on unlike GPUs: A; B; name those of one kind in CUDA_VISIBLE_DEV"),
        (Local(2), True, "unlike GPUs: A; B; "),
        (Local(2, gpus_per_cell=2), True, ""),
        (Local(2), False, ""),
        (Local(1), True, ""),
    ],
)
def test_slots_on_gpus_of_several_kinds_time_no_cells(engine, timed, refused_with, tmp_path, monkeypatch):
    """Any slot may get any cell, whose record is to say on which processor cells are timed."""
    how = {"fresh": False, "threads": None, "models": False, "work": naps, "measure": naps}
    with EmulatedGpus(count=4):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="ABAB"[device.index or 0])
        )
        refuses_them = pytest.raises(UserError, match=refused_with) if refused_with else nullcontext()
        with refuses_them, engine.start(SessionNeeds(tmp_path, "cuda", timed, **how)):
            pass


def test_nothing_works_beside_a_cell_while_it_is_timed():
    with session(naps, environments_of_slots(3, "cpu", [])) as engine:
        engine.submit(job("long", seconds=1.0))
        for key in ("timed", "timed too"):
            engine.submit(job(key, seconds=0.0, timed=True))
        assert not engine.has_room(timed=False)  # for want of a slot
        found = {result.key: result.outcome for result in (engine.next_result() for _ in range(3))}
        assert engine.has_room(timed=True)
        (began, ended), (also_began, also_ended) = sorted(found[key]["alone"] for key in ("timed", "timed too"))
        assert found["long"]["ended"] <= began < ended <= also_began
        assert found["timed"]["ended"] >= also_ended  # whoever was first has waited for the other one
        assert found["timed too"]["ended"] >= also_ended


def test_a_cell_that_dies_while_others_wait_to_be_timed_lets_them_go_on():
    with session(dies, environments_of_slots(2, "cpu", [])) as engine:
        engine.submit(job("timed", seconds=0.0, timed=True))
        engine.submit(job("dead"))
        found = {result.key: result.outcome["status"] for result in (engine.next_result() for _ in range(2))}
        assert found == {"timed": "ok", "dead": "crashed"}


def test_waiting_to_be_timed_counts_for_no_limit():
    with session(naps, environments_of_slots(2, "cpu", [])) as engine:
        for key in ("a", "b"):  # the processes start
            engine.submit(job(key, seconds=0.0))
        assert {engine.next_result().outcome["status"] for _ in range(2)} == {"ok"}
        engine.submit(job("long", seconds=4.0))
        engine.submit(job("timed", seconds=0.0, timed=True, limits=Limits(seconds=3.5)))
        found = {result.key: result.outcome for result in (engine.next_result() for _ in range(2))}
        assert found["timed"]["status"] == "ok"
        assert found["timed"]["ended"] - found["timed"]["began"] > 3.5


def test_a_mistake_that_is_no_cells_alone_ends_every_slot():
    refused_alike, two = pytest.raises(UserError, match="there is no such text"), environments_of_slots(2, "cpu", [])
    with refused_alike, session(refuses, two) as engine:
        engine.submit(job("a", seconds=0.0))
        running = engine.next_result().outcome["pid"]
        engine.submit(job("b", seconds=600.0))
        engine.submit(job("wrong"))
        engine.next_result()
    assert not psutil.pid_exists(running)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_leaves_no_process(how):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    run = subprocess.Popen(
        [sys.executable, engine_jobs.__file__],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    try:
        slots = [int(number) for number in run.stdout.readline().split()]
        assert len(set(slots)) == 2
        assert all(map(psutil.pid_exists, slots))
        run.send_signal(how)
        assert run.wait(30) != 0
        until = time.monotonic() + 30
        while any(map(psutil.pid_exists, slots)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(psutil.pid_exists, slots))
    finally:
        run.kill()
        run.wait()
