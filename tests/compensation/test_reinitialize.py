"""The control has the pruned model's shape and nothing of its weights."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, padded, tiny
from transformers import AutoModelForCausalLM

import methods
from bench.healing.training import Text, heal
from bench.plan.protocol import Recipe
from methods.model.decoder import Decoder
from methods.model.inserted import LowRank
from methods.model.sizes import parameters

CALIBRATION = padded(torch.randint(3, 128, (8, 24), generator=torch.Generator().manual_seed(3)).tolist())


def pruned(method, family="llama", ratio=0.3, **given):
    model = Decoder(tiny(family))
    for parameter in model.model.parameters():
        parameter._is_hf_initialized = True  # as loaded weights are
    decisions = methods.make(method, given).prune(model, CALIBRATION, ratio)
    return model, decisions


def weights(model):
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


@pytest.mark.parametrize("family", ("llama", "gpt2", "gemma3_text"))
@pytest.mark.parametrize("method", ("laco", "flap"))
def test_the_shape_stays_and_the_weights_are_drawn_anew(method, family):
    try:
        (model, _), (control, decisions) = pruned(method, family), pruned(f"{method}+reinitialize", family)
    except methods.Unsupported as reason:
        pytest.skip(str(reason))
    ours, theirs = weights(model), weights(control)
    assert [(name, w.shape) for name, w in ours.items()] == [(name, w.shape) for name, w in theirs.items()]
    assert decisions["compensation"]["added_parameters"] == 0
    for name, value in theirs.items():
        if value.ndim == 2:
            assert 0.005 < float(value.std()) < 0.03, name  # 0.02, but GPT-2 divides some by the root of 2 L
            assert abs(float(torch.corrcoef(torch.stack([value.flatten(), ours[name].flatten()]))[0, 1])) < 0.15
        elif not name.endswith("bias") or method != "flap":  # flap adds biases, which no family draws
            assert len(value.unique()) == 1, name
    assert (model.head.weight is model.embed.weight) == (control.head.weight is control.embed.weight)


@pytest.mark.parametrize("family", ("glm4_moe", "gpt_oss", "mixtral"))
def test_nothing_of_a_mixtures_routing_stays(family):
    (model, _), (control, _) = (pruned(name, family, layers="2") for name in ("drop", "drop+reinitialize"))
    ours, theirs = model.model.state_dict(), control.model.state_dict()
    assert ours.keys() == theirs.keys()
    new = AutoModelForCausalLM.from_config(control.config)
    for name, value in theirs.items():
        assert ours[name].data_ptr() != value.data_ptr()
        if value.unique().numel() == 1:  # gains, biases, correction biases
            assert torch.equal(value, new.state_dict()[name]), name
        else:
            assert not torch.equal(value, ours[name]), name


def test_maps_around_a_layer_start_as_none_and_factors_as_large_as_their_matrix():
    model, _ = pruned("shortgpt+ghost")
    methods.make("drop+reinitialize", {"layers": "1"}).prune(model, CALIBRATION, 0.0)
    maps = [one for module in model.stack if hasattr(module, "behind") for one in (module.before, module.behind) if one]
    assert maps and not any(one.weight.any() for one in maps)
    model, _ = pruned("svd-llm+reinitialize")
    found = [module for module in model.model.modules() if isinstance(module, LowRank)]
    assert found
    for factors in found:
        assert 0.012 < float((factors.up.weight @ factors.down.weight).detach().std()) < 0.03  # 0.02


def test_a_seed_is_one_draw_and_leaves_the_callers_generator_alone():
    (one, _), (same, _) = pruned("laco+reinitialize"), pruned("laco+reinitialize")
    (alone, _), after = pruned("laco"), torch.get_rng_state()
    pruned("laco+reinitialize")
    assert torch.equal(after, torch.get_rng_state()) and len(alone.layers) == len(one.layers)
    other, decisions = pruned("laco+reinitialize", **{"reinitialize.seed": 1})
    assert decisions["compensation"]["seed"] == 1
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(same).values(), strict=True))
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_a_sliced_model_passes_its_residual_on():
    (model, _), (control, _) = pruned("slicegpt"), pruned("slicegpt+reinitialize")
    assert parameters(model) == parameters(control)
    shortcut = control.layers[0].module.shortcuts[0].weight
    assert torch.equal(shortcut, torch.eye(*shortcut.shape))


def test_where_nothing_is_pruned_nothing_is_drawn():
    dense = weights(Decoder(tiny("llama")))
    control, _ = pruned("laco+reinitialize", ratio=0.0)
    assert len(control.layers) == LAYERS
    assert all(torch.equal(a, b) for a, b in zip(dense.values(), weights(control).values(), strict=True))


def test_training_starts_at_a_uniform_guess_and_sees_the_same_steps():
    ids = (torch.randint(3, 100, (24, 1), generator=torch.Generator().manual_seed(3)) + torch.arange(16)) % 100
    text = Text(ids[:16], ids[16:], "made here", "0" * 64)
    recipe = Recipe(kind="full", tokens=16 * 16, length=16, batch=4, points=2)
    curves = [heal(pruned(name)[0], text, recipe) for name in ("laco", "laco+reinitialize")]
    assert [point.tokens for point in curves[0]] == [point.tokens for point in curves[1]]
    assert curves[1][0].heldout_loss == pytest.approx(float(torch.tensor(128.0).log()), abs=0.1)
