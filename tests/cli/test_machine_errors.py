"""What the machine refuses is told in a line: files, memory, standard output."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import refused
from made_records import DENSE, LACO
from made_runs import run_folder

from bench.cli import main as command_line
from bench.cli.main import main
from bench.records.record import save


@pytest.fixture
def run(tmp_path):
    return run_folder(tmp_path / "run", [DENSE, LACO])


@pytest.mark.parametrize("kind", ["loop", "folder", "forbidden"])
def test_a_record_that_cannot_be_read_is_left_out(kind, run, capsys, monkeypatch):
    path = run / "cells" / "1.json"
    if kind == "forbidden":
        monkeypatch.setattr(Path, "read_bytes", forbidding(path, Path.read_bytes))
    else:
        path.unlink()
        path.mkdir() if kind == "folder" else path.symlink_to(path.name)
    for command in (["report", str(run)], ["history", str(run), "--metric", "perplexity_wiki"]):
        assert main(command) == 0
        assert capsys.readouterr().err.startswith(f"{path} cannot be read: ")
    assert f"{path} cannot be read: " in refused(capsys, ["merge", str(run), "--out", f"{run}2"])


def forbidding(path: Path, read):
    def read_bytes(which: Path) -> bytes:
        if which == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read(which)

    return read_bytes


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/base"), "/base: Read-only file system; "),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "/x\x1b"), "/x\\x1b: Permission denied; "),
        (MemoryError(), "memory does not suffice (out of memory (MemoryError)); "),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory does not suffice "),
        (ImportError("_x.so: failed to map segment from shared object"), "memory does not suffice "),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, said, run, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_run_command", raising(error))
    assert refused(capsys, ["report", str(run)]).startswith(f"prunebench: {said}")


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("no reason"), TypeError("of our own")])
def test_a_mistake_of_the_program_is_none_of_the_machine(error, run, monkeypatch):
    monkeypatch.setattr(command_line, "_run_command", raising(error))
    with pytest.raises(type(error)):
        main(["report", str(run)])


def raising(error: BaseException):
    def raises(_: object) -> int:
        raise error

    return raises


@pytest.mark.nightly
def test_an_output_that_takes_nothing_is_one_line(run):
    words = f"{sys.executable} -m bench report {run}"
    for to, said in ((">&-", "standard output is closed"), ("> /dev/full", "standard output takes no more")):
        done = subprocess.run(["sh", "-c", f"{words} {to}"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"prunebench: {said}")


def test_names_of_others_are_written_out_on_every_line(run, capsys):
    wrong = run / "cells" / "a\x1b[31m.json"
    save(LACO, wrong)
    wrong.write_text(wrong.read_text().replace('"seed": 0', '"seed": "\\u001b[2J"', 1))
    assert main(["report", str(run)]) == 0
    error = capsys.readouterr().err
    assert "a\\x1b[31m.json" in error
    assert "\x1b" not in error


def test_a_packed_key_that_no_file_can_have_is_left_out(run, capsys):
    assert main(["pack", str(run)]) == 0
    path = run / "records.jsonl"
    path.write_text(path.read_text().replace('"key": "1"', f'"key": "{"x" * 300}"'))
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr()
    assert "dense" in said.out
    assert "a key and the names of samples are file names" in said.err
    assert "it is left out" in said.err
