"""Folders of stock classes with `per_layer_config`, read again by transformers' own layers and as a base model."""

from __future__ import annotations

import json

import heterogeneous_reader
import pytest
import torch
from conftest import tiny
from tiny_methods import calibration, logits, pruned
from transformers import AutoConfig
from uneven_models import bpe, droped, uneven, with_a_map

import methods
from bench.data import pretrained
from bench.export import engine_form
from methods.checkpoint.pruned_config import describe
from methods.errors import UserError
from methods.model.decoder import Decoder

GONE = "attention 0, mlp 2, attention 4, mlp 4"
KINDS = {
    "channels": lambda: uneven("llama", heads=()),
    "heads": lambda: uneven("qwen2", gone=GONE),
    "one number of heads": lambda: uneven("mistral", heads=(0, 1, 2, 3, 4, 5), tie_word_embeddings=False),
    "biases": lambda: uneven("llama", heads=(), biases=True, gone=GONE),
    "fewer layers": lambda: droped("llama"),
    "a mixture": lambda: mixture(),  # noqa: PLW0108  # which is defined below
}


def mixture():
    """A mixture of experts with fewer of them, without an attention and without another layer's experts."""
    model = Decoder(tiny("mixtral", layers=3, vocab_size=260))
    methods.make("reap").prune(model, calibration(), 0.3)
    layers = model.layers
    layers[1].remove_attention()
    layers[2].remove_mlp()
    model.set_layers(layers)
    return model


def write(model, folder):
    return engine_form.write_heterogeneous(model, bpe(), folder, torch.float32, shard_bytes=10**9)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_transformers_compute_the_model_and_so_does_the_folder_as_a_base_model(kind, ids, tmp_path):
    model, folder = KINDS[kind](), tmp_path / "own"
    zeros = write(model, folder)
    expected = logits(model, ids)
    torch.testing.assert_close(heterogeneous_reader.logits(folder, ids), expected, rtol=0, atol=1e-5)
    pretrained.check(str(folder))
    again, _ = pretrained.load(str(folder), torch.device("cpu"), torch.float32)
    torch.testing.assert_close(logits(Decoder(again), ids), expected, rtol=0, atol=1e-5)
    assert (zeros > 0) == (kind == "biases")
    if not zeros:
        ours, theirs = describe(model).to_dict(), describe(Decoder(again)).to_dict()
        assert ours["per_layer_config"] == theirs["per_layer_config"]


def test_the_configuration_says_what_a_layer_has_of_its_own_and_no_more(tmp_path):
    write(uneven("llama", heads=(), gone=GONE), tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert config["per_layer_config"] == {
        "0": {"skip": ["attention"]},
        "1": {"intermediate_size": 43},
        "2": {"skip": ["mlp"]},
        "4": {"skip": ["attention", "mlp"]},
        "5": {"intermediate_size": 38},
    }
    write(droped("llama"), tmp_path / "stock")
    assert not AutoConfig.from_pretrained(tmp_path / "stock").is_heterogeneous


REFUSED = {
    "heads of a llama": (lambda: uneven("llama"), "no such layers of a llama: 'num_attention_heads' is a per-layer"),
    "a class that goes by all heads": (lambda: uneven("opt"), r"k_proj.weight is \(8, 32\) and should be \(32, 32\)"),
    "a bias without a place": (
        lambda: uneven("qwen2", heads=(), biases=True),
        "no place for model.layers.1.mlp.down_proj.bias",
    ),
    "a map": (with_a_map, "a linear map of the residual stands behind layer 1"),
    "ranks": (lambda: pruned("svd-llm", "llama", 0.3)[0], "is two factors of low rank"),
    "the residual": (lambda: pruned("slicegpt", "llama", 0.3)[0], "the residual stream has been cut"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_does_not_hold_is_refused_in_one_line(reason, tmp_path):
    make, words = REFUSED[reason]
    with pytest.raises(UserError, match=words) as caught:
        write(make(), tmp_path / "own")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


OTHERS = {
    "an activation": ({"1": {"hidden_act": "gelu"}}, "its layers differ in hidden_act"),
    "more queries for a key": ({"1": {"num_key_value_heads": 1}}, "layer 1 has 2 query heads for each key/value head"),
    "a layer too many": ({"6": {"intermediate_size": 8}}, "integer layer indices in the range"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_folder_of_another_program_is_refused_for_what_is_not_read(kind, tmp_path):
    layers, words = OTHERS[kind]
    write(droped("llama", layers=8), tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"per_layer_config": layers}))
    with pytest.raises(UserError, match=words) as caught:
        pretrained.make_shell(str(tmp_path / "own"))
    assert "\n" not in str(caught.value)


def test_what_is_equal_in_all_layers_is_the_whole_models(ids, tmp_path):
    """Another program may say it of each layer, as AnyModel's converter does."""
    model = uneven("llama", heads=())
    write(model, tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    config = json.loads(path.read_text())
    for number in map(str, range(6)):
        config["per_layer_config"].setdefault(number, {})["rms_norm_eps"] = config["rms_norm_eps"]
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    again, _ = pretrained.load(str(tmp_path / "own"), torch.device("cpu"), torch.float32)
    torch.testing.assert_close(logits(Decoder(again), ids), logits(model, ids), rtol=0, atol=1e-5)
