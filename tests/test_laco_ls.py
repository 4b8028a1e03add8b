"""laco-ls: every fit against torch.linalg.lstsq on whole matrices, every trial against a model that was changed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import LAYERS, tiny
from test_compensation import brute, states
from test_flap import calibration
from test_properties import calibration as whole_sequences
from test_properties import logits

import methods
from methods import checkpoint
from methods.anatomy import Decoder
from methods.budget import layer_parameters, parameters
from methods.compensation import twin
from methods.laco_ls import Dense, LaCoLS, Trial, joined
from methods.pruner import Unsupported
from methods.replaceme import fold
from methods.signals import inputs_of

RIDGE = 0.3


def ratio(model: Decoder, n: int) -> float:
    return n * layer_parameters(model.layers[0]) / parameters(model)


def collapsed(n: int, tokens: methods.Calibration, family: str = "llama", **given: object) -> tuple[Decoder, dict]:
    model = Decoder(tiny(family))
    return model, LaCoLS(ridge=RIDGE, trial_tokens=48, **given).prune(model, tokens, ratio(model, n))


def test_the_survivors_down_matrix_is_the_least_squares_of_its_window():
    dense = Decoder(tiny("llama"))
    model, decisions = collapsed(3, calibration(filler=9))
    x = states(dense)[0]
    kept = [number for number in range(LAYERS) if number not in decisions["removed_layers"]]
    ends = {s: e + 1 for s, e in decisions["windows"]}
    assert ends
    for place, s in enumerate(kept):
        layer, whole = model.layers[place], dense.layers[s]
        if s not in ends:
            assert layer.down.weight is not whole.down.weight
            assert torch.equal(layer.down.weight, whole.down.weight)
            continue
        with inputs_of(layer.down) as seen:
            entered, _, m = states(model)
        C = torch.cat([one[0, 1:].double() for one in seen])
        r = entered[place + 1] - m[place]
        W = brute(C, x[ends[s]] - r, RIDGE, whole.down.weight.detach().double().T)
        found = layer.down.weight.detach().double().T
        torch.testing.assert_close(found, W, rtol=0, atol=2e-4 * float(W.abs().max()))
        after = float((r + C @ W - x[ends[s]]).square().sum() / x[ends[s]].square().sum())
        (error,) = [error for error in decisions["errors"] if error["window"][0] == s]
        assert error["error_after"] == pytest.approx(after, rel=1e-3)
        assert error["error_after"] < error["error_before"]


def test_only_the_survivors_down_matrices_change():
    dense = Decoder(tiny("qwen2"))
    model, decisions = collapsed(2, whole_sequences(), "qwen2")
    kept = [number for number in range(LAYERS) if number not in decisions["removed_layers"]]
    starts = {s for s, _ in decisions["windows"]}
    for layer, s in zip(model.layers, kept, strict=True):
        for (name, found), wanted in zip(
            layer.module.named_parameters(), dense.layers[s].module.parameters(), strict=True
        ):
            assert torch.equal(found, wanted) == (s not in starts or found is not layer.down.weight), name


def test_the_foretold_map_and_what_it_leaves_by_hand():
    model = Decoder(tiny("llama"))
    found = Dense(model, calibration(filler=9), leave_first=True, ridge=RIDGE)
    x, _, m = states(model)
    for s, e in ((1, 3), (2, 6), (0, 2)):
        r = x[s + 1] - m[s]
        T = brute(m[s], x[e] - r, RIDGE, torch.eye(32, dtype=torch.float64))
        torch.testing.assert_close(found.map((s, e)).double(), T, rtol=0, atol=1e-4 * float(T.abs().max()))
        u = 1 - torch.nn.functional.cosine_similarity(r + m[s] @ T, x[e], dim=-1).mean()
        assert found.left((s, e)) == pytest.approx(float(u), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2", "gemma3_text"])
def test_a_trial_is_the_model_with_its_maps_folded(family):
    if family == "gemma3_text":
        with pytest.raises(Unsupported, match="gemma3_text norms what an MLP adds"):
            LaCoLS().plan(Decoder(tiny(family)), 0.3)
        return
    model, tokens = Decoder(tiny(family)), calibration(filler=9)
    dense = Dense(model, tokens, leave_first=True, ridge=RIDGE)
    trial = Trial(dense, tokens.first(60))
    windows = joined(joined([(s, s + 1) for s in range(LAYERS)], 1), 1)  # layers 1 to 3 are one
    assert windows == [(0, 1), (1, 4), (4, 5), (5, 6)]
    trial.fix(windows)
    changed = twin(model)
    layers = changed.layers
    fold(layers[1].down, dense.map((1, 4)).double())
    changed.set_layers([layers[s] for s, _ in windows])
    few = tokens.first(60)
    wanted = few.mask[:, 1:]
    p, q = (logits(one, few.ids)[:, :-1][wanted].log_softmax(-1) for one in (model, changed))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    for i in range(len(windows)):
        assert trial.loss(windows, i) == pytest.approx(kl, rel=1e-3, abs=1e-6)
    undone = [(s, s + 1) for s in range(LAYERS)]
    trial.fix(undone)
    assert trial.loss(undone, 0) == pytest.approx(0.0, abs=1e-5)


def test_with_every_candidate_tried_the_best_one_is_taken():
    """Against a loop over all windows written out, for the first layer."""
    model, tokens = Decoder(tiny("llama")), whole_sequences()
    dense = Dense(model, tokens, leave_first=True, ridge=RIDGE)
    trial, windows = Trial(dense, tokens.first(48)), [(s, s + 1) for s in range(LAYERS)]
    losses = {s + 1: trial.loss(joined(windows, s), 0) for s in range(LAYERS - 1)}
    best = min(losses, key=lambda number: losses[number])
    _, decisions = collapsed(1, tokens)
    assert decisions["removal_order"] == [f"layer {best}"]
    assert decisions["losses"] == [pytest.approx(losses[best], rel=1e-4)]
    _, one = collapsed(1, tokens, trials=1)
    least = min(range(LAYERS - 1), key=lambda s: dense.left((s, s + 2)))
    assert one["removal_order"] == [f"layer {least + 1}"]


def test_layers_that_do_nothing_go_first_and_are_not_missed(ids):
    model = Decoder(tiny("llama"))
    for layer in (model.layers[2], model.layers[4]):
        layer.out.weight.data.mul_(1e-4)
        layer.down.weight.data.mul_(1e-4)
    before = logits(model, ids)
    decisions = LaCoLS(trial_tokens=48).prune(model, whole_sequences(), ratio(model, 2))
    assert decisions["removed_layers"] == [2, 4]
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=0.02 * float(before.abs().max()))


def test_an_order_that_is_known_is_followed_without_a_trial(monkeypatch):
    model, decisions = collapsed(3, whole_sequences())
    _, shorter = collapsed(2, whole_sequences())
    assert shorter["removal_order"] == decisions["removal_order"][:2]
    assert decisions["free_removals"] == 3
    monkeypatch.setattr(Trial, "loss", lambda *_: pytest.fail("nothing was left to find"))
    known = dataclasses.replace(whole_sequences(), order=tuple(decisions["removal_order"]))
    again, repeated = collapsed(3, known)
    assert repeated["removed_layers"] == decisions["removed_layers"]
    assert repeated["losses"] == [None] * 3
    ids = whole_sequences().ids
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize(("filler", "memory"), [(77, 2**30), (0, 1), (0, 40_000)])
def test_padding_and_micro_batches_change_nothing(filler, memory, ids):
    model, decisions = collapsed(3, calibration())
    other, again = collapsed(3, calibration(filler=filler, memory=memory))
    assert again["removed_layers"] == decisions["removed_layers"]
    expected = logits(model, ids)
    torch.testing.assert_close(logits(other, ids), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_stock_transformers_loads_the_result(tmp_path):
    model, _ = collapsed(2, whole_sequences())
    manifest = checkpoint.save(model, tmp_path / "model")
    assert manifest["loads_with"] == "transformers"
    assert manifest["parameters"] == parameters(Decoder(tiny("llama"))) - 2 * layer_parameters(model.layers[0])


def test_a_model_that_has_lost_an_mlp_is_unsupported():
    model = Decoder(tiny("llama"))
    layers = model.layers
    layers[2].remove_mlp()
    model.set_layers(layers)
    with pytest.raises(Unsupported, match="a layer has lost its MLP"):
        LaCoLS().plan(model, 0.2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ridge": "0"}, "laco-ls: ridge is positive"),
        ({"trials": "0"}, "laco-ls: trials is at least 1; got 0"),
        ({"trial_tokens": "1"}, "laco-ls: trial_tokens and tokens are at least 2"),
        ({"tokens": "0"}, "laco-ls: trial_tokens and tokens are at least 2"),
    ],
)
def test_unsound_parameters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        methods.make("laco-ls", given)
