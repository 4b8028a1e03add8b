"""A cut equals a mask: removing units and zeroing what they write give the same model."""

from __future__ import annotations

import pytest
import torch
from conftest import ALIKE, EVERY_FAMILY, FAMILIES, LATER, tiny
from transformers.cache_utils import CacheLayerMixin

from bench.workshop.tiny_models import HYBRIDS
from methods.model.decoder import Decoder, positions_behind_cache
from methods.model.sizes import kv_bytes_per_token, parameters
from methods.model.structures import (
    Structure,
    Sublayer,
    drop_lowest,
    keep_channels,
    keep_kv_groups,
    remove_sublayers,
    sizes_of_sublayers,
    sublayers_of,
)

KEPT_HEADS = {1: [1], 3: [0]}  # by layer: uneven from layer to layer
KEPT_CHANNELS = {0: [0, 3, 4, 47], 2: list(range(0, 48, 2)), 3: [5]}


def model_of(family: str) -> Decoder:
    return Decoder(tiny(family, num_key_value_heads=2) if family == "gemma" else tiny(family))


def logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.model(ids).logits


def heads_of(model: Decoder) -> dict[int, list[int]]:
    """The heads that are kept by layer, where heads can go."""
    layers = model.layers
    kept = {number: heads for number, heads in KEPT_HEADS.items() if layers[number].has_heads}
    return {} if model.family.never("heads") else kept


def channels_of(model: Decoder) -> dict[int, list[int]]:
    """The channels that are kept by layer, where a layer has an MLP."""
    return {1: [0, 3, 4, 47], 4: [5]} if model.family.alone else KEPT_CHANNELS


def cut(model: Decoder) -> Decoder:
    layers = model.layers
    for number, kept in heads_of(model).items():
        keep_kv_groups(layers[number], kept)
    for number, kept in channels_of(model).items():
        keep_channels(layers[number], kept)
    return model


def masked(model: Decoder) -> Decoder:
    """The same by zeroing columns of the matrices that write the residual."""
    layers = model.layers
    with torch.no_grad():
        for number, kept in heads_of(model).items():
            out, width = layers[number].out.weight, layers[number].group * layers[number].head_width
            for head in set(range(layers[number].kv_heads)) - set(kept):
                out[:, head * width : (head + 1) * width] = 0
        for number, kept in channels_of(model).items():
            down = layers[number].down
            down.weight[:, sorted(set(range(down.in_features)) - set(kept))] = 0
    return model


@pytest.mark.parametrize("family", [*EVERY_FAMILY, *HYBRIDS])
def test_a_cut_is_a_mask(family, ids):
    expected = logits(masked(model_of(family)), ids)
    found = logits(cut(model_of(family)), ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", [*EVERY_FAMILY, *HYBRIDS])
def test_a_cut_model_generates_with_its_cache(family, ids):
    model = cut(model_of(family))
    whole = logits(model, ids)
    with torch.no_grad():
        start = model.model(ids[:, :9], use_cache=True)
        steps, cache = [start.logits], start.cache
        for t in range(9, ids.shape[1]):
            places = positions_behind_cache(model.model, t, 1)
            out = model.model(ids[:, t : t + 1], cache=cache, use_cache=True, **places)
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_changes_nothing(family, ids):
    model = model_of(family)
    before = logits(model, ids)
    for layer in model.layers:
        keep_kv_groups(layer, range(layer.kv_heads))
        keep_channels(layer, range(layer.down.in_features))
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("kind", ["kv_heads", "channels"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_structure_knows_what_a_unit_costs_and_which_are_left(family, kind):
    model = model_of(family)
    structure = Structure(2, kind, model.layers[2])
    before = parameters(model)
    structure.remove(torch.arange(float(structure.size)).flip(0), 1)  # the last one
    structure.remove(torch.ones(len(structure.units_left)).index_fill(0, torch.tensor(0), 0.0), 0)
    assert before - parameters(model) == structure.cost
    assert structure.removed == [structure.size - 1]
    assert len(structure.parts[-1].index) == structure.size - 1


def test_units_keep_their_first_numbers():
    structure = Structure(0, "channels", Decoder(tiny("llama")).layers[0])
    structure.remove((torch.arange(48) - 10).abs(), 1)
    structure.remove((torch.arange(47) - 10).abs(), 1)  # what is now the tenth was the eleventh
    assert structure.removed == [10, 11]


def test_features_and_biases_follow_the_weights():
    model = Decoder(tiny("opt"))
    layer = model.layers[0]
    keep_kv_groups(layer, [0, 2, 3])
    keep_channels(layer, [1, 5])
    assert [(matrix.out_features, matrix.in_features) for matrix in layer.matrices] == [
        (24, 32),
        (24, 32),
        (24, 32),
        (32, 24),
        (2, 32),
        (32, 2),
    ]
    assert [len(matrix.bias) for matrix in layer.matrices] == [24, 24, 24, 32, 2, 32]
    assert layer.kv_heads == 3


def test_a_layer_of_phi3_has_its_own_head_count():
    model = Decoder(tiny("phi3"))
    keep_kv_groups(model.layers[1], [1])
    counts = [layer.attn.config.num_attention_heads for layer in model.layers]
    assert counts == [4, 2, 4, 4, 4, 4]
    assert model.config.num_attention_heads == 4


def test_a_cut_keeps_frozen_weights_frozen():
    model = Decoder(tiny("llama"))
    model.model.requires_grad_(False)
    cut(model)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def attentions(model: Decoder, *, kind: int | None = None) -> list[Sublayer]:
    """All attentions, or those of the kind that layer `kind` has."""
    kinds = [layer.kind for layer in model.layers]
    wanted = kinds if kind is None else [kinds[kind]]
    return [Sublayer("attention", number) for number in range(len(kinds)) if kinds[number] in wanted]


BLOCKS = {
    "the first attention": lambda model: [Sublayer("attention", 0)],
    "some of each": lambda model: list(map(Sublayer.parse, ("attention 0", "attention 3", "mlp 1", "mlp 5"))),
    "one layer's both": lambda model: list(map(Sublayer.parse, ("attention 4", "mlp 4", "layer 2", "attention 0"))),
    "attentions of the first kind": lambda model: attentions(model, kind=0),
    "attentions of the last kind": lambda model: attentions(model, kind=-1),
    "all attentions": attentions,
    "all mlps": lambda model: sublayers_of(model, "mlp"),
}
PLACES = [
    pytest.param(family, blocks, marks=[pytest.mark.nightly] if family in ALIKE else [])
    for family in FAMILIES
    for blocks in BLOCKS
]
PLACES += [pytest.param(family, "some of each") for family in (*LATER, *HYBRIDS)]
PLACES += [pytest.param(family, f"attentions of the {which} kind") for family in HYBRIDS for which in ("first", "last")]
PLACES.remove(pytest.param("nemotron_h", "attentions of the last kind"))  # whose layers would go, and one stays


def without(family: str, blocks: str) -> Decoder:
    model = model_of(family)
    remove_sublayers(model, BLOCKS[blocks](model))
    return model


WRITES = {"attention": [0], "mlp": [1], "layer": [0, 1]}


@pytest.mark.parametrize(("family", "blocks"), PLACES)
def test_a_block_that_is_gone_adds_nothing(family, blocks, ids):
    """Removing it equals zeroing the matrix, with its bias, through which it writes the residual."""
    silenced = model_of(family)
    for block in BLOCKS[blocks](silenced):
        layer = silenced.layers[block.layer]
        for matrix in [each for which in WRITES[block.part] for each in layer.writers(which)]:
            for parameter in matrix.parameters():
                parameter.data.zero_()
    expected = logits(silenced, ids)
    torch.testing.assert_close(logits(without(family, blocks), ids), expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize(("family", "blocks"), PLACES)
def test_without_blocks_the_cache_stays_right(family, blocks, ids):
    """Token by token, greedily, in beams and in a cache of fixed size; and the cache holds what is counted.

    Windows of attention have 8 tokens.
    """
    model, ids = without(family, blocks), ids[:, :12]
    whole = logits(model, ids)
    with torch.no_grad():
        start = model.model(ids[:, :5], use_cache=True)
        cache, steps = start.cache, [start.logits]
        with_keys = (layer for layer in cache.layers if isinstance(layer, CacheLayerMixin))
        held = sum(2 * layer.keys.numel() * 4 for layer in with_keys if layer.is_initialized)
        assert held == 3 * 5 * kv_bytes_per_token(model)
        for t in range(5, ids.shape[1]):
            places = positions_behind_cache(model.model, t, 1)
            steps.append(model.model(ids[:, t : t + 1], cache=cache, use_cache=True, **places).logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for beams in (1, 3):
        uncached = model.model.generate(ids[:, :9], num_beams=beams, use_cache=False, **options)
        assert torch.equal(model.model.generate(ids[:, :9], num_beams=beams, **options), uncached)
        if beams == 1:
            static = model.model.generate(ids[:, :9], cache_implementation="static", **options)
            assert torch.equal(static, uncached)


@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "cohere2", *HYBRIDS])
def test_blocks_know_their_size(family):
    model = model_of(family)
    for block in sublayers_of(model, "layer", "attention", "mlp"):
        less = model_of(family)
        remove_sublayers(less, [block])
        assert sizes_of_sublayers(model, [block]) == {block: parameters(model) - parameters(less)}


def test_removed_blocks_are_named_by_kind_and_no_longer_there():
    model = model_of("llama")
    blocks = [
        Sublayer("mlp", 1),
        Sublayer("attention", 4),
        Sublayer("attention", 1),
        Sublayer("attention", 0),
        Sublayer("layer", 5),
    ]
    assert remove_sublayers(model, blocks) == {
        "removed_layers": [1, 5],
        "removed_attention": [0, 4],
        "removed_mlp": [],
    }
    assert model.config.num_hidden_layers == 4
    assert sublayers_of(model, "attention", "mlp") == [
        Sublayer("mlp", 0),
        Sublayer("attention", 1),
        Sublayer("mlp", 1),
        Sublayer("attention", 2),
        Sublayer("mlp", 2),
        Sublayer("mlp", 3),
    ]
    assert remove_sublayers(model, [Sublayer("mlp", 0)])["removed_layers"] == [0]  # its attention had gone before
    assert [str(block) for block in blocks] == ["mlp 1", "attention 4", "attention 1", "attention 0", "layer 5"]


def test_of_equal_scores_the_lower_layer_stays():
    model = model_of("gemma2")
    kinds = [layer.kind for layer in model.layers]
    assert drop_lowest(model, [2.0, 1.0, 1.0, 1.0, 0.0, 0.0], range(5), 3) == [2, 3, 4]
    assert [layer.kind for layer in model.layers] == [kinds[0], kinds[1], kinds[5]]
