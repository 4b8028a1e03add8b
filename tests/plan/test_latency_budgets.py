"""Budgets of latency: the table that tells them, what is refused of it, and what a timing says afterwards."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import names_of, refused, tiny
from emulated import EmulatedGpus
from fuzzing import refused_or_done
from made_machine import a_gpu
from made_records import PER_LAYER, measured, ok

from bench.cli.main import main
from bench.data import pretrained
from bench.plan import validate
from bench.plan.kinds import to_plain
from bench.plan.run_spec import RunSpec
from bench.plan.trust import Trust
from bench.records.run_folder import load_run
from bench.records.speed_results import PointTiming
from bench.runs.reproduce import prune_again
from bench.speed import latency
from bench.speed.benchmark import SpeedBenchmark
from bench.system import environment, gpu
from methods.counted import LatencyTable, count_quantity
from methods.errors import UserError
from methods.model.decoder import Decoder
from methods.model.inserted import put_map
from methods.model.structures import Sublayer, drop_layers, remove_sublayers, structures_of
from reports import legend
from reports.tables import speed as tables

POINTS = {"attention": [[0, 0], [1_000, 0.5], [3_104, 1.0]], "mlp": [[0, 0], [4_640, 2.0]]}
TABLE = LatencyTable(POINTS, 3.0)


@pytest.fixture
def table_of(model_folder, tmp_path):
    """Write a table of the tiny Llama, changed at some names."""

    def write(**changes: object) -> str:
        sizes = Decoder(pretrained.make_shell(str(model_folder))).layers[0].sizes()
        about = {"weights_sha256": pretrained.sha256_of_weights(str(model_folder)), "dtype": "float32", "device": "cpu"}
        about |= {"threads": torch.get_num_threads(), "depth": 4}
        about["environment"] = {"cpu": environment.name_of_processor(torch.device("cpu"))}
        parts = {part: [[0, 0], [sizes[part] / 2, 0.8], [sizes[part], 1.0]] for part in ("attention", "mlp")}
        changed = {name: value for name, value in changes.items() if name in about}
        table = {"parts": parts, "rest": 1.0, "about": about | changed}
        table |= {name: value for name, value in changes.items() if name in table}
        file = tmp_path / "latency.json"
        file.write_text(json.dumps(table))
        return str(file)

    return write


def ends(times: float, spread: float = 0.0, flags: tuple[str, ...] = ()) -> dict[str, object]:
    """What a timing says of a speed-up."""
    low, high = times * (1 - spread), times * (1 + spread)
    return {"speedup": times, "speedup_low": low, "speedup_high": high, "flags": flags}


def test_a_model_takes_what_its_parts_take_and_the_rest():
    model = Decoder(tiny("llama"))
    sizes = model.layers[0].sizes()
    assert count_quantity(model, "latency", table=TABLE) == TABLE.ms_of_model(model)
    whole = 3 + 6 * (0.5 + 0.5 * (sizes["attention"] - 1_000) / 2_104 + 2 * sizes["mlp"] / 4_640)
    assert TABLE.ms_of_model(model) == pytest.approx(whole)
    remove_sublayers(model, [Sublayer("mlp", 2)])
    assert TABLE.ms_of_model(model) == pytest.approx(whole - 2 * sizes["mlp"] / 4_640)
    (channels, *_) = structures_of(model, "channels")
    before = TABLE.ms_of_model(model)
    channels.drop([0, 1, 2])
    assert TABLE.ms_of_model(model) == pytest.approx(before - 2 * 3 * 3 * 32 / 4_640)
    drop_layers(model, [3, 4])
    assert TABLE.ms_of_model(model) == pytest.approx(before - 2 * 9 * 32 / 4_640 - 2 * (whole - 3) / 6)
    before = TABLE.ms_of_model(model)
    put_map(model, 1, torch.zeros(32, 32))  # costs what channels cost
    assert TABLE.ms_of_model(model) == pytest.approx(before + 2 * 32 * 32 / 4_640)


def test_a_table_is_what_the_copies_of_a_model_take_beside_it(model_folder, monkeypatch):
    """With a clock by which a step takes a millisecond for each 10,000 parameters, and layers another half."""

    def time(benchmark, dense, copy):
        ms = [Decoder(one).model.num_parameters() / 1e4 + len(Decoder(one).layers) / 2 for one in (dense, copy)]
        times = ms[0] / ms[1]
        yield PointTiming(kind="decode", batch=1, dense_ms=ms[0], **ends(times))

    monkeypatch.setattr(SpeedBenchmark, "time", time)
    found = latency.measure_latencies(str(model_folder), torch.device("cpu"), torch.float32, 4, 6)
    model = Decoder(pretrained.make_shell(str(model_folder)))
    table = LatencyTable(found["parts"], found["rest"])
    for part, points in found["parts"].items():
        assert points[0] == [0, 0]
        assert len(points) > 2
        assert all(ms == pytest.approx(size / 1e4, abs=1e-9) for size, ms in points), part
    assert table.ms_of_model(model) == pytest.approx(found["about"]["dense_ms"])
    drop_layers(model, [0])  # of which the half is the rest's, since no copy is without it
    assert table.ms_of_model(model) == pytest.approx(
        found["about"]["dense_ms"] - model.layers[0].sizes()["layer"] / 1e4
    )


def test_on_a_gpu_a_table_is_of_captured_steps_as_cells_are_timed_there(model_folder, monkeypatch):
    seen = list[SpeedBenchmark]()

    def time(benchmark, dense, copy):
        seen.append(benchmark)
        for mode in ("graph", "eager"):
            ms = 10.0 if mode == "graph" else 99.0
            yield PointTiming(kind="decode", batch=1, mode=mode, dense_ms=ms, **ends(1.0))

    monkeypatch.setattr(SpeedBenchmark, "time", time)
    with EmulatedGpus():
        about = latency.measure_latencies(str(model_folder), torch.device("cuda"), torch.float32, 4, 6)["about"]
    assert (about["device"], about["mode"], about["dense_ms"]) == ("cuda", "graph", 10.0)
    asked = seen[0].protocol
    assert (asked.mode, asked.cache, asked.decode, asked.batches, asked.prefill) == ("graph", "static", (4,), (1,), ())


def test_noise_makes_no_larger_part_faster(monkeypatch, model_folder):
    """With half of the channels a step takes less than with a quarter."""

    def time(benchmark, dense, copy):
        (first, *_) = Decoder(copy).layers
        channels = first.down.in_features / Decoder(dense).layers[0].down.in_features if first.has_mlp else 0.0
        ms = {0.0: 4.0, 1.0: 5.0}.get(channels, 8.0 if channels < 0.4 else 6.0 if channels < 0.6 else 9.0)
        yield PointTiming(kind="decode", batch=1, dense_ms=10.0, **ends(10 / ms))

    monkeypatch.setattr(SpeedBenchmark, "time", time)
    found = latency.measure_latencies(str(model_folder), torch.device("cpu"), torch.float32, 4, 6)
    (zero, quarter, half, more, whole) = (ms for _, ms in found["parts"]["mlp"])
    L = len(Decoder(pretrained.make_shell(str(model_folder))).layers)
    assert [zero, quarter, half, more, whole] == pytest.approx([0, 4 / L, 4 / L, 5 / L, 6 / L])


def test_what_is_in_doubt_about_a_table_stays_with_it_and_is_shown(model_folder, monkeypatch):
    """Every second copy is noisy, another program takes a core, and a throttled card is read while it is timed."""
    number, seen = itertools.count(), list[SpeedBenchmark]()

    def time(benchmark, dense, copy):
        seen.append(benchmark)
        flags = ("noisy",) if next(number) % 2 == 0 else ()
        yield PointTiming(kind="decode", batch=1, dense_ms=10.0, **ends(1.25, 0.02, flags))

    monkeypatch.setattr(SpeedBenchmark, "time", time)
    monkeypatch.setattr(environment, "load_between_states", lambda *_: {"other_cores": 1.0, "stolen_cores": 0.0})
    monkeypatch.setattr(gpu, "find_gpus", lambda devices: ([a_gpu()], None))
    found = latency.measure_latencies(str(model_folder), torch.device("cpu"), torch.float32, 4, 6)
    assert [type(card) for card in seen[0].gpus] == [gpu.Gpu]
    about = found["about"]
    noisy = [copy for copy in about["copies"] if copy["flags"] == ["noisy"]]
    assert len(noisy) == (len(about["copies"]) + 1) // 2 > 0
    assert about["machine"]["flags"] == ["busy"]
    shown = tables.table_of_latencies(found).footnotes
    several = f"{len(noisy)} of {len(about['copies'])} copies of the table of latencies"
    assert [line for line in shown if line.startswith("! noisy: ") and f"[{several}]" in line]
    assert [line for line in shown if line.startswith("busy: ") and "[1.0 cores taken, 0.0 withheld]" in line]
    assert any("95 % interval" in line and "2.0 %" in line for line in shown)
    six = measured(6 * PER_LAYER, (50.0, 60.0, 70.0), [0.4] * 5, 60.0)
    budget = {"of": "latency", "share": 0.8, "stays": 0.8, "ratio": 0.2}
    record = ok("flap", 0.2, six | {"budget": budget}, ratio_of="latency", latency=found)
    flagged = [(cell.flag.word, cell.name + cell.brackets) for cell in legend.flags_of_cell(record, "flap")]
    assert ("noisy", f"flap [{several}]") in flagged
    assert ("busy", "flap (table of latencies) [1.0 cores taken, 0.0 withheld]") in flagged


def test_a_run_meets_a_budget_of_latency_and_has_its_table(base, table_of, tmp_path, capsys):
    file = table_of()
    asked = ["--methods", "flap,drop-tail", "--budget", "latency=0.7", "--latency-table", file, "--match", "exact"]
    run = [*base, *asked, "--dtype", "float32"]
    assert main(run) == 0
    assert "latency=0.7" in capsys.readouterr().out
    dense, flap, tail = load_run(tmp_path / "run")
    table = json.loads((tmp_path / "latency.json").read_text())
    for record in (flap, tail):
        assert to_plain(record.cell.latency) == table
        assert record.measured.budget.of == "latency"
    assert dense.cell.latency is None or to_plain(dense.cell.latency) == table
    assert abs(flap.measured.budget.stays - 0.7) < 0.02
    trust = Trust(tmp_path / "run", names=names_of(tmp_path / "run"))
    told, whole = LatencyTable(table["parts"], table["rest"]), Decoder(pretrained.make_shell(dense.cell.model))
    for record in (flap, tail):
        assert record.measured.budget.stays == told.ms_of_model(
            prune_again(record, "cpu", trust).model
        ) / told.ms_of_model(whole)
    assert main([*run, "--plan"]) == 0
    assert "has a record" in capsys.readouterr().out
    changed = [table_of(rest=2.0) if word == file else word for word in run]
    assert main([*changed, "--plan"]) == 0
    assert "has a record" not in capsys.readouterr().out.replace("dense", "")


def test_what_is_no_table_of_this_run_is_refused_before_any_work(base, table_of, tmp_path, capsys):
    def said(*more: str) -> str:
        return refused(capsys, [*base, "--methods", "flap", "--dtype", "float32", *more])

    budget = ["--budget", "latency=0.8"]
    assert "--latency-table FILE; `python -m bench latency-table" in said(*budget)
    assert "--latency-table tells --budget latency, which is not asked for" in said(
        "--ratio", "0.3", "--latency-table", table_of()
    )
    for changes, words in (
        ({"dtype": "bfloat16"}, "has dtype bfloat16, and this run float32"),
        ({"device": "cuda"}, "has device cuda, and this run cpu"),
        ({"threads": 64}, "has threads 64, and this run"),
        ({"weights_sha256": "0" * 64}, "has weights_sha256 0000"),
        ({"environment": {"cpu": "Another CPU @ 9 GHz"}}, "has processor Another CPU @ 9 GHz, and this run"),
        ({"rest": -1.0}, "figures that do not rise from nothing"),
        ({"parts": {"attention": [[0, 0], [5, 1]], "mlp": [[0, 0], [5, 1], [4, 2]]}}, "do not rise from nothing"),
        ({"parts": {"attention": [[0, 0], [5, 1]], "mlp": [[0, 0], [5, 1], [5, 2]]}}, "do not rise from nothing"),
        ({"parts": {"attention": [[0, 0], [5, 1]], "mlp": [[0, 0], [5, 2], [6, 1]]}}, "do not rise from nothing"),
        ({"rest": None}, "is no table of latencies (TypeError)"),
        ({"parts": {"mlp": [[0, 0], [5, 1]]}}, "is no table of latencies (KeyError)"),
    ):
        assert words in said(*budget, "--latency-table", table_of(**changes))
    (tmp_path / "latency.json").write_text("[1, 2")
    for name, error in (("latency.json", "JSONDecodeError"), ("none.json", "FileNotFoundError")):
        assert f"is no table of latencies ({error})" in said(*budget, "--latency-table", str(tmp_path / name))


@pytest.mark.parametrize(("speedup", "speaks"), [(1.25, False), (1.1, True)])
def test_a_timing_that_says_otherwise_is_named(speedup, speaks):
    six = measured(6 * PER_LAYER, (50.0, 60.0, 70.0), [0.4] * 5, 60.0)
    point = {"kind": "decode", "context": 64, "batch": 1, "speedup": speedup}
    point |= {"speedup_low": 0.98 * speedup, "speedup_high": 1.02 * speedup}
    found = {"of": "latency", "share": 0.8, "stays": 0.8, "ratio": 0.2, "tried": [[0.2, 0.8]]}
    table = {"parts": {"attention": [], "mlp": []}, "rest": 1.0, "about": {"depth": 64}}
    record = ok("flap", 0.2, six | {"budget": found, "speed": {"points": [point]}}, ratio_of="latency", latency=table)
    flagged = [cell for cell in legend.flags_of_records([record]) if cell.flag == legend.LATENCY_OFF]
    wanted = " [80.0 % of a token by the table, timed 90.9 %, 95 % interval 89.1 % to 92.8 %]"
    assert [(cell.name, cell.brackets) for cell in flagged] == ([("flap", wanted)] if speaks else [])


@pytest.mark.nightly
def test_the_command_writes_a_table_and_shows_it(model_folder, tmp_path, capsys):
    out = tmp_path / "latency.json"
    command = ["latency-table", str(model_folder), "--decode", "4", "--dtype", "float32"]
    assert "at least 6; got 2" in refused(capsys, [*command, "--speed-rounds", "2", "--out", str(out)])
    assert "at least 1 token of context; got 0" in refused(
        capsys, ["latency-table", str(model_folder), "--decode", "0", "--out", str(out)]
    )
    assert "--threads auto is looked at before each stage of a cell" in refused(
        capsys, [*command, "--threads", "auto", "--out", str(out)]
    )
    (tmp_path / "file").touch()
    assert "file" in refused(capsys, [*command, "--out", str(tmp_path / "file" / "latency.json")])
    assert main([*command, "--speed-rounds", "6", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert shown.count("\nattention ") == len(found["parts"]["attention"]) - 1 > 0
    assert "all but the layers" in shown
    assert "exists; name a new file" in refused(capsys, [*command, "--out", str(out)])


def test_where_cells_run_on_other_machines_a_table_of_their_processor_is_taken(model_folder, table_of):
    file = Path(table_of(environment={"cpu": "Theirs"}))
    spec = RunSpec(methods="flap", model=str(model_folder), budget=("latency=0.8",), latency_table=file)
    model = Decoder(pretrained.make_shell(str(model_folder)))
    there = validate.Target(model, torch.device("cpu"), torch.float32)
    table = validate.read_latency_table(spec, str(model_folder), there, is_here=False)
    assert table.about["environment"]["cpu"] == "Theirs"
    with pytest.raises(UserError, match="has processor Theirs"):
        validate.read_latency_table(spec, str(model_folder), there)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_table_that_is_no_file_is_refused_and_not_read(make, tmp_path):
    """A pipe is waited for, and a device is read, until the memory is full."""
    make(tmp_path / "table.json")
    spec = SimpleNamespace(latency_table=tmp_path / "table.json")
    said = refused_or_done(lambda: validate.read_latency_table(spec, "model", None), tmp_path)
    assert "table.json is no table of latencies" in str(said)
