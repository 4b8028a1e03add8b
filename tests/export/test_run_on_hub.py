"""`pack --push` and `report hf://`: huggingface_hub itself, against a hub on the loopback address."""

from __future__ import annotations

import shutil

import pytest
from conftest import refused
from hub_server import LocalHub
from huggingface_hub import constants
from pages import ROOT

from bench.cli.main import main
from bench.records.packed_run import files_of_packed_run, pack_run

RUN = ROOT / "docs/results/experts"
ADDRESS = "hf://datasets/me/experts"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that huggingface_hub talks to, with a token that it takes, and a cache of its own."""
    with LocalHub() as opened:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", opened.address)
        template = f"{opened.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"  # made of it at the import
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
        yield opened


@pytest.fixture
def run(tmp_path):
    """A packed run, which may be changed."""
    shutil.copytree(RUN, tmp_path / "run")
    return tmp_path / "run"


def report_of(capsys, run) -> str:
    assert main(["report", str(run), "--format", "csv"]) == 0
    return capsys.readouterr().out


def test_a_pushed_run_is_reported_by_its_address_as_its_folder_is(hub, run, capsys):
    assert main(["pack", str(run), "--push", "me/experts"]) == 0
    assert capsys.readouterr().out == f"{hub.address}/datasets/me/experts\n"
    kept = hub.handler.repositories["datasets/me/experts"]
    assert kept["private"] is True
    assert kept["files"].keys() == {
        *(path.relative_to(run).as_posix() for path in files_of_packed_run(run)),
        *(path.name for path in run.glob("served.jsonl")),
        "README.md",
    }
    assert ADDRESS in kept["files"]["README.md"].decode()
    own = report_of(capsys, run)
    for address in (ADDRESS, "hf://me/experts", f"{ADDRESS}/", f"{ADDRESS}@main"):
        assert report_of(capsys, address) == own


def test_a_run_that_is_pushed_again_leaves_no_samples_of_before_and_is_fetched_anew(hub, run, capsys):
    first, *more = (RUN / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert main(["pack", str(run), "--push", "me/experts", "--public"]) == 0
    kept = hub.handler.repositories["datasets/me/experts"]
    kept["files"] |= {"README.md": b"of the owner", "samples/gone.parquet": b"of before", "notes/mine.txt": b"mine"}
    whole = report_of(capsys, ADDRESS)
    (run / "records.jsonl").write_bytes(b"".join(more))
    assert main(["pack", str(run), "--push", "me/experts"]) == 0
    assert kept["private"] is False
    assert "samples/gone.parquet" not in kept["files"]
    assert (kept["files"]["README.md"], kept["files"]["notes/mine.txt"]) == (b"of the owner", b"mine")
    assert first not in kept["files"]["records.jsonl"]
    assert len(report_of(capsys, ADDRESS).splitlines()) < len(whole.splitlines())


def test_a_run_in_files_is_packed_before_it_is_pushed(hub, run, tmp_path, capsys):
    assert main(["pack", str(run), "--unpack"]) == 0
    assert main(["pack", str(run), "--out", str(tmp_path / "packed"), "--push", "me/experts"]) == 0
    packed, address = capsys.readouterr().out.splitlines()[1:]
    assert packed.startswith(f"{tmp_path / 'packed'}: ")
    assert address == f"{hub.address}/datasets/me/experts"
    assert (run / "cells").is_dir()
    other = tmp_path / "other"
    pack_run(run, other)
    files = hub.handler.repositories["datasets/me/experts"]["files"]
    assert files["records.jsonl"] == (other / "records.jsonl").read_bytes()


def test_what_cannot_be_pushed_is_one_line_and_nothing_is_packed(hub, run, capsys, monkeypatch):
    assert main(["pack", str(run), "--unpack"]) == 0
    capsys.readouterr()
    assert "--push takes ORG/NAME" in refused(capsys, ["pack", str(run), "--push", "name"])
    assert "leave --push out" in refused(capsys, ["pack", str(run), "--unpack", "--push", "me/experts"])
    assert "--public is about --push" in refused(capsys, ["pack", str(run), "--public"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, ["pack", str(run), "--push", "me/experts"])
    assert not (run / "records.jsonl").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.handler.refuses = "/commit/"
    assert main(["pack", str(run), "--push", "me/experts"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("me/experts was not pushed: ")
    assert (run / "records.jsonl").exists()


def test_an_address_that_leads_to_no_run_is_one_line(hub, run, capsys, monkeypatch):
    assert "hf://datasets/ORG/NAME" in refused(capsys, ["report", "hf://experts"])
    assert "hf://datasets/ORG/NAME" in refused(capsys, ["site", "hf://datasets/a/b/c", "--out", str(run / "site")])
    hub.handler.repositories["datasets/me/other"] = {"private": True, "said": [], "files": {"a.txt": b"a"}}
    assert "me/other is no packed run: it has no records.jsonl" in refused(capsys, ["report", "hf://me/other"])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be had of the hub at http://127.0.0.1:9: " in refused(capsys, ["report", ADDRESS])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, ["report", ADDRESS])
