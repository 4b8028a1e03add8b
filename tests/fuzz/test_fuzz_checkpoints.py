"""Folders of models with anything wrong in them are refused in one line, by the commands that read them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from byte_tokens import byte_tokenizer
from conftest import tiny
from fuzzing import damaged, damages, refused_or_done, scratch, share, watched, wild_json
from hypothesis import example, given
from hypothesis import strategies as st

from methods.checkpoint import save_load
from methods.files import hash_file
from methods.model.decoder import Decoder
from methods.model.structures import keep_channels

JSON = ("config.json", "prunebench.json", "generation_config.json", "tokenizer_config.json")
FORMS = ("stock", "uneven", "plain")  # plain is a folder of transformers, without a manifest
PLAN = ["run", "--methods", "drop-tail", "--ratio", "0.3", "--model", "model", "--tasks", "none", "--plan"]
PLAN += ["--texts", "words.txt", "--calibration", "words.txt", "--window", "16", "--windows", "2", "--device", "cpu"]
PLAN += ["--calibration-sequences", "2", "--calibration-length", "8", "--profile", "smoke", "--speed-rounds", "0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of each form, of two layers."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for form in FORMS:
        model = Decoder(tiny("llama", layers=2, vocab_size=260))
        if form == "uneven":
            keep_channels(model.layers[1], range(20))
        save_load.save(model, folder / form, tokenizer=byte_tokenizer())
        model.model.generation_config.to_json_file(folder / form / "generation_config.json")
    (folder / "plain" / "prunebench.json").unlink()
    (folder / "words.txt").write_text("\n\n".join("a word and another one, said twice " * 9 for _ in range(20)))
    return folder


def held_to(models: Path, form: str, file: str, content: bytes, folder: Path, *, told: bool = False) -> None:
    """Plan with a model, verify and load it, of which one file has this content; `told`: its manifest knows."""
    shutil.copytree(models / form, folder / "model")
    shutil.copy(models / "words.txt", folder)
    path = folder / "model" / file
    path.write_bytes(content)
    manifest = folder / "model" / "prunebench.json"
    if told and manifest.is_file():
        plain = json.loads(manifest.read_text())
        plain["weights"][file] = {"bytes": len(content), "sha256": hash_file(path)}
        manifest.write_text(json.dumps(plain))
    watched(PLAN, folder)
    if form != "plain":
        watched(["verify", "model"], folder)
        refused_or_done(lambda: save_load.load(folder / "model"), folder)


def content_of(form: str, file: str, models: Path) -> dict[str, object]:
    path = models / form / file
    return json.loads(path.read_text()) if path.is_file() else {"layout": 1}


@pytest.mark.parametrize("file", sorted((Path(__file__).parent / "corpus" / "checkpoints").glob("*.json")), ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_that_once_failed(file, form, models, tmp_path):
    name = f"{file.stem.partition('--')[0]}.json"
    if name != "prunebench.json" or form != "plain":
        held_to(models, form, name, file.read_bytes(), tmp_path)


@share(0.08)
@given(form=st.sampled_from(FORMS), file=st.sampled_from(JSON[:1] * 2 + JSON), data=st.data())
def test_wild_descriptions_of_models(form, file, data, models, tmp_path_factory):
    text = data.draw(wild_json(st.just(content_of(form, file, models))))
    with scratch(tmp_path_factory, "wild") as folder:
        held_to(models, form, file, text.encode(), folder)


@share(0.03)
@given(form=st.sampled_from(FORMS), changes=damages(), told=st.booleans())
@example(form="plain", changes=[("cut", 4, 0)], told=False)
@example(form="stock", changes=[("set", 0, 255)], told=True)
def test_damaged_weights(form, changes, told, models, tmp_path_factory):
    content = damaged((models / form / "model.safetensors").read_bytes(), changes)
    with scratch(tmp_path_factory, "weights") as folder:
        held_to(models, form, "model.safetensors", content, folder, told=told)


@share(0.03)
@given(form=st.sampled_from(FORMS), data=st.data(), told=st.booleans())
def test_wild_headers_of_weights(form, data, told, models, tmp_path_factory):
    whole = (models / form / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = data.draw(wild_json(st.just(json.loads(whole[8 : 8 + size])))).encode()
    content = len(header).to_bytes(8, "little") + header + whole[8 + size :]
    with scratch(tmp_path_factory, "headers") as folder:
        held_to(models, form, "model.safetensors", content, folder, told=told)


@pytest.mark.parametrize("form", ["stock", "plain"])
@pytest.mark.parametrize(
    "file", ["config.json", "prunebench.json", "tokenizer.json", "model.safetensors", "more.safetensors"]
)
@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "folder", "device"]
)
def test_what_should_be_a_file_and_is_none_is_refused(form, file, make, models, tmp_path):
    """A pipe is waited for, and a device is read, until the memory is full."""
    shutil.copytree(models / form, tmp_path / "model")
    shutil.copy(models / "words.txt", tmp_path)
    path = tmp_path / "model" / file
    path.unlink(missing_ok=True)
    make(path)
    for command in (PLAN, ["verify", "model"]):
        said = watched(command, tmp_path)
        assert said.code == 2
        assert f"{file} is no file; copy" in said.err
    assert f"{file} is no file; copy" in str(refused_or_done(lambda: save_load.load(tmp_path / "model"), tmp_path))
