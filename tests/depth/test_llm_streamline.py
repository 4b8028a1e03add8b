"""LLM-Streamline: which run goes, and that training puts its work into one layer and nothing else."""

from __future__ import annotations

import dataclasses
import math
from contextlib import contextmanager

import pytest
import torch
from conftest import LAYERS, VOCABULARY, tiny
from tiny_methods import calibration

import methods
from methods import layer_training
from methods.depth import angular
from methods.depth.llm_streamline import LLMStreamline, states_at_ends
from methods.layer_training import LayerTraining
from methods.model.activations import enter
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import drop_layers


def ratio_of(layers: int) -> float:
    model = Decoder(tiny("llama"))
    return layers * layer_parameters(model.layers[0]) / parameters(model)


@torch.no_grad()
def idle(*numbers: int) -> Decoder:
    """A model whose layers of these numbers add nothing."""
    model = Decoder(tiny("llama"))
    for number in numbers:
        layer = model.layers[number]
        layer.out.weight.zero_()
        layer.down.weight.zero_()
    return model


@torch.no_grad()
def logits(model: Decoder) -> torch.Tensor:
    return model.model(calibration(7).ids, use_cache=False).logits


def test_a_run_that_does_nothing_goes_and_nothing_changes():
    model = idle(2, 3, 4)
    dense = logits(model)
    decided = LLMStreamline(passes=3).prune(model, calibration(), ratio_of(2))
    assert (decided["trained_layer"], decided["removed_layers"]) == (2, [3, 4])
    assert decided["similarities"][2] == pytest.approx(1)
    assert decided["missed"] == pytest.approx([0, 0, 0, 0], abs=1e-12)
    assert len(model.layers) == LAYERS - 2
    torch.testing.assert_close(logits(model), dense, rtol=0, atol=1e-5)


def test_one_layer_learns_the_work_of_the_run_and_no_other_changes():
    """Layer 2 adds nothing, and is taught what layer 3 does."""
    model = idle(2)
    before = [{name: one.clone() for name, one in layer.module.named_parameters()} for layer in model.layers]
    x, z = states_at_ends(model, calibration(), 2, 2)
    tokens = calibration()
    missed = LLMStreamline(passes=12, learning_rate=2e-2, batch=2).train(model, tokens, 2, 2)
    assert len(missed) == 13
    assert min(missed) < 0.7 * missed[0]
    with torch.no_grad():
        y, _ = states_at_ends(model, calibration(), 3, 0)
    held = slice(len(x) - 1, len(x))  # an eighth of six sequences, one at least
    left = (torch.stack(y) - torch.stack(z))[held].square().sum() / torch.stack(z)[held].square().sum()
    assert float(left) == pytest.approx(min(missed), rel=1e-4)
    for number, (layer, old) in enumerate(zip(model.layers, before, strict=True)):
        same = all(torch.equal(one, old[name]) for name, one in layer.module.named_parameters())
        assert same == (number != 2)


def test_the_run_that_is_compared_is_the_one_that_becomes_a_layer():
    """Of n + 1 layers where n go, so that its ends lie three layers apart where two go."""
    decided = LLMStreamline(passes=1).prune(Decoder(tiny("llama")), calibration(), ratio_of(2))
    h = [torch.cat(each) for each in states_between(calibration())]
    cosine = torch.nn.functional.cosine_similarity
    ends = [float(cosine(h[s].double(), h[s + 3].double(), dim=-1).mean()) for s in range(LAYERS - 2)]
    assert decided["similarities"] == pytest.approx(ends, rel=1e-9)
    assert decided["trained_layer"] == ends.index(max(ends))


def states_between(tokens) -> list[list[torch.Tensor]]:
    """What enters each layer, and what leaves the last, (T, D) of each sequence, by hooks on the dense model."""
    model, seen = tiny("llama"), [[] for _ in range(LAYERS + 1)]
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda _, given, number=number: seen[number].append(given[0][0]))
    model.model.norm.register_forward_pre_hook(lambda _, given: seen[LAYERS].append(given[0][0]))
    with torch.no_grad():
        for ids in tokens.ids:
            model(ids[None], use_cache=False)
    return seen


def test_sequences_that_are_held_out_are_not_trained_on(monkeypatch):
    """An eighth of 16, the last two; and they alone say what is missed."""
    ids = torch.randint(3, VOCABULARY, (16, 8), generator=torch.Generator().manual_seed(0))
    tokens = dataclasses.replace(calibration(), ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))
    trained, judged = list[int](), list[list[int]]()
    step, missed = LayerTraining.step, LayerTraining.missed
    monkeypatch.setattr(LayerTraining, "step", lambda self, rows: trained.extend(rows) or step(self, rows))
    monkeypatch.setattr(LayerTraining, "missed", lambda self, rows: judged.append(rows) or missed(self, rows))
    LLMStreamline(passes=2, batch=4).train(Decoder(tiny("llama")), tokens, 1, 3)
    assert sorted(trained) == sorted([*range(14), *range(14)])
    assert judged == [[14, 15]] * 3


def test_training_that_only_does_harm_leaves_the_first_layer_of_the_run():
    model, dropped = Decoder(tiny("llama")), Decoder(tiny("llama"))
    decided = LLMStreamline(passes=2, learning_rate=50.0).prune(model, calibration(), ratio_of(2))
    before, *after = decided["missed"]
    assert all(one is None or one > before for one in after)
    drop_layers(dropped, decided["removed_layers"])
    assert torch.equal(logits(model), logits(dropped))


def test_the_same_seed_gives_the_same_layer_and_another_seed_another():
    found = []
    for seed in (0, 0, 1):
        model, tokens = Decoder(tiny("llama")), dataclasses.replace(calibration(), seed=seed)
        LLMStreamline(passes=2, learning_rate=1e-3, batch=2).train(model, tokens, 1, 3)
        found.append(model.layers[1].down.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox", "mixtral"])
def test_half_precision_is_trained_in_float32_and_given_back(family, dtype):
    """Also of families whose layers are given a mask or positions, and of a mixture of experts."""
    model = Decoder(tiny(family).to(dtype))
    required = [one.requires_grad for one in model.embed.parameters()]
    missed = LLMStreamline(passes=2, learning_rate=1e-3).train(model, calibration(), 1, 3)
    assert {one.dtype for one in model.model.parameters()} == {dtype}
    assert {one.requires_grad for one in model.layers[1].module.parameters()} == set(required)
    assert missed[-1] < missed[0]


def test_sinks_that_weigh_apart_count_as_much_as_all_other_tokens_together():
    """J of methods/least_squares.py over J where nothing is given, on states with one sink for each sequence."""
    model, tokens = Decoder(tiny("llama")), calibration()
    (N, T), generator = tokens.ids.shape, torch.Generator().manual_seed(3)
    x, z = (torch.randn(N, T, 32, generator=generator) for _ in range(2))
    z[:, 0] *= 100
    training = LayerTraining(model, model.layers[2], tokens, (list(x), list(z)), (1e-3, 1))
    with torch.no_grad():
        y = model.layers[2](x, enter(model, tokens.ids).arguments[model.layers[2].kind])
    squares, wanted = (y - z).square().sum(-1), z.square().sum(-1)
    every = list(range(N))
    assert training.missed(every) == pytest.approx(float(squares.sum() / wanted.sum()), rel=1e-4)
    training.weigh_sinks()
    J = squares[:, 1:].sum() / wanted[:, 1:].sum() + squares[:, 0].sum() / wanted[:, 0].sum()
    assert training.missed(every) == pytest.approx(float(J / 2), rel=1e-4)
    assert abs(training.missed(every) - float(squares.sum() / wanted.sum())) > 0.1


def test_sinks_apart_are_what_a_user_asks_for():
    missed = []
    for sinks in ("alike", "apart"):
        made = methods.make("llm-streamline", {"sinks": sinks, "passes": "1"})
        missed.append(made.prune(Decoder(tiny("llama")), calibration(), ratio_of(2))["missed"])
    assert missed[0] == missed[1]  # a random model has no sinks


@pytest.mark.parametrize(("passes", "batch"), [(1, 5), (2, 5), (20, 5), (7, 2)])
def test_a_training_of_any_number_of_steps_trains(passes, batch):
    """1, 2, 20 and 21 of them; of 20 a twentieth is one."""
    model = Decoder(tiny("llama"))
    LLMStreamline(passes=passes, batch=batch, learning_rate=1e-3).train(model, calibration(), 1, 3)
    moved = model.layers[1].down.weight - tiny("llama").model.layers[1].mlp.down_proj.weight
    assert float(moved.detach().abs().max()) > 1e-4  # AdamW's first step is about the rate itself


def test_of_one_sequence_nothing_is_said_that_was_not_held_back():
    one = dataclasses.replace(calibration(), ids=calibration().ids[:1], mask=calibration().mask[:1])
    for tokens, said in ((one, False), (calibration(), True)):
        model = Decoder(tiny("llama"))
        decided = LLMStreamline(passes=1, learning_rate=1e-3).prune(model, tokens, ratio_of(2))
        assert ("missed" in decided) == said


def test_the_backward_pass_of_training_repeats_to_the_bit(monkeypatch):
    inside, seen = [], []

    @contextmanager
    def repeatable(model):
        inside.append(model)
        yield
        inside.pop()

    backward = torch.autograd.backward
    monkeypatch.setattr(layer_training, "make_repeatable", repeatable)
    monkeypatch.setattr(torch.autograd, "backward", lambda *given: seen.append(len(inside)) or backward(*given))
    LLMStreamline(passes=2).train(Decoder(tiny("llama")), calibration(), 1, 3)
    assert seen == [1] * 4


def test_cosines_in_pieces_are_those_of_all_rows_and_hold_few_rows_in_float64(monkeypatch):
    x, y = torch.randn(2, 1000, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    sizes, cosine_similarity = [], torch.nn.functional.cosine_similarity

    def noted(one, other, dim):
        sizes.append(len(one))
        return cosine_similarity(one, other, dim=dim)

    monkeypatch.setattr(angular, "cosine_similarity", noted)
    whole = angular.cosines_of_rows(x, y)
    assert torch.equal(whole, cosine_similarity(x.double(), y.double(), dim=-1))
    monkeypatch.setattr(angular, "AT_ONCE", 32 * 300)
    assert torch.equal(angular.cosines_of_rows(x, y), whole)
    assert sizes == [1000, 300, 300, 300, 100]


def test_what_is_no_number_is_none_in_the_record_and_is_not_taken(monkeypatch):
    figures = iter([0.5, math.nan, 0.4, math.inf])
    monkeypatch.setattr(LayerTraining, "missed", lambda *_: next(figures))
    taken = []
    monkeypatch.setattr(LayerTraining, "weights", lambda _: taken.append(0) or {})
    assert LLMStreamline(passes=3).train(Decoder(tiny("llama")), calibration(), 1, 3) == [0.5, None, 0.4, None]
    assert len(taken) == 2  # before the first pass, and behind the second
