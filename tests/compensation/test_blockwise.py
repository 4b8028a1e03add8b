"""Block-wise distillation: which layers are trained, on what, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, tiny
from tiny_methods import calibration

import methods
from methods.compensation import blockwise
from methods.compensation.base import Pruning
from methods.compensation.blockwise import Span, spans_of_changed_layers
from methods.model.decoder import Decoder, make_twin
from methods.model.structures import drop_layers


def prune(name, ratio, **parameters):
    """Return the model that a method with a compensation leaves, and its decisions."""
    model = Decoder(tiny("llama"))
    return model, methods.make(name, parameters).prune(model, calibration(), ratio)


def states_in_front(model) -> list[torch.Tensor]:
    """Return what enters each layer and what leaves the last, (N, T, D) each, by hooks on a model of transformers."""
    states = list[torch.Tensor]()
    hooks = [layer.register_forward_pre_hook(lambda _, given: states.append(given[0])) for layer in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, given: states.append(given[0])))
    with torch.no_grad():
        model(calibration().ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize(
    ("dropped", "spans"),
    [
        ([2, 3], [Span(1, 1, 4)]),
        ([0, 1], [Span(0, 0, 3)]),  # layers in front of the first that is left count to it
        ([LAYERS - 1], [Span(LAYERS - 2, LAYERS - 2, LAYERS)]),
        ([1, 3], [Span(0, 0, 2), Span(1, 2, 4)]),
        ([], []),
    ],
)
def test_a_layer_stands_for_all_up_to_the_next_that_is_left(dropped, spans):
    dense = Decoder(tiny("llama"))
    pruned = make_twin(dense)
    drop_layers(pruned, dropped)
    kept = [number for number in range(LAYERS) if number not in dropped]
    assert spans_of_changed_layers(Pruning(dense, pruned, kept)) == spans


def test_layers_that_are_narrowed_or_have_lost_a_sublayer_are_trained_and_no_other_changes():
    plain, _ = prune("llm-drop", 0.3)
    model, decisions = prune("llm-drop+blockwise", 0.3, **{"blockwise.learning_rate": "1e-4"})
    trained = [entry["layer"] for entry in decisions["compensation"]["distilled"]]
    lost = [number for number, layer in enumerate(model.layers) if not (layer.has_attention and layer.has_mlp)]
    assert trained == lost
    assert 0 < len(trained) < len(model.layers)
    report = decisions["compensation"]["distilled"]
    improved = {entry["layer"] for entry in report if min(entry["missed"]) < entry["missed"][0]}
    assert improved
    for number, (layer, before) in enumerate(zip(model.layers, plain.layers, strict=True)):
        pairs = zip(layer.module.parameters(), before.module.parameters(), strict=True)
        assert all(torch.equal(mine, old) for mine, old in pairs) == (number not in improved)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_a_layer_is_trained_from_the_state_in_front_to_the_dense_state_behind(inputs, monkeypatch):
    """With `pruned`, from what the trained layers in front give."""
    ends, fit_layer = list[tuple[torch.Tensor, torch.Tensor]](), blockwise.fit_layer

    def record_ends(recipe, model, layer, tokens, states):
        ends.append((torch.stack(states[0]), torch.stack(states[1])))
        return fit_layer(recipe, model, layer, tokens, states)

    monkeypatch.setattr(blockwise, "fit_layer", record_ends)
    settings = {"layers": "1+3", "blockwise.inputs": inputs, "blockwise.learning_rate": "3e-3"}
    model, decisions = prune("drop+blockwise", 0.0, **settings)
    dense, own = states_in_front(tiny("llama")), states_in_front(model.model)
    assert [entry["stands_for"] for entry in decisions["compensation"]["distilled"]] == [[0, 1], [2, 3]]
    torch.testing.assert_close(ends[0][0], dense[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ends[0][1], dense[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(ends[1][0], dense[2] if inputs == "dense" else own[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(ends[1][1], dense[4], rtol=0, atol=1e-5)
    assert (own[1] - dense[2]).abs().max() > 1e-2  # which tells the two apart


@pytest.mark.parametrize("pair", ["flap", "laco", "2ssp", "svd-llm", "drop-random"])
def test_no_layer_misses_more_on_held_out_sequences_than_before(pair):
    settings = {"blockwise.learning_rate": "2e-3", "blockwise.passes": "6"}
    _, decisions = prune(f"{pair}+blockwise", 0.3, **settings)
    first, best = 0.0, 0.0
    for entry in decisions["compensation"]["distilled"]:
        before, *after = entry["missed"]
        first, best = first + before, best + min(before, *after)
    assert best < 0.999 * first


def test_training_that_only_does_harm_leaves_the_pruned_model():
    plain, _ = prune("flap", 0.2)
    model, decisions = prune("flap+blockwise", 0.2, **{"blockwise.learning_rate": "50"})
    for entry in decisions["compensation"]["distilled"]:
        before, *after = entry["missed"]
        assert all(error is None or error > before for error in after)
    pairs = zip(model.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(mine, old) for mine, old in pairs)


def test_a_residual_that_is_cut_has_no_state_to_train_for():
    with pytest.raises(methods.Unsupported, match="cuts the residual itself"):
        prune("slicegpt+blockwise", 0.2)
