"""A model with code of its own: its fused projection and its head, and when that code runs at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import baichuan_code
import pytest
import torch
from conftest import refused, tiny
from tiny_methods import SPECS, calibration, logits

import methods
from bench.cli.main import main
from methods.checkpoint import save_load
from methods.errors import CheckpointError, Unsupported
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import keep_kv_groups


@pytest.fixture
def folder(model_folder, tmp_path, monkeypatch):
    """A model folder as the hub has it: weights, tokenizer, and the code that its configuration names."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    place = tmp_path / "Baichuan2-tiny"
    shutil.copytree(model_folder, place)
    tiny("baichuan").save_pretrained(place)
    shutil.copy(baichuan_code.__file__, place / "modeling_baichuan.py")
    config = json.loads((place / "config.json").read_text())
    names = {"AutoConfig": "BaichuanConfig", "AutoModelForCausalLM": "BaichuanForCausalLM"}
    config["auto_map"] = {auto: f"modeling_baichuan.{name}" for auto, name in names.items()}
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_the_head_is_what_its_weights_say(ids):
    """Scaling its rows once gives the logits of scaling them in each forward."""
    model = tiny("baichuan")
    before = model(ids).logits
    assert not torch.allclose(model.lm_head.weight.norm(dim=1), torch.ones(128), atol=0.1)
    decoder = Decoder(model)
    assert torch.allclose(logits(decoder, ids), before, atol=1e-6)
    assert isinstance(decoder.head, torch.nn.Linear)
    assert torch.allclose(decoder.head.weight.norm(dim=1), torch.ones(128), atol=1e-6)
    again = decoder.head.weight.clone()
    assert torch.equal(Decoder(model).head.weight, again)


@pytest.mark.parametrize("kept", [[0], [1, 3], [2, 0]])
def test_a_head_of_the_fused_projection_goes_with_its_rows(kept, ids):
    """As if its columns of the output matrix were zero."""
    cut, silenced = Decoder(tiny("baichuan")), Decoder(tiny("baichuan"))
    for layer in cut.layers:
        keep_kv_groups(layer, kept)
        assert layer.qkv[0].weight.shape == (3 * 8 * len(kept), 32)
    for layer in silenced.layers:
        for head in set(range(4)) - set(kept):
            layer.out.weight.data[:, 8 * head : 8 * head + 8] = 0
    torch.testing.assert_close(logits(cut, ids), logits(silenced, ids), rtol=0, atol=1e-5)


HEADS = {  # methods that remove heads
    *("flap", "wanda-sp", "llm-pruner", "nirvana", "minitron-width", "obs", "modegpt", "grasprune", "tyr", "darwinlm"),
}


@pytest.mark.parametrize("method", sorted(SPECS))
def test_a_bias_for_each_head_keeps_the_heads(method, ids):
    """With ALiBi as in Baichuan2-13B no head can go; whatever leaves heads alone serves the model."""
    model = Decoder(tiny("baichuan", alibi=True))
    before = parameters(model)
    pruner = methods.make(method, SPECS[method])
    try:
        pruner.plan(model, 0.3)
    except Unsupported as reason:
        assert "ALiBi" in str(reason)
        assert method in HEADS
        return
    pruner.prune(model, calibration(), 0.3)
    assert parameters(model) < before
    assert logits(model, ids).isfinite().all()


def test_the_biases_fall_with_the_distance(ids):
    """Otherwise the test above would say nothing of ALiBi."""
    plain, biased = tiny("baichuan"), tiny("baichuan", alibi=True)
    assert not torch.allclose(plain(ids).logits, biased(ids).logits, atol=1e-3)
    with torch.no_grad():
        start = biased(ids[:, :12], use_cache=True)
        rest = biased(ids[:, 12:], cache=start.cache, use_cache=True).logits
    torch.testing.assert_close(rest, biased(ids).logits[:, 12:], rtol=0, atol=1e-4)


def test_code_for_transformers_4_is_refused_with_what_would_be_right():
    class OldLayer(torch.nn.Module):
        def forward(self, hidden_states, attention_mask=None, past_key_value=None, use_cache=False):
            return (hidden_states,)

    model = tiny("baichuan")
    model.model.layers[0] = OldLayer()
    with pytest.raises(Unsupported, match=r"OldLayer is code for transformers 4, .* needs code for transformers 5"):
        Decoder(model)


def test_its_code_runs_only_if_it_is_allowed_to(base, folder, capsys, tmp_path):
    """Refused before any work; allowed, the run measures it; and what it saves would hold no code, so it does not."""
    mark = tmp_path / "it-ran"
    code = folder / "modeling_baichuan.py"
    code.write_text(f"{code.read_text()}\n\nopen({str(mark)!r}, 'w').close()\n")
    arguments = [*base, "--model", str(folder), "--methods", "shortgpt,slicegpt,flap", "--ratio", "0.3"]
    line = refused(capsys, arguments)
    assert "comes with its own code; read it, then allow it with --trust-remote-code" in line
    assert not mark.exists()
    line = refused(capsys, [*arguments, "--trust-remote-code", "--save-models"])
    assert "--save-models: BaichuanForCausalLM is code that came with the model" in line
    line = refused(capsys, [*arguments, "--trust-remote-code", "--then", "shortgpt:ratio=0.5"])
    assert "--then: BaichuanForCausalLM is code that came with the model" in line
    assert main([*arguments, "--trust-remote-code"]) == 0
    assert mark.exists()
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
    assert {record["cell"]["method"]: record["status"] for record in records} == dict.fromkeys(
        ("dense", "shortgpt", "slicegpt", "flap"), "ok"
    )
    with pytest.raises(CheckpointError, match="a saved model holds no code"):
        save_load.save(Decoder(tiny("baichuan")), Path(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()
