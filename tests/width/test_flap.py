"""FLAP against statistics of hooked activations, and its cut against a mask with the mean response added."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from calibrations import LENGTHS, calibration
from conftest import LAYERS, TINY, tiny
from transformers import AutoModelForCausalLM, LlamaConfig

import methods
from methods.errors import OutOfReach, Unsupported
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import structures_of
from methods.width.flap import FLAP, Moments, ReleasedMoments, moments_of_inputs

FEWEST = 6  # of 48 channels


@torch.no_grad()
def seen(model: Decoder) -> dict[tuple[int, str], torch.Tensor]:
    """What enters each output matrix, (real tokens, C), each sequence run alone and without its padding."""
    rows: dict[tuple[int, str], list[torch.Tensor]] = {}
    hooks = []
    for number, layer in enumerate(model.layers):
        for kind, matrix in (("kv_heads", layer.out), ("channels", layer.down)):
            into = rows.setdefault((number, kind), [])
            hooks.append(
                matrix.register_forward_pre_hook(lambda _, x, into=into: into.append(x[0].flatten(0, -2).double()))
            )
    tokens = calibration()
    for ids, length in zip(tokens.ids, LENGTHS, strict=True):
        model.model(ids[None, :length], use_cache=False)
    for hook in hooks:
        hook.remove()
    return {place: torch.cat(parts) for place, parts in rows.items()}


def writer(model: Decoder, number: int, kind: str) -> torch.nn.Linear:
    return model.layers[number].out if kind == "kv_heads" else model.layers[number].down


def columns(model: Decoder, kind: str, units: list[int]) -> list[int]:
    layer = model.layers[0]
    width = layer.group * layer.head_width if kind == "kv_heads" else 1
    return [unit * width + channel for unit in units for channel in range(width)]


def by_hand(model: Decoder, metric: str = "wifv", square: bool = True) -> dict[tuple[int, str], list[float]]:
    """z of every unit."""
    scores = {}
    for (number, kind), X in seen(model).items():
        W = writer(model, number, kind).weight.detach().double()
        s = {
            "wifv": torch.var(X, 0) * (W**2).sum(0),
            "ifv": torch.var(X, 0),
            "wifn": torch.stack([W[:, j].abs().mean() * torch.linalg.vector_norm(X[:, j]) for j in range(W.shape[1])]),
        }[metric]
        s = s**2 if square and kind == "kv_heads" else s
        z = (s - s.mean()) / torch.std(s)
        width = len(columns(model, kind, [0]))
        scores[number, kind] = [float(z[start : start + width].mean()) for start in range(0, len(z), width)]
    return scores


@pytest.mark.parametrize("pieces", [(50,), (1, 49), (7, 1, 1, 41), (1,) * 50])
def test_moments_are_those_of_all_rows_however_they_come(pieces):
    x = 1e4 + torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments(5, x.device)
    for piece in x.split(list(pieces)):
        moments.add(piece)
    torch.testing.assert_close(moments.mean, x.mean(0))
    torch.testing.assert_close(moments.M2 / (moments.n - 1), torch.var(x, 0))


def test_the_released_variance_is_the_recurrence_of_the_authors_code():
    """The first sequence adds nothing, and the mean that is taken off twice already holds the sequence."""
    x = 3 + torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fluctuation, moments = torch.zeros(4, dtype=torch.float64), ReleasedMoments(4, x.device)
    for n, sequence in enumerate(x):
        mean = x[: n + 1].mean((0, 1))
        if n:
            fluctuation = fluctuation * (n - 1) / n + (sequence - mean).square().sum(0) / (n + 1)
        moments.add(sequence)
    torch.testing.assert_close(moments.variance * 34 / 4, fluctuation)  # 34 tokens but one, 4 sequences but one
    torch.testing.assert_close(moments.mean, x.mean((0, 1)))


@pytest.mark.parametrize("memory", [1, 2**30])
def test_the_released_variance_sees_sequences_without_their_padding(memory):
    model = Decoder(tiny("llama"))
    structures = structures_of(model)
    expected = seen(model)
    found = moments_of_inputs(model, calibration(filler=9, memory=memory), "released")
    for structure, (_, variance, _) in zip(structures, found, strict=True):
        X = expected[structure.number, structure.kind]
        S = [
            (part - X[: start + len(part)].mean(0)).square().sum(0) * k / (k + 1)
            for k, (part, start) in enumerate(zip(X.split(LENGTHS), accumulate((0, *LENGTHS[:-1])), strict=True))
        ]
        torch.testing.assert_close(variance, sum(S) / (len(X) - 1), rtol=1e-4, atol=1e-8)
        assert not torch.allclose(variance, torch.var(X, 0), rtol=0.02)


def test_the_released_variance_needs_two_sequences():
    one = calibration().first(LENGTHS[0])
    assert len(one.ids) == 1
    with pytest.raises(Unsupported, match="leaves the first calibration sequence out: give two at least"):
        FLAP(variance="released").prune(Decoder(tiny("llama")), one, 0.2)


@pytest.mark.parametrize("memory", [1, 2**30])
@pytest.mark.parametrize("family", TINY)
def test_statistics_are_those_of_the_real_tokens(family, memory):
    model = Decoder(tiny(family))
    expected = seen(model)
    structures = structures_of(model)
    found = moments_of_inputs(model, calibration(filler=9, memory=memory), "pooled")
    assert len(found) == len(expected) == 2 * LAYERS
    for structure, (mean, variance, norm) in zip(structures, found, strict=True):
        X = expected[structure.number, structure.kind]
        assert len(X) == sum(LENGTHS)
        scale = float(X.abs().max())
        torch.testing.assert_close(mean, X.mean(0), rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(variance, torch.var(X, 0), rtol=1e-4, atol=1e-8 * scale**2)
        torch.testing.assert_close(norm, X.norm(dim=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("metric", ["wifv", "ifv", "wifn"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_scores_by_hand(family, metric, square):
    model = Decoder(tiny(family))
    structures, expected = structures_of(model), by_hand(model, metric, square)
    tables = moments_of_inputs(model, calibration(), "pooled")
    for structure, moments in zip(structures, tables, strict=True):
        found = FLAP(metric=metric, attn_square=square).score(structure, moments)
        wanted = torch.tensor(expected[structure.number, structure.kind], dtype=torch.float64)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.35, 0.5])
def test_one_threshold_over_all_layers_and_both_kinds(ratio):
    """The lowest units go one by one, each with its parameters, while that brings the count nearer to the budget."""
    model = Decoder(tiny("llama"))
    dense, D = parameters(model), 32
    cost = {"kv_heads": (2 * 16 + 2 * 8) * D, "channels": 3 * D}
    ranked = []
    for (number, kind), scores in by_hand(model).items():
        lowest = sorted(range(len(scores)), key=lambda unit: scores[unit])
        spare = len(scores) - (1 if kind == "kv_heads" else FEWEST)
        ranked += [(scores[unit], number, kind, unit) for unit in lowest[:spare]]
    removed, best, gone = 0, abs(ratio * dense), []
    touched: set[tuple[int, str]] = set()
    for place, (_, number, kind, _) in enumerate(sorted(ranked)):
        removed += cost[kind] - (D if (number, kind) not in touched else 0)  # the first of a matrix brings a bias
        touched.add((number, kind))
        if abs(removed - ratio * dense) < best:
            best, gone = abs(removed - ratio * dense), sorted(ranked)[: place + 1]
    decisions = FLAP().prune(model, calibration(), ratio)
    for kind in ("kv_heads", "channels"):
        units = [sorted(unit for _, n, k, unit in gone if (n, k) == (number, kind)) for number in range(LAYERS)]
        assert decisions[f"removed_{kind}"] == units
    assert abs(dense - parameters(model) - ratio * dense) == pytest.approx(best)
    assert ratio < 0.3 or {kind for _, _, kind, _ in gone} == {"kv_heads", "channels"}


@pytest.mark.parametrize("structure", ["al_am", "ul_um"])
@pytest.mark.parametrize("family", TINY)
def test_a_cut_is_a_mask_with_the_mean_response_added(family, structure, ids):
    masked, model = Decoder(tiny(family)), Decoder(tiny(family))
    responses = seen(masked)
    decisions = FLAP(structure=structure).prune(model, calibration(), 0.25)
    new_biases = 0
    with torch.no_grad():
        for (number, kind), X in responses.items():
            gone = columns(masked, kind, decisions[f"removed_{kind}"][number])
            matrix = writer(masked, number, kind)
            if gone:
                response = (X[:, gone] @ matrix.weight[:, gone].double().T).mean(0).float()
                new_biases += 0 if matrix.bias is not None else len(response)
                matrix.bias = torch.nn.Parameter(response + (0 if matrix.bias is None else matrix.bias))
                matrix.weight[:, gone] = 0
                found = writer(model, number, kind).bias
                torch.testing.assert_close(found, matrix.bias, rtol=1e-4, atol=1e-4 * float(matrix.bias.abs().max()))
            else:
                assert (writer(model, number, kind).bias is None) == (matrix.bias is None)
        expected, found = masked.model(ids).logits, model.model(ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    costs = {(each.number, each.kind): each.cost for each in structures_of(masked)}
    lost = sum(cost * len(decisions[f"removed_{kind}"][number]) for (number, kind), cost in costs.items())
    dense = sum(p.numel() for p in tiny(family).parameters())
    assert parameters(model) == decisions["parameters"] == dense - lost + new_biases


def test_the_bias_helps_more_than_no_bias(ids):
    """Over the calibration's own tokens the mean of what an output matrix adds is the dense model's again."""
    dense, with_bias, without = (Decoder(tiny("llama")) for _ in range(3))
    for model, bias in ((with_bias, True), (without, False)):
        FLAP(bias=bias).prune(model, calibration(), 0.02)
    means = []
    for model in (dense, with_bias, without):
        X = seen(model)[0, "channels"].float()
        means.append(model.layers[0].down(X).mean(0))
    assert (means[1] - means[0]).norm() < 1e-3 * means[0].norm() < (means[2] - means[0]).norm()
    assert all(matrix.bias is None for layer in without.layers for matrix in layer.matrices)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("structure", ["al_am", "ul_um"])
def test_widths_are_a_multiple_where_asked(structure, bias):
    model = Decoder(tiny("llama"))
    decisions = FLAP(structure=structure, bias=bias, multiple=8).prune(model, calibration(), 0.3)
    assert all(width % 8 == 0 and width >= 8 for width in decisions["channels"])
    assert len(set(decisions["channels"])) == 1 or structure == "al_am"
    step = 8 * 96 * (LAYERS if structure == "ul_um" else 2)  # eight channels in every layer, or as much as a head
    assert abs(decisions["parameters"] - 0.7 * parameters(Decoder(tiny("llama")))) <= step / 2


def test_what_fluctuates_most_stays():
    """At the largest ratio one head and an eighth of the channels are left in each layer: those of highest z."""
    model, scores = Decoder(tiny("llama")), by_hand(Decoder(tiny("llama")))
    reach = sum(int(FLAP().gains(structure)[1].sum()) for structure in structures_of(model)) / parameters(model)
    with pytest.raises(OutOfReach, match=f"one head and few channels left in each layer, {reach:.3f} of the"):
        FLAP().plan(model, reach + 1e-6)
    decisions = FLAP().prune(model, calibration(), reach)
    assert decisions["kv_heads"] == [1] * LAYERS
    assert decisions["channels"] == [FEWEST] * LAYERS
    for (number, kind), z in scores.items():
        kept = set(range(len(z))) - set(decisions[f"removed_{kind}"][number])
        assert kept == set(sorted(range(len(z)), key=lambda unit: -z[unit])[: len(kept)])


def test_a_key_value_head_weighs_what_it_holds():
    """SmolLM2's shape: 9 query and 3 key/value heads of width 64, 1,536 channels, width 576."""
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
        model = Decoder(AutoModelForCausalLM.from_config(config))
    costs = {structure.kind: structure.cost for structure in structures_of(model)}
    assert costs == {"kv_heads": 294_912, "channels": 1_728}
    assert costs["kv_heads"] / costs["channels"] == pytest.approx(170.67, abs=0.01)
    assert FLAP().plan(model, 0.3) == {"budget": round(0.7 * parameters(model))}


@pytest.mark.parametrize("options", [{"structure": "ul_um"}, {}])
def test_padding_and_micro_batches_change_nothing(options):
    runs = [
        FLAP(**options).prune(Decoder(tiny("qwen2")), calibration(filler=filler, memory=memory), 0.3)
        for filler, memory in ((0, 2**30), (77, 2**30), (0, 1), (0, 40_000))
    ]
    assert all(run == runs[0] for run in runs)


def test_a_bias_has_the_weights_dtype_and_state():
    model = Decoder(tiny("llama").bfloat16())
    model.model.requires_grad_(False)
    FLAP().prune(model, calibration(), 0.3)
    biases = [matrix.bias for layer in model.layers for matrix in (layer.out, layer.down) if matrix.bias is not None]
    assert biases
    assert {(bias.dtype, bias.requires_grad) for bias in biases} == {(torch.bfloat16, False)}


def test_a_model_that_has_lost_blocks_can_be_pruned_further():
    model = Decoder(tiny("llama"))
    layers = model.layers
    layers[1].remove_attention()
    layers[3].remove_mlp()
    model.set_layers(layers)
    before = parameters(model)
    decisions = FLAP().prune(model, calibration(), 0.2)
    assert (decisions["kv_heads"][1], decisions["channels"][3]) == (0, 0)
    assert abs(1 - parameters(model) / before - 0.2) < 0.02


def test_nothing_is_looked_at_for_nothing():
    model = Decoder(tiny("llama"))
    decisions = FLAP().prune(model, None, 0.0)
    assert decisions["channels"] == [48] * LAYERS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "wanda"}, "flap:metric is wifv, ifv or wifn; got 'wanda'"),
        ({"structure": "ul_mm"}, "flap:structure is al_am or ul_um; got 'ul_mm'"),
        ({"multiple": "0"}, "flap:multiple is int, at least 1; got '0'"),
    ],
)
def test_unsound_parameters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        methods.make("flap", given)
