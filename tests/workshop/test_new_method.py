"""new-method writes a method and a test that run as they are, and replaces nothing."""

from __future__ import annotations

import runpy

import pytest
from conftest import refused

import methods
from bench.cli import workshop
from bench.cli.main import main
from bench.workshop import method_checks
from bench.workshop.method_checks import CHECKS, check_method
from bench.workshop.new_method import KINDS, write_method

LOOKED_AT = ("plan from shapes alone", "budget met", "decisions name what went", "a second run is the first")


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_run_as_they_are(kind, tmp_path, monkeypatch):
    """The tests of the written test pass, and what is looked at holds."""
    method, test = write_method("my-own", kind, tmp_path / "new")
    assert [path.name for path in (method, test)] == ["my_own.py", "test_my_own.py"]
    tests = [each for name, each in runpy.run_path(str(test)).items() if name.startswith("test_")]
    assert tests
    for each in tests:
        each()
    (label,) = method_checks.list_labels(method)
    assert label == ("shortgpt+my-own" if kind == "compensation" else "my-own")
    looked_at = [*LOOKED_AT, *(["cut equals zeroing"] if kind != "compensation" else [])]
    monkeypatch.setattr(method_checks, "CHECKS", {name: CHECKS[name] for name in looked_at})
    findings = check_method(label, {}, ("llama", "gpt2"))
    assert {finding.what: finding.figure for finding in findings if finding.status != "ok"} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_have_the_name_and_a_head_with_places_to_fill(kind, tmp_path):
    for path in write_method("my-own", kind, tmp_path):
        text = path.read_text()
        assert "my-own" in text
        assert f"first-{kind}" not in text
        assert "first_" not in text.replace("first_kind", "first_")
        assert "first-kind" not in text
    text = (tmp_path / "my_own.py").read_text()
    assert "class MyOwn(" in text
    head = text.split('"""')[1]
    assert all(place in head for place in ("AUTHORS YEAR", "TITLE", "arXiv NUMBER", "Departures from the", "Cost."))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_all_holds_of_a_first_file_on_every_family(kind, tmp_path):
    method, _ = write_method("my-own", kind, tmp_path)
    methods.load([str(method)])
    (label,) = method_checks.list_labels(method)
    findings = check_method(label, {})
    assert {finding.what: finding.figure for finding in findings if finding.status == "wrong"} == {}


def test_the_command_prints_the_two_files_and_says_what_comes_next(tmp_path, capsys):
    out = tmp_path / "a folder"
    assert main(["new-method", "my-own", "--family", "compensation", "--out", str(out)]) == 0
    printed, said = capsys.readouterr()
    assert printed == f"{out / 'my_own.py'}\n{out / 'test_my_own.py'}\n"
    assert f"python -m bench check-method '{out / 'my_own.py'}'" in said
    assert "--methods shortgpt+my-own " in said
    assert tuple(KINDS) == workshop.FAMILIES


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mine", "a method is named by small letters and digits, a letter first"),
        ("2nd", "a letter first"),
        ("my method", "as in smallest-writers; got 'my method'"),
        ("mine+scale", "got 'mine+scale'"),
        ("../mine", "got '../mine'"),
        ("mine\n", "got 'mine\\n'"),
        ("my--own", "with single dashes"),
        ("class", "no word of Python's own"),
        ("laco", "laco is a method of this suite already"),
        ("ghost", "ghost is a method of this suite already"),
        ("laco_ls", "laco-ls is a method of this suite already"),
        ("random", "random is a module already"),
        ("torch", "torch is a module already"),
        ("", "got ''"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_a_line(name, said, tmp_path, capsys):
    assert said in refused(capsys, ["new-method", name, "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", ["my_own.py", "test_my_own.py"])
def test_a_file_that_is_there_is_not_replaced_and_no_other_one_written(file, tmp_path, capsys):
    (tmp_path / file).write_text("mine")
    assert f"{file} exists; name another" in refused(capsys, ["new-method", "my-own", "--out", str(tmp_path)])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    error = refused(capsys, ["new-method", "my-own", "--out", str(tmp_path / "file")])
    assert "--out names a folder for the two files" in error


def test_a_family_of_models_is_no_family_of_methods(capsys):
    assert "invalid choice: 'llama'" in refused(capsys, ["new-method", "mine", "--family", "llama"])
