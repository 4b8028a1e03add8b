"""Nemotron-NAS folders, read again by readers that know nothing of this project."""

from __future__ import annotations

import json

import nemotron_reader
import numpy as np
import pytest
import torch
from tiny_methods import logits
from uneven_models import bpe, droped, uneven, with_a_map

from bench.export import engine_form
from methods.errors import UserError

WIDE = {"intermediate_size": 768, "heads": (), "step": 256}
KINDS = {
    "fewer layers": lambda: droped("llama", intermediate_size=256),
    "uneven": lambda: uneven("llama", heads=()),
    "uneven, multiples of 256": lambda: uneven("llama", **WIDE),
    "attention gone": lambda: uneven("llama", gone="attention 1, attention 5", **WIDE),
    "first attention gone": lambda: uneven("llama", gone="attention 0", **WIDE),
    "mlp gone": lambda: uneven("llama", gone="mlp 0, mlp 2, mlp 5", **WIDE),
    "layer gone": lambda: uneven("llama", gone="attention 0, mlp 0", **WIDE),
    "biases": lambda: uneven("llama", biases=True, **WIDE),
    "biases everywhere": lambda: uneven("llama", attention_bias=True, mlp_bias=True, **WIDE),
    "untied": lambda: uneven("mistral", sliding_window=None, tie_word_embeddings=False, **WIDE),
}


def write(model, folder, **how):
    return engine_form.write_nemotron(model, bpe(), folder, torch.float32, shard_bytes=10**9, **how)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_of_the_format_computes_the_model(kind, ids, tmp_path):
    model = KINDS[kind]()
    write(model, tmp_path / "nas")
    torch.testing.assert_close(nemotron_reader.logits(tmp_path / "nas", ids), logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "uneven"])
def test_mlx_lm_computes_the_model(kind, ids, tmp_path):
    mx = pytest.importorskip("mlx.core")
    utils = pytest.importorskip("mlx_lm.utils")
    model = KINDS[kind]()
    write(model, tmp_path / "nas")
    theirs, _ = utils.load_model(tmp_path / "nas")
    got = torch.from_numpy(np.array(theirs(mx.array(ids.tolist()))))
    torch.testing.assert_close(got, logits(model, ids), rtol=0, atol=1e-4)


def test_vllm_is_told_widths_in_the_way_that_it_does_not_round(tmp_path):
    """It rounds what ffn_mult gives up to a multiple of 256, and takes intermediate_size only without ffn_mult."""
    for name, model in (("any", uneven("llama", heads=())), ("whole", uneven("llama", **WIDE))):
        write(model, tmp_path / name)
        blocks = json.loads((tmp_path / name / "config.json").read_text())["block_configs"]
        assert {len({"ffn_mult", "intermediate_size"} & set(block["ffn"])) for block in blocks} == {1}
        read = [nemotron_reader.width(block["ffn"], 32) for block in blocks]
        assert read == [layer.down.in_features for layer in model.layers]
    assert "ffn_mult" in blocks[0]["ffn"]


def test_the_first_layer_has_an_attention(tmp_path):
    """The engines' first layer takes the embedding from there; one of zeros stands in for one that is gone."""
    form = write(uneven("llama", gone="attention 0, attention 1", **WIDE), tmp_path / "nas")
    assert [(sizes.H, sizes.G) for sizes in form.layers[:3]] == [(4, 1), (0, 0), (4, 2)]
    assert form.zeros == 32 * 8 * (4 + 1 + 1 + 4) + 32


def test_channels_are_filled_up_to_a_multiple(ids, tmp_path):
    model = uneven("llama", heads=(), biases=True, mlp_bias=True)
    form = write(model, tmp_path / "nas", multiple=256)
    assert {sizes.I for sizes in form.layers} == {256}
    torch.testing.assert_close(nemotron_reader.logits(tmp_path / "nas", ids), logits(model, ids), rtol=0, atol=1e-5)


REFUSED = {
    "family": (lambda: droped("gemma"), "nemotron-nas is written for llama, mistral; this model is a gemma"),
    "activation": (lambda: droped("llama", hidden_act="gelu"), "for the activation silu; this model's is gelu"),
    "heads": (lambda: uneven("llama"), "layer 2 has 2, layer 0 has 4"),
    "map": (with_a_map, "nemotron-nas holds no such layers: a linear map of the residual stands behind layer 1"),
    "attentions": (lambda: uneven("llama", gone=", ".join(f"attention {n}" for n in range(6))), "no layer has one"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_format_cannot_hold_is_refused_with_the_layer_and_the_reason(reason, tmp_path):
    make, words = REFUSED[reason]
    with pytest.raises(UserError, match=words) as caught:
        write(make(), tmp_path / "nas")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
