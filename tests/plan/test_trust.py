"""Records grant nothing: commands that make a cell again take what the user's own flags allow, and nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import refused, trusting
from hub_server import LocalHub
from huggingface_hub import constants

from bench.cli.main import main
from bench.data import assets
from bench.plan.cell import Stage
from bench.plan.protocol import Recipe
from bench.plan.trust import Trust
from bench.records import packed_run
from bench.records.run_folder import load_run
from bench.serving import serve
from methods.errors import UserError
from methods.files import hash_file

OWN_CODE = """
from pathlib import Path
from transformers import LlamaForCausalLM

class Own(LlamaForCausalLM):
    def __init__(self, *given, **named):
        Path({marker!r}).touch()
        super().__init__(*given, **named)
"""
TASK_CODE = "from pathlib import Path\nPath({marker!r}).touch()\n\ndef documents(found):\n    return found\n"
TASK = """
task: piqa
dataset_path: json
output_type: multiple_choice
validation_split: train
process_docs: !function code_of_task.documents
doc_to_text: goal
"""


@pytest.fixture(scope="module")
def place(model_folder, text_file, tmp_path_factory):
    """A folder with a model that has code of its own, a text, and a run on both, as another user may send it."""
    folder = tmp_path_factory.mktemp("sent")
    shutil.copytree(model_folder, folder / "model")
    config = json.loads((folder / "model/config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.Own"}
    (folder / "model/config.json").write_text(json.dumps(config))
    (folder / "model/own.py").write_text(OWN_CODE.format(marker=str(folder / "ran")))
    (folder / "task.yaml").write_text(TASK)
    (folder / "code_of_task.py").write_text(TASK_CODE.format(marker=str(folder / "ran")))
    text = str(shutil.copy(text_file, folder))
    asked = ["run", "--model", str(folder / "model"), "--texts", text, "--calibration", text, "--tasks", "none"]
    asked += ["--window", "32", "--windows", "4", "--calibration-sequences", "4", "--calibration-length", "24"]
    asked += ["--profile", "smoke", "--device", "cpu", "--speed-rounds", "0", "--no-checks", "--methods", "drop-tail"]
    assert main([*asked, "--ratio", "0.3", "--trust-remote-code", "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def sent(place, tmp_path):
    """The same, of which a test may change what it likes, and no code of which has run."""
    (place / "ran").unlink(missing_ok=True)
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def hub(monkeypatch):
    """A hub within reach, which no record may have asked for anything."""
    assets.is_hub_reachable.cache_clear()
    with LocalHub() as opened:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", opened.address)
        monkeypatch.setattr(assets, "is_hub_reachable", lambda: True)
        yield opened.handler


def changed(run: Path, **cell: object) -> None:
    """Change what all records of a run say of their cells; names of the protocol are changed there."""
    for path in (run / "cells").glob("*.json"):
        plain = json.loads(path.read_text())
        for name, value in cell.items():
            (plain["cell"]["protocol"] if name in plain["cell"]["protocol"] else plain["cell"])[name] = value
        path.write_text(json.dumps(plain))


def gated(run: Path) -> list[str]:
    """The command of a gate whose baseline is a run with smaller models, so that all of `run` look worse."""
    base = run.with_name("base")
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(run, base)
    for path in (base / "cells").glob("*.json"):
        plain = json.loads(path.read_text())
        plain["measured"]["weight_bytes"] -= 4
        path.write_text(json.dumps(plain))
    return ["gate", str(run), "--baseline", str(base)]


def commands(run: Path) -> dict[str, list[str]]:
    """Return the commands that make a cell again, by name."""
    to = str(run.with_name("written"))
    packed = run.with_name("packed")
    shutil.rmtree(packed, ignore_errors=True)
    packed_run.pack_run(run, packed)
    gate, _, *rest = gated(run)
    return {
        "gate": [gate, str(run), *rest],
        "gate of a packed run": [gate, str(packed), *rest],
        "export": ["export", str(run), "drop-tail", "--to", to],
        "export to gguf": ["export", str(run), "drop-tail", "--to", f"{to}.gguf", "--format", "gguf"],
        "serve-speed": ["serve-speed", str(run)],
    }


def files(folder: Path) -> dict[Path, str]:
    return {path: hash_file(path) for path in folder.rglob("*") if path.is_file()}


def all_refuse(capsys: pytest.CaptureFixture[str], run: Path, said: str, *more: str, but: str = "none") -> None:
    """Assert that each command refuses the records of a run in a line, and writes nothing."""
    for name, command in commands(run).items():
        if but in name:
            continue
        before = files(run.parent)
        assert said in refused(capsys, [*command, *more]), name
        assert files(run.parent) == before, name


def test_code_of_a_model_runs_only_where_the_command_says_so(place, sent, capsys, monkeypatch):
    given = trusting(place / "model", place / "words.txt")
    all_refuse(capsys, sent, "names code of its model, which it cannot allow itself; look at it, then add", *given)
    all_refuse(capsys, sent, f"add --trust {place / 'model'} --trust {place / 'words.txt'} --trust-remote-code")
    assert not (place / "ran").exists()

    asked = commands(sent)
    assert main([*asked["gate"], *given, "--trust-remote-code"]) == 1  # measured again it is as large
    assert (place / "ran").exists()
    assert {record.cell.trust_remote_code for record in load_run(next((sent / "again").iterdir()))} == {True}
    (place / "ran").unlink()
    capsys.readouterr()
    assert "a saved model holds no code" in refused(capsys, [*asked["export"], *given, "--trust-remote-code"])
    assert (place / "ran").exists()
    assert serve.find_served(Trust(sent, remote_code=True, names=tuple(given[1::2])))


def test_a_record_that_does_without_code_of_its_model_gets_none(place, sent, capsys):
    changed(sent, trust_remote_code=False)
    given = [*trusting(place / "model", place / "words.txt")]
    for more in ([], ["--trust-remote-code"]):
        for name in ("export", "gate"):
            assert "comes with its own code" in refused(capsys, [*commands(sent)[name], *given, *more])
    assert not (place / "ran").exists()


def test_a_model_in_the_folder_of_the_run_needs_no_word_but_its_code_does(place, sent, capsys):
    shutil.copytree(place / "model", sent / "model")
    shutil.copy(place / "words.txt", sent)
    changed(sent, model=str(sent / "model"), calibration=str(sent / "words.txt"), texts=[str(sent / "words.txt")])
    all_refuse(
        capsys,
        sent,
        "names code of its model, which it cannot allow itself; look at it, then add --trust-r",
        but="packed",
    )
    changed(sent, trust_remote_code=False)
    config = json.loads((sent / "model/config.json").read_text())
    del config["auto_map"]
    (sent / "model/config.json").write_text(json.dumps(config))
    assert main(commands(sent)["export"]) == 0
    assert not (place / "ran").exists()


def test_a_link_in_the_folder_of_the_run_leads_nowhere(place, sent, capsys):
    (sent / "model").symlink_to(place / "model")
    changed(sent, model=str(sent / "model"), trust_remote_code=False)
    all_refuse(
        capsys,
        sent,
        f"names a model, which it cannot allow itself; look at it, then add --trust {sent}/m",
        *trusting(place / "words.txt"),
    )


def test_nothing_is_asked_of_the_hub_because_a_record_names_it(place, sent, hub, capsys):
    changed(sent, model="someone/model", calibration="hub:someone/text", trust_remote_code=False)
    all_refuse(capsys, sent, "names a model and a text, which it cannot allow itself")
    all_refuse(capsys, sent, "add --trust hub:someone/text", *trusting("someone/model"))
    assert hub.asked == []
    assert main([*commands(sent)["export"], *trusting("someone/model", "hub:someone/text")]) == 2
    assert hub.asked != []


def test_a_text_outside_of_the_run_is_not_read(place, sent, capsys):
    changed(sent, calibration="/etc/hostname")
    given = [*trusting(place / "model", place / "words.txt"), "--trust-remote-code"]
    all_refuse(
        capsys, sent, "names a text, which it cannot allow itself; look at it, then add --trust /etc/host", *given
    )
    for name in ("hub:a/b\0", "a" * 5000, "w\x1b[31m"):
        changed(sent, calibration=name)
        line = refused(capsys, [*commands(sent)["export"], *given])
        assert "names a text" in line
        assert "\x1b" not in line


@pytest.mark.parametrize("documents", [[], [["{place}/task.yaml", "{place}/words.txt", "0" * 64]]])
def test_code_of_a_task_never_runs(documents, place, sent, capsys):
    """Of a definition that a record names by its path; `run` takes none, so that no flag allows one."""
    task = str(place / "task.yaml")
    changed(sent, tasks=[task], task_data=[[part.format(place=place) for part in one] for one in documents])
    given = [*trusting(place / "model", place / "words.txt", task), "--trust-remote-code"]
    for more in (given, given[:4]):
        assert f"no task '{task}'; offline there are " in refused(capsys, [*commands(sent)["gate"], *more])
    assert not (place / "ran").exists()
    assert not (sent / "again").exists()


def test_a_task_whose_documents_are_on_the_hub_needs_a_word(place, sent, capsys):
    changed(sent, tasks=["race"])
    given = [*trusting(place / "model", place / "words.txt"), "--trust-remote-code"]
    assert "names a task, which it cannot allow itself; look at it, then add --trust race" in refused(
        capsys, [*commands(sent)["gate"], *given]
    )
    Trust(sent, remote_code=True, names=("race", *given[1::2])).refuse(load_run(sent)[0].cell, measured=True)


def test_all_that_a_record_names_is_looked_at(place, sent):
    """What a chained and healed cell is trained on, too, and the documents of its tasks."""
    cell = load_run(sent)[0].cell
    trust = Trust(sent, remote_code=True, names=(str(place / "model"), str(place / "words.txt")))
    trust.refuse(cell, measured=True)
    recipe, protocol = Recipe(text="hub:a/b"), cell.protocol
    taught = Recipe(text=str(place / "words.txt"), loss="kl", teacher="hub:a/b")
    for more in (
        {"healing": recipe},
        {"healing": taught},
        {"earlier": (Stage("drop-tail", {}, 0.1, healing=recipe),)},
        {"protocol": replace(protocol, texts=("hub:a/b",))},
        {"protocol": replace(protocol, task_data=(("piqa", "hub:a/b", ""),), tasks=("piqa",))},
    ):
        with pytest.raises(UserError, match="--trust hub:a/b"):
            trust.refuse(replace(cell, **more), measured=True)


def test_a_saved_model_is_taken_from_the_folder_of_its_run_alone(model_folder, base, tmp_path, capsys):
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.3", "--save-models"]) == 0
    capsys.readouterr()
    run, to = tmp_path / "run", tmp_path / "to"
    command = ["export", str(run), "drop-tail", "--to", str(to)]
    [path] = (run / "models").iterdir()
    (path / "notes.txt").symlink_to(model_folder / "config.json")
    assert "notes.txt leads out of the folder of its run" in refused(capsys, command)
    (path / "notes.txt").unlink()
    path.rename(tmp_path / "elsewhere")
    [file] = [one for one in (run / "cells").glob("drop-tail*")]
    plain = json.loads(file.read_text())
    plain["measured"]["saved"]["folder"] = "../elsewhere"
    file.write_text(json.dumps(plain))
    assert "../elsewhere leads out of the folder of its run" in refused(capsys, command)
    assert not to.exists()
