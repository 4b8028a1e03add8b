"""Trackers: what they have kept, read back through their own interfaces, is what the records say."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import made_skills
import numpy as np
import pandas as pd
import pytest
from conftest import refused
from made_records import cell as asked
from made_records import changed, made_record, measured
from read_trackers import READERS

import bench
from bench.cli.main import main
from bench.records import run_folder
from bench.records.record import Record
from reports.tracking import TRACKERS, tracker
from reports.tracking.tracker import CURVE, REQUESTED, entry_of

LOCAL = ("localhost", "127.0.0.1", "::1", None)


@pytest.fixture(scope="module", autouse=True)
def trackio_folder(tmp_path_factory):
    """The folder of trackio's store, which its import reads once for a process."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory and settings of this test's own, in which no other host is asked for by name."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CACHE", "DATA", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "of-wandb"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    hosts, ask = list[object](), socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: hosts.append(host) or ask(host, *rest, **more)
    )
    yield
    import wandb

    wandb.teardown()
    assert [host for host in hosts if host not in LOCAL] == []


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_one_run_for_each_cell_with_what_its_record_says(name, base, text_file, tmp_path, capsys):
    heal = ["--heal", "lora", "--heal-tokens", "128", "--heal-length", "16", "--heal-batch", "4", "--threads", "1"]
    run = [*base, "--methods", "drop-tail", "--ratio", "0.3", *heal, "--heal-text", str(text_file), "--track", name]
    assert main(run) == 0
    out, said = capsys.readouterr()
    assert out.startswith("tiny-llama")
    assert f"{name}: 3 cells sent to the " in said
    found = READERS[name]()
    kept, records = dict(found), run_folder.read_records(tmp_path / "run")
    assert len(found) == len(kept) == 3
    assert kept.keys() == records.keys()
    rows = bench.read(tmp_path / "run").set_index("cell")
    for key, record in records.items():
        numbers = {
            column: float(value)
            for column, value in rows.loc[key].items()
            if isinstance(value, int | float | np.number) and not np.isnan(value)
        }
        asked_for = {column: numbers.pop(column) for column in REQUESTED if column in numbers}
        shown = kept[key]
        assert shown.ended
        assert shown.group == "run"
        curve = record.measured.healing.curve if record.measured.healing else ()
        assert {column: shown.metrics[_as(name, column)] for column in numbers} == numbers
        assert shown.metrics.keys() - set(CURVE.values()) == {_as(name, column) for column in numbers}
        for own, curves in CURVE.items():
            points = [(one.step, value) for one in curve if (value := getattr(one, own)) is not None]
            assert shown.history.get(curves, []) == points
        said_of = {**asked_for, "method": record.cell.method, "dtype": "float32", "profile": "smoke", "cell": key}
        said_of |= {"protocol.window": 32, "environment.threads": 1, "label": record.cell.label}
        for parameter, value in said_of.items():
            assert _read(shown.parameters[parameter], value) == value
        assert shown.page is not None
        assert shown.page.startswith(b"<!doctype html>")
        assert record.cell.label.encode() in shown.page
    assert sorted(one.name for one in kept.values()) == ["dense", "drop-tail at 0.3", "drop-tail, healed at 0.3"]
    assert sum(bool(one.history.get(CURVE["heldout_loss"])) for one in kept.values()) == 1
    assert main(run) == 0
    assert f"{name}: 0 cells sent to the " in (said := capsys.readouterr().err)
    assert "3 were there already" in said
    assert dict(READERS[name]()) == kept


def _as(name: str, column: str) -> str:
    """A column's name as a tracker takes it."""
    return column.replace("/", "_") if name == "mlflow" else column


def _read(value: object, wanted: object) -> object:
    return json.loads(value) if isinstance(value, str) and not isinstance(wanted, str) else value


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_a_newer_record_of_a_cell_takes_the_place_of_its_run(name, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html>a")
    failed = entry_of("laco--0.3--newer", record("laco", 0.3, status="timed_out"), None, "mine")
    ok = entry_of("laco--0.3--newer", record("laco", 0.3, date="2026-01-03T00:00:00+00:00"), None, "mine")
    store = tracker.open_tracker(name)
    assert [store.log(one, page) for one in (failed, failed, ok, ok)] == [True, False, True, False]
    kept = [one for key, one in READERS[name]() if key == "laco--0.3--newer"]
    assert [(one.parameters["status"], one.metrics["perplexity_wiki"]) for one in kept] == [("ok", 20.0)]


def record(method, ratio, status="ok", date="2026-01-02T03:04:05+00:00"):
    found = measured(0, (19.0, 20.0, 21.0), [0.5] * 5, 50.0) if status == "ok" else {}
    error = None if status == "ok" else "why"
    return made_record(asked(method, ratio), status, environment={"date": date}, measured=found, error=error)


def test_what_is_offline_in_wandb_is_written_again_for_a_newer_record_alone(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html>a")
    old, new = (
        entry_of("k", record("laco", 0.3, date=f"{year}-01-01T00:00:00+00:00"), None, "mine") for year in (2020, 2100)
    )
    store = tracker.open_tracker("wandb")
    assert [store.log(one, page) for one in (old, old, new)] == [True, False, True]
    assert [key for key, _ in READERS["wandb"]()] == ["k", "k"]  # one run, once it is synced


def test_names_and_texts_that_mlflow_does_not_take_are_written_otherwise(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html>a")
    one = replace(
        entry_of("k", record("laco", 0.3), None, "mine"),
        metrics={"perplexity_../ä,b": 2.0, "bits_per_byte_hub:a/b": 3.0},
        parameters={"long": "x" * 10_000, "list": [1, 2]} | {f"p{number}": number for number in range(250)},
    )
    tracker.open_tracker("mlflow").log(one, page)
    [(_, kept)] = READERS["mlflow"]()
    assert kept.metrics == {"perplexity_..___b": 2.0, "bits_per_byte_hub:a_b": 3.0}
    assert (len(kept.parameters["long"]), kept.parameters["list"], kept.parameters["p249"]) == (6000, "[1, 2]", "249")


class FullDisk:
    """Keeps one cell, then has no room."""

    where = "nowhere"

    def __init__(self) -> None:
        self.asked = 0

    def log(self, entry: object, page: Path) -> bool:
        self.asked += 1
        if self.asked > 1:
            raise OSError(28, "No space left on device")
        return True


def test_a_tracker_that_fails_does_not_end_the_run_and_is_asked_no_more(base, tmp_path, capsys, monkeypatch):
    disk = FullDisk()
    monkeypatch.setattr(tracker, "open_tracker", lambda name: disk)
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.2,0.3,0.5", "--track", "mlflow"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mlflow")]
    assert lines == [
        "mlflow: No space left on device; no more is sent; the records are kept, and the same command "
        "sends what is missing"
    ]
    assert disk.asked == 2
    assert [one.status for one in run_folder.load_run(tmp_path / "run")] == ["ok"] * 4


def test_a_cell_waits_for_the_dense_one_and_is_sent_at_the_end_where_there_is_none(tmp_path):
    sent, told = list[tuple[str, bool]](), list[str]()

    class Heard:
        where = "memory"

        def log(self, entry, page):
            sent.append((entry.key, entry.metrics.get("kept") is not None))
            return True

    tracking = tracker.RunTracking("mlflow", Heard(), tmp_path / "run", told.append)
    tracking.take("laco", record("laco", 0.3))
    assert sent == []
    tracking.take("dense", record("dense", None))
    assert sent == [("laco", True), ("dense", True)]
    alone = tracker.RunTracking("mlflow", Heard(), tmp_path / "run", told.append)
    alone.take("shortgpt", record("shortgpt", 0.3))
    alone.finish()
    assert sent[2:] == [("shortgpt", False)]
    assert told == ["mlflow: 1 cell sent to memory"]


def test_of_several_models_each_cell_stands_beside_its_own_dense(tmp_path):
    sent, pages = dict[str, tuple[object, ...]](), dict[str, str]()

    class Kept:
        where = "memory"

        def log(self, entry, page):
            sent[entry.key] = entry.metrics.get("kept"), entry.parameters.get("flags")
            pages[entry.key] = page.read_text()
            return True

    def of(model: str, method: str, ratio: float | None, accuracy: float) -> Record:
        figures = measured(0, (19.0, 20.0, 21.0), [accuracy] * 5, 50.0)
        return made_record(asked(method, ratio, model=model, display_name=model.upper()), measured=figures)

    tracking = tracker.RunTracking("mlflow", Kept(), tmp_path / "run", print)
    tracking.take("dense-a", of("small-a", "dense", None, 0.8))
    tracking.take("laco-b", of("large-b", "laco", 0.3, 0.3))
    assert list(sent) == ["dense-a"]
    tracking.take("laco-a", of("small-a", "laco", 0.3, 0.2))
    tracking.take("dense-b", of("large-b", "dense", None, 0.6))
    assert sent["laco-a"] == (pytest.approx(0.25), None)
    assert sent["laco-b"] == (pytest.approx(0.5), None)
    assert "SMALL-A" in pages["laco-a"]
    assert "SMALL-A" not in pages["laco-b"]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_one_line_before_any_work(name, base, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda package: None)
    for planned in ([], ["--plan"]):
        line = refused(capsys, [*base, "--methods", "laco", "--ratio", "0.2", "--track", name, *planned])
        assert f"--track {name} needs the package {name}: pip install 'prunebench[{name}]'" in line
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_be_used_is_one_line_before_any_work(base, capsys, tmp_path, monkeypatch):
    import wandb

    asked_for = [*base, "--methods", "laco", "--ratio", "0.2", "--track"]
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/mine")
    assert "TRACKIO_SPACE_ID names another place" in refused(capsys, [*asked_for, "trackio"])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    assert "--track mlflow cannot be used: " in refused(capsys, [*asked_for, "mlflow"])
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "--track wandb has no key" in refused(capsys, [*asked_for, "wandb"])
    wandb.teardown()  # which remembers the mode
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "WANDB_MODE online or offline; got disabled" in refused(capsys, [*asked_for, "wandb"])
    assert not (tmp_path / "run").exists()


def test_trackio_does_not_ask_the_hub_who_the_user_is(tmp_path, monkeypatch):
    from huggingface_hub import constants

    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html>a")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert tracker.open_tracker("trackio").log(entry_of("alone", record("laco", 0.3), None, "mine"), page)
    assert constants.HF_HUB_OFFLINE is False


def test_a_tracker_has_what_is_lost_of_each_skill_and_flips_from_the_samples_of_both_cells(tmp_path):
    task, sent = "basic_skills_arithmetic_rc", dict[str, Mapping[str, float]]()

    class Kept:
        where = "memory"

        def log(self, entry, page):
            sent[entry.key] = entry.metrics
            return True

    right = {"dense": [1.0] * 20 + [0.0] * 20, "laco": [1.0] * 16 + [0.0] * 24}
    tracking = tracker.RunTracking("mlflow", Kept(), tmp_path / "run", print)
    for key, answers in right.items():
        folder = tmp_path / "run/samples" / key
        folder.mkdir(parents=True)
        table = pd.DataFrame({"doc_hash": [str(number) for number in range(40)], "acc": answers, "answer_bpb": 1.0})
        table.to_parquet(folder / f"{task}.parquet")
        cell = made_skills.record(key, {task: 0.25}, documents=40)
        tracking.take(key, changed(cell, "measured", "tasks", task, "metrics", "acc", "value", to=sum(answers) / 40))
    assert sent["laco"]["skill_loss_arithmetic"] == pytest.approx(0.1 / 0.25)
    assert sent["laco"]["flips"] == pytest.approx(0.1)
    assert sent["dense"]["skill_above_arithmetic"] == pytest.approx(0.25)
