"""Models of a run in an inference engine: what is exported, held against this suite, timed and written down."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import names_of, tiny, trusting_all
from stream_server import stream, write_words
from uneven_models import bpe

from bench.cli import run as run_command
from bench.cli.main import main
from bench.inference import llama_cpp
from bench.inference.server import ServerProcess
from bench.plan.kinds import to_plain, value_from_plain
from bench.plan.load import LoadProtocol
from bench.plan.protocol import ServedProtocol
from bench.plan.trust import Trust
from bench.records import packed_run, run_folder, served
from bench.records.load_results import LevelTiming
from bench.serving import adapters
from bench.serving import serve as rows
from bench.serving.adapters import ExportedModel, NotServed
from bench.speed.benchmark import summarise_rounds
from bench.speed.timing import Pass
from methods.errors import CheckpointError, Unwritable, UserError
from reports.figures.load import figures_of_load
from reports.tables.speed import tables_of_served

engine = pytest.mark.skipif(not llama_cpp.is_installed(), reason="needs the extra `llama`")


@pytest.fixture(scope="module")
def place(text_file, tmp_path_factory):
    """A folder with a tiny Llama whose tokenizer GGUF has a word for, a text, and a run of three methods on it."""
    folder = tmp_path_factory.mktemp("served")
    tiny("llama", vocab_size=260).save_pretrained(folder / "model")
    bpe(bos=False).save_pretrained(folder / "model")
    (folder / "words.txt").write_text(text_file.read_text())
    text = str(folder / "words.txt")
    asked = ["--texts", text, "--calibration", text, "--tasks", "none", "--window", "32", "--windows", "4"]
    asked += ["--calibration-sequences", "4", "--calibration-length", "24", "--profile", "smoke", "--device", "cpu"]
    asked += ["--speed-rounds", "0", "--no-checks", "--methods", "drop-tail,slicegpt,wanda-sp", "--ratio", "0.3"]
    assert main(["run", "--model", str(folder / "model"), *asked, "--out", str(folder / "run")]) == 0
    return folder


def trust(run) -> Trust:
    """What lets the records of a run name their models and their texts."""
    return Trust(run, names=names_of(run))


def asked(place, **more) -> ServedProtocol:
    text = {"text": str(place / "words.txt"), "windows": 4, "window": 32}
    return ServedProtocol(**text | {"prefill": (16,), "decode": (8,), "steps": 4, "rounds": 6, "processes": 1} | more)


class Recorded:
    """An engine that computes nothing: it holds every model but those whose names are refused, and says what it did."""

    name, version, threads = "recorded", "1", 1

    def __init__(self, refuses=(), fails=(), *, device=None, trouble=None):
        self.refuses, self.fails, self.did = refuses, fails, []
        self.ended = False
        self.device, self.trouble = device or {"device": "cpu"}, trouble or {}

    def computes_on(self):
        return self.device

    def end(self):
        self.ended = True

    def require(self, asked):
        self.did.append("require")

    def export(self, model, path, kind, name):
        label = "dense" if path.name.startswith("dense") else path.name.split("--")[0]
        self.did.append(f"{label}@{kind}")
        if f"{label}@{kind}" in self.trouble:
            raise self.trouble[f"{label}@{kind}"]
        if label in self.refuses:
            raise UserError(f"{label} has a shape of its own")
        path.write_text(kind)
        return ExportedModel(path, "gguf", kind, 8 if kind == "q8_0" else 32, lambda point: path.stat().st_size)

    def quality(self, exported, model, text):
        if any(exported.path.name.startswith(name) for name in self.fails):
            raise NotServed("error", "other logits", {"checks": [["logits", False, "other"]]})
        return {"checks": [["logits", True, "the same"]]}

    def speed(self, dense, exported, points, hear):
        assert dense.path.is_file()
        assert exported.path.is_file()
        return {"points": [to_plain(point.timing(pruned_ms=1.0)) for point in points]}


@pytest.fixture
def stub_of_vllm(tmp_path, monkeypatch):
    """This Python has vLLM, of which a stub stands that computes nothing like the models."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "stub"))
    monkeypatch.setenv("STUB_NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(adapters, "EXACT", 1e9)
    monkeypatch.setattr(adapters.ByVllm, "_trouble_of_plugin", lambda _: "there is no plugin")


def serve(place, engine, wanted=(), **more):
    (model,) = rows.find_served(trust(place / "run"), wanted)
    return {one.name: one for one in rows.serve(model, asked(place, **more), engine)}


@pytest.fixture
def fresh(place):
    """The run before anything was served."""
    (place / "run" / served.FILE).unlink(missing_ok=True)
    return place


def test_each_model_is_served_in_each_type_and_written_down(fresh):
    mine = Recorded(refuses=("slicegpt",), fails=("wanda-sp",))
    found = serve(fresh, mine)
    assert list(found)[:2] == ["dense@float32", "dense@q8_0"]
    assert {name.partition("@")[0] for name in found} == {"dense", "drop-tail", "slicegpt", "wanda-sp"}
    assert [found[f"{name}@q8_0"].status for name in ("dense", "drop-tail", "slicegpt", "wanda-sp")] == [
        "ok",
        "ok",
        "unsupported",
        "error",
    ]
    assert found["slicegpt@float32"].error == "slicegpt has a shape of its own"
    assert found["wanda-sp@float32"].measured["checks"] == [["logits", False, "other"]]
    assert "points" not in found["wanda-sp@float32"].measured  # what computes something else is not timed
    assert served.load(fresh / "run") == list(found.values())
    assert not list((fresh / "run").glob(".served-*"))


def test_what_the_removed_work_would_bring_is_beside_each_point(fresh):
    found = serve(fresh, Recorded(), ["drop-tail"])
    prefill, decode = found["drop-tail@q8_0"].measured["points"]
    assert prefill["speedup_by_macs"] > decode["speedup_by_macs"] > 1  # of a prompt the head computes one position
    assert decode["speedup_by_bytes"] == len("float32") / len("q8_0")
    assert [point["speedup_by_macs"] for point in found["dense@q8_0"].measured["points"]] == [1, 1]


class TimedAnew(Recorded):
    """An engine in each of whose processes the same model is another number of times as fast."""

    def __init__(self, ratios):
        super().__init__()
        self.ratios = itertools.cycle(ratios)

    def end(self):
        self.did.append("end")

    def speed(self, dense, exported, points, hear):
        ratio = next(self.ratios)
        self.did.append("time")
        hear(f"{ratio} times")
        turns = {"dense": [[Pass([ratio * 10.0], ratio * 10.0)]] * 6, "pruned": [[Pass([10.0], 10.0)]] * 6}
        points = [to_plain(summarise_rounds(point, turns, {})) for point in points]
        return {"points": points, "memory": {}, "machine": {"other_cores": ratio, "stolen_cores": 1 / ratio}}


def test_each_row_is_timed_in_several_processes_that_read_both_models_anew(fresh, capsys):
    mine = TimedAnew([2, 3])
    rows_of_two = serve(fresh, mine, ["drop-tail"], types=("float32",), processes=2)
    assert mine.did == [
        "require",
        "dense@float32",
        *["time", "end", "time"],
        "drop-tail@float32",
        "time",
        "end",
        "time",
    ]
    assert "process 1: 2 times" in (err := capsys.readouterr().err) and "process 2: 3 times" in err
    assert served.load(fresh / "run", pytest.fail) == list(rows_of_two.values())  # each fits the layout
    measured = rows_of_two["drop-tail@float32"].measured
    for point in measured["points"]:
        assert (point["speedup"], point["speedup_low"], point["speedup_high"]) == pytest.approx((6**0.5, 1.98, 3.03))
    assert measured["machine"] == {"other_cores": 3, "stolen_cores": 0.5}
    (table,) = tables_of_served(list(rows_of_two.values()))
    assert "up to 6 rounds in each of 2 processes" in " ".join(table.footnotes)
    (note,) = [note for note in table.notes if "disagree" in note]
    assert "drop-tail@float32 [prefill 16 at batch 1: 2.00x, 3.00x]" in note


def test_a_row_of_one_process_is_no_answer_to_several_and_an_older_one_is_of_one(fresh):
    once = serve(fresh, Recorded(), ["drop-tail"])
    for row in served.load(fresh / "run"):
        older = dataclasses.replace(row, protocol={k: v for k, v in row.protocol.items() if k != "processes"})
        served.save(fresh / "run", older)
    same = Recorded()
    serve(fresh, same, ["drop-tail"])
    assert same.did == ["require"] and len(served.load(fresh / "run")) == len(once)
    again = TimedAnew([2])
    serve(fresh, again, ["drop-tail"], processes=2)
    assert "drop-tail@q8_0" in again.did
    assert len(tables_of_served(served.load(fresh / "run"))) == 2  # and never beside each other


def test_without_the_dense_model_nothing_is_timed(fresh):
    mine = Recorded(fails=("dense",))
    with pytest.raises(UserError, match="recorded does not serve the dense model, beside which all are timed: other l"):
        serve(fresh, mine)
    assert mine.did == ["require", "dense@float32"]
    assert [one.status for one in served.load(fresh / "run")] == ["error"]
    with pytest.raises(UserError, match="dense has a shape of its own"):
        serve(fresh, Recorded(refuses=("dense",)))


def test_a_model_that_is_not_served_keeps_no_other_one_from_it(fresh, monkeypatch, capsys):
    class RefusesTheFirst(Recorded):
        def export(self, model, path, kind, name):
            if self.did[-1] == "require" and self.did.count("require") == 1:
                raise UserError("GGUF is written for llama")
            return super().export(model, path, kind, name)

    (model,) = rows.find_served(trust(fresh / "run"), ["drop-tail"])
    text = str(fresh / "words.txt")
    for several, code in (([model, model], 3), ([model], 2)):
        (fresh / "run" / served.FILE).unlink(missing_ok=True)
        mine = RefusesTheFirst()
        monkeypatch.setattr(adapters, "engine_of_protocol", lambda *_, mine=mine: mine)
        monkeypatch.setattr(rows, "find_served", lambda *_, several=several: several)
        assert main(["serve-speed", str(fresh / "run"), "--text", text, "--windows", "4", "--window", "32"]) == code
        out, err = capsys.readouterr()
        refusal = "the dense model, beside which all are timed, is not exported: GGUF is written for llama\n"
        assert f"{f'{model.name}' if code == 3 else 'prunebench'}: {refusal}" in err
        assert ("drop-tail@q8_0" in out) == (code == 3)
        assert mine.ended


def test_a_base_model_that_is_gone_is_one_line(fresh, tmp_path):
    copied(fresh, tmp_path / "run", "model", ("~nowhere",))
    (model,) = rows.find_served(trust(tmp_path / "run"))
    with pytest.raises(UserError, match="'~nowhere' is no model"):
        next(rows.serve(model, asked(fresh), Recorded()))


def test_rows_with_a_record_are_not_measured_again(fresh):
    first = serve(fresh, Recorded(fails=("wanda-sp",)))
    again = Recorded()
    found = serve(fresh, again)
    assert again.did == ["require", "dense@float32", "wanda-sp@float32", "wanda-sp@q8_0"]
    assert found["dense@q8_0"] == first["dense@q8_0"]
    assert found["wanda-sp@q8_0"].status == "ok"
    more = Recorded()
    serve(fresh, more, ["drop-tail"], types=("float32",))
    assert more.did == ["require"]
    assert len(served.load(fresh / "run")) == 8  # of the others nothing is lost


@pytest.mark.parametrize("change", [{"rounds": 8}, {"windows": 3}, {"decode": (9,)}, {"types": ("q8_0", "float32")}])
def test_what_is_asked_otherwise_is_measured_again(change, fresh):
    serve(fresh, Recorded(), ["drop-tail"])
    again = Recorded()
    found = serve(fresh, again, ["drop-tail"], **change)
    assert {"dense@q8_0", "drop-tail@float32", "drop-tail@q8_0"} <= set(again.did)
    assert {one.base for one in found.values()} == {change.get("types", ["float32"])[0]}


def test_what_another_gpu_has_measured_is_measured_again(fresh):
    """And what a limit or a path alone has changed is not."""
    gpu = {"device": "cuda", "gpu": "NVIDIA H100", "gpus": 1}
    found = serve(fresh, Recorded(device=gpu), ["drop-tail"])
    told = {one.environment.get(name) for one in found.values() for name in ("device", "gpu", "gpus")}
    assert told == {"cuda", "NVIDIA H100", 1}
    assert [one.environment.get("dtype") for one in found.values()] == ["float32", None] * 2  # llama.cpp's own has none
    same = Recorded(device=gpu)
    serve(fresh, same, ["drop-tail"], silence=1200, engine_python="/elsewhere/python")
    assert same.did == ["require"]
    older = [dataclasses.replace(one, model=dict(one.model)) for one in served.load(fresh / "run")]
    for one in older:
        del one.model["dtype"]  # of which older records say nothing
        served.save(fresh / "run", one)
    serve(fresh, same, ["drop-tail"])
    assert same.did == ["require"] * 2
    for other in ({"device": "cpu"}, gpu | {"gpu": "NVIDIA H200"}, gpu | {"gpus": 2}):
        again = Recorded(device=other)
        serve(fresh, again, ["drop-tail"])
        assert len(again.did) == 1 + 4


def test_only_a_shape_is_unsupported(fresh, monkeypatch):
    """A crash while the engine writes, a full disk and a model that is not made again may end otherwise next time."""
    trouble = {"drop-tail@float32": NotServed("crashed", "killed by SIGSEGV")}
    trouble["drop-tail@q8_0"] = UserError("drop-tail has a shape of its own")
    found = serve(fresh, Recorded(trouble=trouble), ["drop-tail"])
    assert [found[f"drop-tail@{kind}"].status for kind in ("float32", "q8_0")] == ["crashed", "unsupported"]
    full = CheckpointError(f"the folder cannot be written: {os.strerror(errno.ENOSPC)}")
    for error in (Unwritable("the file cannot be written: Input/output error"), full):
        with pytest.raises(type(error), match="cannot be written"):
            serve(fresh, Recorded(trouble={"drop-tail@float32": error}), ["drop-tail"])
    (kept,) = [one for one in served.load(fresh / "run") if one.name == "drop-tail@float32"]
    assert kept.status == "crashed"
    with pytest.raises(UserError, match="the dense model, beside which all are timed, is not exported: killed"):
        serve(fresh, Recorded(trouble={"dense@float32": trouble["drop-tail@float32"]}), ["drop-tail"])
    model_of = rows.write.model_of

    def not_again(record, *how):
        if record.cell.method == "drop-tail":
            raise UserError("the calibration tokens are not those of the record")
        return model_of(record, *how)

    monkeypatch.setattr(rows.write, "model_of", not_again)
    found = serve(fresh, Recorded(), ["drop-tail"])
    assert (found["drop-tail@float32"].status, found["drop-tail@q8_0"].status) == ("error", "unsupported")


def test_a_cell_that_was_measured_anew_is_served_anew(fresh):
    serve(fresh, Recorded(), ["drop-tail"])
    kept = served.load(fresh / "run")
    (fresh / "run" / served.FILE).unlink()
    for one in kept:
        served.save(fresh / "run", dataclasses.replace(one, model=one.model | {"pruned_sha256": "0" * 64}))
    assert run_folder.load_runs([fresh / "run"]).served == []
    again = Recorded()
    found = serve(fresh, again, ["drop-tail"])
    assert len(again.did) == 1 + 4
    assert len(served.load(fresh / "run")) == 8
    assert run_folder.load_runs([fresh / "run"]).served == list(found.values())  # and not the former model's


def test_what_was_measured_stays_when_more_is_asked(fresh):
    first = serve(fresh, Recorded(), ["drop-tail"])
    other = serve(fresh, Recorded(fails=("drop-tail",)), ["drop-tail"], decode=(9,))
    assert [one.status for one in other.values()] == ["ok", "ok", "error", "error"]
    assert served.load(fresh / "run") == [*first.values(), *other.values()]
    again = Recorded()
    assert serve(fresh, again, ["drop-tail"]) == first
    assert again.did == ["require"]


def test_lines_that_this_version_does_not_read_stay(fresh):
    serve(fresh, Recorded(), ["drop-tail"])
    path = fresh / "run" / served.FILE
    lines = path.read_text().splitlines()
    newer = [json.dumps(json.loads(lines[0]) | {"schema": 3}), "no JSON"]
    path.write_text("".join(f"{line}\n" for line in [*newer, *lines[1:]]))
    serve(fresh, Recorded(), ["drop-tail"], decode=(9,))
    assert path.read_text().splitlines()[:-4] == [*newer, *lines[1:]]


def test_two_commands_at_once_keep_each_others_rows(fresh):
    ((one,), (other,)) = (rows.find_served(trust(fresh / "run"), [name]) for name in ("drop-tail", "wanda-sp"))
    (fresh / "run" / ".served-killed").mkdir()
    (fresh / "run" / ".served-killed" / "model.gguf").write_text("of a command that was killed")
    first = rows.serve(one, asked(fresh), Recorded())
    next(first)
    assert len(list((fresh / "run").glob(".served-*"))) == 1  # its own, which the others leave alone
    second = list(rows.serve(other, asked(fresh), Recorded()))
    serve(fresh, Recorded(), ["slicegpt"])
    (fails, *_) = [row for row in first if row.model["label"] == "drop-tail"]
    found = served.load(fresh / "run")
    assert {row.model["label"] for row in found} == {"dense", "drop-tail", "slicegpt", "wanda-sp"}
    assert len(found) == 8
    assert all(row in found for row in second if row.model["label"] == "wanda-sp")
    well = served.save(fresh / "run", dataclasses.replace(fails, status="crashed", error="killed by SIGSEGV"))
    assert well == fails  # which another process has measured meanwhile
    assert served.load(fresh / "run") == found


def test_served_models_are_packed_joined_and_unpacked(fresh, tmp_path):
    found = list(serve(fresh, Recorded(), ["drop-tail"]).values())
    packed_run.pack_run(fresh / "run", tmp_path / "packed")
    with (tmp_path / "packed" / served.FILE).open("a") as file:
        file.write("of another version\n")
    serve(fresh, Recorded(), ["drop-tail"], decode=(9,))
    run_folder.merge_runs([tmp_path / "packed", fresh / "run"], tmp_path / "joined")
    assert "of another version\n" in (tmp_path / "joined" / served.FILE).read_text()
    for folder, times in (("packed", 1), ("joined", 2)):
        assert Counter(one.name for one in served.load(tmp_path / folder)) == {one.name: times for one in found}
        assert run_folder.load_runs([tmp_path / folder]).served == served.load(tmp_path / folder)


def test_the_report_shows_what_was_served(fresh, tmp_path, capsys):
    serve(fresh, Recorded(refuses=("slicegpt",)))
    assert main(["report", str(fresh / "run"), "--view", "served"]) == 0
    out = capsys.readouterr().out
    assert "drop-tail@q8_0" in out
    assert "slicegpt has a shape of its own" in " ".join(out.split())
    assert main(["report", str(fresh / "run"), "--out", str(tmp_path)]) == 0
    assert "drop-tail@q8_0" in (tmp_path / "report.html").read_text(encoding="utf-8")


@engine
def test_llama_cpp_serves_the_models_of_a_run(fresh, capsys):
    text = ["--text", str(fresh / "words.txt"), "--windows", "4", "--window", "32", "--threads", "1"]
    sizes = ["--prefill", "16", "--decode", "8", "--batch", "2", "--steps", "4", "--rounds", "6"]
    sizes += ["--processes", "1"]  # two are paired above
    assert main(["serve-speed", str(fresh / "run"), *text, *sizes, *trusting_all(fresh / "run")]) == 0
    out = capsys.readouterr().out
    found = {one.name: one for one in served.load(fresh / "run")}
    assert found["slicegpt@float32"].status == "unsupported"
    assert "GGUF" in found["slicegpt@float32"].error
    records = {one.cell.label: one for one in run_folder.load_run(fresh / "run")}
    for label in ("dense", "drop-tail", "wanda-sp"):
        mine = found[f"{label}@float32"].measured
        (text_of_run,) = records[label].measured.text_scores.values()
        assert mine["perplexity"]["perplexity"] == pytest.approx(text_of_run.perplexity, rel=1e-4)
        assert [(point["kind"], point["batch"]) for point in mine["points"]] == [("prefill", 2), ("decode", 2)]
        for point in mine["points"]:
            assert point["speedup_low"] <= point["speedup"] <= point["speedup_high"]
    assert found["drop-tail@float32"].measured["bytes"] < found["dense@float32"].measured["bytes"]
    assert "wanda-sp@q8_0" in out  # whose channels are filled up to whole blocks
    assert found["wanda-sp@q8_0"].status == "ok", found["wanda-sp@q8_0"].error


def test_vllm_is_given_folders_and_its_turns_are_paired(fresh, stub_of_vllm, capsys, tmp_path, monkeypatch):
    text = ["--text", str(fresh / "words.txt"), "--windows", "2", "--window", "32", "--prefill", "16", "--decode", "8"]
    other = ["--engine", "vllm", "--engine-python", sys.executable, "--types", "auto", "--rounds", "6"]
    cells = [str(fresh / "run"), "dense", "drop-tail", "slicegpt"]
    text += trusting_all(fresh / "run")
    assert main(["serve-speed", *cells, *text, *other]) == 0
    assert "drop-tail@float32" in capsys.readouterr().out
    found = {one.model["label"]: one for one in served.load(fresh / "run")}
    assert (found["slicegpt"].status, found["slicegpt"].error[-18:]) == ("unsupported", "there is no plugin")
    assert found["drop-tail"].measured["format"] == "hf"
    shrunk = found["dense"].measured["bytes"] / found["drop-tail"].measured["bytes"]
    for point in found["drop-tail"].measured["points"]:
        assert point["speedup"] == pytest.approx(shrunk)
        assert (point["kind"] == "decode") == (point.get("speedup_by_bytes", 0) > 1)
    assert found["dense"].measured["points"][0]["speedup"] == 1
    engine = {"name": "vllm", "version": "0.33.0", "arguments": ""}
    assert found["dense"].measured["engine"] == engine | {"threads": found["dense"].protocol["threads"]}
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    processes = {note["process"] for note in notes if "process" in note}
    assert len(processes) == 3  # each of both rows goes on in the last one and then has one of its own
    assert not any(map(psutil.pid_exists, processes))
    monkeypatch.setattr(adapters, "EXACT", 1e-3)
    assert main(["serve-speed", *cells, *text, *other, "--steps", "3"]) == 2
    assert "vllm tokens: differ by" in capsys.readouterr().err  # the stub's likelihoods are nobody's


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    allowed = trusting_all(arguments[0]) if run_folder.is_run(arguments[0]) else []
    assert main(["serve-speed", *map(str, arguments), *allowed]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_mistakes_are_one_line(fresh, capsys, monkeypatch, tmp_path):
    run = fresh / "run"
    assert "is no run folder" in refused(capsys, tmp_path)
    assert "is no cell" in refused(capsys, run, "nobody")
    assert "--types is a list of" in refused(capsys, run, "--types", "int3")
    assert "there is nothing to time" in refused(capsys, run, "--prefill", "none", "--decode", "none")
    assert "--rounds is" in refused(capsys, run, "--rounds", "2")
    assert "--threads is a positive number" in refused(capsys, run, "--threads", "0")
    assert "no text" in refused(capsys, run, "--text", "nothing-known")
    assert "--engine-python" in refused(capsys, run, "--engine", "vllm", "--types", "auto")
    words = ["--engine", "vllm", "--types", "auto", "--engine-args", "--foo 'bar"]
    assert '--engine-args are words as in a shell; got "--foo \'bar": no closing quot' in refused(capsys, run, *words)
    nobody = ["--engine", "vllm", "--types", "auto", "--engine-python", tmp_path / "none"]
    assert "has no vllm" in refused(capsys, run, *nobody)
    assert "q8_0 is a type of llama.cpp's" in refused(capsys, run, "--engine", "vllm", "--engine-python", "python")
    assert "w8a8 is a type of vllm's" in refused(capsys, run, "--types", "w8a8")
    words = ["--engine", "vllm", "--types", "auto,w4a16", "--engine-python", "python"]
    assert "w4a16 is written by llmcompressor, which runs in a Python of its own" in refused(capsys, run, *words)
    short = ["--engine", "vllm", "--types", "auto", "--engine-args=-tp 2"]
    assert "--engine-args: '-tp' belongs to no flag" in refused(capsys, run, *short)
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    assert "pip install 'prunebench[llama]'" in refused(capsys, run)


def test_a_model_that_no_decisions_make_again_is_refused_before_any_work(fresh, tmp_path, monkeypatch):
    every = run_folder.read_records

    def healed(run, *how):
        records = every(run, *how)
        key = next(key for key, record in records.items() if record.cell.method == "drop-tail")
        cell = dataclasses.replace(records[key].cell, healing={"how": "lora"})
        return records | {key: dataclasses.replace(records[key], cell=cell)}

    monkeypatch.setattr(run_folder, "read_records", healed)
    with pytest.raises(UserError, match=r"was trained .* is not made again; `run --save-models` keeps its model"):
        rows.find_served(trust(fresh / "run"))


def test_a_run_without_the_dense_model_is_refused(fresh, tmp_path):
    cells = tmp_path / "run" / "cells"
    cells.mkdir(parents=True)
    for file in (fresh / "run" / "cells").glob("drop-tail*.json"):
        (cells / file.name).write_text(file.read_text())
    with pytest.raises(UserError, match="has no cell of the dense model"):
        rows.find_served(trust(tmp_path / "run"))


def copied(fresh, run, field, values):
    """A run that has each cell of another once for each value of a field, which its key begins with."""
    cells = run / "cells"
    cells.mkdir(parents=True)
    for file in (fresh / "run" / "cells").glob("*.json"):
        plain = json.loads(file.read_text())
        for value in values:
            plain["cell"][field] = value
            (cells / f"{value}-{file.name}").write_text(json.dumps(plain))
    return cells


def test_a_model_of_several_seeds_is_served_once(fresh, tmp_path):
    cells = copied(fresh, tmp_path / "run", "seed", (0, 1))
    for file in cells.glob("1-wanda-sp*"):  # which draws, and finds another model
        plain = json.loads(file.read_text())
        file.write_text(json.dumps(plain | {"measured": plain["measured"] | {"pruned_sha256": "0" * 64}}))
    (found,) = rows.find_served(trust(tmp_path / "run"))
    names = [record.cell.label for record in found.cells.values()]
    assert names == ["dense", "drop-tail", "slicegpt", "wanda-sp", "wanda-sp"]
    several = list(rows.serve(found, asked(fresh, types=("q8_0",)), Recorded()))
    assert [row.model["seed"] for row in several] == [0, 0, 0, 0, 1]


def test_several_models_of_a_run_are_served_beside_their_own_dense_one(fresh, tmp_path):
    copied(fresh, tmp_path / "run", "model", ("one", "two"))
    found = rows.find_served(trust(tmp_path / "run"))
    assert [one.dense.partition("-")[0] for one in found] == ["one", "two"]
    for one in found:
        assert {key.partition("-")[0] for key in one.cells} == {one.dense.partition("-")[0]}
        assert next(iter(one.cells)) == one.dense
        assert len(one.cells) == 4


def test_a_cell_is_beside_the_dense_one_of_its_own_dtype(fresh, tmp_path):
    cells = copied(fresh, tmp_path / "run", "dtype", ("bfloat16", "float32"))
    found = rows.find_served(trust(tmp_path / "run"))
    assert [one.dense.partition("-")[0] for one in found] == ["bfloat16", "float32"]
    for one in found:
        assert {record.cell.dtype for record in one.cells.values()} == {one.dense.partition("-")[0]}
    next(cells.glob("bfloat16-dense*")).unlink()
    with pytest.raises(UserError, match="has no cell of the dense model in bfloat16"):
        rows.find_served(trust(tmp_path / "run"))


@pytest.mark.nightly
@engine
def test_a_run_serves_its_models_afterwards(place, tmp_path, capsys, monkeypatch):
    text = str(place / "words.txt")
    how = ["--texts", text, "--calibration", text, "--tasks", "none", "--window", "32", "--windows", "2"]
    how += ["--calibration-sequences", "2", "--calibration-length", "24", "--profile", "smoke", "--device", "cpu"]
    how += ["--speed-rounds", "0", "--no-checks", "--methods", "drop-tail", "--ratio", "0.3", "--threads", "1"]
    small = {
        "text": text,
        "windows": 2,
        "window": 32,
        "prefill": (8,),
        "decode": (8,),
        "steps": 2,
        "rounds": 6,
        "processes": 1,
    }
    monkeypatch.setattr(run_command, "ServedProtocol", lambda engine: ServedProtocol(**small | {"engine": engine}))
    out = str(tmp_path / "run")
    assert main(["run", "--model", str(place / "model"), *how, "--out", out, "--engine-speed", "llama.cpp"]) == 0
    assert "drop-tail@q8_0" in capsys.readouterr().out
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    again = ["run", "--model", str(place / "model"), *how, "--out", f"{out}-2", "--engine-speed", "llama.cpp"]
    assert main(again) == main([*again, "--plan"]) == 2
    assert not (tmp_path / "run-2").exists()  # refused before any work


def test_a_damaged_line_is_named(tmp_path, capsys):
    (tmp_path / served.FILE).write_text(json.dumps({"schema": 2}) + "\n")
    assert served.load(tmp_path) == []
    assert "served.jsonl: line 1: key is missing, and" in capsys.readouterr().err


class Loaded(Recorded):
    """An engine whose servers are one of the tests', which computes nothing."""

    def __init__(self, port):
        super().__init__()
        self.port = port

    @contextmanager
    def make_server(self, exported, context, slots):
        server = ServerProcess(self.name, "python", exported.path, [], {}, silence=30)
        server.port, server.key = self.port, "sesame-17"
        self.did.append(f"serve {exported.path.name[:5]} {context} {slots}")
        yield server


LOAD = {"concurrency": (1, 2), "requests_per_turn": 2, "prompt_tokens": "3-5", "output_tokens": "2-4"}


def test_models_under_load_have_rows_of_their_own_in_one_table_and_one_figure(fresh):
    alone = serve(fresh, Recorded(), ["drop-tail"])
    load = LoadProtocol(**LOAD, rate=(500.0,), slo=("ttft=60s", "tpot=60s"))
    with stream(key="sesame-17") as (port, handler):
        mine = Loaded(port)
        how = {"types": ("float32",), "load": load, "processes": 2}
        rows_of_load = serve(fresh, mine, ["drop-tail"], **how)
        sent = len(handler.requests)
        assert serve(fresh, Loaded(port), ["drop-tail"], **how) == rows_of_load
        assert len(handler.requests) == sent  # not measured again
    assert sent % (2 * 2 * 2) == 0
    assert (mine.did.count("serve dense 9 2"), mine.did.count("serve drop- 9 2")) == (3 * 2, 2)  # of two rows, twice
    kept = served.load(fresh / "run", pytest.fail)  # each fits the layout
    assert kept == [*alone.values(), *rows_of_load.values()]
    pruned = rows_of_load["drop-tail@float32"]
    assert "prefill" not in pruned.protocol and pruned.protocol["load"]["limits"] == {"ttft": 60_000, "tpot": 60_000}
    levels = [value_from_plain(LevelTiming, level) for level in pruned.measured["load"]]
    assert [level.name for level in levels] == ["1 at once", "2 at once", "500 per second"]
    assert all(level.pruned.goodput == level.pruned.requests_per_second for level in levels)
    assert "points" not in pruned.measured and pruned.measured["checks"]
    tables = {table.name: table for table in tables_of_served(kept)}
    assert set(tables) == {"served", "served-load"}
    table = tables["served-load"]
    column = [each.name for each in table.columns].index("rate")
    assert [row.cells[column].value for row in table.rows[3:]] == [level.pruned.tokens_per_second for level in levels]
    assert "goodput: requests per second within ttft 60,000 ms, tpot 60,000 ms." in table.footnotes
    curves = [figure.charts[0].curves for figure in figures_of_load(kept)]
    ((dense, first), (_, rest)) = curves
    assert dense.label == "dense@float32"
    assert first.label == "drop-tail at 0.3@float32"
    assert first.points[1] == (levels[1].pruned.tokens_per_second, levels[1].pruned.ttft_ms[0])
    assert rest.points[2] == (levels[2].pruned.tokens_per_second, levels[2].pruned.tpot_ms[0])


def test_a_server_that_fails_under_load_is_an_outcome_of_its_row_and_keeps_what_was_timed(fresh):
    count = []

    def break_off(handler, body, send):
        count.append(body)
        write_words(handler, body, send, extra=len(count) > 2 * 2 * 7)  # once the first level is timed

    with (
        stream(key="sesame-17", behave=break_off) as (port, _),
        pytest.raises(rows.DenseNotServed, match="tokens where"),
    ):
        serve(fresh, Loaded(port), ["drop-tail"], types=("float32",), load=LoadProtocol(**LOAD))
    (row,) = served.load(fresh / "run", pytest.fail)
    assert (row.status, len(row.measured["load"])) == ("error", 1)
    assert "sesame-17" not in (fresh / "run" / served.FILE).read_text()


def test_requests_that_are_longer_than_the_model_takes_are_refused_before_any_work(fresh):
    mine = Recorded()
    with pytest.raises(UserError, match=r"longest request has 100004 tokens .* and the model takes \d+"):
        serve(fresh, mine, ["drop-tail"], load=LoadProtocol(**LOAD | {"prompt_tokens": "100000"}))
    assert mine.did == ["require"]
