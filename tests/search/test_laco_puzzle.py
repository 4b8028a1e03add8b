"""laco-puzzle against its parts, each alone, and against divergences of plain forward passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from tiny_methods import calibration

import methods
from methods.depth.laco_ls import LaCoLS
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.search.laco_puzzle import LaCoPuzzle, to_dense_numbers

SMALL = {"steps": 2, "tokens": 48, "best": 2}
FAMILIES = ["llama", "gemma2", "phi3", "opt"]


def model(family: str) -> Decoder:
    return Decoder(tiny(family))


def same(one: Decoder, other: Decoder) -> bool:
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def layers_of(family: str, count: float) -> int:
    return round(count * layer_parameters(model(family).layers[0]))


def ratio_of(family: str, layers: float) -> float:
    return layers_of(family, layers) / parameters(model(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_collapse_it_is_puzzle_with_a_refit(family):
    ours, theirs, ratio = model(family), model(family), ratio_of(family, 1.5)
    LaCoPuzzle(collapsed=0, **SMALL).prune(ours, calibration(), ratio)
    methods.make("puzzle+refit", SMALL).prune(theirs, calibration(), ratio)
    assert same(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_rest_it_is_laco_ls(family):
    ours, theirs, ratio = model(family), model(family), ratio_of(family, 2)
    found = LaCoPuzzle(collapsed=0.99, **SMALL).prune(ours, calibration(), ratio)
    expected = methods.make("laco-ls").prune(theirs, calibration(), ratio)
    assert same(ours, theirs)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_go_as_by_laco_ls_and_the_rest_by_puzzle_with_a_refit_of_what_is_left(family):
    ours, theirs, ratio = model(family), model(family), ratio_of(family, 3)
    found = LaCoPuzzle(collapsed=0.67, **SMALL).prune(ours, calibration(), ratio)
    total = parameters(theirs)
    methods.make("laco-ls").prune(theirs, calibration(), ratio_of(family, 2))
    assert len(theirs.layers) == 4
    left = 1 - (total - layers_of(family, 3)) / parameters(theirs)
    methods.make("puzzle+refit", SMALL).prune(theirs, calibration(), left)
    assert same(ours, theirs)
    assert found["compensation"]["name"] == "refit"
    assert len(found["removal_order"]) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_decisions_have_the_numbers_of_the_dense_model(family):
    """What each layer has lost, by its number in the dense model, is what it lacks."""
    dense, ours = model(family), model(family)
    found = LaCoPuzzle(collapsed=0.6, **SMALL).prune(ours, calibration(), ratio_of(family, 3.5))
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
    narrowed = {  # refitted layers are numbered as they are left, without the one that the program has removed
        "removed_layers": [1],
        "removed_attention": [0, 2],
        "removed_mlp": [],
        "removed_kv_heads": [[], [], [], [1]],
        "removed_channels": [[3], [], [], [0, 7]],
        "compensation": {"refitted": [{"layer": 2, "part": "mlp"}]},
    }
    found = to_dense_numbers(narrowed, [0, 3, 4, 6], 7, [1, 2, 5])
    assert found == {
        "removed_layers": [1, 2, 3, 5],
        "removed_attention": [0, 4],
        "removed_mlp": [],
        "removed_kv_heads": [[], [], [], [], [], [], [1]],
        "removed_channels": [[3], [], [], [], [], [], [0, 7]],
        "compensation": {"refitted": [{"layer": 6, "part": "mlp"}]},
    }


def weak(layer: int) -> Decoder:
    """A model one of whose layers adds next to nothing, so that the program removes it whole."""
    found = model("llama")
    with torch.no_grad():
        for matrix in (found.layers[layer].out, found.layers[layer].down):
            matrix.weight.mul_(1e-6)
    return found


def test_where_the_program_takes_whole_blocks_alone_nothing_is_refitted():
    found = weak(2)
    decided = LaCoPuzzle(collapsed=0, tokens=48, best=2).prune(found, calibration(), ratio_of("llama", 1))
    assert (decided["removed_layers"], decided["compensation"]["refitted"]) == ([2], [])
    assert len(found.layers) == len(weak(2).layers) - 1
    again = weak(2)
    methods.make("puzzle+refit", {"tokens": 48, "best": 2}).prune(again, calibration(), ratio_of("llama", 1))
    assert same(found, again)


def test_refitted_layers_have_the_numbers_of_the_dense_model_behind_one_that_the_program_removes():
    decided = LaCoPuzzle(collapsed=0, tokens=48, best=2).prune(weak(2), calibration(), ratio_of("llama", 1.5))
    assert decided["removed_layers"] == [2]
    narrowed = {n for name in ("removed_kv_heads", "removed_channels") for n, lost in enumerate(decided[name]) if lost}
    assert {one["layer"] for one in decided["compensation"]["refitted"]} == narrowed
    assert max(narrowed) > 2


def test_nothing_of_a_collapsed_model_is_kept_as_of_the_dense_one():
    """What other cells keep is of the dense model, and what this one narrows is another."""
    kept, dense = list[str](), model("llama")
    given = replace(calibration(), keep=lambda name, found: kept.append(name))
    LaCoPuzzle(**SMALL).prune(dense, given, ratio_of("llama", 2.5))
    assert kept == []


def test_a_known_order_of_windows_saves_the_search_and_changes_nothing(monkeypatch):
    first, second, ratio = model("llama"), model("llama"), ratio_of("llama", 3)
    found = LaCoPuzzle(**SMALL).prune(first, calibration(), ratio)
    monkeypatch.setattr(LaCoLS, "_candidates", lambda *_: pytest.fail("windows were searched"))
    LaCoPuzzle(**SMALL).prune(second, replace(calibration(), order=tuple(found["removal_order"])), ratio)
    assert same(first, second)
