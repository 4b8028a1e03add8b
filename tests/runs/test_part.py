"""A cell that another machine has measured into a part is the same cell, with its samples and its model."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import refused
from made_records import DENSE, changed
from method_source import SHORTGPT, method_source
from run_contents import contents

from bench import engines
from bench.cli.main import main
from bench.engines.engine import PARTS, InUse, Job, Machine, Result, RunConditions, Workplace
from bench.plan import validate
from bench.plan.run_spec import RunSpec
from bench.records.record import InvalidRecord
from bench.records.run_folder import load_run
from bench.runs import job as part
from bench.runs import store
from methods.errors import UserError

MINE = method_source("mine", SHORTGPT)


@dataclass
class Parts:
    """Measures every job into a part at once, whose files it gives back as bytes or in their folder.

    place      where the parts lie
    workplace  whose process measures one job after the other
    """

    place: Path
    workplace: Workplace
    as_bytes: bool
    slots: ClassVar[int] = 1
    is_here: ClassVar[bool] = False
    machine: ClassVar[Machine] = Machine(None, 1)
    jobs: list[str] = field(default_factory=list)
    submitted: Job | None = None

    def start(self, needs):
        self.measure = needs.measure
        return self

    def threads(self, timed):
        return 1

    def has_room(self, timed):
        return self.submitted is None

    def submit(self, job):
        self.submitted = job

    def next_result(self):
        job, self.submitted = self.submitted, None
        self.jobs.append(job.to_json())
        folder = self.place / job.key
        self.measure(self.jobs[-1], str(folder), self.workplace)
        if not self.as_bytes:
            return Result(job.key, {}, folder)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return Result(job.key, {}, files)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def workplace():
    with Workplace() as shared:
        yield shared


@pytest.fixture
def parts(tmp_path, monkeypatch, workplace):
    def chosen_for(as_bytes: bool) -> Parts:
        engine = Parts(tmp_path / f"parts-{as_bytes}", workplace, as_bytes)
        monkeypatch.setattr(engines, "engine_of_spec", lambda spec: engine)
        return engine

    return chosen_for


@pytest.mark.nightly
def test_a_cell_with_neighbours_has_its_share_of_the_memory_and_says_so(base, tmp_path, parts, workplace):
    """Of which a millionth is less than any model takes, so that its weights lie in files."""
    engine = parts(as_bytes=False)
    assert main([*base, "--methods", "dense", "--speed-rounds", "0"]) == 0
    (text,), found = engine.jobs, []
    order = Job.from_json(text)
    for given in ({}, {"slots": 10**6}, {"slots": 10**6, "memory_gib": 64.0}):
        neighbour = replace(order, run=replace(order.run, **given))
        part.run_job_text(neighbour.to_json(), str(tmp_path / str(len(given))), workplace)
        (record,) = load_run(tmp_path / str(len(given)))
        found.append((record.environment.get("slots"), record.measured.weights_in))
    assert found == [(None, None), (10**6, "files"), (10**6, None)]


@pytest.mark.nightly
def test_a_run_whose_jobs_queue_says_no_end(base, tmp_path, parts, capsys):
    engine = parts(as_bytes=False)
    engine.machine = Machine(None, 1, queues=True)
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.2,0.4,0.6", "--texts", "none"]) == 0
    progress = [line for line in capsys.readouterr().err.splitlines() if " cells done, " in line]
    assert progress[0] == "1 of 4 cells done, 0 in the queue or running, 3 waiting, 0 failed"
    assert len(progress) == 4 and not any("ends about" in line for line in progress)


def test_parts_give_what_the_run_itself_gives(with_checks, tmp_path, parts):
    (tmp_path / "mine.py").write_text(MINE)
    asked = [*with_checks, "--ratio", "0.2", "--then", "shortgpt:ratio=0.6", "--threads", "1", "--device", "cpu"]
    asked += ["--methods", "mine,sleb", "--plugin", str(tmp_path / "mine.py"), "--save-models"]
    assert main([*asked, "--out", str(tmp_path / "here")]) == 0
    expected = contents(tmp_path / "here")
    assert sum(name.startswith("cells/") for name in expected) == 5
    assert sum(name.endswith(".safetensors") for name in expected) == 4
    for as_bytes in (True, False):
        engine, run = parts(as_bytes), tmp_path / f"run-{as_bytes}"
        assert main([*asked, "--out", str(run)]) == 0
        assert contents(run) == expected
        assert len(engine.jobs) == 5
        assert main([*asked, "--out", str(run)]) == 0
        assert len(engine.jobs) == 5  # everything had its record


def test_a_lost_cell_is_tried_again_by_the_same_command_which_goes_on_inside_it(base, tmp_path, parts, capsys):
    engine, run = parts(False), tmp_path / "run"
    engine.place = run / PARTS  # which other machines see
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2", "--device", "cpu", "--out", str(run)]
    measure_and_hear = engine.next_result

    def is_not_heard():
        result = measure_and_hear()
        return Result(result.key, {"status": "lost", "error": "its node is gone"})

    engine.next_result = is_not_heard
    assert main(asked) == 3
    assert {record.status for record in load_run(run)} == {"lost"}
    stamps = [path.stat().st_mtime_ns for path in sorted(run.glob("parts/*/cells/*.json"))]
    assert len(stamps) == 2
    engine.next_result = measure_and_hear
    capsys.readouterr()
    assert main(asked) == 0
    assert capsys.readouterr().err.count("it failed before: lost; it runs again") == 2
    assert [path.stat().st_mtime_ns for path in sorted(run.glob("cells/*.json"))] == stamps
    assert not (run / PARTS).exists()


class EndedFromOutside(BaseException):
    """Says that a cluster has ended a job."""


class UntilItsEnd(Workplace):
    """Is ended with its job when the cell has all its figures, before there is a record."""

    def run(self, target, arguments, *, hear, **how):
        def until_then(news):
            if "status" in news:
                raise EndedFromOutside
            hear(news)

        return super().run(target, arguments, hear=until_then, **how)


@pytest.mark.nightly
def test_a_cell_whose_job_was_ended_keeps_what_it_had_and_goes_on_from_there(base, tmp_path, parts):
    engine, run = parts(False), tmp_path / "run"
    engine.place = run / PARTS  # which other machines see
    measure_and_hear = engine.next_result
    asked = [*base, "--methods", "sleb", "--ratio", "0.2", "--device", "cpu", "--threads", "1"]
    asked += ["--out", str(run), "--retry-failed"]

    def is_ended():
        if engine.submitted.key.startswith("dense"):
            return measure_and_hear()
        key, shared = engine.submitted.key, engine.workplace
        with UntilItsEnd() as engine.workplace, pytest.raises(EndedFromOutside):
            measure_and_hear()
        engine.submitted, engine.workplace = None, shared
        return Result(key, {"status": "timed_out", "error": "the cluster ended it"})

    engine.next_result = is_ended
    assert main(asked) == 3
    ended = next(record for record in load_run(run) if record.status == "timed_out")
    assert {"date", "device", "dtype"} < set(ended.environment)
    assert list(ended.measured.samples) == [path.stem for path in run.glob("samples/sleb*/*.parquet")]
    (kept,) = run.glob("partial/*/prune/removals.json")
    assert not (run / PARTS).exists()
    found = kept.read_bytes()

    def has_what_was_left():
        assert (run / PARTS / engine.submitted.key / kept.relative_to(run)).read_bytes() == found
        return measure_and_hear()

    engine.next_result = has_what_was_left
    assert main(asked) == 0
    again = next(record for record in load_run(run) if record.cell.method == "sleb")
    assert again.measured.pruned_sha256 == ended.measured.pruned_sha256
    # the log of a search is written every 15 seconds: this one is made again, and its seconds count once
    assert again.measured.prune_seconds == pytest.approx(again.measured.seconds["prune"])
    assert not list(run.glob("part*"))


def test_what_a_cell_has_left_goes_to_its_part_and_back_but_not_while_something_measures_there(tmp_path):
    kept, away = (folder / "partial" / "k" / "heal-1" / "step" for folder in (tmp_path, tmp_path / PARTS / "k"))
    kept.parent.mkdir(parents=True)
    kept.write_text("1")
    part.hand_over_pieces(tmp_path, "k", is_here=False)
    assert (kept.exists(), away.read_text()) == (False, "1")
    with store.lock_folder(tmp_path / PARTS / "k"):
        part.hand_over_pieces(tmp_path, "k", is_here=True)
        assert away.exists()
    part.hand_over_pieces(tmp_path, "k", is_here=True)
    assert (kept.read_text(), away.exists()) == ("1", False)
    part.hand_over_pieces(tmp_path, "k", is_here=False)
    store.remove_pieces(tmp_path, "k", "lost")
    assert away.exists()
    store.remove_pieces(tmp_path, "k", "crashed")
    assert (kept.read_text(), (tmp_path / PARTS).exists()) == ("1", False)


def test_what_was_measured_for_a_run_that_did_not_hear_of_it_is_taken_in(base, tmp_path, capsys):
    """Unless a process measures there, or it has failed."""
    run, asked = tmp_path / "run", [*base, "--methods", "shortgpt,drop-tail", "--ratio", "0.2", "--device", "cpu"]
    assert main(asked) == 0
    expected, places = contents(run), dict[str, Path]()
    for path in [*(run / "cells").iterdir(), *(run / "samples").iterdir()]:
        place = places.setdefault(path.stem.partition("--")[0], run / PARTS / path.stem)
        (place / path.parent.name).mkdir(parents=True)
        path.rename(place / path.parent.name / path.name)
    (path,) = (places["drop-tail"] / "cells").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "error", "error": "there was no room"}))
    capsys.readouterr()
    with store.lock_folder(places["shortgpt"]):
        assert main(asked) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "earlier run" in line] == [
        "dense was measured for an earlier run, on another machine"
    ]
    assert [line for line in said if "loading" in line] == [
        "[2/3] shortgpt at 0.2: loading the model",
        "[3/3] drop-tail at 0.2: loading the model",
    ]
    assert not places["dense"].exists()
    assert {name: value for name, value in contents(run).items() if not name.startswith(PARTS)} == expected


def test_a_cell_behind_a_lost_one_is_lost_and_no_record_has_this_machine_for_that_of_another(base, tmp_path, parts):
    engine, run = parts(False), tmp_path / "run"

    def is_lost():
        key, engine.submitted = engine.submitted.key, None
        return Result(key, {"status": "lost", "error": "its node is gone"})

    engine.next_result = is_lost
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2", "--then", "shortgpt:ratio=0.6", "--device", "cuda"]
    assert main([*asked, "--dtype", "bfloat16", "--out", str(run)]) == 3  # on a machine that has no GPU
    found = load_run(run)
    assert [record.status for record in found] == ["lost"] * 3
    for record in found:
        assert {**record.environment, "date": None} == {"device": "cuda", "dtype": "bfloat16", "date": None}


def test_the_command_measures_a_job_once_and_refuses_what_is_none(base, tmp_path, parts, capsys, monkeypatch):
    engine = parts(False)
    asked = [*base, "--methods", "shortgpt", "--ratio", "0.2", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(asked) == 0
    dense, job = engine.jobs
    (tmp_path / "job.json").write_text(job)
    assert main(["cell", str(tmp_path / "job.json"), "--out", str(tmp_path / "part")]) == 0
    monkeypatch.setattr(part, "Workplace", lambda folder: nullcontext(engine.workplace))  # faster from here on
    first = contents(tmp_path / "part")
    assert [name for name in first if name.startswith("cells/shortgpt")] == [name for name in first if "cells/" in name]
    stamp = next((tmp_path / "part" / "cells").iterdir()).stat().st_mtime_ns
    assert main(["cell", str(tmp_path / "job.json"), "--out", str(tmp_path / "part")]) == 0
    assert next((tmp_path / "part" / "cells").iterdir()).stat().st_mtime_ns == stamp
    merged = ["merge", *(str(path) for path in engine.place.iterdir() if "dense" in path.name), str(tmp_path / "part")]
    assert main([*merged[:-1], str(tmp_path / "part"), "--out", str(tmp_path / "whole")]) == 2  # dense was taken in
    (tmp_path / "dense.json").write_text(dense)
    assert main(["cell", str(tmp_path / "dense.json"), "--out", str(tmp_path / "dense")]) == 0
    by_hand = ["merge", str(tmp_path / "part"), str(tmp_path / "dense"), "--out"]
    assert main([*by_hand, str(tmp_path / "by-hand")]) == 0
    whole = {name: content for name, content in contents(tmp_path / "run").items() if name != ".lock"}
    assert contents(tmp_path / "by-hand") == whole
    capsys.readouterr()
    assert "part exists and is not empty; name a new folder" in refused(capsys, [*by_hand, str(tmp_path / "part")])

    def refuses(text: str, out: str, said: str) -> None:
        (tmp_path / "other.json").write_text(text)
        assert said in refused(capsys, ["cell", str(tmp_path / "other.json"), "--out", str(tmp_path / out)])

    refuses("{", "new", "this is no job of a run: the file: Invalid JSON")
    refuses(json.dumps(json.loads(job) | {"threads": "many"}), "new", "this is no job of a run: threads: ")
    plain = json.loads(job)
    refuses(json.dumps(plain | {"cell": {}}), "new", "this is no job of a run: cell.method: Field required")
    refuses(json.dumps(plain | {"cell": plain["cell"] | {"protocol": 3}}), "new", "this is no job of a run: cell.proto")
    refuses(json.dumps(plain | {"cell": plain["cell"] | {"seed": "x"}}), "new", "no job of a run: cell.seed: Input ")
    refuses(dense, "part", "part belongs to another run, it holds shortgpt--0.2--")
    outside = Job.from_json(job).to_json().replace('"sources": {}', '"sources": {"../mine.py": ""}')
    refuses(outside, "new", "a plugin has the name")
    plain["cell"]["inputs"]["versions"]["torch"] = "1.0.0"
    refuses(json.dumps(plain), "new", " and not 1.0.0, which the run has; install the same there")
    refuses(
        json.dumps(json.loads(job) | {"run": plain["run"] | {"code_sha256": "0" * 64}}),
        "new",
        "the code of prunebench ",
    )
    assert not list((tmp_path / "new").glob("cells/*"))
    assert "cannot be read: No such file" in refused(capsys, ["cell", "none.json", "--out", str(tmp_path / "new")])


def test_a_job_has_the_text_of_its_plugins(tmp_path):
    asked = made_job()
    with pytest.raises(UserError, match=r"it has no text of the plugin 'mine\.py'"):
        part.run_remote_job(replace(asked, run=replace(asked.run, plugins=(Path("mine.py"),))), tmp_path)


def made_job() -> Job:
    cell = validate.cells_of_spec(RunSpec(methods="dense", device="cpu"))[0]
    return Job(cell, "k", "k", Path(), RunConditions(Path()))


def test_the_lock_of_a_dead_predecessor_is_waited_for_and_one_that_is_held_on_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "PATIENCE", 0.5)
    asked = made_job()
    with store.lock_folder(tmp_path), pytest.raises(InUse, match="is in use by the run with process"):
        part.run_remote_job(asked, tmp_path)
    monkeypatch.setattr(part, "PATIENCE", 60.0)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "other.json").touch()
    with ExitStack() as dying:
        dying.enter_context(store.lock_folder(tmp_path))
        ends = threading.Timer(0.5, dying.close)
        ends.start()
        with pytest.raises(UserError, match="it holds other; name another --out"):  # which is seen under the lock
            part.run_remote_job(asked, tmp_path)
        ends.join()


def test_a_part_that_cannot_be_made_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    job = made_job()
    (tmp_path / "job.json").write_text(job.to_json())
    for out, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "part", "Not a directory")):
        said = refused(capsys, ["cell", str(tmp_path / "job.json"), "--out", str(out)])
        assert f"{out} cannot be made or locked: {why}; name another with --out" in said


def test_other_machines_are_not_looked_at_for_a_device(base, parts, capsys):
    parts(True)
    said = refused(capsys, [*base, "--methods", "shortgpt", "--ratio", "0.2", "--device", "auto"])
    assert "cells run on other machines; say --device cuda or --device cpu, not auto" in said


def test_other_machines_are_not_looked_at_for_a_dtype(base, parts, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    spec = RunSpec(methods="dense", device="cpu", model=base[base.index("--model") + 1], protocol={"tasks": ()})
    found = {here: validate.cells_of_spec(spec, is_here=here)[0].dtype for here in (True, False)}
    assert found == {True: "bfloat16", False: "float32"}


def sent(**samples: object) -> dict[str, bytes]:
    """A part as another machine sends it: a record that names these samples."""
    record = changed(DENSE, "measured", "samples", to=samples)
    return {"cells/k.json": json.dumps(record.plain()).encode()}


def test_what_another_machine_sends_is_written_nowhere_but_in_the_folder(tmp_path):
    run = tmp_path / "run"
    (run / "cells").mkdir(parents=True)
    record = store.take_in(sent() | {"../../outside": b"", "samples/../../../outside": b""}, run, "k")
    assert record.cell.method == "dense"
    assert (run / "cells" / "k.json").is_file()
    assert list(tmp_path.rglob("outside")) == []


def test_samples_that_are_not_those_of_their_record_are_not_taken_in(tmp_path):
    content = b"of another cell"
    named = {"piqa": {"sha256": hashlib.sha256(content).hexdigest()}}
    with pytest.raises(InvalidRecord, match=r"piqa.parquet is missing or not the file that was written"):
        store.take_in(sent(**named) | {"samples/k/piqa.parquet": b"cut short"}, tmp_path, "k")
    assert list(tmp_path.iterdir()) == []
    store.take_in(sent(**named) | {"samples/k/piqa.parquet": content}, tmp_path, "k")
    assert (tmp_path / "samples" / "k" / "piqa.parquet").read_bytes() == content


def test_cells_share_statistics_of_the_dense_model_and_say_what_these_have_cost(base, tmp_path):
    asked = [*base, "--methods", "shortgpt", "--threads", "1", "--then", "shortgpt:ratio=0.7"]
    found = {}
    for name, ratio in (("both", "0.2,0.4"), ("one", "0.4")):
        assert main([*asked, "--ratio", ratio, "--out", str(tmp_path / name)]) == 0
        found[name] = {(r.cell.label, r.cell.ratio): r for r in load_run(tmp_path / name)}
    for key, record in found["one"].items():
        again = found["both"][key]
        assert record.decisions | {"earlier": None} == again.decisions | {"earlier": None}
        assert record.measured.pruned_sha256 == again.measured.pruned_sha256
    spent = {
        name: [
            r.cell.label for r in cells.values() if (r.measured.prune_seconds or 0) > r.measured.seconds.get("prune", 0)
        ]
        for name, cells in found.items()
    }
    assert spent == {"both": ["shortgpt"], "one": []}  # what is pruned again is no dense model
