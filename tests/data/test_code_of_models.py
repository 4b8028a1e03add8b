"""A folder runs no code of its own, by whatever of its files, where nobody has allowed it."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny
from uneven_models import bpe

from bench.cli.main import main
from bench.data import gguf, pretrained
from bench.export import gguf_file
from methods.checkpoint import save_load
from methods.errors import UserError
from methods.model.decoder import Decoder

CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that code of a model writes, and a user who says yes to whatever transformers asks."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return tmp_path / "ran"


@pytest.fixture
def folder(model_folder, tmp_path, marker):
    place = shutil.copytree(model_folder, tmp_path / "model")
    code = CODE.format(marker=str(marker))
    (place / "own.py").write_text(code)
    (place / "custom_generate").mkdir()
    (place / "custom_generate" / "generate.py").write_text(code)
    return place


def added(file: Path, **more: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def test_a_tokenizer_and_a_way_to_generate_run_nothing(folder, marker, ids):
    added(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Slow", "own.Fast"]})
    added(folder / "generation_config.json", custom_generate=str(folder))
    pretrained.check(str(folder))
    model, tokenizer = pretrained.load(str(folder), torch.device("cpu"), torch.float32)
    assert model.generate(ids, max_new_tokens=1).shape == (3, 21)
    assert tokenizer("w1")["input_ids"]
    assert not marker.exists()


def test_a_model_whose_type_is_its_own_is_not_asked_about(folder, marker):
    added(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    for load in (pretrained.check, pretrained.make_shell):
        with pytest.raises(UserError):
            load(str(folder))
    assert pretrained.load_tokenizer(str(folder))("w1")["input_ids"]  # which transformers has
    assert not marker.exists()


def test_a_saved_model_runs_nothing(tmp_path, marker, capsys):
    saved = tmp_path / "saved"
    save_load.save(Decoder(tiny("llama")), saved)
    (saved / "own.py").write_text(CODE.format(marker=str(marker)))
    added(saved / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    assert main(["verify", str(saved)]) == 1
    assert "contains custom code" in capsys.readouterr().out
    assert not marker.exists()


def test_what_lies_beside_a_gguf_file_runs_nothing(tmp_path, marker):
    file = tmp_path / "model.gguf"
    gguf_file.write_gguf(Decoder(tiny("llama", vocab_size=260)), bpe(), file, torch.float32, "tiny")
    (tmp_path / "own.py").write_text(CODE.format(marker=str(marker)))
    own = {"auto_map": {"AutoTokenizer": ["own.Slow", "own.Fast"]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    for load in (gguf.read_tokenizer, gguf.read_config, lambda path: gguf.load(path, torch.float32)):
        try:
            load(file)
        except UserError as error:
            assert "code" in str(error)
    assert not marker.exists()


@pytest.mark.parametrize(
    "named", [{"attn_implementation": "a/b"}, {"text_config": {"_attn_implementation": "kernels-community/flash-attn"}}]
)
def test_code_of_the_hub_that_a_configuration_names_needs_a_word(named, folder):
    added(folder / "config.json", **named)
    with pytest.raises(UserError, match=r"computes with code of the hub, '.*/.*'; read it, then allow"):
        pretrained.check(str(folder))
    pretrained.check(str(folder), trust_remote_code=True)
