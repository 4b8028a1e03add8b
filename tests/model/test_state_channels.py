"""Channels of the states of Mamba-2 mixers: cut exactly, counted, cached, stored, and chosen by llm-pruner."""

from __future__ import annotations

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
from methods.model import architectures
from methods.model.decoder import Decoder
from methods.model.layer_store import LayerStore
from methods.model.sizes import parameters, state_bytes
from methods.model.structures import Structure, keep_state_channels, rows_of_states, structures_of

FAMILIES = ("bamba", "granitemoehybrid", "nemotron_h")
N = 6  # channels of a state of the tiny models


def lose(model: Decoder, units: list[int]) -> list[Structure]:
    """Take these channels from the state of each mixer."""
    structures = structures_of(model, "state_channels")
    for structure in structures:
        structure.drop(units)
    return structures


def silence(model: Decoder, units: list[int], *, of: str = "BC") -> None:
    """Zero what the convolution gives of these channels: silu(0) is 0."""
    for structure in structures_of(model, "state_channels"):
        for part in rows_of_states(structure.layer):
            groups = part.index.shape[1] // 2
            columns = {"B": slice(groups), "C": slice(groups, None), "BC": slice(None)}[of]
            for name in part.names:
                getattr(part.holder, name).data[part.index[units][:, columns].flatten()] = 0


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_state_are_those_of_b_and_c_each_of_one_channel(family):
    model = Decoder(tiny(family))
    structures = structures_of(model, "state_channels")
    assert len(structures) == sum(layer.state_channels > 0 for layer in model.layers) > 0
    for structure in structures:
        mixer = structure.layer.attn
        groups, inner = mixer.n_groups, mixer.intermediate_size
        assert structure.size == N
        (part,) = structure.parts
        assert part.index.shape == (N, 2 * groups)
        assert sorted(part.index.flatten().tolist()) == list(range(2 * inner, 2 * inner + 2 * groups * N))
        (beside,) = rows_of_states(structure.layer)
        assert sorted(beside.index.flatten().tolist()) == list(range(inner, inner + 2 * groups * N))
        with pytest.raises(ValueError, match="columns of no matrix"):
            _ = structure.writer


@pytest.mark.parametrize("of", ["B", "C"])
@pytest.mark.parametrize("units", [[1], [0, 3, 5]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_channel_that_is_gone_equals_one_that_nothing_writes_or_reads(family, units, of, ids):
    """With a cache too; parameters and bytes of the state follow."""
    model, silenced = Decoder(tiny(family)), Decoder(tiny(family))
    before, bytes_before = parameters(model), state_bytes(model)
    structures = lose(model, units)
    assert before - parameters(model) == sum(len(units) * structure.cost for structure in structures)
    silence(silenced, units, of=of)
    expected = logits(silenced, ids)
    assert not torch.equal(expected, logits(Decoder(tiny(family)), ids))
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert {layer.state_channels for layer in model.layers} - {0} == {N - len(units)}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    texts = [model.model.generate(ids[:1], use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*texts)
    with torch.no_grad():
        cache = model.model(ids[:1, :5], use_cache=True).cache
    linear = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    states = [state for layer in linear for state in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    assert bytes_before > state_bytes(model) == sum(state.nbytes for state in states if state is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_states_are_a_stock_model_and_others_load_from_their_description(family, ids, tmp_path):
    model = Decoder(tiny(family))
    lose(model, [0, 2])
    assert save_load.save(model, tmp_path / "even")["loads_with"] == "transformers"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "even")
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, logits(model, ids), rtol=0, atol=1e-6)
    first = next(layer for layer in model.layers if layer.state_channels)
    keep_state_channels(first, [0, 2])
    manifest = save_load.save(model, tmp_path / "uneven")
    facts = manifest["structure"]["layers"][first.number]
    assert (manifest["loads_with"], facts["state_channels"]) == ("prunebench", 2)
    assert torch.equal(logits(save_load.load(tmp_path / "uneven"), ids), logits(model, ids))
    with pytest.raises(ValueError, match="state_channels differs from layer to layer"):
        pad_layers(model, ids)


def test_a_folder_of_before_loads_whose_states_are_whole(ids):
    model = Decoder(tiny("nemotron_h"))
    expected, form = logits(model, ids), describe(model)
    values = form.to_dict()
    for facts in values["per_layer_config"].values():
        del facts["state_channels"]
    shell = Decoder(make_empty(form.base()))
    cut(shell, type(form).from_dict(values))
    shell.model.load_state_dict(model.model.state_dict(), assign=True)
    assert torch.equal(logits(shell, ids), expected)


def test_weights_in_files_lose_the_same(tmp_path, ids):
    expected, model = Decoder(tiny("bamba")), Decoder(tiny("bamba"))
    lose(expected, [1])
    stored = Decoder(model.model, store=LayerStore(tmp_path))
    lose(stored, [1])
    assert torch.equal(logits(stored, ids), logits(expected, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_llm_pruner_chooses_among_them(family):
    spec, model, dense = SPECS["llm-pruner"] | {"states": "true"}, Decoder(tiny(family)), Decoder(tiny(family))
    decisions = prune(methods.make("llm-pruner", spec), model, calibration(), 0.3)
    assert any(decisions["removed_state_channels"])
    assert decisions["state_channels"] == [layer.state_channels for layer in model.layers]
    case = method_checks.PrunedTiny("llm-pruner", spec, family, 0.3, dense, model, decisions)
    for check in ("check_zero", "check_decisions", "check_budget", "check_zeroing", "check_cache", "check_saving"):
        assert (outcome := getattr(method_checks, check)(case)).status != "wrong", (check, outcome.words)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_stay_where_nobody_asks(family):
    model = Decoder(tiny(family))
    decisions = prune(methods.make("llm-pruner", SPECS["llm-pruner"]), model, calibration(), 0.3)
    assert not any(decisions["removed_state_channels"])
    assert {layer.state_channels for layer in model.layers} - {0} == {N}


def test_a_channel_that_nothing_reads_or_writes_goes_first():
    """Its rows of the input matrix are zero, so that its importance is 0."""
    model = Decoder(tiny("bamba"))
    for structure in structures_of(model, "state_channels"):
        (part,) = structure.parts
        part.matrix.weight.data[part.index[4]] = 0
    spec = SPECS["llm-pruner"] | {"states": "true"}
    decisions = prune(methods.make("llm-pruner", spec), model, calibration(), 0.2)
    removed = [units for units in decisions["removed_state_channels"] if units]
    assert removed
    assert all(4 in units for units in removed)


@pytest.mark.parametrize("family", ["llama", "qwen3_5_text", "falcon_h1"])
def test_where_none_can_go_it_is_refused(family):
    model = Decoder(tiny(family))
    assert not any(layer.state_channels for layer in model.layers)
    with pytest.raises(Unsupported, match=f"no layer of this {family} has any that can go"):
        methods.make("llm-pruner", SPECS["llm-pruner"] | {"states": "true"}).plan(model, 0.2)


def test_the_table_of_families_has_them():
    assert {name for name, family in architectures.FAMILIES.items() if not family.never("states")} == {*FAMILIES}
    assert {name for name, axes, _ in architectures.table_of_families() if "states" in axes.split(", ")}


def test_uniform_leaves_them():
    with pytest.raises(ValueError, match="states=true has no place"):
        methods.make("llm-pruner", {"states": "true", "uniform": "true"})
