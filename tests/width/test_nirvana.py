"""NIRVANA: scores are those of one backward pass, one threshold holds for a kind, and the widths are multiples of 8."""

from __future__ import annotations

import pytest
import torch
from conftest import padded, tiny

import methods
from methods.errors import OutOfReach
from methods.model import gradients
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import structures_of
from methods.width.nirvana import MULTIPLE, Nirvana, divide_into_pieces, scores_of_units

LENGTHS = (24, 17, 23, 9)
ROWS = [
    torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in LENGTHS
]
CALIBRATION = padded(ROWS)


@pytest.fixture
def model():
    """Of six layers with four key/value heads each."""
    return Decoder(tiny("llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=4, layers=6))


def saliences(model: Decoder, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """|w df/dw| of each weight, where f is the mean over sequences and words of the largest logit of a sequence."""
    weights = dict(model.model.named_parameters())
    with torch.enable_grad():
        for weight in weights.values():
            weight.requires_grad_()
        largest = [model.model(torch.tensor([row]), use_cache=False).logits[0].max(dim=0).values for row in rows]
        gradients = torch.autograd.grad(torch.stack(largest).mean(), weights.values())
    return {
        name: (weight * gradient).abs().double().detach()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


@pytest.mark.parametrize("at_once", [256, 24])
@pytest.mark.parametrize("tokens", [24, 10])
def test_scores_are_those_of_one_backward_pass(tokens, at_once, model, monkeypatch):
    """Of sequences of several lengths, or of their pieces, without padding, in one micro-batch or in several."""
    monkeypatch.setattr(gradients, "TOKENS_AT_ONCE", at_once)
    pieces = [row[at : at + tokens] for row in ROWS for at in range(0, len(row), tokens)]
    salience = saliences(model, pieces)
    scores = scores_of_units(model, CALIBRATION, 32, tokens)
    for structure, score in zip(structures_of(model), scores, strict=True):
        prefix = f"model.layers.{structure.number}."
        if structure.kind == "channels":
            wanted = salience[f"{prefix}mlp.down_proj.weight"].sum(0)
            wanted += sum(salience[f"{prefix}mlp.{name}_proj.weight"].sum(1) for name in ("gate", "up"))
        else:
            rows = [salience[f"{prefix}self_attn.{name}_proj.weight"].sum(1) for name in "qkv"]
            rows.append(salience[f"{prefix}self_attn.o_proj.weight"].sum(0))
            wanted = sum(each.view(4, -1).sum(1) for each in rows)
        torch.testing.assert_close(score, wanted, rtol=1e-3, atol=1e-9)


def test_the_first_pieces_are_read():
    pieces = divide_into_pieces(CALIBRATION, 3, 10)
    assert [row[mask].tolist() for row, mask in zip(pieces.ids, pieces.mask, strict=True)] == [
        ROWS[0][:10],
        ROWS[0][10:20],
        ROWS[0][20:],
    ]
    every = divide_into_pieces(CALIBRATION, 99, 10)
    assert [row for several in every.ids for row in several[:1].tolist()][3:5] == [ROWS[1][0], ROWS[1][10]]
    assert int(every.mask.sum()) == sum(LENGTHS)


@pytest.mark.parametrize("gamma", ["1", "2", "5"])
def test_one_threshold_holds_for_a_kind_and_gamma_divides_the_heads(gamma, model):
    structures = structures_of(model)
    scores = scores_of_units(model, CALIBRATION, 32, 24)
    made = methods.make("nirvana", {"gamma": gamma})
    counts = made.counts(structures, scores, 0.4)
    for kind, share in (("kv_heads", 0.4 / float(gamma)), ("channels", 0.4)):
        of_kind = [
            (score, count, each.size)
            for each, score, count in zip(structures, scores, counts, strict=True)
            if each.kind == kind
        ]
        pooled = torch.cat([score for score, *_ in of_kind]).sort().values
        lowest = int(share * len(pooled))
        for score, count, size in of_kind:
            below = int((score < pooled[lowest]).sum())
            fewest = 1 if kind == "kv_heads" else 8
            assert count == min(below if kind == "kv_heads" else below // MULTIPLE * MULTIPLE, size - fewest)


def test_the_best_units_of_those_below_the_threshold_stay(model):
    structures = structures_of(model)
    scores = scores_of_units(model, CALIBRATION, 32, 24)
    decided = Nirvana(sequences=32, tokens=24).prune(model, CALIBRATION, 0.3)
    for structure, score in zip(structures, scores, strict=True):
        removed = decided[f"removed_{structure.kind}"][structure.number]
        assert removed == sorted(score.argsort()[: len(removed)].tolist())


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.2, 0.3])
def test_the_ratio_is_met_within_eight_channels_and_a_head(ratio, model):
    dense, sizes = parameters(model), {each.kind: each.cost for each in structures_of(model)}
    decided = Nirvana().prune(model, CALIBRATION, ratio)
    missed = abs(parameters(model) - (1 - ratio) * dense)
    assert missed <= (MULTIPLE * sizes["channels"] + sizes["kv_heads"] if ratio else 0)
    assert all(count % MULTIPLE == 0 for count in decided["channels"])
    assert min(decided["kv_heads"]) >= 1
    assert parameters(model) == decided["parameters"]
    if ratio:
        assert decided["share_of_heads"] == pytest.approx(decided["share_of_channels"] / Nirvana().gamma)


def test_what_no_cut_reaches_is_refused_before_any_gradient(model):
    dense = parameters(model)
    most = sum(each.cost * (each.size - (1 if each.kind == "kv_heads" else 8)) for each in structures_of(model))
    assert Nirvana().plan(model, most / dense - 1e-9)
    with pytest.raises(OutOfReach, match="is out of reach"):
        Nirvana().plan(model, most / dense + 1e-6)


def test_all_that_may_go_goes_at_most(model):
    """The largest ratio in reach leaves one head and eight channels in each layer."""
    dense = parameters(model)
    most = sum(each.cost * (each.size - (1 if each.kind == "kv_heads" else 8)) for each in structures_of(model))
    decided = Nirvana().prune(model, CALIBRATION, most / dense - 1e-9)
    assert (set(decided["kv_heads"]), set(decided["channels"])) == ({1}, {8})
