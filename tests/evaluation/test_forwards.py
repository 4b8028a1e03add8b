"""Forwards that go through each layer together give what forwards one after the other give, and use it once."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from conftest import FAMILIES, LAYERS, VOCABULARY, tiny
from tiny_methods import pruned

from bench.evaluation import checks, forwards, scoring
from bench.evaluation.forwards import Sweeping
from methods.model.decoder import Decoder

PIECES, WHOLE = 7, 40  # tokens of a forward: windows of 20 in pieces, and two at once
WAITING = 12_000  # bytes: of a few forwards
SHAPES = ["slicegpt", "llm-pruner", "flap", "laco", "shortgpt+replaceme", "shortgpt+ghost"]  # every kind of layer


def windows(count: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (count, 20), generator=torch.Generator().manual_seed(2))


def questions() -> list[scoring.Question]:
    """Answers to questions that share a beginning longer than the sliding window of 8."""
    ids = windows(12)
    ids[:, :9], ids[::2, 9:14] = ids[0, :9], ids[0, 9:14]
    return sorted({(tuple(row[: 20 - number % 4].tolist()), 1 + number % 5) for number, row in enumerate(ids)})


def scored(model, room=None) -> list[torch.Tensor]:
    """Likelihoods of windows in pieces and whole, and of answers, whose shared beginnings wait in the cache."""
    ids, sweeping = windows(5), None if room is None else Sweeping(room)
    asked = torch.arange(20).expand(5, 20) > 2
    found = [scoring.nll_of_windows(model, ids, asked, tokens, sweeping) for tokens in (PIECES, WHOLE)]
    return [*found, *scoring.score(model, questions(), PIECES, sweeping)]


def assert_equal(found, want) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_same_to_the_last_bit(family):
    model = Decoder(tiny(family)).model
    assert_equal(scored(model, WAITING), scored(model))


@pytest.mark.parametrize("method", SHAPES)
def test_scores_of_pruned_models_are_the_same_to_the_last_bit(method):
    model = pruned(method, "llama", 0.3)[0].model
    assert_equal(scored(model, WAITING), scored(model))


@pytest.mark.parametrize("family", ["gemma2", "qwen2", "gpt2"])
@pytest.mark.parametrize("method", ["llm-drop", "blockpruner"])
def test_layers_without_an_attention_have_no_keys(method, family):
    model = pruned(method, family, 0.3)[0].model
    assert_equal(scored(model, WAITING), scored(model))


def entries(model) -> list[int]:
    """Grows by the number of each layer that runs."""
    found = list[int]()
    for number, layer in enumerate(Decoder(model).stack):
        layer.register_forward_pre_hook(lambda *_, number=number: found.append(number))
    return found


@pytest.mark.parametrize("room", [0, WAITING, 2**30])
@pytest.mark.parametrize("what", ["windows", "pieces", "questions"])
def test_all_forwards_of_a_chunk_go_through_a_layer_before_the_next_one(what, room, monkeypatch):
    model, chunks = tiny("llama"), list[list[int]]()
    entered, run = entries(model), forwards._Sweep.run

    def noted(sweep, chunk, shown):
        chunks.append([one.nbytes for one in chunk])
        run(sweep, chunk, shown)

    monkeypatch.setattr(forwards._Sweep, "run", noted)
    if what == "questions":
        scoring.score(model, questions(), PIECES, Sweeping(room))
    else:
        asked = torch.arange(20).expand(5, 20) > 2
        scoring.nll_of_windows(model, windows(5), asked, WHOLE if what == "windows" else PIECES, Sweeping(room))
    runs = [(number, len(list(times))) for number, times in groupby(entered)]
    assert runs == [(number, len(chunk)) for chunk in chunks for number in range(LAYERS)]
    assert all(len(chunk) == 1 or sum(chunk) <= room for chunk in chunks)
    whole = sum(map(len, chunks))
    assert whole > 2
    assert len(chunks) == {0: whole, 2**30: 1}.get(room, len(chunks))
    if room == WAITING and what != "windows":
        assert 1 < len(chunks) < whole


def test_what_waits_is_counted_and_nothing_is_kept_of_a_window_that_has_been_read():
    model = tiny("gemma2")  # with a mask for each kind of layer
    calls = list(scoring._window_calls(model, windows(2), torch.arange(20).expand(2, 20) > 2, PIECES))
    with torch.no_grad():
        sweep = forwards._Sweep(model, model.lm_head, None)
        (chunk,) = sweep.chunks(calls, 2**30)
        states = [entered.x.nbytes for entered, _ in chunk]
        assert all(entered.nbytes > own for (entered, _), own in zip(chunk, states, strict=True))
        sweep.run([entered for entered, _ in chunk], forwards_bar())
    caches = [cache for call, _ in calls for cache in (call.past.cache, *call.past.of_layer.values())]
    assert len(caches) == len(calls) * (LAYERS + 1)
    assert all(layer.keys.numel() == 0 for cache in caches for layer in cache.layers if layer.is_initialized)


def forwards_bar():
    """Return a bar that shows nothing."""
    return type("Bar", (), {"update": lambda *_: None})()


def test_the_layers_are_back_behind_an_error():
    model = tiny("llama")
    before = Decoder(model).stack
    with pytest.raises(IndexError):
        scoring.nll_of_windows(model, torch.full((1, 4), VOCABULARY), torch.arange(4)[None] > 0, 4, Sweeping(2**30))
    assert Decoder(model).stack is before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_divergences_are_the_same_and_nothing_is_generated(family, dtype, tmp_path, monkeypatch):
    dense, other = (Decoder(tiny(family, seed=seed).to(dtype)).model for seed in (0, 1))
    found = []
    for room in (None, WAITING):
        kept = checks.DenseOutputs(windows(4), tmp_path / str(room))
        sweeping = None if room is None else Sweeping(room)
        kept.remember(dense, sweeping)
        found.append(kept.divergence_of(other, sweeping))
    assert found[0] == found[1]
    assert found[0].kl > 0
    monkeypatch.setattr(checks, "generate_greedily", None)
    entered = entries(other)
    assert checks.measure_checks(other, None, windows(4), kept, Sweeping(2**30)) == (found[1], [])
    assert [number for number, _ in groupby(entered)] == list(range(LAYERS))
