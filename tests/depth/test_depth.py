"""Depth pruners that score all layers once: every score against hooks on the model, or the model without the layer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import VOCABULARY, tiny
from tiny_methods import overflowing
from torch import nn

import methods
from methods.depth.shortened_llama import ShortenedLlamaTaylor, importance_by_taylor
from methods.errors import OutOfReach, Unsupported
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters

FAMILIES = ["llama", "gemma2", "opt", "phi"]
LENGTHS = (24, 15, 7, 2, 24, 10)
METHODS = {
    "magnitude": [{}],
    "shortgpt": [{}, {"token": "last"}, {"keep_first": "1", "keep_last": "2"}],
    "angular": [{}, {"token": "all"}, {"keep_first": "0", "keep_last": "0"}],
    "shortened-llama": [{}, {"keep_first": "1", "keep_last": "1"}],
    "shortened-llama-taylor": [{}, {"keep_first": "1", "keep_last": "1"}],
}
CASES = [pytest.param(name, given, id=f"{name} {given}") for name, several in METHODS.items() for given in several]


def calibration(columns: int = 24, **options) -> Calibration:
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(0))
    ids = nn.functional.pad(ids, (0, columns - 24), value=3)
    return Calibration(ids, torch.arange(columns) < torch.tensor(LENGTHS)[:, None], **options)


def ratio_of(layers: int, family: str) -> float:
    model = Decoder(tiny(family))
    return layers * layer_parameters(model.layers[0]) / parameters(model)


def pruned(method: str, given: dict[str, str], family: str, layers: int, tokens: Calibration) -> dict:
    return methods.make(method, given).prune(Decoder(tiny(family)), tokens, ratio_of(layers, family))


def states(family: str) -> list[list[torch.Tensor]]:
    """x_0 .. x_L of each sequence alone, (tokens, D) each, without padding; the last before the final norm."""
    model, found = tiny(family), []
    for layer in Decoder(model).layers:
        layer.module.register_forward_hook(
            lambda module, args, kwargs, output: found[-1].extend(
                [*([] if found[-1] else [args[0] if args else kwargs["hidden_states"]]), output]
            ),
            with_kwargs=True,
        )
    for row, length in zip(calibration().ids, LENGTHS, strict=True):
        found.append([])
        with torch.no_grad():
            model(row[None, :length])
    return [[state.squeeze(0).double() for state in sequence] for sequence in found]


def cos(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def lowest(scores: list[float], n: int, among: range) -> list[int]:
    return sorted(sorted(among, key=lambda l: scores[l])[:n])


def loss(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the predicted tokens, by the model's own forward with its mask."""
    targets = ids.masked_fill(~mask, -100)[:, 1:]
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


@pytest.mark.parametrize("family", FAMILIES)
def test_relative_magnitude(family):
    found = pruned("magnitude", {}, family, 2, calibration(memory=1))
    scores = [
        float(torch.cat([(x[l + 1] - x[l]).norm(dim=-1) / x[l + 1].norm(dim=-1) for x in states(family)]).mean())
        for l in range(6)
    ]
    assert found["scores"] == pytest.approx(scores, rel=1e-4)
    assert found["removed_layers"] == lowest(scores, 2, range(6))


@pytest.mark.parametrize("token", ["all", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_block_influence(family, token):
    found = pruned("shortgpt", {"token": token}, family, 2, calibration(memory=1))
    part = slice(None) if token == "all" else slice(-1, None)
    BI = [float(torch.cat([1 - cos(x[l][part], x[l + 1][part]) for x in states(family)]).mean()) for l in range(6)]
    assert found["scores"] == pytest.approx(BI, abs=1e-5)
    assert found["removed_layers"] == lowest(BI, 2, range(6))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("token", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_angular_distance(family, token, n):
    found = pruned("angular", {"token": token}, family, n, calibration(memory=1))
    part = slice(None) if token == "all" else slice(-1, None)
    D = [
        float(torch.cat([cos(x[s][part], x[s + n][part]).acos() / math.pi for x in states(family)]).mean())
        for s in range(6 - n + 1)
    ]
    assert found["distances"] == pytest.approx(D, abs=1e-4)
    start = min(range(1, 6 - n), key=lambda s: D[s])
    assert found["removed_layers"] == list(range(start, start + n))


@pytest.mark.parametrize(("end", "idle"), [("keep_first", 0), ("keep_last", 5)])
def test_a_layer_that_is_kept_is_part_of_no_run(end, idle):
    for kept in (0, 1):
        model = Decoder(tiny("llama"))
        for matrix in (model.layers[idle].out, model.layers[idle].down):  # the layer adds nothing: none turns less
            matrix.weight.data.zero_()
        given = {"keep_first": "0", "keep_last": "0"} | {end: str(kept)}
        found = methods.make("angular", given).prune(model, calibration(), ratio_of(1, "llama"))
        assert (found["removed_layers"] == [idle]) == (not kept)


@pytest.mark.parametrize("kept", [(0, 0), (1, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_without_each_layer_alone(family, kept):
    given = {"keep_first": str(kept[0]), "keep_last": str(kept[1])}
    found, scores = pruned("shortened-llama", given, family, 2, calibration(memory=1)), []
    for gone in range(6):
        model = Decoder(tiny(family))
        model.set_layers([layer for l, layer in enumerate(model.layers) if l != gone])
        with torch.no_grad():
            scores.append(float(loss(model.model, calibration().ids, calibration().mask)))
    assert found["scores"] == pytest.approx(scores, rel=1e-4)
    assert found["removed_layers"] == lowest(scores, 2, range(kept[0], 6 - kept[1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_scores(family):
    given = {"keep_first": "1", "keep_last": "1"}
    found, model = pruned("shortened-llama-taylor", given, family, 2, calibration()), tiny(family)
    loss(model, calibration().ids, calibration().mask).backward()
    scores = []
    for layer in Decoder(model).layers:
        weights = [parameter for name, parameter in layer.module.named_parameters() if "bias" not in name]
        scores.append(sum((weight * weight.grad).abs().sum().item() for weight in weights))
    assert found["scores"] == pytest.approx(scores, rel=1e-3)
    assert found["protected_layers"] == [0, 5]
    assert found["removed_layers"] == lowest(scores, 2, range(1, 5))


def test_taylor_leaves_no_gradients():
    model = tiny("llama")
    model.model.layers[0].requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    importance_by_taylor(Decoder(model), calibration())
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("n", "candidates"),
    [(7, range(4, 28)), (24, range(4, 28)), (25, range(4, 29)), (27, range(2, 29)), (28, range(2, 30))],
)
def test_protection_shrinks_no_more_than_it_must(n, candidates):
    assert ShortenedLlamaTaylor().candidates(30, n) == candidates
    assert len(candidates) == max(n, 24)


def test_without_protection_every_layer_may_go():
    assert ShortenedLlamaTaylor(keep_first=0, keep_last=0).candidates(30, 7) == range(30)
    assert ShortenedLlamaTaylor(keep_first=0, keep_last=3).candidates(30, 28) == range(28)


def test_protected_layers_stay():
    BI = pruned("shortgpt", {}, "llama", 2, calibration())["scores"]
    found = pruned("shortgpt", {"keep_first": "2", "keep_last": "1"}, "llama", 2, calibration())
    assert found["removed_layers"] == lowest(BI, 2, range(2, 5))
    assert found["scores"] == BI


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("shortgpt", {"keep_first": "2", "keep_last": "2"}),
        ("angular", {"keep_first": "3"}),
        ("sleb", {"keep_first": "4", "keep_last": "0"}),
    ],
)
def test_more_than_the_unprotected_layers_is_out_of_reach(method, given):
    pruner, model = methods.make(method, given), Decoder(tiny("llama"))
    assert pruner.plan(model, ratio_of(2, "llama")) == {"layers": 2}
    with pytest.raises(OutOfReach, match=r"out of reach: all but 4 of the 6 layers hold 0\.306 of"):
        pruner.plan(model, ratio_of(3, "llama"))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize(("method", "given"), CASES)
def test_padding_and_micro_batches_change_no_decision(method, given, family):
    plain = pruned(method, given, family, 2, calibration())
    for tokens in (calibration(40), calibration(memory=1)):
        found = pruned(method, given, family, 2, tokens)
        assert found["removed_layers"] == plain["removed_layers"]
        key = "distances" if "distances" in plain else "scores"
        assert found[key] == pytest.approx(plain[key], rel=1e-3)


@pytest.mark.parametrize("method", ["magnitude", "shortgpt", "angular"])
def test_states_that_overflow_are_a_reason(method):
    model = tiny("llama")
    model.model.layers[2].mlp.down_proj.weight.data.fill_(torch.inf)
    with pytest.raises(Unsupported, match="overflow"):
        methods.make(method).prune(Decoder(model), calibration(), 0.3)


@pytest.mark.parametrize("method", ["sleb", "blockpruner", "shortened-llama"])
def test_losses_that_overflow_whichever_block_goes_are_a_reason(method):
    model = tiny("llama")
    for layer in (2, 4):
        model.model.layers[layer].mlp.down_proj.weight.data.fill_(torch.inf)
    with pytest.raises(Unsupported, match="states of a layer overflow; load the model in bfloat16 or float32"):
        methods.make(method).prune(Decoder(model), calibration(), 0.3)
    sound = copy.deepcopy(model)
    sound.model.layers[4].mlp.down_proj.weight.data.fill_(0.01)
    assert 2 in methods.make("sleb").prune(Decoder(sound), calibration(), 0.3)["removed_layers"]


def test_a_layer_without_which_the_loss_is_no_number_stays_and_has_no_score(monkeypatch):
    losses = {0: math.nan, 2: 0.2, 3: math.nan, 4: 0.1, 5: math.inf}
    monkeypatch.setattr(
        "methods.trials.blocks.Trial.losses_without",
        lambda trial, blocks: [losses.get(block.layer, 1.0) for block in blocks],
    )
    found = pruned("shortened-llama", {}, "llama", 3, calibration())
    assert found["removed_layers"] == [1, 2, 4]
    assert found["scores"] == [None, 1.0, 0.2, None, 0.1, None]


def test_no_layer_goes_whose_loss_is_no_number():
    """Where all but one are left without a score, that one may go, and no second one that nothing has chosen."""
    found = methods.make("shortened-llama").prune(Decoder(overflowing()), calibration(), ratio_of(1, "llama"))
    assert (found["removed_layers"], [score is None for score in found["scores"]].count(False)) == ([2], 1)
    with pytest.raises(Unsupported, match="states of a layer overflow; load the model in bfloat16 or float32"):
        methods.make("shortened-llama").prune(Decoder(overflowing()), calibration(), ratio_of(2, "llama"))


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("shortgpt", {"token": "first"}, "token is all or last; got 'first'"),
        ("shortgpt", {"keep_last": "-1"}, "shortgpt:keep_last is int, at least 0; got '-1'"),
        ("angular", {"token": "some"}, "token is last or all; got 'some'"),
        ("angular", {"keep_first": "-1"}, "keep_first is int, at least 0; got '-1'"),
        ("shortened-llama", {"tokens": "1"}, "tokens is int, at least 2; got '1'"),
        ("shortened-llama-taylor", {"tokens": "1"}, "tokens is int, at least 2; got '1'"),
        ("shortened-llama-taylor", {"keep_first": "-1"}, "keep_first is int, at least 0; got '-1'"),
        ("drop", {"layers": "3+5-4"}, "a range names its lower end first, as in 20-24; got '5-4'"),
        ("drop", {"layers": "3-"}, r"joined by \+, as in 3\+20-24; got '3-'"),
        ("drop", {"layers": "3-b"}, r"joined by \+, as in 3\+20-24; got '3-b'"),
    ],
)
def test_unsound_parameters_are_refused(method, given, message):
    with pytest.raises(ValueError, match=message):
        methods.make(method, given)


def test_a_range_far_beyond_the_model_is_refused_by_its_ends():
    model = Decoder(tiny("llama"))
    with pytest.raises(OutOfReach, match="there is no layer 99999999999: the model has layers 0 to 5"):
        methods.make("drop", {"layers": "0-99999999999+1"}).plan(model, 0.0)
    assert methods.make("drop", {"layers": "4+1-2+2-3"}).prune(model, None, 0.0)["removed_layers"] == [1, 2, 3, 4]


@pytest.mark.parametrize(("method", "given"), CASES)
def test_a_ratio_of_zero_looks_at_nothing(method, given):
    model = Decoder(tiny("llama"))
    stack = model.model.model.layers
    assert methods.make(method, given).prune(model, None, 0.0) == {"removed_layers": []}
    assert model.model.model.layers is stack
