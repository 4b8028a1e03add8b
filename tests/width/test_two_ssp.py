"""2SSP against the paper's arithmetic, norms summed by hand and a brute-force search that really removes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, TINY, VOCABULARY, tiny
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

import methods
from methods.errors import OutOfReach
from methods.model import calibration as sweep_log
from methods.model.calibration import Calibration, SweepLogs
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import Sublayer, keep_channels, remove_sublayers
from methods.trials.blocks import Trial
from methods.width.two_ssp import TwoSSP, norms_of_channels

LENGTHS = (24, 20, 9, 24, 3, 15)


def calibration(filler: int = 0, **options: object) -> Calibration:
    """Sequences of LENGTHS, padded on the right with the word `filler`."""
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    return Calibration(ids.where(mask, filler), mask, **options)


def smollm2() -> Decoder:
    """SmolLM2-135M without weights."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return Decoder(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(("p", "n", "kept"), [(0.25, 2, 1058), (0.375, 4, 836), (0.5, 8, 648)])
def test_the_split_of_the_paper(p, n, kept):
    """p is a share of the layers' parameters; the ratio counts the embedding too."""
    model = smollm2()
    ratio = p * sum(map(layer_parameters, model.layers)) / parameters(model)
    plan = TwoSSP().plan(model, ratio)
    assert plan == {"attentions": n, "removed_per_layer": {"kv_heads": 0, "channels": 1536 - kept}}
    removed = n * (884_736 + 576) + 30 * (1536 - kept) * 1728
    assert abs(removed - ratio * parameters(model)) <= 30 * 1728 / 2


def test_alpha_moves_the_split():
    ratio = 0.5 * 30 * 3_540_096 / parameters(smollm2())
    assert [TwoSSP(alpha=alpha).plan(smollm2(), ratio)["attentions"] for alpha in (0.5, 1.5, 3.0)] == [0, 8, 15]


@pytest.mark.parametrize("memory", [1, 2**30])
@pytest.mark.parametrize("family", TINY)
def test_norms_by_hand(family, memory):
    """The mean over sequences of the norm over tokens, each sequence run alone and without its padding."""
    model, tokens = Decoder(tiny(family)), calibration(filler=9, memory=memory)
    sums = [torch.zeros(layer.down.in_features, dtype=torch.float64) for layer in model.layers]
    hooks = []
    for layer, total in zip(model.layers, sums, strict=True):

        def add(_: object, x: tuple[torch.Tensor], total: torch.Tensor = total) -> None:
            total.add_(torch.linalg.vector_norm(x[0].flatten(0, -2).double(), dim=0))

        hooks.append(layer.down.register_forward_pre_hook(add))
    with torch.no_grad():
        for ids, length in zip(tokens.ids, LENGTHS, strict=True):
            model.model(ids[None, :length], use_cache=False)
    for hook in hooks:
        hook.remove()
    for found, total in zip(norms_of_channels(model, tokens), sums, strict=True):
        expected = total / len(LENGTHS)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@torch.no_grad()
def loss(model: Decoder, tokens: Calibration) -> float:
    """The model's own logits, per predicted real token."""
    total, count = 0.0, 0
    for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
        length = int(mask.sum())
        logits = model.model(ids[None, :length], use_cache=False).logits[0, :-1]
        total += float(cross_entropy(logits.double(), ids[1:length], reduction="sum"))
        count += length - 1
    return total / count


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "opt"])
def test_attentions_go_one_by_one_by_the_cut_models_loss(family):
    """Every attention that is left is removed for real, and the loss of what then is left compared."""
    model = Decoder(tiny(family))
    norms, used = norms_of_channels(model, calibration()), calibration().first(72)
    decisions = TwoSSP(alpha=3.0, tokens=72).prune(model, calibration(), 0.4)
    n, count = decisions["attentions"], decisions["removed_per_layer"]["channels"]
    assert n >= 2
    assert count > 0
    cut = Decoder(tiny(family))
    for number, (layer, norm) in enumerate(zip(cut.layers, norms, strict=True)):
        lowest = norm.argsort()[:count].tolist()
        assert decisions["removed_channels"][number] == sorted(lowest)
        keep_channels(layer, [channel for channel in range(len(norm)) if channel not in lowest])
    order: list[int] = []
    for found in decisions["losses"]:
        losses = {}
        for number in set(range(LAYERS)) - set(order):
            candidate = Decoder(copy.deepcopy(cut.model))
            remove_sublayers(candidate, [Sublayer("attention", layer) for layer in (*order, number)])
            losses[number] = loss(candidate, used)
        order.append(min(losses, key=losses.__getitem__))
        assert found == pytest.approx(losses[order[-1]], rel=1e-4)
    assert decisions["attentions_in_order"] == order
    assert len(order) == n
    assert decisions["removed_attention"] == sorted(order)
    assert [layer.has_attention for layer in model.layers] == [number not in order for number in range(LAYERS)]


def test_removals_that_were_found_behind_other_widths_are_no_ones(tmp_path, monkeypatch):
    """As where one cell prunes at several ratios until it meets a budget, and was interrupted."""
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    pruner, trials, of_a_step = TwoSSP(alpha=9.0, tokens=48), list[int](), Trial.losses_without
    monkeypatch.setattr(
        Trial, "losses_without", lambda self, *given, **how: trials.append(1) or of_a_step(self, *given, **how)
    )

    def pruned(ratio):
        found = pruner.prune(Decoder(tiny("llama")), replace(calibration(), sweeps=SweepLogs(tmp_path)), ratio)
        removals = len(trials)
        trials.clear()
        return found, removals

    whole = {ratio: pruner.prune(Decoder(tiny("llama")), calibration(), ratio) for ratio in (0.35, 0.5)}
    trials.clear()
    for ratio, expected in whole.items():
        assert pruned(ratio) == (expected, len(expected["attentions_in_order"])) != (expected, 0)
        assert pruned(ratio) == (expected, 0)
    assert not {"removal_order", "free_removals"} & set(whole[0.5])  # the record offers none


@pytest.mark.parametrize("family", TINY)
def test_the_budget_is_met_and_the_widths_are_equal(family):
    model = Decoder(tiny(family))
    dense, I = parameters(model), model.layers[0].down.in_features
    channel = (parameters(model) - parameters(narrower(family))) / LAYERS
    for ratio in (0.05, 0.2, 0.4):
        model = Decoder(tiny(family))
        decisions = TwoSSP(tokens=48).prune(model, calibration(), ratio)
        assert abs(dense - parameters(model) - ratio * dense) <= LAYERS * channel / 2
        assert len({layer.down.in_features for layer in model.layers}) == 1
        assert decisions["channels"] == [I - decisions["removed_per_layer"]["channels"]] * LAYERS


def narrower(family: str) -> Decoder:
    """One channel less in every layer."""
    model = Decoder(tiny(family))
    for layer in model.layers:
        keep_channels(layer, range(layer.down.in_features - 1))
    return model


def test_attentions_fill_up_what_channels_cannot_give():
    model = Decoder(tiny("llama"))
    channels = LAYERS * 42 * 96  # 6 of 48 stay
    reach = (channels + (LAYERS - 1) * (3072 + 32)) / parameters(model)
    few = TwoSSP(alpha=0.2)
    assert few.plan(model, channels / parameters(model))["attentions"] == 0
    assert few.plan(model, (channels + 3000) / parameters(model))["attentions"] == 1
    assert few.plan(model, reach - 1e-6)["attentions"] == LAYERS - 1
    with pytest.raises(OutOfReach, match=f"all channels but a few and all attentions but one gone, {reach:.3f} of the"):
        few.plan(model, reach + 1e-6)


def test_attentions_never_take_more_than_the_budget():
    """With a large alpha almost every attention would go, whatever the ratio."""
    plan = TwoSSP(alpha=1000.0).plan(Decoder(tiny("llama")), 0.2)
    assert plan["attentions"] == int(0.2 * parameters(Decoder(tiny("llama"))) / (3072 + 32)) == 3


def test_padding_and_micro_batches_change_nothing():
    runs = [
        TwoSSP(tokens=72).prune(Decoder(tiny("qwen2")), calibration(filler=filler, memory=memory), 0.3)
        for filler, memory in ((0, 2**30), (77, 2**30), (0, 1), (0, 40_000))
    ]
    losses = [run.pop("losses") for run in runs]
    forwards = [run.pop("forwards") for run in runs]  # which several micro-batches and their limit change
    assert forwards[1] == forwards[0]
    assert losses[0]
    assert all(each == pytest.approx(losses[0], rel=1e-5) for each in losses)
    assert all(run == runs[0] for run in runs)


def test_nothing_is_looked_at_for_nothing():
    decisions = TwoSSP().prune(Decoder(tiny("llama")), None, 0.0)
    assert (decisions["channels"], decisions["attentions"]) == ([48] * LAYERS, 0)


def test_a_multiple():
    decisions = TwoSSP(multiple=16, tokens=48).prune(Decoder(tiny("llama")), calibration(), 0.2)
    assert decisions["channels"] == [32] * LAYERS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": "0"}, "2ssp:alpha is float, more than 0 and finite; got '0'"),
        ({"tokens": "1"}, "2ssp:tokens is int, at least 2; got '1'"),
        ({"multiple": "0"}, "2ssp:multiple is int, at least 1; got '0'"),
    ],
)
def test_unsound_parameters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        methods.make("2ssp", given)
