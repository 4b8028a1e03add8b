"""What an answer stands on: revisions of methods, the code of a run, and which records are old."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from made_cells import made_cell, made_inputs

import methods
from bench.cli.main import main
from bench.plan.cell import Cell
from bench.plan.kinds import value_from_plain
from bench.plan.protocol import Protocol, protocol_of_profile
from bench.runs import inputs
from bench.system import environment
from methods.base import REGISTRY
from methods.depth.shortgpt import ShortGPT
from methods.files import hash_file

CELL = made_cell("sleb", 0.3, protocol_of_profile("smoke"), parameters={"tokens": 64})


@pytest.fixture
def asked(model_folder, text_file, tmp_path) -> list[str]:
    """A run of a second."""
    return [
        *("run", "--methods", "shortgpt", "--ratio", "0.2", "--model", str(model_folder), "--profile", "smoke"),
        *("--texts", str(text_file), "--calibration", str(text_file), "--tasks", "none", "--no-checks"),
        *("--window", "32", "--windows", "2", "--calibration-sequences", "2", "--calibration-length", "16"),
        *("--speed-rounds", "0", "--device", "cpu", "--out", str(tmp_path / "run")),
    ]


def test_a_method_has_its_revision_and_that_of_its_compensation(monkeypatch):
    assert (methods.revision_of_method("shortgpt"), methods.revision_of_method("shortgpt+ghost")) == ("1", "1+1")
    monkeypatch.setattr(ShortGPT, "revision", 3, raising=False)
    assert (methods.revision_of_method("shortgpt"), methods.revision_of_method("shortgpt+ghost")) == ("3", "3+1")


def test_a_method_of_ones_own_has_the_sha256_of_its_file_behind_its_revision(monkeypatch):
    @dataclass(frozen=True)
    class Mine:
        revision = 2

    monkeypatch.setitem(REGISTRY, "of-mine", Mine)
    own = hash_file(Path(__file__))
    assert methods.revision_of_method("of-mine") == f"2, {own}"
    assert methods.revision_of_method("of-mine+ghost") == f"2+1, {own}"


def test_methods_that_differ_from_their_commit_have_their_sha256_behind_the_revision(monkeypatch):
    monkeypatch.setattr(environment, "is_edited", lambda folder: False)
    assert inputs.revisions_of_methods(["sleb", "sleb+ghost"]) == {"sleb": "1", "sleb+ghost": "1+1"}
    monkeypatch.setattr(environment, "is_edited", lambda folder: folder == "methods")
    everything = inputs.sha256_of_python_files([Path(methods.__file__).parent])
    assert inputs.revisions_of_methods(["sleb"]) == {"sleb": f"1, {everything}"}


@pytest.mark.parametrize("change", ["content", "name", "place"])
def test_the_hash_of_code_is_of_names_and_contents(change, tmp_path):
    (tmp_path / "code" / "part").mkdir(parents=True)
    file = tmp_path / "code" / "one.py"
    file.write_text("A = 1\n")
    before = inputs.sha256_of_python_files([tmp_path / "code"])
    (tmp_path / "code" / "notes.txt").write_text("no code")
    assert inputs.sha256_of_python_files([tmp_path / "code"]) == before
    if change == "content":
        file.write_text("A = 2\n")
    else:
        file.rename(file.with_name("two.py") if change == "name" else tmp_path / "code" / "part" / "one.py")
    assert inputs.sha256_of_python_files([tmp_path / "code"]) != before


def test_a_value_as_by_default_is_in_no_question_and_any_other_one_is():
    default = json.dumps(methods.parameters_of_pruner(methods.make("sleb"))["tokens"])
    assert replace(CELL, parameters={"tokens": json.loads(default)}).key == replace(CELL, parameters={}).key
    assert CELL.key != replace(CELL, parameters={}).key
    by_default = replace(CELL, protocol=Protocol(calibration_sequences=16))  # its first default
    assert json.loads(by_default.question)["protocol"] == {}
    changed = replace(CELL, protocol=Protocol(windows=99, calibration_sequences=16))
    assert json.loads(changed.question)["protocol"] == {"windows": 99}
    assert changed.key != by_default.key


def test_a_cell_that_was_json_asks_the_same():
    cell = replace(CELL, given=("tokens",), inputs=made_inputs(texts={"wiki": "a"}))
    back = value_from_plain(Cell, json.loads(json.dumps(cell.plain())))
    assert (back, back.question, back.key) == (cell, cell.question, cell.key)


def test_a_record_from_before_a_parameter_is_served_for_its_default_and_no_other_value(asked, tmp_path, capsys):
    assert main(asked) == 0
    for path in (tmp_path / "run" / "cells").iterdir():
        record = json.loads(path.read_text())
        record["cell"]["parameters"].pop("keep_last", None)
        path.write_text(json.dumps(record))
    capsys.readouterr()
    assert main(asked) == 0
    assert capsys.readouterr().err.count("has a record") == 2
    asked[2] = "shortgpt:keep_last=1"
    assert main(asked) == 0
    assert capsys.readouterr().err.count("has a record") == 1


def test_a_record_of_another_revision_is_old(asked, tmp_path, capsys, monkeypatch):
    assert main(asked) == 0
    monkeypatch.setattr(ShortGPT, "revision", 2, raising=False)
    capsys.readouterr()
    assert main(asked) == 0
    said = capsys.readouterr().err
    assert "is old, since this has changed: revision (1 before, 2 now); moved to superseded/" in said
    assert said.count("has a record") == 1


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ("1, aa, bb", "1, ab, bb", "mine.py"),
        ("1, aa, bb", "1, aa, bc", "helper.py"),
        ("1, aa, bb", "1, ab, bc", "mine.py, helper.py"),
        ("1, aa", "1, aa, bb", "mine.py or what it imports"),
        ("1, aa, bb, c0", "1, aa, bb, c1", "revision"),  # the methods of this package, in a checkout that is edited
        ("1, aa, bb", "2, ab, bb", "revision (1 before, 2 now)"),
    ],
)
def test_the_files_of_a_plugin_that_have_changed_are_named(before, now, words, monkeypatch):
    monkeypatch.setattr(methods, "sources_of_method", lambda name: [Path("/a/mine.py"), Path("/a/helper.py")])
    assert inputs._words_of_revision(before, now, "mine") == words


def test_a_method_of_the_package_has_no_files_to_name():
    assert inputs._words_of_revision("1, c0", "1, c1", "sleb") == "revision"


def test_a_record_of_another_default_is_old(asked, tmp_path, capsys, monkeypatch):
    assert main([*asked, "--methods", "shortgpt:keep_last=1"]) == 0
    (path,) = (tmp_path / "run" / "cells").glob("shortgpt*")
    renamed = path.with_name(f"{path.stem}0.json")  # as if the default had been another one then
    path.rename(renamed)
    capsys.readouterr()
    assert main([*asked, "--methods", "shortgpt:keep_last=1"]) == 0
    assert f"{renamed.name} is old, since this has changed: a default; moved to superseded/" in capsys.readouterr().err
