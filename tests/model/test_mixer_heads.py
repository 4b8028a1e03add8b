"""Heads of mixers in attentions' places: cut with all that belongs to them, counted, cached, stored, and chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from tiny_methods import SPECS, calibration, logits
from transformers import AutoModelForCausalLM
from transformers.cache_utils import LinearAttentionCacheLayerMixin

import methods
from bench.workshop import method_checks
from methods.checkpoint import save_load
from methods.checkpoint.pruned_config import cut, describe, make_empty
from methods.checkpoint.transformers_compat import pad_layers
from methods.decisions import prune
from methods.errors import Unsupported
from methods.model.architectures import FAMILIES
from methods.model.decoder import Decoder
from methods.model.layer_store import LayerStore
from methods.model.sizes import parameters, state_bytes
from methods.model.structures import (
    Structure,
    keep_mixer_heads,
    rows_of_mixer,
    slices_of_mixer,
    structures_of,
)

HEADS = 4
MORE = {  # heads than the tiny models have, and two value heads in each
    "qwen3_5_text": {"linear_num_key_heads": HEADS, "linear_num_value_heads": 2 * HEADS},
    "qwen3_next": {"linear_num_key_heads": HEADS, "linear_num_value_heads": 2 * HEADS},
    "nemotron_h": {"mamba_num_heads": 2 * HEADS, "n_groups": HEADS},
}
CHOOSING = {  # methods with what they remove so much by that some heads of mixers go
    "flap": {},
    "flap+refit": {},
    "llm-pruner": {},
    "wanda-sp": {},
    "obs": {},
    "nirvana": {},
    "grasprune": {},
    "tyr": {},
    "darwinlm": {},
    "minitron-width": {"heads": "true"},
    "puzzle": {"heads": "4"},
}


def wide(family: str) -> Decoder:
    return Decoder(tiny(family, **MORE[family]))


def lose(model: Decoder, units: list[int]) -> list[Structure]:
    """Take these heads from each mixer."""
    structures = structures_of(model, "mixer_heads")
    for structure in structures:
        structure.drop(units)
    return structures


@pytest.mark.parametrize("family", MORE)
def test_each_row_of_a_mixer_belongs_to_one_head(family):
    for structure in structures_of(wide(family), "mixer_heads"):
        for part in structure.parts:
            size = part.matrix.in_features if part.axis else part.matrix.out_features
            assert sorted(part.index.flatten().tolist()) == list(range(size))
            assert len(part.index) == HEADS
        beside = rows_of_mixer(structure.layer)
        assert {name for part in beside for name in part.names} >= {"A_log", "dt_bias", "weight"}
        for part in beside:
            for name in part.names:
                assert sorted(part.index.flatten().tolist()) == list(range(len(getattr(part.holder, name))))


@pytest.mark.parametrize("units", [[1], [0, 3]])
@pytest.mark.parametrize("family", MORE)
def test_a_head_that_is_gone_adds_nothing_and_takes_all_that_is_its_own(family, units, ids):
    """Its removal equals zeroing its columns of the output matrix, with a cache too; bytes and counts follow."""
    model, silenced = wide(family), wide(family)
    before = parameters(model)
    structures = lose(model, units)
    assert structures
    assert before - parameters(model) == sum(len(units) * structure.cost for structure in structures)
    for structure in structures_of(silenced, "mixer_heads"):
        structure.writer.weight.data[:, structure.parts[-1].index[units].flatten()] = 0
    expected = logits(silenced, ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert {layer.mixer_heads for layer in model.layers} == {0, HEADS - len(units)}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    texts = [model.model.generate(ids[:1], use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*texts)
    with torch.no_grad():
        cache = model.model(ids[:1, :5], use_cache=True).cache
    linear = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    states = [state for layer in linear for state in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    assert state_bytes(model) == sum(state.nbytes for state in states if state is not None)


@pytest.mark.parametrize("family", MORE)
def test_equal_mixers_are_a_stock_model_and_others_load_from_their_description(family, ids, tmp_path):
    model = wide(family)
    lose(model, [0])
    assert save_load.save(model, tmp_path / "even")["loads_with"] == "transformers"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "even")
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, logits(model, ids), rtol=0, atol=1e-6)
    first = next(layer for layer in model.layers if layer.mixer_heads)
    keep_mixer_heads(first, [0, 2])
    first.out.bias = torch.nn.Parameter(torch.full((32,), 0.5))
    manifest = save_load.save(model, tmp_path / "uneven")
    assert (manifest["loads_with"], manifest["structure"]["layers"][first.number]["mixer_heads"]) == ("prunebench", 2)
    assert torch.equal(logits(save_load.load(tmp_path / "uneven"), ids), logits(model, ids))
    with pytest.raises(ValueError, match=r"a (mixer|mixture of experts) is not filled up with zeros"):
        pad_layers(model, ids)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        (method, family)
        for method in CHOOSING
        for family in ("qwen3_5_text", "nemotron_h")  # the other has a mixture of experts in each layer
        if (method, family) != ("puzzle", "nemotron_h")  # of which it would take both attentions
    ],
)
def test_methods_choose_among_heads_of_mixers(method, family, ids):
    model, spec = wide(family), SPECS.get(method, SPECS.get(method.partition("+")[0], {})) | CHOOSING[method]
    ratio = 0.3 if method == "puzzle" else 0.5  # which removes whole attentions too, and one stays
    decisions = prune(methods.make(method, spec), model, calibration(), ratio)
    assert any(decisions["removed_mixer_heads"])
    assert all(decisions["mixer_heads"][layer.number] == layer.mixer_heads for layer in model.layers)
    case = method_checks.PrunedTiny(method, {}, family, ratio, wide(family), model, decisions)
    case = replace(case, parameters=spec)
    for check in ("check_decisions", "check_zeroing", "check_cache", "check_saving"):
        assert (outcome := getattr(method_checks, check)(case)).status != "wrong", (check, outcome.words)


def test_what_a_calibration_never_excites_goes_first(ids):
    """A head whose values are zero in every layer has the lowest score of each layer by each measure."""
    for method in ("flap", "wanda-sp", "llm-pruner", "nirvana", "minitron-width"):
        model = wide("qwen3_5_text")
        for layer in model.layers:
            for part in slices_of_mixer(layer)[:1]:  # q, k and v
                part.matrix.weight.data[part.index[2]] = 0
            if layer.mixer_heads:
                layer.out.weight.data[:, slices_of_mixer(layer)[-1].index[2].flatten()] *= 1e-3
        decisions = prune(methods.make(method, SPECS[method] | CHOOSING[method]), model, calibration(), 0.5)
        for units in decisions["removed_mixer_heads"]:
            assert not units or 2 in units, (method, units)
        assert any(decisions["removed_mixer_heads"])


def test_weights_in_files_lose_the_same(tmp_path, ids):
    expected, model = wide("qwen3_5_text"), wide("qwen3_5_text")
    lose(expected, [1])
    stored = Decoder(model.model, store=LayerStore(tmp_path))
    lose(stored, [1])
    assert torch.equal(logits(stored, ids), logits(expected, ids))


@pytest.mark.parametrize("family", ["bamba", "granitemoehybrid", "falcon_h1"])
def test_mixers_whose_heads_depend_on_each_other_stay_whole_and_attentions_lose_theirs(family):
    model = Decoder(tiny(family))
    assert FAMILIES[family].mixer.whole
    assert structures_of(model, "mixer_heads") == []
    with pytest.raises(ValueError, match="no mixer in the place"):
        next(layer for layer in model.layers if layer.has_heads).set_mixer_heads(1)
    decisions = prune(methods.make("flap"), model, calibration(), 0.3)
    assert any(decisions["removed_kv_heads"])
    assert "removed_mixer_heads" not in decisions
    mixers = [layer for layer in model.layers if layer.mixer is not None]
    assert [layer.state_numbers for layer in mixers] == [
        layer.state_numbers for layer in Decoder(tiny(family)).layers if layer.mixer is not None
    ]


def test_a_folder_of_before_loads_whose_mixers_are_whole(ids, tmp_path):
    """It says nothing of their heads, and of their output matrices no bias that they have."""
    model = wide("nemotron_h")
    expected, form = logits(model, ids), describe(model)
    values = form.to_dict()
    for facts in values["per_layer_config"].values():
        del facts["mixer_heads"]
        facts["attention_output_bias"] = False
    shell = Decoder(make_empty(form.base()))
    cut(shell, type(form).from_dict(values))
    assert {layer.mixer_heads for layer in shell.layers} == {0, HEADS}
    shell.model.load_state_dict(model.model.state_dict(), assign=True)
    assert torch.equal(logits(shell, ids), expected)


def test_heads_are_not_narrowed_beside_mixers():
    with pytest.raises(Unsupported, match="parts=mlp leaves them as they are"):
        methods.make("modegpt", SPECS["modegpt"]).plan(wide("qwen3_5_text"), 0.2)
