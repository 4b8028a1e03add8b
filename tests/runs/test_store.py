"""A run folder survives whatever happens to its runs: killed, doubled, damaged, without room."""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pandas as pd
import psutil
import pytest
import torch
from conftest import tiny
from ledger_runs import Runner
from made_records import cell, made_record

import methods
from bench.cli.main import main
from bench.data import task_loading
from bench.engines.engine import Machine
from bench.evaluation import tasks
from bench.plan.kinds import to_plain
from bench.records.measured import TaskMetric
from bench.records.record import load, peak_of_stage
from bench.records.run_folder import load_run
from bench.runs import inputs, measure, store
from methods.base import REGISTRY
from methods.errors import Unwritable, UserError
from methods.files import WRITING, write_atomically

TIMINGS = ("seconds", "prune_seconds", "search_seconds", "peak_memory")
KILLS = int(os.environ.get("PRUNEBENCH_KILLS", "4"))


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """Documents of two tasks, in the words of the tiny model."""
    draw, folder = random.Random(3), tmp_path_factory.mktemp("documents")
    rows = [
        {"goal": f"w{draw.randrange(90)} w{i}", "sol1": "w1 w2", "sol2": f"w{draw.randrange(90)}", "label": i % 2}
        for i in range(12)
    ]
    (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [
        {"sentence": f"w{i} w3 _ w{draw.randrange(90)}", "option1": "w1", "option2": f"w{i}", "answer": str(1 + i % 2)}
        for i in range(12)
    ]
    (folder / "winogrande.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def asked(model_folder, text_file, documents):
    """A run of three cells, each with a text and two tasks; the folder is to be named."""
    return [
        *("run", "--model", str(model_folder), "--texts", str(text_file), "--calibration", str(text_file)),
        *("--tasks", "piqa,winogrande", "--task-data", f"piqa={documents / 'piqa.jsonl'}"),
        *("--task-data", f"winogrande={documents / 'winogrande.jsonl'}", "--documents", "8", "--window", "32"),
        *("--windows", "4", "--calibration-sequences", "4", "--calibration-length", "24", "--profile", "smoke"),
        *("--device", "cpu", "--speed-rounds", "0", "--threads", "1", "--methods", "drop-tail,slicegpt"),
        *("--ratio", "0.3", "--no-checks", "--dtype", "float32"),
    ]


@pytest.fixture(scope="module")
def runner(asked):
    with Runner(asked) as found:
        yield found


def contents(folder: Path) -> dict[str, object]:
    """Everything that a run has left, timings aside: records as values, samples as bytes, the rest by name."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes() if path.suffix == ".parquet" else None
        if path.parent.name == "cells":
            plain = json.loads(path.read_text())
            plain["measured"] = {key: value for key, value in plain["measured"].items() if key not in TIMINGS}
            plain["environment"].pop("date")
            found[name] = plain
    return found


@pytest.fixture(scope="module")
def whole(runner, tmp_path_factory):
    """A folder of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, said = runner.run(folder)
    assert (code, said.count("loading the model")) == (0, 3)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_killed_at_any_moment_goes_on_to_the_same_results(runner, whole, tmp_path):
    expected, draw = contents(whole), random.Random(0)
    start = time.monotonic()
    runner.run(tmp_path / "timed")
    seconds = time.monotonic() - start
    kills = recorded = partial = owned = 0
    for trial in range(5 * KILLS):
        folder = tmp_path / str(trial)
        start = time.monotonic()
        code, said = runner.run(folder, seconds * draw.random())
        if code != -signal.SIGKILL:  # it came to its end first: the machine has grown faster
            seconds = time.monotonic() - start
            continue
        kills += 1
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("cells/*.json")}
        dead = (folder / store.OWNER).exists()
        finished = {load(path).cell.label for path in before}  # each of them whole
        owned += dead
        partial += any(folder.glob("partial/*/*.json"))
        recorded += bool(finished)
        code, said = runner.run(folder)
        assert code == 0, said
        assert ("did not come to its end; going on from there" in said) == dead
        lines = said.splitlines()
        assert {line.split()[1].rstrip(":") for line in lines if line.endswith("has a record")} == finished
        assert sum("loading the model" in line for line in lines) == 3 - len(finished)
        assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
        assert contents(folder) == expected, f"trial {trial}"
        if kills >= KILLS and min(recorded, partial, owned) > 0:
            break
    else:  # the moments were such that something could go wrong at them
        pytest.fail(f"{kills} kills, {recorded} behind a record, {partial} behind a part, {owned} while it ran")


def test_two_runs_do_not_share_a_folder(asked, tmp_path, capsys):
    with store.lock_folder(tmp_path / "run") as dead:
        assert dead is None
        assert main([*asked, "--out", str(tmp_path / "run")]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"is in use by the run with process {os.getpid()} on {platform.node()}, started 20" in err
    assert not (tmp_path / "run" / "cells").exists()
    with store.lock_folder(tmp_path / "run") as dead:
        assert dead is None


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(code, asked, tmp_path, capsys, monkeypatch):
    def has_none(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", has_none)
    assert main([*asked, "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{tmp_path / 'run'} lies on a file system without locks (flock)" in err
    assert not (tmp_path / "run" / store.OWNER).exists()


@pytest.mark.parametrize("damage", ["record", "samples", "missing samples", "samples of another"])
def test_a_damaged_file_is_noticed_and_its_cell_alone_runs_again(damage, runner, whole, copied):
    (path,) = copied.glob("cells/slicegpt*.json")
    if damage == "samples of another":
        (other,) = copied.glob("samples/dense*/piqa.parquet")
        shutil.copy(other, copied / "samples" / path.stem / "piqa.parquet")
    elif damage == "missing samples":
        shutil.rmtree(copied / "samples" / path.stem)
    else:
        damaged = path if damage == "record" else copied / "samples" / path.stem / "piqa.parquet"
        os.truncate(damaged, damaged.stat().st_size // 2)
    code, said = runner.run(copied)
    assert (code, said.count("has a record"), said.count("it runs again")) == (0, 2, 1)
    assert ("is not JSON" if damage == "record" else "piqa.parquet is missing or not") in said or "missing" in damage
    assert contents(copied) == contents(whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a way to set its options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")

    if not shutil.which("mount"):
        pytest.skip("file systems cannot be mounted here: there is no mount")
    mount("-t", "tmpfs", "-o", "size=40k", "tmpfs")
    yield place, lambda options: mount("-o", f"remount,{options}")
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(runner, whole, asked, small_disk, capsys):
    place, remount = small_disk
    assert main([*asked, "--out", str(place / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "cannot be written: No space left on device; the same command goes on once it can" in err.splitlines()[-1]
    assert not list(place.rglob(f"{WRITING}*"))
    assert [load(path) for path in place.rglob("cells/*.json")] or list(place.rglob("partial/*/*.json"))
    remount("size=8m")
    code, said = runner.run(place / "run")
    assert (code, contents(place / "run")) == (0, contents(whole)), said


def test_a_read_only_folder_is_refused_before_any_work(asked, small_disk, capsys):
    place, remount = small_disk
    (place / "run").mkdir()
    remount("ro")
    assert main([*asked, "--out", str(place / "run")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "cannot hold results: Read-only file system; name another with --out" in err


def test_no_room_for_anything_else_ends_the_run_too(monkeypatch, asked, tmp_path, capsys):
    """Such as the scratch file of the dense model, whose writer has errors of its own."""
    no_room = RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")

    def refuse(*_):
        raise no_room

    monkeypatch.setattr(measure.checks.DenseOutputs, "remember", refuse)
    arguments = [argument for argument in asked if argument != "--no-checks"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "no room is left on a disk" in said and f" MB in {tmp_path / 'run'} and " in said
    assert f" MB in {tempfile.gettempdir()}; the same command goes on with more" in said
    assert not list(tmp_path.rglob("cells/*"))


def test_a_folder_that_is_removed_while_its_run_goes_on_ends_that_in_one_line(asked, tmp_path, monkeypatch, capsys):
    evaluate, folder = tasks.evaluate, tmp_path / "run"

    def removes(*given):
        shutil.rmtree(folder, ignore_errors=True)
        return evaluate(*given)

    monkeypatch.setattr(tasks, "evaluate", removes)
    assert main([*asked, "--out", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err) == ("", False)
    said = f"prunebench: {folder} was removed while the run went on; the same command begins anew"
    assert err.splitlines()[-1] == said
    assert not list(folder.glob("cells/*"))


def test_finished_pieces_of_an_interrupted_cell_are_not_measured_again(asked, whole, tmp_path, monkeypatch):
    evaluate, answered = tasks.evaluate, []

    def interrupted(lm, wanted, *more):
        answered.append(*wanted)
        if len(answered) == 2:
            raise KeyboardInterrupt
        return evaluate(lm, wanted, *more)

    monkeypatch.setattr(tasks, "evaluate", interrupted)
    arguments = [*asked, "--out", str(tmp_path / "run")]
    assert main(arguments) == 130
    (key,) = [path.name for path in (tmp_path / "run" / "partial").iterdir()]
    kept = {path.name for path in (tmp_path / "run" / "partial" / key).iterdir()}
    assert kept == {f"{name}.{kind}" for name in ("perplexity-words", "piqa") for kind in ("json", "parquet")}
    assert not list((tmp_path / "run").glob("cells/*"))
    assert main(arguments) == 0
    assert answered == ["piqa", "winogrande", "winogrande", *["piqa", "winogrande"] * 2]
    assert contents(tmp_path / "run") == contents(whole)


def test_pieces_count_for_the_same_weights_alone(tmp_path):
    table = pd.DataFrame({"nll": [1.0], "tokens": [3]})
    store.Pieces(tmp_path, "aa").keep("text", TaskMetric(value=2.0), table)
    assert store.Pieces(tmp_path, "aa").recall("text", TaskMetric) == TaskMetric(value=2.0)
    assert store.Pieces(tmp_path, "bb").recall("text", TaskMetric) is None
    assert store.Pieces(tmp_path, "bb").publish(tmp_path / "samples") == {}
    (tmp_path / "text.parquet").write_bytes(b"PAR1")
    assert store.Pieces(tmp_path, "aa").recall("text", TaskMetric) is None


def test_the_hash_of_a_model_sees_every_tensor():
    model = tiny("llama")
    before = inputs.sha256_of_state(model)
    assert inputs.sha256_of_state(tiny("llama")) == before
    for tensor in model.parameters():
        first = tensor.data.flatten()[0].clone()
        tensor.data.view(-1)[0] = torch.nextafter(first, torch.tensor(torch.inf))
        assert inputs.sha256_of_state(model) != before
        tensor.data.view(-1)[0] = first
    assert inputs.sha256_of_state(model) == before
    assert inputs.sha256_of_state(model.to(torch.bfloat16)) != before


# --- what an answer stands on


METHOD = """
from dataclasses import dataclass
from methods import Pruner, register


@register("{name}")
@dataclass(frozen=True)
class Mine(Pruner):
    takes_ratio = False

    def plan(self, model, ratio):
        return {{}}

    def prune(self, model, calibration, ratio):
        model.set_layers(model.layers[:4])
        return {{}}
"""


@pytest.fixture
def forgotten():
    """Forget the plugins that a test loads, which processes started later would look for."""
    known, before = dict(REGISTRY), set(sys.modules)
    yield
    REGISTRY.clear()
    REGISTRY.update(known)
    for name in set(sys.modules) - before:
        if name.startswith(methods.registry.PLUGIN):
            del sys.modules[name]


def test_an_edited_plugin_is_not_served_its_old_answer(asked, tmp_path, capsys, forgotten):
    plugin = tmp_path / "mine.py"
    plugin.write_text(METHOD.format(name="ledger-mine"))
    arguments = [*asked, "--methods", "ledger-mine", "--plugin", str(plugin), "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("has a record") == 2
    before = {path.name for path in (tmp_path / "run" / "cells").glob("ledger-mine*")}
    plugin.write_text(plugin.read_text() + "EDITED = True\n")
    assert main([*arguments, "--plan"]) == 0
    assert "is old, since this has changed: mine.py; it is measured again" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run" / "cells").glob("ledger-mine*")} == before  # a plan moves nothing
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert said.count("has a record") == 1
    assert "is old, since this has changed: mine.py; moved to superseded/" in said
    after = {path.name for path in (tmp_path / "run" / "cells").glob("ledger-mine*")}
    assert (len(after), after & before) == (1, set())  # of which a report makes one row
    assert before <= {path.name for path in (tmp_path / "run" / "superseded" / "cells").iterdir()}
    assert (tmp_path / "run" / "superseded" / "samples" / next(iter(before)).removesuffix(".json")).is_dir()


def test_other_weights_have_another_key(asked, model_folder, tmp_path, capsys):
    shutil.copytree(model_folder, tmp_path / "model")
    arguments = [*asked, "--model", str(tmp_path / "model"), "--methods", "dense", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    tiny("llama", seed=1, max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    assert main(arguments) == 0
    assert "this has changed: weights_sha256; moved" in capsys.readouterr().err
    (found,) = load_run(tmp_path / "run")
    assert found.cell.inputs.weights_sha256 == found.measured.weights_sha256
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert main(arguments) == 0
    assert "this has changed: config_sha256; moved" in capsys.readouterr().err


def test_how_threads_wait_is_part_of_a_timed_cells_key_alone(monkeypatch):
    monkeypatch.setattr(inputs, "sha256_of_tokenizer", lambda tokenizer: "")
    monkeypatch.setattr(inputs.pretrained, "sha256_of_config", lambda *_: "")

    def stands_on(rounds: int, turns: str) -> dict:
        monkeypatch.setenv("GOMP_SPINCOUNT", turns)
        protocol = SimpleNamespace(speed_rounds=rounds, apply_chat_template=False)
        cell = SimpleNamespace(model="any", device="cpu", trust_remote_code=False, protocol=protocol)
        read = {"calibration": SimpleNamespace(sha256=""), "texts": {}, "loaded_tasks": {}, "documents": {}}
        return inputs.hash_shared_inputs(cell, None, Machine("this", 2), **read)

    assert stands_on(12, "5000") != stands_on(12, "0")
    assert stands_on(0, "5000") == stands_on(0, "0")


def test_a_model_that_changes_under_a_run_fails_its_cell(asked, tmp_path, monkeypatch):
    hashes = iter(["first", "second"])
    monkeypatch.setattr(measure.pretrained, "sha256_of_weights", lambda name, **_: next(hashes))
    assert main([*asked, "--methods", "dense", "--out", str(tmp_path / "run")]) == 3
    (found,) = load_run(tmp_path / "run")
    assert (found.status, found.measured.parameters) == ("error", None)
    assert "this has changed since the run began: weights_sha256" in found.error


@pytest.mark.parametrize("options", [("--threads", "1"), ("--threads", "auto"), ("--offload", ".")])
def test_a_base_that_does_not_load_ends_the_run_and_is_no_cells_error(options, asked, tmp_path, monkeypatch, capsys):
    """Also where something is known of the cell before."""

    def fails(*_):
        raise UserError("the base model does not load")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure.pretrained, "load", fails)
    assert main([*asked, "--methods", "drop-tail", *options, "--no-isolate", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "prunebench: the base model does not load"
    assert list((tmp_path / "run").glob("cells/*")) == []


def test_a_record_of_an_old_layout_is_set_aside(runner, whole, copied, capsys):
    (path,) = copied.glob("cells/dense*.json")
    plain = json.loads(path.read_text())
    path.unlink()
    (copied / "cells" / "dense--fixed--0123abcd.json").write_text(json.dumps(plain | {"schema": 1}))
    assert len(load_run(copied)) == 2
    assert "has schema 1; this version reads 3; it is left out" in capsys.readouterr().err
    code, said = runner.run(copied)
    assert code == 0
    assert "has schema 1; this version reads 3; moved to superseded/" in said
    shutil.rmtree(copied / "superseded")
    assert contents(copied) == contents(whole)


def test_the_documents_of_a_task_are_in_its_fingerprint(documents, tmp_path):
    def of(path: Path, positions=(0, 1)):
        (task,) = task_loading.load_tasks(["piqa"], [("piqa", str(path), "")]).values()
        return tasks.fingerprint_of_task(task, positions)

    file = documents / "piqa.jsonl"
    found = of(file)
    assert found == of(file)
    assert of(file, (0, 2)).sha256 != found.sha256
    lines = file.read_text().splitlines()
    for changed, position in ((True, 1), (False, 5)):
        rows = [json.loads(line) for line in lines]
        rows[position]["label"] = 1 - rows[position]["label"]
        (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert (of(tmp_path / "piqa.jsonl").sha256 != found.sha256) == changed


# --- records and samples


def test_samples_are_read_by_pandas_and_duckdb(whole):
    (folder,) = whole.glob("samples/slicegpt*")
    (found,) = [record for record in load_run(whole) if record.cell.method == "slicegpt"]
    file = folder / "piqa.parquet"
    table = pd.read_parquet(file)
    columns = {"doc_id", "doc_hash", "prompt_hash", "target_hash", "target", "loglikelihoods", "greedy"}
    assert columns | {"acc", "acc_norm"} <= set(table.columns)
    assert len(table) == found.measured.samples["piqa"].rows == found.measured.task_scores["piqa"].documents
    query = f"SELECT avg(acc), count(*), max(len(loglikelihoods)) FROM '{file}'"
    accuracy, count, choices = duckdb.sql(query).fetchall()[0]
    assert (accuracy, count, choices) == (found.measured.task_scores["piqa"].metrics["acc"].value, 8, 2)
    windows = folder / "perplexity-words.parquet"
    nll, tokens = duckdb.sql(f"SELECT sum(nll), sum(tokens) FROM '{windows}'").fetchall()[0]
    (figures,) = found.measured.text_scores.values()
    assert nll / tokens == pytest.approx(figures.nll_per_token, rel=1e-6)
    assert tokens == figures.tokens


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.json", "old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Unwritable, match=r"a.json cannot be written: No space left on device"):
        write_atomically(tmp_path / "a.json", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old"}


@pytest.mark.parametrize("folder", [0o1777, 0o700])
@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_who_may_read_what_is_written_is_said_by_the_umask_or_the_file_before(tmp_path, folder, mask):
    """Also in a folder that all may write to, as for temporary files."""
    tmp_path.chmod(folder)
    contents = {"text": "{}", "written": lambda path: path.write_text("{}"), "again": replaced}
    before = os.umask(mask)
    try:
        for name, content in contents.items():
            write_atomically(tmp_path / name, content)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask
            for mode in (0o600, 0o640, 0o666):
                (tmp_path / name).chmod(mode)
                write_atomically(tmp_path / name, content)
                assert (tmp_path / name).stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def replaced(path: Path) -> None:
    """Write another file in place of one, which lets all read and write it."""
    path.unlink()
    path.touch()
    path.chmod(0o777)


def test_a_figure_that_is_no_number_is_a_failure_and_absent(tmp_path):
    measured = {"parameters": 3, "checks": {"kl": float("nan"), "copying": 0.5}}
    wrong = made_record(cell("laco", 0.1), decisions={"losses": [1.0, float("inf")]}, measured=measured)
    found = store.write_record(wrong, tmp_path, "x")
    assert found == load(tmp_path / "cells" / "x.json")
    assert (found.status, found.error) == ("error", "not a finite number: decisions.losses, measured.checks.kl")
    assert to_plain(found.measured) == {"parameters": 3, "checks": {"copying": 0.5}}


def test_what_a_method_writes_and_no_record_holds_fails_its_cell(tmp_path):
    measured = {"parameters": 3, "checks": {"copying": 0.5}}
    removed = {"removed_layers": "the last", "note": 1}
    wrong = made_record(cell("mine", 0.1), decisions=removed, measured=measured)
    found = store.write_record(wrong, tmp_path, "x")
    assert found == load(tmp_path / "cells" / "x.json")
    assert found.error == 'this is no record\'s: decisions.removed_layers is "the last", not a list'
    assert (found.status, found.decisions, to_plain(found.measured)) == ("error", {"note": 1}, measured)


def test_a_record_that_does_not_fit_is_measured_again(runner, whole, copied):
    path = sorted(copied.glob("cells/*.json"))[-1]
    plain = json.loads(path.read_text())
    (text,) = plain["measured"]["perplexity"]
    plain["measured"]["perplexity"][text] = "low"
    path.write_text(json.dumps(plain))
    code, said = runner.run(copied)
    assert code == 0
    assert 'is "low", not an object' in said
    assert contents(copied) == contents(whole)


def test_leftovers_are_cleared_and_nothing_else(tmp_path):
    ours = [".run-ab", "models/.drop--0.3--12ab.x", "cells/.writing-a.json.1", "samples/k/.writing-b", ".writing-r"]
    theirs = [".gitignore", "cells/k.json", "samples/k/b.parquet", "models/k/config.json", "notes.md"]
    for name in (*ours, *theirs):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name in ours[:2] else path.write_text("")
    store.clear_leftovers(tmp_path)
    assert [name for name in (*ours, *theirs) if (tmp_path / name).exists()] == theirs


# --- processes of their own, and interrupts


DEADLY = """
import os
import signal
import time
from dataclasses import dataclass
from methods import Pruner, register


@dataclass(frozen=True)
class Base(Pruner):
    takes_ratio = False

    def plan(self, model, ratio):
        return {}


@register("ledger-crashes")
@dataclass(frozen=True)
class Crashes(Base):
    def prune(self, model, calibration, ratio):
        os.kill(os.getpid(), signal.SIGSEGV)


@register("ledger-swells")
@dataclass(frozen=True)
class Swells(Base):
    def prune(self, model, calibration, ratio):
        held = []
        while True:
            held.append(bytearray(os.urandom(1)) * 2**26)
            time.sleep(0.02)


@register("ledger-hangs")
@dataclass(frozen=True)
class Hangs(Base):
    def prune(self, model, calibration, ratio):
        time.sleep(3600)


@register("ledger-fills")
@dataclass(frozen=True)
class Fills(Base):
    def prune(self, model, calibration, ratio):
        return {"bytes": len(bytearray(b"x") * 2**29)}


@register("ledger-tells")
@dataclass(frozen=True)
class Tells(Base):
    time: int = 1

    def prune(self, model, calibration, ratio):
        return {"pid": os.getpid()}
"""


@pytest.fixture(scope="session")
def deadly(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugins") / "deadly.py"
    path.write_text(DEADLY)
    return path


def test_what_kills_a_process_is_the_outcome_of_its_cell_alone(asked, whole, copied, deadly, capsys):
    expected = contents(whole)
    (copied / next(name for name in expected if name.startswith("cells/drop-tail"))).unlink()
    arguments = [*asked, "--out", str(copied), "--plugin", str(deadly)]
    limited = [*arguments, "--methods", "ledger-crashes,ledger-swells,drop-tail", "--cell-memory-mib", "2000"]
    assert main(limited) == 3
    said = capsys.readouterr()
    found = {record.cell.method: record for record in load_run(copied)}
    assert {method: record.status for method, record in found.items()} == {
        "dense": "ok",
        "drop-tail": "ok",
        "slicegpt": "ok",
        "ledger-crashes": "crashed",
        "ledger-swells": "out_of_memory",
    }
    assert found["ledger-crashes"].error == "killed by SIGSEGV while it pruned"
    assert found["ledger-swells"].error == "used more than 2000 MiB while it pruned, and ended"
    assert found["ledger-swells"].measured.dense_layers == 6  # what was known before
    assert "crashed: killed by SIGSEGV" in said.err
    # measured in a process of its own, to the same last digit
    assert {name: value for name, value in contents(copied).items() if name in expected} == expected

    assert main([*arguments, "--methods", "ledger-crashes", "--isolate"]) == 3  # limits are no part of the key
    assert capsys.readouterr().err.count("has a record") == 2
    slow = [*arguments, "--methods", "ledger-hangs", "--cell-minutes", "0.2"]
    assert main(slow) == 3
    (hung,) = [record for record in load_run(copied) if record.cell.method == "ledger-hangs"]
    assert (hung.status, hung.error[:25]) == ("timed_out", "took longer than 0.2 min ")


def test_timed_cells_share_a_process_until_one_of_them_fails(asked, whole, deadly, tmp_path):
    """And come to what they come to in the run's own process."""
    tells = [f"ledger-tells:time={time}" for time in range(1, 5)]
    arguments = [*asked, "--plugin", str(deadly), "--speed-rounds", "6", "--prefill", "4", "--decode", "none"]
    listed = ",".join(["drop-tail", *tells[:2], "ledger-crashes", *tells[2:]])
    assert main([*arguments, "--methods", listed, "--out", str(tmp_path / "run")]) == 3
    found = {record.cell.label: record for record in load_run(tmp_path / "run")}
    assert found["ledger-crashes"].status == "crashed"
    first, second, third, fourth = (found[label].decisions["pid"] for label in tells)
    assert first == second != third == fourth
    assert os.getpid() not in {first, third}
    expected = {record.cell.label: record for record in load_run(whole)}
    for label in ("dense", "drop-tail"):
        for name in ("pruned_sha256", "perplexity", "tasks"):
            assert getattr(found[label].measured, name) == getattr(expected[label].measured, name)
    alone = [*asked, "--plugin", str(deadly), "--methods", ",".join(tells[:2]), "--isolate"]
    assert main([*alone, "--out", str(tmp_path / "alone")]) == 0
    alone = {record.decisions["pid"] for record in load_run(tmp_path / "alone") if record.cell.method != "dense"}
    assert len(alone) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of a process cannot be reset")
def test_a_dense_cell_does_not_have_the_peak_of_the_cell_before(asked, deadly, tmp_path):
    arguments = [*asked, "--plugin", str(deadly), "--methods", "ledger-fills", "--seed", "0,1"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    peak = {(r.cell.method, r.cell.seed): peak_of_stage(r.measured) for r in load_run(tmp_path / "run")}
    assert peak["ledger-fills", 0] > peak["dense", 1] + 2**28


def test_failed_cells_run_again_when_asked(asked, tmp_path, capsys, monkeypatch):
    arguments = [*asked, "--methods", "drop-tail", "--out", str(tmp_path / "run")]
    evaluate = tasks.evaluate

    def fails(lm, wanted, *more):
        if "winogrande" in wanted:
            raise MemoryError("no more")
        return evaluate(lm, wanted, *more)

    monkeypatch.setattr(tasks, "evaluate", fails)
    assert main(arguments) == 3
    assert {record.status for record in load_run(tmp_path / "run")} == {"out_of_memory"}
    assert {path.name for path in tmp_path.rglob("*.parquet")} == {"piqa.parquet", "perplexity-words.parquet"}
    monkeypatch.setattr(tasks, "evaluate", evaluate)
    capsys.readouterr()
    assert main(arguments) == 3
    assert capsys.readouterr().err.count("has a record") == 2
    assert main([*arguments, "--retry-failed"]) == 0
    assert capsys.readouterr().err.count("it failed before: out_of_memory; it runs again") == 2
    assert {record.status for record in load_run(tmp_path / "run")} == {"ok"}


HEARS = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored when the tests run in the background
"""


def is_running(text: str) -> list[int]:
    """Processes whose environment holds `text`."""
    found = []
    for process in psutil.process_iter():
        try:
            if text in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


NIGHTLY = [pytest.param(number, marks=pytest.mark.nightly) for number in (signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize("number", [signal.SIGINT, *NIGHTLY])  # SIGTERM ends runs in test_killed_runs.py too
def test_a_signal_ends_the_run_and_its_processes_and_leaves_nothing_half_done(number, asked, copied, whole, deadly):
    command = [*asked, "--out", str(copied), "--plugin", str(deadly), "--methods", "ledger-hangs", "--isolate"]
    process = subprocess.Popen(
        [sys.executable, "-c", f"{HEARS}from bench.cli.main import main\nsys.exit(main(sys.argv[1:]))", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MARK": str(copied)},
    )
    try:
        for line in process.stderr:
            if line.endswith("ledger-hangs: pruning\n"):
                break
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (128 + number, "")
    how = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert err == f"prunebench: {how}; the same command goes on where it stopped\n"
    assert is_running(str(copied)) == []
    assert contents(copied) == contents(whole)


BUSY = """
import hashlib
from bench.system import interrupt

interrupt.GRACE = float(sys.argv[1])
with interrupt.keep_prompt("--out results/of-today"):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)  # a call of half an hour
"""


@pytest.mark.parametrize(("grace", "interrupts"), [("0.5", 1), ("3600", 2)])
def test_an_interrupt_does_not_wait_for_a_long_call_and_a_second_one_for_nothing(grace, interrupts):
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS + BUSY, grace],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(interrupts):
            time.sleep(0.3)  # two of them at the same time are one
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    said = "prunebench: interrupted; the same command with --out results/of-today goes on where it stopped\n"
    assert err == (said if interrupts == 1 else "")  # a second one waits for no word


CAUGHT = """
import os, signal, time
from bench.system import interrupt

interrupt.GRACE = 0.2
try:
    with interrupt.keep_prompt():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
print("goes on", flush=True)
interrupt.end_soon()
time.sleep(60)
"""


@pytest.mark.nightly
def test_a_notebook_goes_on_behind_an_interrupt_and_a_command_ends_soon():
    found = subprocess.run(
        [sys.executable, "-c", HEARS + CAUGHT], capture_output=True, text=True, timeout=50, check=False
    )
    assert (found.stdout, found.returncode) == ("goes on\n", 130)
