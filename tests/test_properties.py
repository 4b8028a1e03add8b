"""What must hold for every method on every family, whatever the method does."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EVERY_FAMILY, FAMILIES, LAYERS, OWN_CODE, tiny
from tiny_methods import (
    EXPERTS,
    HYBRID_CELLS,
    KINDS,
    METHODS,
    SHAPED,
    SPECS,
    calibration,
    logits,
    pruned,
    pruned_anew,
)

import methods
from bench.workshop import method_checks
from bench.workshop.tiny_models import HYBRIDS, MIXTURES, WITH_MIXERS
from methods.checkpoint import save_load
from methods.errors import OutOfReach, Unsupported
from methods.model.architectures import LISTS
from methods.model.decoder import Decoder
from methods.model.sizes import kv_bytes_per_token, macs_per_token, parameters, parameters_without_embeddings
from methods.model.structures import Structure

COUNTED = ["drop", "slicegpt", "llm-pruner", "flap", "2ssp", "blockpruner", "llm-drop", "svd-llm"]


@cache
def dense(family: str) -> Decoder:
    """A tiny model that nobody changes."""
    return Decoder(tiny(family))


def test_every_method_is_tested_here():
    assert set(SPECS) | set(EXPERTS) | {"dense"} == {card.name for card in methods.cards_of_methods()}


@pytest.mark.parametrize(("method", "family"), [*(cell for cell in SHAPED if cell.values[0] != "drop"), *HYBRID_CELLS])
def test_ratio_zero_changes_nothing(method, family, ids):
    dense = tiny(family)
    model, _ = pruned(method, family, 0.0)
    assert torch.equal(logits(model, ids), logits(Decoder(dense), ids))
    assert parameters(model) == sum(parameter.numel() for parameter in dense.parameters())
    assert model.whole_config.to_dict() == dense.config.to_dict()


@pytest.mark.parametrize(("method", "family"), SHAPED)
def test_a_model_without_two_layers_parameters_keeps_every_promise(
    method, family, *, ids, tmp_path, subtests, pytestconfig
):
    """It is pruned once, and each promise that fails is named; shapes alone decide on those behind the first."""
    dense = Decoder(tiny(family))
    budget = 2 * sum(p.numel() for p in dense.layers[0].module.parameters()) / parameters(dense)
    model, decisions = pruned_anew(method, family, budget)
    with subtests.test("what is removed can be counted"):
        check_counts(method, dense, model, decisions, budget)
    if not (method in KINDS or family == "llama" or pytestconfig.getoption("--nightly")):
        return
    with subtests.test("generation with a cache is generation without"):
        check_cached_generation(model, ids)
    if method in COUNTED:
        with subtests.test("the cache is as large as the shapes say"):
            check_cache_size(model, ids)
        with subtests.test("multiplications are those that torch counts"):
            check_multiplications(copy.deepcopy(model), ids)
    if family not in OWN_CODE:
        check_saved_model(model, dense, ids, tmp_path / "model", subtests)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_cache_and_multiplications_of_a_dense_model_are_those_of_its_shapes(family, ids):
    check_cache_size(Decoder(tiny(family, sliding_window=None) if family == "mistral" else tiny(family)), ids)
    check_multiplications(Decoder(tiny(family)), ids)


def check_cached_generation(model: Decoder, ids: torch.Tensor) -> None:
    """Token by token with a cache, a model computes what it computes of the whole text."""
    whole = logits(model, ids)
    atol = method_checks.ROUNDING * float(whole.abs().max())
    torch.testing.assert_close(method_checks.compute_cached_logits(model, ids), whole, rtol=0, atol=atol)


def check_saved_model(
    model: Decoder, dense: Decoder, ids: torch.Tensor, folder: Path, subtests: pytest.Subtests
) -> None:
    """Saved and loaded, it is the same model again; its description says what it is and what loads it."""
    manifest = save_load.save(model, folder)
    again = save_load.load(folder)
    with subtests.test("a saved model is the same model again"):
        assert torch.equal(logits(again, ids), logits(model, ids))
        assert type(again.model) is type(model.model)
        for name in ("model_type", "num_hidden_layers", "layer_types", "tie_word_embeddings", "hidden_size"):
            assert getattr(again.config, name, None) == getattr(model.config, name, None)
        assert parameters(again) == parameters(model) == manifest["parameters"]
        assert save_load.structure_of(again) == manifest["structure"]
    with subtests.test("a loaded model can be sent to another process"):
        assert pickle.dumps(again.model)  # its classes have names
    with subtests.test("a loaded model generates with its cache"):
        check_cached_generation(again, ids)
        mask = torch.ones_like(ids)
        text = again.model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        new, likeliest = text[:, ids.shape[1] :], logits(model, text)[:, ids.shape[1] - 1 : -1].argmax(-1)
        ends = (new == again.config.eos_token_id).int()
        before_end = ends.cumsum(1) == ends  # behind the first end is padding
        assert torch.equal(new[before_end], likeliest[before_end])
    with subtests.test("a manifest says what loads the model"):
        check_what_loads(manifest, save_load.structure_of(dense)["layers"][0])


def check_what_loads(manifest: dict[str, Any], whole: dict[str, Any]) -> None:
    """Stock transformers loads layers of one width, where their heads are as many as those of a `whole` layer."""
    structure = manifest["structure"]
    layers = structure["layers"]
    uniform = all(layer == layers[0] for layer in layers) and structure["residual"] is None
    uniform = uniform and "ranks" not in layers[0]
    assert (manifest["loads_with"] == "transformers") == (manifest["reason"] is None)
    if not uniform:
        assert manifest["loads_with"] == "prunebench"
    elif layers[0]["num_attention_heads"] == whole["num_attention_heads"]:
        assert manifest["loads_with"] == "transformers", manifest["reason"]


@pytest.mark.parametrize("method", METHODS)
def test_what_looks_at_calibration_tokens_shows_how_far_it_is(method, bars):
    pruned_anew(method, "llama", 0.3)
    (card,) = [card for card in methods.cards_of_methods() if card.name == method]
    assert bool(bars) == (card.needs != "nothing")
    assert all(bar.done == (bar.total or bar.done) > 0 for bar in bars)


@pytest.mark.parametrize("method", [*METHODS, *EXPERTS])
def test_the_list_says_which_families_a_method_cannot_serve(method):
    (card,) = [card for card in methods.cards_of_methods() if card.name == method]
    refused = set()
    for family in (*EVERY_FAMILY, *MIXTURES, *HYBRIDS):
        try:
            methods.make(method, SPECS.get(method)).plan(dense(family), 0.2)
        except Unsupported:
            refused.add(family)
        except OutOfReach:  # where no neighbours are alike, which laco merges
            assert (family, method.partition("-")[0]) == ("nemotron_h", "laco")
    # the tiny models of these have no experts
    without = {"granitemoehybrid", "nemotron_h"} if "experts" in card.axes else set()
    without |= {"qwen3_vl"} if method == "drop" else set()  # of which it is to drop a layer that is fixed
    assert refused == set(card.without) | without
    assert card.needs in ("nothing", "calibration", "calibration, gradients")
    assert bool(card.cost) == (card.needs != "nothing")


def check_counts(method: str, model: Decoder, after: Decoder, decisions: dict[str, Any], budget: float) -> None:
    """The budget is met to within half a step of the method, and the configuration tells the truth."""
    total, each = parameters(model), sum(p.numel() for p in model.layers[0].module.parameters())
    if "channels" in decisions:
        assert parameters(after) == decisions["parameters"]
        kept = [number for number in range(LAYERS) if number not in decisions.get("removed_layers", [])]
        there = dict(zip(kept, after.layers, strict=True))  # of a layer that is gone nothing is left
        left = {number: layer.down.in_features if layer.has_mlp else 0 for number, layer in there.items()}
        assert decisions["channels"] == [left.get(number, 0) for number in range(LAYERS)]
        heads = [there[number].kv_heads if number in there else 0 for number in range(LAYERS)]
        assert decisions.get("kv_heads", heads) == heads
        unit = {kind: Structure(0, kind, model.layers[0]).cost for kind in ("kv_heads", "channels")}
        step = max(LAYERS * unit["channels"], unit["kv_heads"])  # a channel of every layer, or a head of one
        coarse = ("llm-pruner", "puzzle", "laco-puzzle")
        assert method in coarse or abs(total - parameters(after) - 2 * each) <= step / 2
    elif "ranks" in decisions:
        matrices = [
            (ranks, layer.named_matrices()) for ranks, layer in zip(decisions["ranks"], model.layers, strict=True)
        ]
        cut = [(whole[name].weight, k) for ranks, whole in matrices for name, k in ranks.items()]
        assert total - parameters(after) == sum(W.numel() - k * sum(W.shape) for W, k in cut)
        assert parameters(after) == decisions["parameters"]
        step = sum(sum(W.shape) for W, _ in cut)  # a rank of every matrix
        assert abs(total - parameters(after) - 2 * each) <= step / 2
    elif "removed_attention" in decisions:
        sizes, whole = model.layers[0].sizes(), len(decisions["removed_layers"])
        shared = each - sizes["attention"] - sizes["mlp"]  # a norm of both
        removed = whole * each + sum(sizes[part] * len(decisions[f"removed_{part}"]) for part in ("attention", "mlp"))
        assert parameters(after) == total - removed
        assert abs(removed - whole * shared - 2 * each) <= min(sizes["attention"], sizes["mlp"]) / 2
        assert after.config.num_hidden_layers == len(after.layers) == LAYERS - whole
    elif "removed_layers" in decisions:
        gone = decisions["removed_layers"]
        assert parameters(after) == total - len(gone) * each
        assert method == "drop" or len(gone) == 2
        assert after.config.num_hidden_layers == len(after.layers) == LAYERS - len(gone)
    else:
        from methods.width.slicegpt import parameters_after_slicing

        head = methods.make(method).slices_head(after)
        counts = [parameters_after_slicing(model, d, head) for d in range(8, 33, 8)]
        assert parameters(after) == parameters_after_slicing(model, decisions["d"], head)
        assert abs(parameters(after) - (1 - budget) * total) == min(abs(n - (1 - budget) * total) for n in counts)


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(one, marks=pytest.mark.nightly) for one in ("gemma3_text", "opt"))]
)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_makes_the_same_decisions(method, family):
    assert pruned_anew(method, family, 0.3)[1] == pruned(method, family, 0.3)[1]


GROWING = [  # of one family, and of all at night
    pytest.param(method, family, marks=[pytest.mark.nightly] if family != "llama" else [])
    for method in METHODS
    for family in ("llama", "gpt2", "phi3")
    if method != "drop"
]


@pytest.mark.parametrize(("method", "family"), GROWING)
def test_the_achieved_ratio_never_falls_as_the_request_grows(method, family):
    counts = []
    for ratio in (0.05, 0.1, 0.15, 0.3, 0.4):
        try:
            counts.append(parameters(pruned(method, family, ratio)[0]))
        except OutOfReach:
            break
    assert len(counts) > 3
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("family", [*EVERY_FAMILY, *WITH_MIXERS])
def test_dropping_layers_equals_silencing_them(family, ids):
    """A layer whose two output matrices are zero adds nothing to the residual."""
    silenced = Decoder(tiny(family))
    method_checks.silence_removed(silenced, {"removed_layers": [1, 3, 4]})
    dropped, _ = pruned("drop", family, 0.0)
    torch.testing.assert_close(logits(dropped, ids), logits(silenced, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [*EVERY_FAMILY, *WITH_MIXERS])
def test_what_a_configuration_lists_travels_with_the_layers(family):
    model, _ = pruned("drop", family, 0.0)
    for name in LISTS:
        if (said := getattr(Decoder(tiny(family)).config, name, None)) is not None:
            assert getattr(model.config, name) == [said[i] for i in (0, 2, 5)]
    numbers = [layer.attn.layer_idx if layer.has_attention else place for place, layer in enumerate(model.layers)]
    assert numbers == [0, 1, 2]


def check_cache_size(model: Decoder, ids: torch.Tensor) -> None:
    with torch.no_grad():
        cache = model.model(ids[:1, :5], use_cache=True).cache
    used = [layer for layer in cache.layers if layer.keys is not None]
    held = sum(layer.keys.numel() * 4 + layer.values.numel() * 4 for layer in used)
    assert held == 5 * kv_bytes_per_token(model)


def check_multiplications(model: Decoder, ids: torch.Tensor) -> None:
    """Attention is computed step by step from then on, so that torch counts it."""
    from torch.utils.flop_counter import FlopCounterMode

    for config in (model.config, *(getattr(layer.attn, "config", model.config) for layer in model.layers)):
        config._attn_implementation = "eager"  # cut layers of phi3 have a configuration of their own
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model(ids[:1], use_cache=False)
    rotary = model.layers[0].head_width // 2 * ids.shape[1]  # outer products of positions and frequencies
    counted = counter.get_total_flops() // 2
    formula = ids.shape[1] * macs_per_token(model, ids.shape[1])
    assert 0 <= counted - formula <= 4 * rotary


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_are_left_out_of_the_inner_count(family):
    model = Decoder(tiny(family))
    layers = sum(p.numel() for layer in model.layers for p in layer.module.parameters())
    final = sum(p.numel() for p in model.final_norm.parameters())
    assert parameters_without_embeddings(model) == layers + final


def test_an_unknown_family_is_named_with_those_that_are_known():
    model = tiny("llama")
    model.config.model_type = "falcon"
    with pytest.raises(Unsupported, match=r"'falcon' has no row in methods/model/architectures.py \(known: llama"):
        Decoder(model)


BEHIND = [  # what leaves uneven layers: one for each way, and at night all
    *("slicegpt", "blockpruner", "2ssp", "flap", "svd-llm"),
    *(pytest.param(one, marks=pytest.mark.nightly) for one in ("finercut", "llm-drop", "llm-pruner")),
]


@pytest.mark.parametrize("first", BEHIND)
@pytest.mark.parametrize("method", [method for method in METHODS if method != "drop"])
def test_a_method_goes_on_behind_another_or_says_why_not(first, method, ids):
    model, _ = pruned(first, "llama", 0.2)
    before = parameters(model)
    pruner = methods.make(method, SPECS[method])
    try:
        pruner.plan(model, 0.3)
        pruner.prune(model, calibration(), 0.3)
    except (Unsupported, OutOfReach) as reason:
        assert str(reason)
        return
    assert parameters(model) < before
    assert bool(torch.isfinite(logits(model, ids)).all())
    assert first != "slicegpt" or method in ("llm-pruner", "nirvana", "grasprune")
