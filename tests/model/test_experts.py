"""Mixtures of experts, seen by role and cut: what is removed is what the router may not take, and counts are true."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
import torch
from conftest import tiny
from tiny_methods import MIXED, calibration, logits
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import methods
from bench.records.speed_results import MatrixWidths
from bench.schedule.shape import Shape
from bench.speed import peaks
from bench.workshop.tiny_models import MIXTURES, WITH_MIXERS
from methods.cards import cards_of_compensations
from methods.checkpoint import load, save
from methods.checkpoint.save_load import verify
from methods.counted import count_quantity, quantity_of_layer
from methods.errors import Unsupported
from methods.model import structures
from methods.model.activations import enter, run_step
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.parts import Experts
from methods.model.sizes import active_parameters, layer_parameters, macs_per_token, parameters, sizes_of
from methods.model.structures import remove_experts

EVERY_LAYER = [[0, 3], [1, 2], [6, 7], [0, 1], [4, 5], [2, 6]]
GONE = dict.fromkeys(("mixtral", "olmoe", "gpt_oss"), EVERY_LAYER) | {
    "qwen3_moe": [[0, 3], [], [6, 7], [0, 1], [4, 5], [2, 6]],
    "qwen3_next": [[0, 3], [], [6, 7], [0, 1], [4, 5], [2, 6]],
    "glm4_moe": [[], [0, 4], [3, 7], [1, 4], [2, 5], [1, 7]],  # as many of each group
}
D = 32
WIDTH = dict.fromkeys(("qwen3_moe", "qwen3_next", "glm4_moe"), 24)  # of an expert; of the others 48
TAKEN = {"qwen3_moe": 3, "qwen3_next": 3}  # of the others 2
SUM = {"olmoe": None, "glm4_moe": 1.5}  # of the weights of a token's experts; of the others 1, and of olmoe any


def weights(family: str) -> int:
    """Parameters of one expert in the bank."""
    I = WIDTH.get(family, 48)
    return 3 * D * I + (2 * I + D if family == "gpt_oss" else 0)


def mixture_of(layer: Layer) -> Experts:
    assert layer.experts is not None
    return layer.experts


@pytest.mark.parametrize("family", MIXTURES)
def test_keeping_all_experts_changes_nothing(family, ids):
    model, dense = Decoder(tiny(family)), Decoder(tiny(family))
    for layer in model.layers:
        if layer.experts is not None:
            layer.experts.keep(range(8))
    remove_experts(model, [[] for _ in model.layers])
    assert torch.equal(logits(model, ids), logits(dense, ids))
    assert model.config.to_dict() == dense.config.to_dict()


@pytest.mark.parametrize("family", MIXTURES)
def test_removing_experts_equals_forbidding_them_in_the_router(family, ids):
    cut, forbidding = Decoder(tiny(family)), Decoder(tiny(family))
    remove_experts(cut, GONE[family])
    for layer, gone in zip(forbidding.layers, GONE[family], strict=True):
        if layer.experts is not None:
            forbid(layer.experts.router, gone)
    torch.testing.assert_close(logits(cut, ids), logits(forbidding, ids), rtol=0, atol=1e-5)
    counts = [None if layer.experts is None else layer.experts.count for layer in cut.layers]
    assert counts == [6 if gone else None for gone in GONE[family]]
    names = [name for name in ("num_experts", "num_local_experts") if hasattr(cut.config, name)]
    assert {getattr(cut.config, name) for name in names} == {6}
    assert getattr(cut.model, "num_experts", 6) == 6


def forbid(router, gone):
    """Let a router take no experts of these numbers: where it computes logits or corrects choices, theirs are -inf."""
    forward = type(router).forward
    if hasattr(router, "e_score_correction_bias"):
        router.e_score_correction_bias[gone] = -1e30
        return

    def masked(h):
        linear = torch.nn.functional.linear
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch.nn.functional, "linear", lambda *given: linear(*given).index_fill(-1, torch.tensor(gone), -1e30)
            )
            return forward(router, h)

    router.forward = masked


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_the_sum_of_its_experts_as_the_router_weighs_them(family, ids):
    model = Decoder(tiny(family))
    h = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    for layer in model.layers:
        if layer.experts is None:
            continue
        g, chosen = layer.experts.route(h)
        f = layer.experts.outputs(h, chosen)
        assert g.shape == chosen.shape == (7, layer.experts.experts_per_token)
        shared = layer.inner.mlp.shared_experts(h) if family == "glm4_moe" else 0
        if family == "qwen3_next":
            shared = torch.sigmoid(layer.inner.mlp.shared_expert_gate(h)) * layer.inner.mlp.shared_expert(h)
        torch.testing.assert_close((g[:, :, None] * f).sum(1) + shared, layer.feed_forward(h[None])[0])
        if total := SUM.get(family, 1.0):
            torch.testing.assert_close(g.sum(1), torch.full((7,), total))


@pytest.mark.parametrize("family", MIXTURES)
def test_a_step_sees_a_mixture_without_channels_and_adds_up(family, ids):
    model = Decoder(tiny(family))
    entry = enter(model, ids)
    layer, mask = model.layers[2], torch.ones_like(ids, dtype=torch.bool)
    taken = run_step(layer, entry.x, entry.arguments[layer.kind], mask)
    torch.testing.assert_close(taken.y, layer(entry.x, entry.arguments[layer.kind]))
    assert taken.channels.shape == (*ids.shape, 0)
    assert taken.m.abs().max() > 0


@pytest.mark.parametrize("gone", [[], [0, 5]], ids=["whole", "cut"])
@pytest.mark.parametrize("family", [one for one in MIXTURES if one not in WITH_MIXERS])  # see test_hybrids.py
def test_multiplications_of_a_mixture_are_those_that_torch_counts(family, gone, ids):
    model = Decoder(tiny(family, attn_implementation="eager", experts_implementation="eager"))
    remove_experts(model, [gone if layer.experts is not None else [] for layer in model.layers])
    context = ids.shape[1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model(ids[:1], use_cache=False)
    rotary = model.layers[0].head_width * context  # frequencies times positions, which is no work on a token
    counts = counter.get_total_flops() / 2 - macs_per_token(model, context) * context
    assert 0 <= counts <= 4 * rotary
    linear = macs_per_token(model, 0) - sum(quantity_of_layer(layer, "macs", 0, None) for layer in model.layers)
    assert linear == model.head.weight.numel()


@pytest.mark.parametrize("family", MIXTURES)
def test_a_token_is_computed_with_all_parameters_but_those_of_experts_that_it_does_not_take(family):
    model = Decoder(tiny(family))
    mixtures, k, row = sum(map(bool, GONE[family])), TAKEN.get(family, 2), D + (family == "gpt_oss")  # of the router
    assert active_parameters(model) == parameters(model) - mixtures * (8 - k) * weights(family)
    said = sizes_of(model, 8)
    assert said.active_parameters == active_parameters(model) < said.parameters
    before = parameters(model), active_parameters(model), count_quantity(model, "macs", 8)
    remove_experts(model, GONE[family])
    assert before[0] - parameters(model) == mixtures * 2 * (weights(family) + row)
    assert before[1] - active_parameters(model) == mixtures * 2 * row
    assert before[2] - count_quantity(model, "macs", 8) == mixtures * 2 * D


def test_a_dense_model_is_active_as_a_whole():
    model = Decoder(tiny("llama"))
    assert active_parameters(model) == parameters(model)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("method", MIXED)
def test_generation_of_a_mixture_with_a_cache_is_generation_without(method, family, ids):
    model, _ = mixed(method, family)
    whole = logits(model, ids)
    with torch.no_grad():
        out = model.model(ids[:, :14], use_cache=True)
        steps = [out.logits]
        for position in range(14, ids.shape[1]):
            out = model.model(ids[:, position : position + 1], cache=out.cache, use_cache=True)
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-4)


@cache
def mixed(method: str, family: str) -> tuple[Decoder, dict]:
    """A pruned mixture that nobody changes further, and what was decided."""
    model = Decoder(tiny(family, layers=4))
    return model, methods.make(method, MIXED.get(method, {})).prune(model, calibration(), 0.3)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("method", ["drop-tail", "blockpruner", "llm-drop", "reap", "shortgpt+ghost"])
def test_a_mixture_is_stored_and_read_by_transformers_where_its_layers_are_whole(method, family, ids, tmp_path):
    model, _ = mixed(method, family)
    manifest = save(model, tmp_path / "model")
    assert [check for check in verify(tmp_path / "model") if not check.passed] == []
    stock = method in ("drop-tail", "reap") or all(layer.has_attention and layer.has_mlp for layer in model.layers)
    stock = stock and "+" not in method
    assert (manifest["loads_with"] == "transformers") == stock
    torch.testing.assert_close(logits(load(tmp_path / "model"), ids), logits(model, ids), rtol=0, atol=1e-5)
    if stock:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        with torch.no_grad():
            torch.testing.assert_close(plain(ids).logits, logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("method", [name for name in MIXED if methods.load()[name].only_cuts])
def test_what_a_record_names_of_a_mixture_is_cut_again(method, family, ids):
    model, decisions = mixed(method, family)
    again = Decoder(tiny(family, layers=4))
    structures.cut(again, decisions)
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert again.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("kept", [(0, 2, 5), (1, 3), (2, 4, 5), (0,)])
def test_lists_of_layers_with_a_single_mlp_are_cut_with_the_layers(kept, ids):
    model = Decoder(tiny("qwen3_moe", mlp_only_layers=[0], decoder_sparse_step=2))  # mixtures: 1, 3, 5
    layers = model.layers
    assert [layer.experts is not None for layer in layers] == [False, True] * 3
    model.set_layers([layers[number] for number in kept])
    assert model.config.mlp_only_layers == [new for new, number in enumerate(kept) if number % 2 == 0]
    assert model.config.decoder_sparse_step == 1
    rebuilt = AutoModelForCausalLM.from_config(model.config)
    rebuilt.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt.eval()(ids).logits, logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kept", "first"), [((0, 2, 5), 1), ((0, 1, 3), 2), ((2, 4, 5), 0), ((0,), 1)])
def test_the_number_of_first_layers_with_a_single_mlp_is_cut_with_the_layers(kept, first, ids):
    model = Decoder(tiny("glm4_moe", first_k_dense_replace=2))
    layers = model.layers
    model.set_layers([layers[number] for number in kept])
    assert model.config.first_k_dense_replace == first
    rebuilt = AutoModelForCausalLM.from_config(model.config)
    rebuilt.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt.eval()(ids).logits, logits(model, ids), rtol=0, atol=1e-5)


MATRICES = (
    "flap",
    "wanda-sp",
    "minitron-width",
    "2ssp",
    "obs",
    "tyr",
    "llm-pruner",
    "slicegpt",
    "puzzle",
    "laco-ls",
    "laco",
)


@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_is_counted_with_its_row_of_the_router(family):
    """What a layer holds less when an expert of each group has gone, weights, biases and rows of the router."""
    layer = Decoder(tiny(family)).layers[-1]
    experts, before = layer.experts, layer_parameters(layer)
    each, size = experts.parameters, experts.count // experts.groups
    assert each - experts.weights >= experts.router.weight.shape[1]
    experts.keep([number for number in range(experts.count) if number % size])
    assert before - layer_parameters(layer) == experts.groups * each


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("method", MATRICES)
def test_what_needs_the_matrices_of_one_mlp_is_refused_before_any_work(method, family):
    with pytest.raises(Unsupported, match=r"mixture of experts|over all heads at once|a sink|a mixer"):
        methods.make(method).plan(Decoder(tiny(family)), 0.3)


@pytest.mark.parametrize("compensation", [card.name for card in cards_of_compensations()])
def test_a_compensation_serves_a_mixture_or_refuses_it_before_any_work(compensation):
    """Where a layer in the middle goes, so that whole layers stand in front of the cut and behind it."""
    pruner = methods.make(f"drop+{compensation}", {"layers": "2"})
    if not pruner.compensation.needs_one_mlp:
        assert "compensation" in pruner.prune(Decoder(tiny("mixtral")), calibration(), 0.0)
        return
    with pytest.raises(Unsupported, match="the MLP of a layer is a mixture of experts"):
        pruner.plan(Decoder(tiny("mixtral")), 0.0)


def test_a_layer_with_a_mixture_has_no_matrices_of_one_mlp():
    layer = Decoder(tiny("mixtral", layers=1)).layers[0]
    for look in (lambda: layer.up, lambda: layer.down, lambda: layer.matrices, layer.copy_sharing_matrices):
        with pytest.raises(Unsupported, match="the MLP of a layer is a mixture of experts"):
            look()


def test_layers_that_would_differ_in_their_experts_are_refused():
    model = Decoder(tiny("mixtral", layers=2))
    with pytest.raises(ValueError, match="one count for all"):
        remove_experts(model, [[0], []])


def test_shapes_of_a_mixture_are_told_without_weights():
    model = Decoder(tiny("qwen3_moe").to("meta"))
    shape = Shape.of(model)
    assert 4 * shape.mlp <= mixture_of(model.layers[0]).values < 4 * shape.mlp + 4
    assert shape.parameters == parameters(model)
    roles = peaks.widths_of_model(model)
    assert roles["router"] == MatrixWidths(read=(32,), out=(8,), multiple_of=8)
    assert roles["experts"] == MatrixWidths(read=(24, 32), out=(32, 48), multiple_of=8)
    assert "shared" not in roles and "added" not in roles
    assert peaks.widths_of_model(Decoder(tiny("gpt_oss")))["experts"] == MatrixWidths(
        read=(32, 48), out=(32, 96), multiple_of=8
    )
    shared = peaks.widths_of_model(Decoder(tiny("glm4_moe")))
    assert shared["shared"] == MatrixWidths(read=(24, 32), out=(24, 32), multiple_of=8)
    assert "added" not in shared
    assert roles["down"] == MatrixWidths(read=(48,), out=(32,), multiple_of=8)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "glm4_moe"])
def test_numbers_of_a_token_in_a_mixture_are_what_its_matrices_read_and_write(family):
    """Of glm4_moe also those of the MLP beside the experts, whose gate and up are two matrices."""
    I = WIDTH.get(family, 48)
    beside = 3 * (D + I) if family == "glm4_moe" else 0
    taken = 8 + 2 * (D + 2 * I + I + D) + beside  # of the router, of two experts, and beside them
    assert mixture_of(Decoder(tiny(family)).layers[1]).values == taken


def test_every_subset_of_the_experts_computes_what_the_formula_says():
    """All 28 choices of six experts of eight, as an enumeration such as NAEE's goes through them."""
    h = torch.randn(9, 32, generator=torch.Generator().manual_seed(3))
    whole = mixture_of(Decoder(tiny("mixtral", layers=1)).layers[0])
    rows, (up, down) = whole.router.weight.detach(), [one.detach() for one in whole.bank.parameters()]
    for gone in combinations(range(8), 2):
        layer = Decoder(tiny("mixtral", layers=1)).layers[0]
        kept = [j for j in range(8) if j not in gone]
        mixture_of(layer).keep(kept)
        want = torch.zeros_like(h)
        for t, x in enumerate(h):
            p = torch.softmax(rows[kept] @ x, 0)
            best = sorted(range(6), key=lambda number: -float(p[number]))[:2]
            for number in best:
                gate, linear = (up[kept[number]] @ x).chunk(2)
                share = p[number] / p[best].sum()
                want[t] += share * (down[kept[number]] @ (torch.nn.functional.silu(gate) * linear))
        torch.testing.assert_close(layer.feed_forward(h[None])[0], want, rtol=1e-4, atol=1e-5)
