"""Greedy pruners against brute force: models that really lack the blocks, run by their own forward with a mask."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import VOCABULARY, tiny
from torch import nn

import methods
from methods.errors import OutOfReach
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Sublayer, remove_sublayers, sublayers_of
from methods.trials.blocks import Trial
from methods.trials.selection import find_affordable, search


@pytest.fixture(autouse=True)
def few_tokens_at_once(monkeypatch):
    """Several pieces, so that a trial can be given up behind each, and in each several that stay in a cache."""
    monkeypatch.setattr("methods.trials.blocks.TOKENS_AT_ONCE", 8)
    monkeypatch.setattr("methods.model.precision.CACHED", 3 * VOCABULARY)


LENGTHS = (16, 12, 7, 1, 16, 9)
FAMILIES = ["llama", "gemma3_text", "opt", "phi"]
METHODS = {
    "sleb": {},
    "sleb, kl": {"loss": "kl"},
    "blockpruner": {},
    "finercut": {},
    "finercut, kl, attention": {"distance": "kl", "mode": "attention"},
    "finercut, released": {"distance": "js-released", "positions": "all"},
}
DISTANCES = {
    "sleb": "nll",
    "sleb, kl": "kl",
    "blockpruner": "nll",
    "finercut": "js",
    "finercut, kl, attention": "kl",
    "finercut, released": "js-released",
}


def calibration(columns: int = 16, **options) -> Calibration:
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 16), generator=torch.Generator().manual_seed(0))
    ids = nn.functional.pad(ids, (0, columns - 16), value=3)
    return Calibration(ids, torch.arange(columns) < torch.tensor(LENGTHS)[:, None], **options)


def make(method: str) -> methods.Pruner:
    return methods.make(method.partition(",")[0], METHODS[method])


def pruned(method: str, family: str, ratio: float, tokens: Calibration | None = None) -> dict:
    model = Decoder(tiny(family))
    before = parameters(model)
    decisions = make(method).prune(model, tokens or calibration(), ratio)
    return decisions | {"removed": before - parameters(model)}


def ratio_for(method: str) -> float:
    """One that takes several removals: about two layers, or one layer's worth of attentions."""
    return 0.15 if "attention" in method else 0.33


def distribution(
    model: nn.Module, tokens: Calibration, positions: str = "followed"
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p (M, V) of the tokens that have a real successor, or of all, and the successors (M,)."""
    with torch.no_grad():
        logits = model(input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=False).logits
    if positions == "all":
        return logits[tokens.mask].double().log_softmax(-1), tokens.ids[tokens.mask]
    wanted = tokens.mask[:, 1:]
    return logits[:, :-1][wanted].double().log_softmax(-1), tokens.ids[:, 1:][wanted]


def distance(kind: str, dense: torch.Tensor, found: torch.Tensor, targets: torch.Tensor) -> float:
    """Per token, from the definitions."""
    if kind == "nll":
        return float(-found[torch.arange(len(targets)), targets].mean())
    p, q = dense.exp(), found.exp()
    if kind == "kl":
        return float((p * (dense - found)).sum(-1).mean())
    middle = ((p + q) / 2).log()
    if kind == "js-released":
        return float((middle.exp() * (2 * middle - dense - found)).sum(-1).mean() / 2)
    return float(((p * (dense - middle)).sum(-1) + (q * (found - middle)).sum(-1)).mean() / 2)


def without(family: str, gone: list[Sublayer]) -> Decoder:
    model = Decoder(tiny(family))
    remove_sublayers(model, gone)
    return model


def brute_force(method: str, family: str, budget: float) -> tuple[list[Sublayer], list[float]]:
    """The order of removal and the losses."""
    tokens, dense_model = calibration(), tiny(family)
    whole = sum(parameter.numel() for parameter in dense_model.parameters())
    positions = METHODS[method].get("positions", "followed")
    (dense, _), order, losses = distribution(dense_model, tokens, positions), [], []
    left = sublayers_of(Decoder(dense_model), *(("layer",) if "sleb" in method else ("attention", "mlp")))
    left = left[1:-1] if "sleb" in method else [b for b in left if "attention" not in method or b.part == "attention"]
    size = {block: whole - parameters(without(family, [block])) for block in left}
    while left:
        gone = sum(size[block] for block in order)
        allowed = [b for b in left if gone + size[b] - budget <= min(size[b] for b in left) / 2]
        if not allowed:
            break
        tried = {}
        for block in allowed:
            found, targets = distribution(without(family, [*order, block]).model, tokens, positions)
            tried[block] = distance(DISTANCES[method], dense, found, targets)
        order.append(min(tried, key=lambda block: tried[block]))
        losses.append(tried[order[-1]])
        left.remove(order[-1])
    return order, losses


@pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, marks=[] if family == "llama" or method == "finercut" else [pytest.mark.nightly])
        for method in METHODS
        for family in FAMILIES
    ],
)
def test_the_search_is_brute_force(method, family):
    budget = ratio_for(method) * parameters(Decoder(tiny(family)))
    if "sleb" in method:
        budget = 2 * sum(parameter.numel() for parameter in Decoder(tiny(family)).layers[0].module.parameters())
    order, losses = brute_force(method, family, budget)
    found = pruned(method, family, budget / parameters(Decoder(tiny(family))))
    assert len(order) > 1
    assert found["removal_order"] == [str(block) for block in order]
    assert found["losses"] == pytest.approx(losses, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_small_budget_is_the_start_of_a_large_one(method, family):
    large = pruned(method, family, 2 * ratio_for(method))
    small = pruned(method, family, ratio_for(method))
    free = small["removal_order"][: small["free_removals"]]
    assert free == large["removal_order"][: len(free)]
    assert small["free_removals"] >= (2 if "sleb" in method else 1)
    assert len(large["removal_order"]) > len(small["removal_order"])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_known_is_not_searched_again(method):
    ratios = [ratio_for(method), 2 * ratio_for(method)]
    fresh = [pruned(method, "llama", ratio) for ratio in ratios]
    for known in fresh:
        order = tuple(known["removal_order"][: known["free_removals"]])
        for ratio, expected in zip(ratios, fresh, strict=True):
            found = pruned(method, "llama", ratio, replace(calibration(), order=order))
            assert found["removal_order"] == expected["removal_order"]
            assert found["free_removals"] == expected["free_removals"]
            assert found["removed"] == expected["removed"]
            assert found["forwards"] < expected["forwards"]
            assert found["losses"][0] is None


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3_text", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("method", METHODS)
def test_padding_and_micro_batches_change_no_decision(method, family):
    plain = pruned(method, family, ratio_for(method))
    for tokens in (calibration(30), calibration(memory=1)):
        found = pruned(method, family, ratio_for(method), tokens)
        assert found["removal_order"] == plain["removal_order"]
        assert found["losses"] == pytest.approx(plain["losses"], rel=1e-4, abs=1e-6)
        if tokens.ids.shape[1] == 30:
            assert found["forwards"] == plain["forwards"]


def test_only_so_many_tokens_are_read():
    given = {"tokens": "30"}  # the first two sequences and no more
    found = methods.make("sleb", given).prune(Decoder(tiny("llama")), calibration(), 0.33)
    two = Calibration(calibration().ids[:2], calibration().mask[:2])
    assert found == methods.make("sleb").prune(Decoder(tiny("llama")), two, 0.33)
    assert found != methods.make("sleb").prune(Decoder(tiny("llama")), calibration(), 0.33)


def test_a_search_for_eight_of_thirty_layers_costs_half_the_forwards():
    """28 + 27 + ... + 21 = 196 candidates; each runs the layers behind it alone, several of them together."""
    model = Decoder(tiny("llama", layers=30))
    tokens = Calibration(calibration().ids[:2, :6], torch.ones(2, 6, dtype=torch.bool))
    calls = [layer.module.register_forward_hook(lambda _, x, y: counted.append(len(y) / 2)) for layer in model.layers]
    counted: list[float] = []
    trial = Trial(model, tokens, "nll")
    found = search(trial, sublayers_of(model, "layer")[1:-1], 8 * model.layers[0].sizes()["layer"])
    assert len(found.order) == 8
    assert found.runs == pytest.approx(sum(counted) / len(calls))
    assert max(counted) == 4
    assert 196 * 0.3 < found.runs <= 196 / 2


@pytest.mark.parametrize("loss", ["nll", "kl", "js"])
def test_a_trial_is_given_up_only_above_the_lowest(loss):
    """The text is what the model says without one of its MLPs, and so surely that others need a few tokens to lose."""
    model = Decoder(tiny("llama"))
    model.model.model.norm.weight.data *= 30
    author, ids = Decoder(copy.deepcopy(model.model)), torch.arange(3, 9)[:, None]
    remove_sublayers(author, [Sublayer("mlp", 2)])
    while ids.shape[1] < 16:
        ids = torch.cat([ids, author.model(ids).logits[:, -1:].argmax(-1)], 1)
    blocks = sublayers_of(model, "attention", "mlp")
    whole = dict(zip(blocks, Trial(model, calibration(), loss).losses_without(blocks), strict=True))
    blocks.sort(key=lambda block: 0.0 if loss == "nll" and str(block) == "mlp 2" else whole[block])
    for memory in (2**30, 1):  # one batch; a batch a sequence
        trial = Trial(model, replace(calibration(memory=memory), **({"ids": ids} if loss == "nll" else {})), loss)
        before = trial.runs
        whole = trial.losses_without(blocks)
        cost, before = trial.runs - before, trial.runs
        found = trial.losses_without(blocks, lowest=1)
        best = min(whole)
        assert best == whole[0] == found[0]
        assert all(best <= one <= true for one, true in zip(found, whole, strict=True))
        assert any(one < true for one, true in zip(found, whole, strict=True))
        assert trial.runs - before < cost or memory > 1  # batches that never run


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "phi"])
def test_candidates_that_run_together_have_the_losses_of_each_alone(family, monkeypatch):
    model = Decoder(tiny(family))
    blocks = [block for block in sublayers_of(model, "layer", "attention", "mlp") if block != Sublayer("mlp", 1)]
    found = []
    for rows in (1, 2048):  # one at a time; all that run a layer
        monkeypatch.setattr("methods.trials.blocks.ROWS", rows)
        trial = Trial(model, calibration(), "nll")
        trial.remove(Sublayer("mlp", 1))
        found.append(trial.losses_without([None, *blocks]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    cut, targets = distribution(without(family, [Sublayer("mlp", 1)]).model, calibration())
    assert found[0][0] == pytest.approx(distance("nll", cut, cut, targets), rel=1e-4)  # None: no other block goes
    assert len(set(found[0])) > len(blocks) / 2


@pytest.mark.parametrize("loss", ["nll", "js"])
def test_giving_up_changes_no_choice(loss, monkeypatch):
    def found() -> dict:
        model = Decoder(tiny("llama"))
        return search(Trial(model, calibration(), loss), sublayers_of(model, "attention", "mlp"), 5e4).decisions()

    quick = found()
    whole = Trial.losses_without
    steps: list[list[float]] = []  # the losses of each

    def patient(trial: Trial, blocks: list[Sublayer], *_: str, lowest: int) -> list[float]:
        assert lowest == 1
        steps.append(whole(trial, blocks))
        return steps[-1]

    monkeypatch.setattr(Trial, "losses_without", patient)
    assert found() == quick | {"forwards": pytest.approx(quick["forwards"], rel=0.2)}
    assert len(quick["removal_order"]) == len(steps) > 2


class Told:
    """A trial whose losses are given."""

    def __init__(self, losses: dict[str, float]) -> None:
        self.model = Decoder(tiny("llama"))
        self.layers, self.losses, self.runs = self.model.layers, losses, 0.0

    def losses_without(self, blocks: list[Sublayer], *_: str, lowest: int) -> list[float]:
        return [self.losses.get(str(block), 1.0) for block in blocks]

    def remove(self, block: Sublayer) -> None:
        pass


def test_a_loss_that_is_no_number_never_wins():
    trial = Told({"layer 0": math.nan, "layer 1": math.inf, "layer 2": 5.0, "layer 3": math.nan, "layer 4": 2.0})
    each = trial.layers[0].sizes()["layer"]
    found = search(trial, [Sublayer("layer", number) for number in range(5)], 4 * each)
    assert [block.layer for block in found.order[:2]] == [4, 2]
    assert len(found.order) == 4
    assert found.decisions()["losses"] == [2.0, 5.0, None, None]
    assert json.dumps(found.decisions(), allow_nan=False)


def test_a_block_that_overshoots_makes_room_for_a_smaller_one():
    trial = Told({f"mlp {number}": number / 10 for number in range(6)})
    size = {part: trial.layers[0].sizes()[part] for part in ("attention", "mlp")}
    assert size["attention"] < size["mlp"]
    blocks = sublayers_of(trial.model, "attention", "mlp")
    for budget in (size["mlp"] * 1.4, size["mlp"] * 2, size["attention"] * 1.6, size["attention"] * 0.4):
        order = search(trial, blocks, budget).order
        assert abs(sum(size[block.part] for block in order) - budget) <= size["attention"] / 2
    heard = list[list[str]]()
    bound = search(trial, blocks, size["mlp"] * 1.4, note=heard.append).order
    assert [str(block) for block in bound] == ["mlp 0", "attention 0"]
    assert heard == [["mlp 0"]]  # what the budget has bound serves no other ratio


def test_what_is_affordable():
    size = {Sublayer("attention", 0): 10, Sublayer("mlp", 0): 30, Sublayer("layer", 1): 41}
    assert find_affordable(list(size), size, 36) == list(size)
    assert find_affordable(list(size), size, 35) == list(size)[:2]
    assert find_affordable(list(size)[1:], size, 30) == list(size)[1:]
    assert find_affordable(list(size), size, 4) == []
    assert find_affordable([], size, 4) == []


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("sleb", {"loss": "mse"}, "sleb:loss is nll, kl or js; got 'mse'"),
        ("sleb", {"keep_first": "-1"}, "keep_first is int, at least 0; got '-1'"),
        ("sleb", {"tokens": "1"}, "tokens is int, at least 2; got"),
        ("blockpruner", {"tokens": "0"}, "tokens is int, at least 2; got"),
        ("finercut", {"distance": "nll"}, "distance is js, kl or js-released; got 'nll'"),
        ("finercut", {"mode": "mlp"}, "mode is both or attention; got 'mlp'"),
        ("finercut", {"keep_first": "-1"}, "keep_first is int, at least 0; got '-1'"),
    ],
)
def test_unsound_parameters_are_refused(method, given, message):
    with pytest.raises(ValueError, match=message):
        methods.make(method, given)


def test_attentions_alone_reach_only_so_far():
    model = Decoder(tiny("llama"))
    share = 6 * model.layers[0].sizes()["attention"] / parameters(model)
    pruner = methods.make("finercut", {"mode": "attention"})
    assert pruner.plan(model, share) == {"parameters": round((1 - share) * parameters(model))}
    with pytest.raises(OutOfReach, match=f"all attention blocks that may go hold {share:.3f} of"):
        pruner.plan(model, 1.05 * share)
    with pytest.raises(OutOfReach, match=r"all attention and mlp blocks that may go hold 0\.306"):
        methods.make("finercut", {"keep_first": "4"}).plan(model, 0.4)


def test_protected_layers_stay_whole():
    found = methods.make("finercut", {"keep_first": "3"}).prune(Decoder(tiny("llama")), calibration(), 0.3)
    assert min(Sublayer.parse(text).layer for text in found["removal_order"]) >= 3


@pytest.mark.parametrize("method", METHODS)
def test_a_ratio_of_zero_looks_at_nothing(method):
    model = Decoder(tiny("llama"))
    stack = model.model.model.layers
    decisions = make(method).prune(model, None, 0.0)
    assert not any(decisions.values())
    assert model.model.model.layers is stack
