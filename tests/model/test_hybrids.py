"""Mixers in the place of attentions: what is cut, counted, cached, stored and scored of models that have both."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from conftest import tiny
from tiny_methods import EXPERTS, HYBRID_CELLS, SPECS, calibration, logits, pruned
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

import methods
from bench.evaluation.forwards import Sweeping
from bench.evaluation.scoring import OwnModel, nll_of_windows, score
from bench.plan.protocol import Protocol
from bench.schedule.shape import Shape
from bench.speed.workloads import TimedPoint, make_capturable_cache, workload_of_point
from bench.workshop import method_checks
from bench.workshop.tiny_models import HYBRIDS, WITH_MIXERS
from methods.checkpoint import save_load
from methods.checkpoint.heterogeneous import heterogeneous_form_of
from methods.checkpoint.pruned_config import Uneven
from methods.compensation.refit import Refit, find_narrowed
from methods.compensation.replaceme import fold_map
from methods.decisions import prune
from methods.depth.laco import merge
from methods.errors import OutOfReach, Unsupported
from methods.model.activations import collect_inputs, enter, run_step
from methods.model.decoder import Decoder, positions_behind_cache
from methods.model.gradients import collect_gradients
from methods.model.inserted import put_map
from methods.model.sizes import (
    cache_bytes_read,
    kv_bytes_per_token,
    macs_behind,
    parameters,
    sizes_of,
    state_bytes,
)
from methods.model.structures import (
    Sublayer,
    keep_channels,
    keep_kv_groups,
    remove_experts,
    remove_sublayers,
    sublayers_of,
)

LATENT = {"moe_latent_size": 12}
NO_ATTENTION = {"bamba": ("attn_layer_indices", [])}  # what a configuration says that names no layer with an attention
OF_EXPERTS = {  # of nemotron_h, in two groups, of which a token may take one
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe", "full_attention"],
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 20,
    "routed_scaling_factor": 1.5,
}
WITH_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}  # of granitemoehybrid, beside its MLP


@pytest.mark.parametrize(("method", "family"), HYBRID_CELLS)
def test_a_pruned_hybrid_keeps_every_promise(method, family, ids):
    """It computes what the dense one does without what is named, with a cache too, and is the same once loaded."""
    model, decisions = pruned(method, family, 0.25)
    dense = Decoder(tiny(family))
    case = method_checks.PrunedTiny(method, {}, family, 0.25, dense, model, decisions)
    case = replace(case, parameters=methods.tiny_parameters_of(method))
    for check in ("check_decisions", "check_zeroing", "check_cache", "check_saving"):
        assert getattr(method_checks, check)(case).status != "wrong", check
    assert parameters(model) < parameters(dense)
    assert torch.isfinite(logits(model, ids)).all()


@pytest.mark.parametrize("family", WITH_MIXERS)
def test_whole_layers_that_are_left_load_in_the_stock_class(family, ids, tmp_path):
    model = Decoder(tiny(family))
    layers, kinds = model.layers, list(model.config.layer_types)
    model.set_layers([layers[number] for number in (0, 1, 3)])
    assert model.config.layer_types == [kinds[number] for number in (0, 1, 3)]
    assert save_load.save(model, tmp_path / "model")["loads_with"] == "transformers"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, logits(model, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", [one for one in WITH_MIXERS if one != "falcon_h1"])  # which has both in each layer
def test_an_attention_stays_since_a_cache_has_its_length_from_it(family):
    model = Decoder(tiny(family))
    mixers = [layer for layer in model.layers if layer.mixer is not None]
    with pytest.raises(Unsupported, match="no layer with an attention would be left"):
        model.set_layers(mixers)
    setattr(model.config, *NO_ATTENTION.get(family, ("layer_types", ["linear_attention"] * len(mixers))))
    with pytest.raises(ValueError, match="only be called on Attention layers"):  # what transformers says of its cache
        DynamicCache(config=model.config).get_seq_length()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", WITH_MIXERS)
def test_bytes_of_states_are_those_of_the_cache(family, dtype, ids):
    model = Decoder(tiny(family).to(dtype))
    remove_sublayers(model, [Sublayer("attention", 0)])
    with torch.no_grad():
        cache = model.model(ids[:1, :5], use_cache=True).cache
    linear = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    states = [state for layer in linear for state in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    assert state_bytes(model) == sum(state.nbytes for state in states if state is not None) > 0
    assert cache_bytes_read(model, 10) == 10 * kv_bytes_per_token(model) + state_bytes(model)
    assert sizes_of(model, 10).state_bytes == state_bytes(model)
    assert sizes_of(Decoder(tiny("llama")), 10).state_bytes is None


@pytest.mark.parametrize(
    ("family", "given"),
    [*((family, {}) for family in WITH_MIXERS), *(("nemotron_h", OF_EXPERTS | more) for more in ({}, LATENT))],
)
def test_multiplications_of_a_token_are_those_that_torch_counts(family, given, ids):
    """But for those of states that are no products of matrices; the convolution takes a position more each time."""
    model = Decoder(tiny(family, attn_implementation="eager", experts_implementation="eager", **given))
    state = sum(layer.mixer.macs * layer.state_numbers for layer in model.layers if layer.mixer is not None)
    is_mamba = "qwen" not in family
    width = 10 if family in ("falcon_h1", "nemotron_h") else 16
    sizes = (2, 4, width, 6) if is_mamba else (3, 4, 8, 6)  # products, heads, and both widths
    mixers = [layer for layer in model.layers if layer.mixer is not None]
    assert state == len(mixers) * prod(sizes)
    with torch.no_grad():
        cache = model.model(ids[:1, :-1], use_cache=True).cache
        with FlopCounterMode(display=False) as counter:
            model.model(ids[:1, -1:], cache=cache, use_cache=True)
    again = sum(layer.conv.numel() for layer in mixers)
    read_by_product = state // 2 if is_mamba else 0
    counted = counter.get_total_flops() // 2 + state - read_by_product - again
    rotary = 3 * model.layers[0].head_width  # frequencies times positions
    assert 0 <= counted - macs_behind(model, ids.shape[1]) <= rotary


def test_layers_of_one_shape_merge_with_all_that_a_mixer_has_but_its_norm():
    layers = Decoder(tiny("granitemoehybrid")).layers
    own = ("A_log", "D", "dt_bias", "conv1d.weight", "conv1d.bias", "in_proj.weight", "out_proj.weight")
    last = merge(layers[:3], "last", "base").attn
    total = merge(layers[:3], "sum", "base").attn
    for name in own:
        a, b, c = (layer.attn.get_parameter(name) for layer in layers[:3])
        assert torch.equal(last.get_parameter(name), c)
        torch.testing.assert_close(total.get_parameter(name), b + c - a)
    assert torch.equal(last.norm.weight, layers[0].attn.norm.weight)
    assert not torch.equal(layers[0].attn.A_log, layers[2].attn.A_log)


def test_windows_of_layers_that_differ_are_out_of_reach_before_any_work():
    for ratio, C in ((0.3, 4), (0.6, 2)):
        with pytest.raises(OutOfReach, match="of which only those of one shape merge"):
            methods.make("laco", {"C": C, "I": 1}).plan(Decoder(tiny("qwen3_5_text")), ratio)


@pytest.mark.parametrize("family", HYBRIDS)
def test_layers_of_uneven_widths_are_padded_and_no_other_layout_takes_them(family, ids, tmp_path):
    model = Decoder(tiny(family))
    keep_channels(next(layer for layer in model.layers if layer.has_mlp), range(40))
    assert save_load.save(model, tmp_path / "uneven")["loads_with"] == "prunebench"
    assert save_load.save(model, tmp_path / "even", pad=True)["loads_with"] == "transformers"
    torch.testing.assert_close(logits(save_load.load(tmp_path / "even"), ids), logits(model, ids), rtol=0, atol=1e-5)
    with pytest.raises(Uneven, match="have a mixer"):
        heterogeneous_form_of(model)


@pytest.mark.parametrize("family", WITH_MIXERS)
def test_scores_and_texts_are_those_of_the_plain_model(family, ids):
    """A question shares its beginning with the next one, and no branch of them may pass through another's state."""
    inner = tiny(family)
    rows = [tuple(ids[0, :9].tolist()), tuple(ids[0, :5].tolist() + ids[1, :4].tolist())]
    questions = sorted((row, 3) for row in rows)
    sums, _ = score(inner, questions, 4)
    swept, _ = score(inner, questions, 4, Sweeping(1))
    assert torch.equal(swept, sums)
    for (row, _), total in zip(questions, sums.tolist(), strict=True):
        with torch.no_grad():
            p = inner(torch.tensor([row])).logits[0].log_softmax(-1)
        assert total == pytest.approx(sum(float(p[at - 1, row[at]]) for at in (6, 7, 8)), abs=1e-4)
    scored = torch.ones_like(ids, dtype=torch.bool).index_fill(1, torch.tensor([0]), False)
    pieces, whole = (nll_of_windows(inner, ids, scored, size) for size in (4, 4096))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)
    written = OwnModel(inner, 16).write_behind(sorted(rows), 5, [], lambda tokens: False)
    for row, tokens in zip(sorted(rows), written, strict=True):
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        assert inner.generate(torch.tensor([row]), use_cache=False, **options)[0, len(row) :].tolist() == tokens


class Relaunched:
    """Stands for a captured step on a machine without CUDA: it runs the step once more."""

    def capture(self, step, rewind):
        rewind()
        self.replay = step


@pytest.mark.parametrize("mode", ["dynamic", "static", "graph"])
@pytest.mark.parametrize("family", HYBRIDS)
def test_each_timed_pass_begins_with_the_same_states(family, mode):
    inner = tiny(family)
    protocol = Protocol(decode_steps=3, cache="dynamic" if mode == "dynamic" else "static")
    point = TimedPoint("decode", 2, 12, "graph" if mode == "graph" else "")
    work, ends = workload_of_point(inner, point, protocol, Relaunched), []
    for _ in range(2):
        work.reset()
        with torch.no_grad():
            for _ in range(3):
                out = work.step()
        ends.append(out.logits[:, -1])
    ids = torch.randint(128, (2, 15), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ends[0], logits(Decoder(inner), ids)[:, -1], rtol=0, atol=1e-5)
    assert torch.equal(*ends)


def test_a_capturable_cache_and_a_shape_know_mixers():
    model = Decoder(tiny("qwen3_5_text"))
    assert sum(make_capturable_cache(model.config, 4, 8).is_linear) == 4
    assert (Shape.of(model).heads, Shape.of(model).keys) == (64, 64)


@pytest.mark.parametrize("family", WITH_MIXERS)
def test_a_map_of_the_residual_stands_between_two_layers(family, ids, tmp_path):
    """Also where a layer returns a tuple."""
    model, M = Decoder(tiny(family)), 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    layers, entry = model.layers, enter(model, ids)
    with torch.no_grad():
        x = entry.run(layers[:3], entry.x)
        expected = model.logits(entry.run(layers[3:], x + x @ M))
    put_map(model, 2, M)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    save_load.save(model, tmp_path / "model")
    assert torch.equal(logits(save_load.load(tmp_path / "model"), ids), logits(model, ids))


@pytest.mark.parametrize("family", [*HYBRIDS, "granite", "gemma2", "cohere2", "opt"])
def test_an_addition_is_made_of_the_outputs_of_its_matrices(family, ids):
    """Repairs fit these outputs, and go on with the additions that follow."""
    model = Decoder(tiny(family))
    entry = enter(model, ids)
    x, mask = entry.x, torch.ones_like(ids, dtype=torch.bool)
    for layer in model.layers:
        arguments = entry.arguments[layer.kind]
        with torch.no_grad(), collect_inputs((layer.qkv if layer.has_attention else layer.up)[0]) as entered:
            step = run_step(layer, x, arguments, mask)
            h = x if layer.parallel else x + step.a
            if layer.has_heads:
                torch.testing.assert_close(entered[0], layer.enter(layer.attn_norm(x)))
                torch.testing.assert_close(layer.attention(layer.attn_norm(x), arguments), layer.out(step.heads))
            if layer.has_attention:
                attention = layer.join(0, layer.out(step.heads), x, arguments)
                torch.testing.assert_close(attention, step.a, rtol=0, atol=1e-5)
            if layer.has_mlp:
                mlp = layer.join(1, layer.down(step.channels), h, arguments)
                torch.testing.assert_close(layer.feed_forward(layer.mlp_norm(h)), layer.down(step.channels))
                torch.testing.assert_close(mlp, step.m, rtol=0, atol=1e-5)
            torch.testing.assert_close(layer(x, arguments), step.y, rtol=0, atol=1e-5)
        x = step.y


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_map_of_an_addition_goes_into_all_that_write_it(family, ids):
    model = Decoder(tiny(family))
    entry = enter(model, ids)
    layer, T = model.layers[3], torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        before = layer.attend(entry.x, entry.arguments[layer.kind])
        for matrix in layer.writers(0):
            fold_map(matrix, T)
        after = layer.attend(entry.x, entry.arguments[layer.kind])
    torch.testing.assert_close(after, before @ T.float(), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["falcon_h1", "granitemoehybrid", "nemotron_h"])
def test_a_refit_goes_on_with_what_the_layer_gives(family, ids):
    dense, model = Decoder(tiny(family)), Decoder(tiny(family))
    entry, where = enter(model, ids), torch.ones_like(ids, dtype=torch.bool)
    number = 3 if family != "nemotron_h" else 1  # one with an attention, and with an MLP
    whole, layer = dense.layers[number], model.layers[number]
    keep_channels(layer, range(20))
    if family == "falcon_h1":
        keep_kv_groups(layer, [1])
    batches = [(entry.x, entry.arguments[layer.kind], where)]
    (y,), report = Refit(ridge=1e-6).refit_layer(whole, layer, find_narrowed(whole, layer), batches, lambda each: each)
    torch.testing.assert_close(y, layer(entry.x, entry.arguments[layer.kind]), rtol=0, atol=1e-5)
    assert all(fit["error_after"] < fit["error_before"] for fit in report)


def test_experts_of_nemotron_have_no_gate_and_are_removed_as_if_forbidden(ids, tmp_path):
    cut, forbidding = (Decoder(tiny("nemotron_h", **OF_EXPERTS)) for _ in range(2))
    gone = [[], [0, 5], [], [], [3, 4], []]
    remove_experts(cut, gone)
    h = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    for layer, numbers in zip(forbidding.layers, gone, strict=True):
        if (experts := layer.experts) is None:
            continue
        g, chosen = experts.route(h)
        f, shared = experts.outputs(h, chosen), layer.inner.mixer.shared_experts(h)
        torch.testing.assert_close((g[:, :, None] * f).sum(1) + shared, layer.feed_forward(h[None])[0])
        down = experts.tensors_of(int(chosen[0, 0]))["down_proj"]
        torch.testing.assert_close(experts.activations(h, int(chosen[0, 0]))[0] @ down.T, f[0, 0])
        assert experts.weights_of_channels(0).shape == (24, 2 * 32)
        experts.put(1, experts.reorder_channels(1, torch.arange(24).flip(0)))  # which changes nothing
        experts.router.e_score_correction_bias[numbers] = -1e30
    torch.testing.assert_close(logits(cut, ids), logits(forbidding, ids), rtol=0, atol=1e-5)
    assert cut.config.n_routed_experts == cut.layers[1].experts.count == 6
    assert save_load.save(cut, tmp_path / "model")["loads_with"] == "transformers"
    torch.testing.assert_close(logits(save_load.load(tmp_path / "model"), ids), logits(cut, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [*EXPERTS, "drop-tail", "blockpruner"])
def test_methods_serve_experts_of_nemotron(method, ids, tmp_path):
    model = Decoder(tiny("nemotron_h", **OF_EXPERTS))
    before = parameters(model)
    prune(methods.make(method, (EXPERTS | SPECS)[method]), model, calibration(), 0.1)  # which judges decisions, too
    assert parameters(model) < before
    save_load.save(model, tmp_path / "model")
    assert not [check for check in save_load.verify(tmp_path / "model") if not check.passed]
    torch.testing.assert_close(logits(save_load.load(tmp_path / "model"), ids), logits(model, ids), rtol=0, atol=1e-5)


def test_experts_that_read_a_projection_stay(ids):
    model = Decoder(tiny("nemotron_h", **OF_EXPERTS, **LATENT))
    with pytest.raises(Unsupported, match="they read a projection of the residual"):
        methods.make("reap").plan(model, 0.1)
    with pytest.raises(Unsupported, match="a mixture of experts stands for its MLP"):
        methods.make("minitron-width").plan(model, 0.1)


def test_layers_that_are_one_sublayer_go_whole(ids):
    model, kinds = Decoder(tiny("nemotron_h")), tiny("nemotron_h").config.layer_types
    parts = [str(each) for each in sublayers_of(model, "attention", "mlp")]
    assert parts == [f"{'mlp' if kind == 'mlp' else 'attention'} {number}" for number, kind in enumerate(kinds)]
    named = remove_sublayers(model, [Sublayer("mlp", 1), Sublayer("attention", 2), Sublayer("mlp", 3)])
    assert named == {"removed_layers": [1, 2], "removed_attention": [], "removed_mlp": []}
    assert model.config.layers_block_type == [kinds[number] for number in (0, 3, 4, 5)]
    with pytest.raises(Unsupported, match="a layer has no MLP"):
        methods.make("laco-ls").plan(model, 0.2)
    with pytest.raises(Unsupported, match="an attention, a mixer or an MLP alone"):
        _ = model.layers[1].down


def test_cached_time_steps_of_nemotron_have_no_least_value_and_others_have(ids):
    """Where they are so small: transformers clamps those of a whole text alone."""
    off = []
    for clamps in (True, False):
        inner = tiny("nemotron_h")
        with torch.no_grad():
            for layer in Decoder(inner).layers:
                if layer.mixer is not None:
                    layer.attn.dt_bias.sub_(8)
                    layer.attn.time_step_limit = layer.attn.time_step_limit if clamps else (0.0, float("inf"))
            whole, cache, steps = logits(Decoder(inner), ids), inner(ids[:, :9], use_cache=True).cache, []
            for t in range(9, ids.shape[1]):
                steps.append(inner(ids[:, t : t + 1], cache=cache, use_cache=True).logits)
        off.append(float((torch.cat(steps, 1) - whole[:, 9:]).abs().max() / whole.abs().max()))
    assert off[0] > 2e-5
    assert off[1] < 5e-6


def test_bamba_takes_the_first_token_of_each_call_for_position_zero(ids):
    """Where it no longer does, calls need not say where their tokens stand (positions_behind_cache)."""
    inner = tiny("bamba")
    whole = logits(Decoder(inner), ids)[:, 9:]
    with torch.no_grad():
        rests = []
        for positions in ({}, positions_behind_cache(inner, 9, 11)):
            cache = inner(ids[:, :9], use_cache=True).cache
            rests.append(inner(ids[:, 9:], cache=cache, use_cache=True, **positions).logits)
    assert float((rests[0] - whole).abs().max()) > 1e-2
    torch.testing.assert_close(rests[1], whole, rtol=0, atol=1e-5)
    assert positions_behind_cache(tiny("llama"), 9, 11) == {}


@pytest.mark.parametrize("family", HYBRIDS)
def test_gradients_layer_by_layer_are_those_of_the_whole_model(family):
    model, tokens = Decoder(tiny(family)), calibration()
    few = replace(tokens, ids=tokens.ids[:2], mask=tokens.mask[:2])
    logs = [f"{layer.mixer.path}.A_log" if layer.mixer is not None else "" for layer in model.layers]
    weights = {layer.inner.get_parameter(log) for layer, log in zip(model.layers, logs, strict=True) if log}
    sums = collect_gradients(model, few, weights, lambda _, g, __: [g[W].clone() for W in g])
    whole = Decoder(tiny(family))
    whole.model(few.ids, labels=few.ids).loss.backward()
    for number, (layer, log) in enumerate(zip(whole.layers, logs, strict=True)):
        if log:
            expected = layer.inner.get_parameter(log).grad
            torch.testing.assert_close(sums[number][0], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_an_mlp_beside_experts_goes_with_them(ids, tmp_path):
    cut, silenced = (Decoder(tiny("granitemoehybrid", **WITH_EXPERTS)) for _ in range(2))
    sizes, before = cut.layers[1].sizes(), parameters(cut)
    remove_sublayers(cut, [Sublayer("mlp", 1), Sublayer("attention", 2)])
    layers = silenced.layers
    with torch.no_grad():
        for parameter in (*layers[1].inner.shared_mlp.output_linear.parameters(), *layers[2].out.parameters()):
            parameter.zero_()
        layers[1].experts.bank.down_proj.zero_()
    expected = logits(silenced, ids)
    torch.testing.assert_close(logits(cut, ids), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert before - parameters(cut) == sizes["mlp"] + layers[2].sizes()["attention"]
    assert save_load.save(cut, tmp_path / "model")["loads_with"] == "prunebench"
    assert torch.equal(logits(save_load.load(tmp_path / "model"), ids), logits(cut, ids))


def test_experts_beside_an_mlp_are_removed_alone(ids, tmp_path):
    model = Decoder(tiny("granitemoehybrid", **WITH_EXPERTS))
    with torch.no_grad():
        for layer in model.layers:
            layer.experts.router.weight[5:] = 0
            layer.experts.router.weight[5:, 0] = -1e3  # a token with a positive first channel takes none of these
    remove_experts(model, [[5, 6, 7]] * 6)
    assert model.config.num_local_experts == model.layers[0].experts.count == 5
    assert save_load.save(model, tmp_path / "model")["loads_with"] == "transformers"
    assert torch.equal(logits(save_load.load(tmp_path / "model"), ids), logits(model, ids))
