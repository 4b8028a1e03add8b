"""laco-puzzle against its parts, each alone, and against divergences of plain forward passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from tiny_methods import calibration, logits

import methods
from methods.depth.laco_ls import LaCoLS
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.search.laco_puzzle import Divergence, LaCoPuzzle, in_dense_numbers, parted

SMALL = {"steps": 2, "tokens": 48, "best": 2}
FAMILIES = ["llama", "gemma2", "phi3", "opt"]


def model(family: str) -> Decoder:
    return Decoder(tiny(family))


def same(one: Decoder, other: Decoder) -> bool:
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def layers_of(family: str, count: float) -> int:
    return round(count * layer_parameters(model(family).layers[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_collapse_it_is_puzzle_with_a_refit(family):
    ours, theirs = model(family), model(family)
    gone = layers_of(family, 1.5)
    LaCoPuzzle(**SMALL).pruned(ours, calibration(), 0, gone)
    methods.make("puzzle+refit", SMALL).prune(theirs, calibration(), gone / parameters(theirs))
    assert same(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_rest_it_is_laco_ls(family):
    ours, theirs = model(family), model(family)
    gone = layers_of(family, 2)
    found = LaCoPuzzle(**SMALL).pruned(ours, calibration(), 2, gone)
    expected = methods.make("laco-ls").prune(theirs, calibration(), gone / parameters(theirs))
    assert same(ours, theirs)
    assert found["removed_layers"] == expected["removed_layers"]
    assert found["windows"] == expected["windows"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_depth_with_the_lowest_divergence_on_unseen_tokens_stays(family):
    pruner, dense, ours = LaCoPuzzle(**SMALL), model(family), model(family)
    ratio = 3.4 * layer_parameters(dense.layers[0]) / parameters(dense)
    gone, (fitted, judged) = round(ratio * parameters(dense)), parted(calibration(), SMALL["tokens"])
    found = pruner.prune(ours, calibration(), ratio)
    assert sorted(one["layers"] for one in found["depths"]) == [0, 1, 2, 3]
    p = logits(dense, judged.ids)[:, :-1].log_softmax(-1)[judged.mask[:, 1:]]
    order = tuple(found["removal_order"])
    for one in found["depths"]:
        candidate = model(family)
        pruner.pruned(candidate, replace(fitted, order=order), one["layers"], gone)
        q = logits(candidate, judged.ids)[:, :-1].log_softmax(-1)[judged.mask[:, 1:]]
        expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / len(p)
        assert one["damage"] == pytest.approx(float(expected), rel=1e-3)
    assert len({one["damage"] for one in found["depths"]}) > 1  # so that the depth matters
    best, again = min(found["depths"], key=lambda one: one["damage"]), model(family)
    pruner.pruned(again, replace(calibration(), order=order), best["layers"], gone)
    assert same(ours, again)


def test_what_is_judged_by_was_not_fitted():
    tokens = calibration()
    fitted, judged = parted(tokens, 30)
    assert torch.equal(torch.cat([fitted.ids, judged.ids]), tokens.ids)
    assert torch.equal(torch.cat([fitted.mask, judged.mask]), tokens.mask)
    assert int(judged.mask.sum()) >= 30 > int(judged.mask[1:].sum())
    assert len(parted(tokens, 10**6)[0].ids) == 1
    one = replace(tokens, ids=tokens.ids[:1], mask=tokens.mask[:1])
    assert all(torch.equal(part.ids, one.ids) for part in parted(one, 30))


@pytest.mark.parametrize("family", FAMILIES)
def test_decisions_have_the_numbers_of_the_dense_model(family):
    """What each layer has lost, by its number in the dense model, is what it lacks."""
    dense, ours = model(family), model(family)
    found = LaCoPuzzle(**SMALL).pruned(ours, calibration(), 2, layers_of(family, 3.5))
    kept = [number for number in range(len(dense.layers)) if number not in found["removed_layers"]]
    assert len(kept) == len(ours.layers)
    for number, layer in zip(kept, ours.layers, strict=True):
        whole = dense.layers[number]
        assert layer.has_attention is (number not in found["removed_attention"])
        assert layer.has_mlp is (number not in found["removed_mlp"])
        if layer.has_attention:
            assert layer.kv_heads == whole.kv_heads - len(found["removed_kv_heads"][number])
        if layer.has_mlp:
            assert layer.down.in_features == whole.down.in_features - len(found["removed_channels"][number])
    swallowed = [number for s, e in found["windows"] for number in range(s + 1, e + 1)]
    assert set(swallowed) <= set(found["removed_layers"])


def test_numbers_of_a_collapsed_model_become_those_of_the_dense_one():
    narrowed = {
        "removed_layers": [1],
        "removed_attention": [0, 2],
        "removed_mlp": [],
        "removed_kv_heads": [[], [], [], [1]],
        "removed_channels": [[3], [], [], [0, 7]],
        "compensation": {"refitted": [{"layer": 3, "part": "mlp"}]},
    }
    found = in_dense_numbers(narrowed, [0, 3, 4, 6], 7, [1, 2, 5])
    assert found == {
        "removed_layers": [1, 2, 3, 5],
        "removed_attention": [0, 4],
        "removed_mlp": [],
        "removed_kv_heads": [[], [], [], [], [], [], [1]],
        "removed_channels": [[3], [], [], [], [], [], [0, 7]],
        "compensation": {"refitted": [{"layer": 6, "part": "mlp"}]},
    }


def test_nothing_of_a_collapsed_model_is_kept_as_of_the_dense_one():
    """What other cells keep is of the dense model, and what this one narrows is another."""
    kept, dense = list[str](), model("llama")
    given = replace(calibration(), keep=lambda name, found: kept.append(name))
    LaCoPuzzle(depths=1, **SMALL).prune(dense, given, 2.5 * layer_parameters(dense.layers[0]) / parameters(dense))
    assert kept == []


def test_a_known_order_of_windows_saves_the_search_and_changes_nothing(monkeypatch):
    """But for the last step of each smaller number of layers, which is taken anew."""
    first, second = model("llama"), model("llama")
    ratio = 2.5 * layer_parameters(first.layers[0]) / parameters(first)
    step, steps = LaCoLS._candidates, list[int]()

    def counted(self, dense, windows, count, shown):
        steps.append(count)
        return step(self, dense, windows, count, shown)

    monkeypatch.setattr(LaCoLS, "_candidates", counted)
    found = LaCoPuzzle(depths=3, **SMALL).prune(first, calibration(), ratio)
    searched = steps.copy()
    assert searched[:3] == [1, 2, 1]
    LaCoPuzzle(depths=3, **SMALL).prune(second, replace(calibration(), order=tuple(found["removal_order"])), ratio)
    assert steps[len(searched) :] == searched[2:]
    assert same(first, second)


def test_a_divergence_is_measured_where_there_is_a_next_token():
    dense, other = model("llama"), model("llama")
    with torch.no_grad():
        other.head.weight.mul_(1.1)
    assert Divergence(dense, calibration()).of(dense) == pytest.approx(0, abs=1e-6)
    assert Divergence(dense, calibration()).of(other) > 1e-4
