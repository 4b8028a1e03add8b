"""The plan of a run says what a run does, by the schedule that the run has, and changes nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import psutil
import pytest
import torch
from conftest import refused
from emulated import EmulatedGpus
from made_cells import made_cell, made_inputs

from bench.cli import run as command_of_run
from bench.cli.main import main
from bench.engines import local
from bench.plan.cell import Cell, Stage
from bench.plan.protocol import protocol_of_profile
from bench.plan.run_spec import RunSpec
from bench.records.record import load
from bench.runs import plan as planning
from bench.runs.plan import plan_spec, simulate
from bench.schedule import memory_needs
from bench.schedule.data_sheets import DATA_SHEETS
from bench.schedule.estimate import Estimate
from bench.schedule.memory_needs import MemoryNeeds
from bench.schedule.order import CellEnd
from methods.errors import UserError

UNTIMED = protocol_of_profile("smoke", speed_rounds=0)
SMALL = MemoryNeeds(0, 2**20)


def cell(method: str, ratio: float | None = 0.2, **changes) -> Cell:
    made = made_cell(method, ratio, UNTIMED, parameters={"tokens": 64}, inputs=made_inputs())
    return replace(made, **changes)


def planned(cells, seconds, slots=1, done=(), **changes):
    estimates = {one.key: Estimate({"tasks": took}, "") for one, took in zip(cells, seconds, strict=True)}
    needs = {one.key: SMALL for one in cells} | changes.pop("needs", {})
    ended = {one.key: CellEnd("ok") for one in done}
    return simulate(cells, ended, estimates, slots=slots, needs=needs, **changes)


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_a_run_ends_no_sooner_than_its_longest_cell_and_its_share_of_all(slots):
    cells = [cell("flap", seed=seed) for seed in range(20)]
    seconds = [1.0 + (7 * seed) % 13 for seed in range(20)]
    plan = planned(cells, seconds, slots)
    assert plan.seconds >= max(*seconds, sum(seconds) / slots) - 1e-9
    assert plan.seconds <= sum(seconds) / slots + max(seconds)
    assert len(plan.slots) == slots
    assert sum(one.end - one.begin for one in plan.cells) == pytest.approx(sum(seconds))
    by_slot: dict[int, list] = {}
    for one in sorted(plan.cells, key=lambda one: one.begin):
        assert not by_slot.get(one.slot) or by_slot[one.slot][-1].end <= one.begin
        by_slot.setdefault(one.slot, []).append(one)


def test_the_longest_is_first_where_several_run_at_once_and_the_order_stays_where_one_does():
    cells = [cell("flap"), cell("magnitude"), cell("shortgpt")]
    assert [one.begin for one in planned(cells, [1, 5, 9], 1).cells] == [0, 1, 6]
    plan = planned(cells, [1, 5, 9], 2)
    assert [one.begin for one in plan.cells] == [5, 0, 0]
    assert plan.seconds == 9


def test_what_others_wait_for_counts_with_them_and_comes_in_front_of_them():
    parent = cell("shortgpt", 0.1)
    child = cell("laco", 0.3, earlier=(Stage("shortgpt", {"tokens": 64}, 0.1),))
    child = replace(child, inputs=made_inputs(parent=parent.key))
    searches = [cell("sleb", 0.1), cell("sleb", 0.2)]
    cells = [cell("flap"), parent, child, *searches]
    plan = planned(cells, [6, 1, 9, 2, 3], 2)
    flap, first, behind, search, further = plan.cells
    assert first.begin == 0.0  # with what goes on from it ten seconds
    assert behind.begin >= first.end
    assert further.begin >= search.end
    assert (behind.after, further.after) == ("shortgpt at 0.1", "sleb at 0.1")
    assert flap.begin == 0.0


def test_of_timed_cells_the_timing_alone_comes_one_after_the_other():
    cells = [cell("flap"), cell("magnitude"), cell("shortgpt")]
    stages = ({"tasks": 4.0, "speed": 1.0}, {"tasks": 6.0, "speed": 2.0}, {"tasks": 3.0})
    estimates = {one.key: Estimate(each, "") for one, each in zip(cells, stages, strict=True)}
    needs = {one.key: SMALL for one in cells}
    plan = simulate(cells, {}, estimates, slots=2, needs=needs)
    second, first, third = plan.cells
    assert (first.begin, second.begin) == (0.0, 0.0)
    assert first.end == second.end == 6 + 1 + 2  # who comes to the timing first waits, and all leave together
    assert (third.begin, plan.seconds) == (9.0, 12.0)
    elsewhere = simulate(cells, {}, estimates, slots=2, needs=needs, is_here=False)
    assert elsewhere.seconds == 8.0  # on nodes of their own


def test_what_is_done_takes_nothing_and_a_slot_reads_its_texts_before_its_first_cell():
    cells = [cell("flap"), cell("magnitude"), cell("shortgpt")]
    plan = planned(cells, [1, 5, 9], done=cells[1:2], start=10.0)
    assert [one.done for one in plan.cells] == ["", "ok", ""]
    assert plan.seconds == 10 + 1 + 9


def test_slots_that_do_not_fit_together_are_named(monkeypatch):
    cells, there = [cell("flap"), cell("magnitude")], psutil.virtual_memory().total
    monkeypatch.setattr(planning, "find_misfits", lambda *_, **__: [])  # each fits alone
    needs = {one.key: MemoryNeeds(0, int(0.6 * there)) for one in cells}
    spec = RunSpec("flap,magnitude", ratios=[0.2])
    assert planning.remarks_on_memory(cells, needs, spec, 1, memory=1.0) == []
    (said,) = planning.remarks_on_memory(cells, needs, spec, 2, memory=1.0)
    assert said.startswith("2 slots may need ")
    assert " and the machine has " in said


def test_a_plan_says_what_the_run_refuses(base, capsys):
    asked = [*base, "--methods", "laco", "--ratio", "0.3", "--memory", "0.5"]
    said = refused(capsys, asked)
    assert "with its weights in files, and may take 0.5 GiB; leave it out" in said
    assert main([*asked, "--plan"]) == 0
    assert said.strip().partition(": ")[2] in capsys.readouterr().err


def test_the_command_says_what_is_done_and_writes_nothing(base, tmp_path, capsys):
    asked = [*base, "--methods", "shortgpt,sleb", "--ratio", "0.2,0.4"]
    run = tmp_path / "run"
    assert main([*asked, "--plan"]) == 0
    first = capsys.readouterr().out
    assert not run.exists()
    assert "5 of 5 cells are to be measured, which takes about " in first
    assert "sleb at 0.2" in first  # for which the next one waits
    assert main([*base, "--methods", "shortgpt,sleb", "--ratio", "0.2"]) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main([*asked, "--plan", "--slots", "2"]) == 0
    second = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "2 of 5 cells are to be measured" in second
    assert second.count("has a record: ok") == 3
    assert sum(" measured " in f"{line} " and line.startswith("s") for line in second.splitlines()) >= 2
    assert "slot 2" in second


def test_an_estimate_is_what_the_records_beside_the_run_took(base, tmp_path, capsys):
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2"]
    assert main(asked) == 0
    took = 1000.0
    for path in (tmp_path / "run" / "cells").glob("*.json"):
        plain = json.loads(path.read_text())
        plain["measured"]["seconds"] = {name: took for name in plain["measured"]["seconds"]}
        if "prune_seconds" in plain["measured"]:
            plain["measured"]["prune_seconds"] = took
        path.write_text(json.dumps(plain))
        assert load(path).measured.seconds
    shutil.move(tmp_path / "run", tmp_path / "earlier")
    capsys.readouterr()
    assert main([*asked, "--plan"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if " measured" in line}
    assert "33 min" in lines["dense"]  # load and perplexity
    assert "50 min" in lines["shortgpt"]


def test_a_plan_for_a_data_sheet_goes_by_its_rates_and_memory(base, tmp_path, capsys, monkeypatch):
    arguments = [*base, "--methods", "shortgpt", "--ratio", "0.2"]
    assert main(arguments) == 0  # records of this machine, which say nothing of another
    (tmp_path / "run").rename(tmp_path / "earlier")
    capsys.readouterr()
    arguments += ["--device", "cuda"]
    memories = list[float]()
    monkeypatch.setattr(planning, "find_misfits", lambda *limits, **_: memories.append(limits[3]) or [])
    assert main([*arguments, "--plan", "h100"]) == 0
    assert memories == [80e9 / 2**30]
    printed = capsys.readouterr()
    assert "On one H100 SXM, and not measured: by 35% of the arithmetic and 70% of the bandwidth" in printed.out
    assert " measured " not in printed.out.partition("to be measured")[0]
    assert "device" in printed.out  # the memory of a GPU that is not here


def test_rates_of_a_data_sheet_are_shares_of_it():
    card = DATA_SHEETS["h100"]
    assert card.rates(torch.bfloat16).macs == pytest.approx(0.35 * 989e12 / 2)
    assert card.rates(torch.float32).macs == card.rates(torch.float32).exact == pytest.approx(0.35 * 67e12 / 2)
    assert card.rates(torch.float16).bytes == pytest.approx(0.7 * 3.35e12)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--plan", "h10"], "did you mean h100?"),
        (["--plan", "h100", "--device", "cpu"], "is for --device cuda, not for cpu"),
        (["--plan", "h100", "--engine", "ray"], "leave --engine ray out"),
    ],
)
def test_a_card_that_cannot_be_planned_for_is_refused(flags, words, capsys):
    assert words in refused(capsys, ["run", "--methods", "shortgpt", "--ratio", "0.2", *flags])


def test_the_flag_names_every_card():
    assert tuple(DATA_SHEETS) == command_of_run.GPUS


def test_a_plan_refuses_to_time_cells_on_gpus_of_several_kinds(model_folder, text_file, tmp_path, monkeypatch):
    protocol = {"texts": (str(text_file),), "tasks": (), "window": 32, "windows": 4, "speed_rounds": 6}
    where = {"device": "cuda", "slots": 2, "out": str(tmp_path / "run")}
    with EmulatedGpus(count=2):
        monkeypatch.setattr(local.environment, "name_of_processor", lambda device: f"GPU {device.index or 0}")
        with pytest.raises(UserError, match="cells would be timed on unlike GPUs: GPU 0; GPU 1; "):
            plan_spec(RunSpec("shortgpt", ratios=[0.2], model=str(model_folder), protocol=protocol, **where))


def test_a_plan_counts_no_timing_of_models_over_several_gpus(model_folder, text_file, tmp_path):
    spec = RunSpec(
        "shortgpt",
        ratios=[0.2],
        model=str(model_folder),
        protocol={"texts": (str(text_file),), "tasks": (), "window": 32, "windows": 4, "speed_rounds": 6},
        **{"device": "cuda", "engine": "slurm", "slots": 1, "out": str(tmp_path / "run")},
    )
    one, two = (plan_spec(replace(spec, gpus_per_cell=gpus)) for gpus in (1, 2))
    assert all("speed" in cell.estimate.stages for cell in one.cells)
    assert not any("speed" in cell.estimate.stages for cell in two.cells)


@pytest.mark.parametrize(
    ("given", "in_files"),
    [
        ({"engine": "local", "device": "cpu"}, True),
        ({"engine": "slurm", "device": "cpu"}, False),
        ({"engine": "slurm", "device": "cpu", "memory": 0.5}, True),
        ({"engine": "slurm", "device": "cuda"}, False),
        ({"engine": "slurm", "device": "cuda", "device_memory": 0.01}, True),
    ],
)
def test_a_plan_for_other_machines_looks_at_no_memory_of_this_one(given, in_files, tmp_path, request, monkeypatch):
    monkeypatch.setattr(memory_needs, "bytes_of_host", lambda: 2**20)
    model_folder, text_file = map(request.getfixturevalue, ("model_folder", "text_file"))
    protocol = {"texts": (str(text_file),), "tasks": (), "window": 32, "windows": 0, "batch_tokens": 2**16}
    spec = RunSpec("shortgpt", ratios=[0.2], model=str(model_folder), protocol=protocol | {"speed_rounds": 0}, **given)
    (_, found) = plan_spec(replace(spec, out=str(tmp_path / "run"))).cells
    assert found.needs.in_files == in_files


def test_a_plan_for_other_machines_needs_their_number_alone(base, capsys):
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2", "--plan"]
    assert main([*asked, "--engine", "slurm", "--slots", "2"]) == 0
    said = capsys.readouterr().out
    assert "their time is estimated by the rate of this one" in said
    assert "slot 2" in said
    assert main([*asked, "--engine", "ray"]) == 0
    assert "--slots is not given" in capsys.readouterr().out
    assert "--methods" in refused(capsys, ["run", "--plan"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--partition", "gpu"], "--partition is for --engine slurm, not for local"),
        (["--engine", "slurm", "--no-isolate"], "leave --no-isolate out"),
        (["--gpus-per-cell", "2"], "--gpus-per-cell"),
        (["--out", __file__], "is a file; name another with --out"),
        (["--out", f"{__file__}/run"], "is a file; name another with --out"),
        (["--out", "a\0b"], "no path has a null byte"),
    ],
)
def test_a_plan_refuses_what_a_run_refuses(wrong, message, base, capsys):
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2", *wrong]
    assert message in refused(capsys, [*asked, "--plan"])
    assert message in refused(capsys, asked)
