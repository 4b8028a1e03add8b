"""Gradients that are taken one layer at a time are those of one backward pass through the whole model, to the bit."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, tiny
from emulated import EmulatedGpus
from torch.nn.functional import cross_entropy

import methods
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.gradients import TOKENS_AT_ONCE, collect_gradients, make_zeros

LENGTHS = (24, 15, 7, 1, 24, 10, 24, 24, 24, 24, 24, 24, 24)  # two micro-batches
IDS = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(24) < torch.tensor(LENGTHS)[:, None]


def at_once(model: Decoder, weights: set, size: int) -> tuple[dict, dict]:
    """Return g and a of a backward pass through the whole model for each micro-batch of `size` sequences."""
    g, a = make_zeros(weights), make_zeros(weights)
    targets = IDS[:, 1:].masked_fill(~MASK[:, 1:], -100)
    model.model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_()
    for ids, wanted in zip(IDS.split(size), targets.split(size), strict=True):
        logits = model.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
        for weight in weights:
            gradient, weight.grad = weight.grad.float(), None
            g[weight].add_(gradient, alpha=int((wanted >= 0).sum()) / int((targets >= 0).sum()))
            a[weight].addcmul_(gradient, gradient, value=1 / len(IDS))
    return g, a


def each(model: Decoder, ids: torch.Tensor, mask: torch.Tensor, weights: set, **kinds: bool) -> list:
    """Return (layer, g, a) of each layer in the order in which they come."""
    found = []

    def of_layer(number: int, g: dict, a: dict) -> list:
        found.append((number, dict(g), dict(a)))
        return []

    collect_gradients(model, Calibration(ids, mask), weights, of_layer, **kinds)
    return found


def by_layer(model: Decoder, weights: set, **kinds: bool) -> tuple[dict, dict]:
    """Return g and a of all layers, and see to it that each layer's come once, from the last layer to the first."""
    g, a, order = {}, {}, []
    for number, sums, squares in each(model, IDS, MASK, weights, **kinds):
        assert {*sums, *squares} <= set(model.layers[number].module.parameters())
        order.append(number)
        g |= sums
        a |= squares
    assert order == sorted(set(order), reverse=True)
    return g, a


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def model_of(family: str, dtype: torch.dtype = torch.float32, **overrides: object) -> Decoder:
    model = tiny(family, **overrides)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return Decoder(model)


EVERY = [(family, torch.float32, {}) for family in FAMILIES]
EVERY += [
    ("llama", torch.float32, {"tie_word_embeddings": False}),
    ("gpt_neox", torch.float32, {"use_parallel_residual": False}),
]
EVERY += [(family, torch.bfloat16, {}) for family in ("llama", "gemma2", "phi3")]


@pytest.mark.parametrize(("family", "dtype", "overrides"), EVERY, ids=str)
def test_every_bit_is_that_of_a_backward_pass_through_the_whole_model(family, dtype, overrides):
    model = model_of(family, dtype, **overrides)
    weights = {weight for layer in model.layers for weight in layer.module.parameters() if weight.ndim > 1}
    assert len(IDS) > TOKENS_AT_ONCE // 24
    g, a = by_layer(model, weights)
    assert same(g, at_once(model, weights, TOKENS_AT_ONCE // 24)[0])
    assert not a


def test_squares_are_of_each_sequence_alone():
    model = model_of("qwen2")
    weights = {matrix.weight for layer in model.layers[1:4] for matrix in layer.matrices}
    g, a = by_layer(model, weights, a=True)
    expected = at_once(model, weights, 1)
    assert same(g, expected[0])
    assert same(a, expected[1])
    g, a = by_layer(model, weights, g=False, a=True)
    assert not g
    assert same(a, expected[1])


@pytest.mark.parametrize("method", ["slicegpt", "flap"])
def test_a_pruned_model_has_gradients_too(method):
    model = model_of("llama")
    methods.make(method).prune(model, Calibration(IDS[4:5], MASK[4:5]), 0.3)
    weights = {matrix.weight for layer in model.layers for matrix in layer.matrices}
    assert same(by_layer(model, weights)[0], at_once(model, weights, TOKENS_AT_ONCE // 24)[0])


def test_layers_before_the_first_that_is_asked_for_are_not_differentiated():
    model = model_of("llama")
    weights = {model.layers[4].out.weight}
    runs = [0] * 6
    for number, layer in enumerate(model.layers):
        layer.module.register_forward_hook(lambda *_, number=number: runs.__setitem__(number, runs[number] + 1))
    g, _ = by_layer(model, weights)
    assert g.keys() == weights
    assert runs == [2, 2, 2, 2, 4, 4]  # two micro-batches; the last two layers once more each


def test_what_one_layer_has_is_gone_when_the_next_is_asked_for():
    model = model_of("llama")
    weights = {matrix.weight for layer in model.layers for matrix in layer.matrices}
    kept = []

    def of_layer(_: int, sums: dict, squares: dict) -> list:
        assert all(not any(one) for one in kept)
        assert len(sums) == len(squares) == 7
        kept.append((sums, squares))
        return []

    collect_gradients(model, Calibration(IDS, MASK), weights, of_layer, a=True)
    assert len(kept) == 6


def test_a_sequence_without_a_target_has_no_gradient(monkeypatch):
    monkeypatch.setattr("methods.model.gradients.TOKENS_AT_ONCE", 1)  # it then is alone in its pass
    model = model_of("llama")
    weight = model.layers[0].out.weight
    several = MASK.sum(1) > 1
    *_, (_, all_of_them, _) = each(model, IDS, MASK, {weight})
    *_, (_, some, _) = each(model, IDS[several], MASK[several], {weight})
    found = all_of_them[weight]
    torch.testing.assert_close(found, some[weight])
    assert found.abs().sum() > 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gradients_on_a_gpu_go_through_attention_whose_backward_pass_repeats(device):
    """The fused kernels add with atomics there; on a CPU they stay."""
    fused = []
    with EmulatedGpus():
        model = Decoder(tiny("llama").to(device))
        model.layers[3].module.register_forward_hook(lambda *_: fused.append(torch.backends.cuda.flash_sdp_enabled()))
        each(model, IDS[:2], MASK[:2], {model.layers[0].out.weight})
        assert torch.backends.cuda.flash_sdp_enabled()
    assert fused == [device == "cpu"] * 2
