"""LaCo against the authors' own code on the real default model, and its parts by hand on a tiny one."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from authors_code import as_shown, difference
from conftest import LAYERS, VOCABULARY, padded, tiny
from tiny_methods import overflowing

import methods
from methods.depth.laco import LaCo, LaCoPublished, merge
from methods.errors import OutOfReach, Unsupported
from methods.model import calibration as sweep_log
from methods.model.activations import Entry
from methods.model.calibration import Calibration, SweepLogs
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.layer_store import LayerStore
from methods.model.structures import keep_channels
from methods.trials.merges import MergeTrial

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "laco_smol_c4_i2_t065.json").read_text())
RELEASED = partial(merge, rule="last", norms="base")


def sentences(count: int = 4) -> Calibration:
    generator = torch.Generator().manual_seed(3)
    lengths = [5 + 3 * index for index in range(count)]
    return padded([torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths])


@pytest.mark.default_model
def test_the_authors_trace_is_repeated_on_the_default_model():
    """Released rule, C 4, I 2, T 0.65, five sentences: every candidate, similarity and kept layer."""
    from bench.data import pretrained

    model, _ = pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)
    longest = max(map(len, GOLDEN["sentence_token_ids"]))
    method = LaCo(C=GOLDEN["C"], I=GOLDEN["I"], T=GOLDEN["T"], tokens=longest)
    decisions = method.prune(Decoder(model), padded(GOLDEN["sentence_token_ids"]), 0.0)
    assert decisions["kept_layers"] == GOLDEN["kept_original_indices"]
    assert [step["pointer"] for step in decisions["trace"]] == [step["lay"] for step in GOLDEN["trace"]]
    for ours, theirs in zip(decisions["trace"], GOLDEN["trace"], strict=True):
        assert ours["similarity"] == pytest.approx(theirs["sim"], abs=1e-4)
        assert ours["accepted"] == theirs["accepted"]
    ours, theirs = [step["similarity"] for step in decisions["trace"]], [step["sim"] for step in GOLDEN["trace"]]
    as_shown("laco", "smollm2-135m", {"scores": difference("similarity", ours, theirs)})


def windows(rule: str, norms: str):
    layers = Decoder(tiny("qwen2")).layers[1:4]
    return layers, merge(layers, rule, norms)


def test_the_released_rule_takes_the_last_projections_and_the_first_norms_and_biases():
    layers, survivor = windows("last", "base")
    for slot, matrix in enumerate(survivor.matrices):
        assert torch.equal(matrix.weight, layers[-1].matrices[slot].weight)
        if matrix.bias is not None:
            assert torch.equal(matrix.bias, layers[0].matrices[slot].bias)
    assert torch.equal(survivor.attn_norm.weight, layers[0].attn_norm.weight)
    assert not torch.equal(survivor.attn_norm.weight, layers[-1].attn_norm.weight)


def test_the_published_rule_is_the_sum_of_differences():
    """Equation 1 for a window of three: theta_{l+1} + theta_{l+2} - theta_l."""
    layers, survivor = windows("sum", "base")
    for slot, matrix in enumerate(survivor.matrices):
        one, two, three = (layer.matrices[slot].weight for layer in layers)
        torch.testing.assert_close(matrix.weight, two + three - one)
    assert torch.equal(survivor.mlp_norm.weight, layers[0].mlp_norm.weight)


def test_norms_can_come_from_the_last_layer_or_be_summed():
    layers, survivor = windows("last", "last")
    assert torch.equal(survivor.mlp_norm.weight, layers[-1].mlp_norm.weight)
    layers, survivor = windows("sum", "sum")
    one, two, three = (layer.qkv[0].bias for layer in layers)
    torch.testing.assert_close(survivor.qkv[0].bias, two + three - one)


def test_both_rules_agree_for_windows_of_two():
    released, published = Decoder(tiny("llama")), Decoder(tiny("llama"))
    one = LaCo(C=2, I=1).prune(released, sentences(), 0.2)
    two = LaCoPublished(C=2, I=1, clamp=False).prune(published, sentences(), 0.2)
    assert one["kept_layers"] == two["kept_layers"]
    for a, b in zip(released.model.parameters(), published.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_merging_leaves_the_window_and_the_original_weights_alone():
    model = Decoder(tiny("llama"))
    before = [parameter.clone() for layer in model.layers for parameter in layer.module.parameters()]
    layers = model.layers
    LaCo(C=3, I=1).prune(model, sentences(), 0.3)
    after = [parameter for layer in layers for parameter in layer.module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_survivor_listens_to_the_configuration_of_its_model():
    model = Decoder(tiny("gemma3_text"))
    LaCo(C=3, I=1).prune(model, sentences(), 0.3)
    assert all(layer.attn.config is model.config for layer in model.layers)


def similarity(rows: list[list[int]], kept: Decoder, original: Decoder) -> float:
    """By the book: each sentence alone, both models whole, the last normed state flattened."""
    cosines = []
    for row in rows:
        states = []
        for model in (kept, original):
            caught = []
            handle = model.final_norm.register_forward_hook(lambda _m, _i, out, caught=caught: caught.append(out))
            model.model(torch.tensor([row]))
            handle.remove()
            states.append(caught[0].flatten())
        cosines.append(float(torch.cosine_similarity(*states, dim=0)))
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "opt"])
def test_a_similarity_is_that_of_two_whole_models_sentence_by_sentence(family):
    tokens = sentences()
    rows = [row[keep].tolist() for row, keep in zip(tokens.ids, tokens.mask, strict=True)]
    model = Decoder(tiny(family))
    decisions = LaCo(C=3, I=1, T=-1.0, H=LAYERS - 1, L=2).prune(model, tokens, 0.0)
    (accepted,) = [step for step in decisions["trace"] if step["accepted"]]
    with torch.no_grad():
        assert accepted["similarity"] == pytest.approx(similarity(rows, model, Decoder(tiny(family))), abs=1e-5)


@pytest.mark.parametrize("method", [LaCo(C=3, I=1, tokens=32), LaCo(C=2, I=1), LaCoPublished(C=3, I=1)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_threshold_is_the_largest_that_removes_enough(method, count):
    """No threshold above it, on a grid through every similarity that can occur, removes as many layers."""
    total = sum(parameter.numel() for parameter in tiny("llama").parameters())
    each = sum(parameter.numel() for parameter in Decoder(tiny("llama")).layers[0].module.parameters())
    found = method.prune(Decoder(tiny("llama")), sentences(), count * each / total)
    assert len(found["removed_layers"]) == count

    def removed(threshold: float) -> int:
        model = Decoder(tiny("llama"))
        return len(dataclasses.replace(method, T=threshold).prune(model, sentences(), 0.0)["removed_layers"])

    assert removed(found["threshold"]) >= count
    grid = [found["threshold"] + step for step in (1e-6, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.4)]
    assert all(removed(threshold) < count for threshold in grid if threshold < 1)


def test_micro_batches_change_no_decision():
    whole = sentences(6)
    one_by_one = dataclasses.replace(whole, memory=1)
    found = [LaCo(C=3, I=1).prune(Decoder(tiny("llama")), calibration, 0.3) for calibration in (whole, one_by_one)]
    assert found[0]["kept_layers"] == found[1]["kept_layers"]
    for a, b in zip(found[0]["trace"], found[1]["trace"], strict=True):
        assert a["similarity"] == pytest.approx(b["similarity"], abs=1e-6)


def test_the_last_window_is_cut_to_fit():
    model = Decoder(tiny("llama"))
    total = sum(parameter.numel() for parameter in model.model.parameters())
    each = sum(parameter.numel() for parameter in model.layers[0].module.parameters())
    decisions = LaCo(C=4, I=1).prune(model, sentences(), each / total)
    assert [step["merged"] for step in decisions["trace"] if step["accepted"]] == [1]


def test_no_similarity_is_computed_twice():
    decisions = LaCo(C=3, I=1).prune(Decoder(tiny("llama")), sentences(), 0.3)
    assert decisions["similarities_computed"] < 40


def test_a_similarity_that_is_not_a_number_is_a_rejection():
    """As that of layers which an earlier method has cut unlike one another."""
    model = Decoder(tiny("llama"))
    for layer in model.layers[::2]:
        keep_channels(layer, range(3))
    decisions = LaCo(C=2, I=1, T=-1.0).prune(model, sentences(), 0.0)
    assert decisions["removed_layers"] == []
    assert {step["similarity"] for step in decisions["trace"]} == {None}


@pytest.mark.parametrize("method", [LaCo(C=3, I=1), LaCo(C=3, I=1, T=0.3), LaCoPublished(C=3, I=1)])
def test_a_model_whose_states_overflow_is_told_so_and_not_that_nothing_resembles_it(method):
    with pytest.raises(Unsupported, match="states of a layer overflow; load the model in bfloat16 or float32"):
        method.prune(Decoder(overflowing()), sentences(), 0.25)


def test_more_than_its_windows_can_hold_is_out_of_reach():
    with pytest.raises(OutOfReach, match=r"windows of C=4 with I=2 remove at most 3 of 6"):
        LaCo().plan(Decoder(tiny("llama")), 0.6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": "1"}, "laco:C is int, at least 2; got '1'"),
        ({"I": "0"}, "laco:I is int, at least 1; got '0'"),
        ({"merge": "mean"}, "laco:merge is last or sum; got 'mean'"),
        ({"treshold": "1"}, "laco has no parameter treshold; it has: C, I, T, L, H"),
        ({"C": "many"}, "laco:C is int, at least 2; got 'many'"),
        ({"C": "2.5"}, "laco:C is int, at least 2; got '2.5'"),
        ({"L": "-1"}, "laco:L is int, at least 0; got '-1'"),
        ({"H": "-1"}, "laco:H is int, at least 0 or None; got '-1'"),
        ({"T": "inf"}, "laco:T is float, finite or None; got 'inf'"),
        ({"T": "nan"}, "laco:T is float, finite or None; got 'nan'"),
    ],
)
def test_an_unsound_parameter_is_refused_with_what_would_be_right(parameters, message):
    with pytest.raises(ValueError, match=message):
        methods.make("laco", parameters)


def test_a_layer_runs_once_behind_a_window_and_the_original_layers_that_follow_it(monkeypatch):
    """And what comes out is, to the bit, that of a search in which every candidate runs all of its layers."""
    runs, searched = [], []
    run = Entry.run
    monkeypatch.setattr(Entry, "run", lambda entry, layers, x: runs.append(len(layers)) or run(entry, layers, x))
    for keeps in (True, False):
        model = Decoder(tiny("llama", layers=12))
        if not keeps:
            monkeypatch.setattr(MergeTrial, "_ends", every_layer)
        runs.clear()
        decisions = LaCo(C=3, I=1).prune(model, sentences(), 0.5)
        searched.append((decisions["trace"], decisions["threshold"], sum(runs)))
    (kept, threshold, few), (plain, same, all_of_them) = searched
    assert (kept, threshold) == (plain, same)
    assert few < 0.8 * all_of_them


def every_layer(trial, tried):
    return [
        [batch.entry.run([trial.realise(layer) for layer in layers], batch.states[p]) for batch in trial.sentences]
        for layers, p in tried
    ]


@torch.no_grad()
@pytest.mark.parametrize("room", [2**30, 3 * 10**4])
def test_states_that_candidates_share_are_those_of_a_run_of_its_own(room):
    """Candidates with one window and other layers above it, begun where an earlier one left its states or not."""
    model, tokens = Decoder(tiny("llama")), dataclasses.replace(sentences(), memory=room)
    shared = MergeTrial(RELEASED, model, tokens)
    for order in (
        (0, 1, (2, 3), 4, 5),
        (0, 1, (2, 3), 4),
        (0, 1, (2, 3), (4, 5)),
        (0, (1, (2, 3)), 4, 5),
        (0, 1, (2, 3), 4, 5),
        (0, (1, 2), 3, 4, 5),
    ):
        p = next(place for place, layer in enumerate(order) if not isinstance(layer, int))
        assert shared.similarities([(order, p)]) == MergeTrial(RELEASED, model, tokens).similarities([(order, p)])
    assert 0 <= shared.room < room
    assert sum(state.nbytes for states in shared.kept.values() for state in states) == room - shared.room


def test_windows_that_go_through_layers_together_decide_alike_and_read_each_layer_less_often(monkeypatch, tmp_path):
    """Where the layers lie in files; in memory each window is tried alone, and none that no threshold asks for."""
    visited, searched = [], []
    visiting = Layer.visiting
    monkeypatch.setattr(
        Layer, "visiting", lambda layer: visited.append(layer.down.weight.data_ptr()) or visiting(layer)
    )
    for store in (None, LayerStore(tmp_path)):
        visited.clear()
        decisions = LaCo(C=3, I=1).prune(Decoder(tiny("llama", layers=16), store), sentences(), 0.3)
        windows = decisions.pop("similarities_computed")
        searched.append((decisions, windows, sum(one != before for before, one in pairwise([0, *visited]))))
    (alone, fewest, often), (together, windows, seldom) = searched
    assert alone == together
    assert fewest <= windows
    assert seldom < often / 3


def test_what_windows_in_files_have_left_behind_is_not_taken_for_that_of_windows_alone(monkeypatch, tmp_path):
    """A run that was killed while layers lay in files may go on with memory for all of them."""
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    searched = []
    for store in (LayerStore(tmp_path), None, None):
        given = dataclasses.replace(sentences(), sweeps=SweepLogs(tmp_path / "logs"))
        searched.append(LaCo(C=3, I=1).prune(Decoder(tiny("llama", layers=12), store), given, 0.3)["trace"])
    assert searched[0] == searched[1] == searched[2]
    assert len(list((tmp_path / "logs").iterdir())) == 2
