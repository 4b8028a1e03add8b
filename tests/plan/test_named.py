"""Names of what is not there are refused at once, and a refusal leaves nothing behind."""

import json
import subprocess
import sys

import pytest
from filelock import FileLock

from bench.cli.main import main
from bench.runs.store import LOCK

HEAVY = ("torch", "transformers", "lm_eval", "datasets", "pyarrow")
NAMES = {
    "is no model": ["--model", "/nope"],
    "no model.safetensors": ["--model", "folder"],
    "no text '/nope.txt'": ["--texts", "/nope.txt"],
    "no text '/nope'": ["--calibration", "/nope"],
    "no task 'nope-at-all'": ["--tasks", "nope-at-all"],
    "there is no /nope": ["--tasks", "piqa", "--task-data", "piqa=/nope"],
    "which --tasks does not name": ["--tasks", "piqa", "--task-data", "arc_easy=data.jsonl"],
    "--task-data is written TASK=PATH": ["--tasks", "piqa", "--task-data", "data.csv"],
    "no method is called 'lacoo'": ["--methods", "lacoo"],
    "/nope.py is none": ["--plugin", "/nope.py"],
    "no spec '/nope.yaml'": ["--spec", "/nope.yaml"],
    "data.csv is a file": ["--out", "data.csv/run"],
    "no text '/healed'": ["--heal", "lora", "--heal-text", "/healed"],
}
REFUSE_ALL = """
import json, sys
from bench.cli.main import main
for line in json.loads(sys.argv[1]):
    print(json.dumps([main(line), [name for name in json.loads(sys.argv[2]) if name in sys.modules]]))
"""


def test_a_name_of_nothing_is_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    for name in ("data.csv", "data.jsonl"):
        (tmp_path / name).write_text("")
    kept = sorted(tmp_path.rglob("*"))
    lines = [
        ["run", *([] if "--methods" in given else ["--methods", "laco"]), "--ratio", "0.3", *given]
        for given in NAMES.values()
    ]
    command = [sys.executable, "-c", REFUSE_ALL, json.dumps(lines), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[2, []]] * len(NAMES)
    said = done.stderr.splitlines()
    assert len(said) == len(NAMES)
    for words, line in zip(NAMES, said, strict=True):
        assert words in line
    assert sorted(tmp_path.rglob("*")) == kept


@pytest.fixture
def refused(model_folder, text_file, capsys):
    """Asks for more windows than the text has, which the tokenizer alone can tell."""

    def run(out):
        line = ["run", "--methods", "drop-tail", "--ratio", "0.3", "--model", str(model_folder), "--tasks", "none"]
        line += ["--texts", str(text_file), "--calibration", str(text_file), "--profile", "smoke", "--device", "cpu"]
        line += ["--window", "32", "--windows", "1000000", "--speed-rounds", "0", "--out", str(out)]
        assert main(line) == 2
        assert "are needed for 1000000 windows" in capsys.readouterr().err

    return run


def test_a_late_refusal_leaves_no_lock_and_no_folder(refused, tmp_path):
    refused(tmp_path / "new" / "run")
    assert list(tmp_path.glob("new*")) == []
    (tmp_path / "mine").mkdir()
    refused(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_late_refusal_leaves_what_was_there(refused, tmp_path):
    """A run's own folder keeps its lock, and a folder of other things keeps those."""
    run = tmp_path / "run"
    (run / "cells").mkdir(parents=True)
    (run / LOCK).touch()
    refused(run)
    assert sorted(path.name for path in run.iterdir()) == [LOCK, "cells"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    refused(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_a_folder_that_another_run_holds_keeps_its_lock(model_folder, text_file, tmp_path, capsys):
    with FileLock(tmp_path / LOCK):
        line = ["run", "--methods", "drop-tail", "--ratio", "0.3", "--model", str(model_folder), "--tasks", "none"]
        line += ["--texts", str(text_file), "--calibration", str(text_file), "--profile", "smoke", "--device", "cpu"]
        assert main([*line, "--window", "32", "--windows", "2", "--speed-rounds", "0", "--out", str(tmp_path)]) == 2
        assert "is in use by" in capsys.readouterr().err
        assert (tmp_path / LOCK).exists()
