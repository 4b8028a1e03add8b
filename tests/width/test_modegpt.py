"""MoDeGPT: leverages by ridge regressions, fits by lstsq on activations noted by hooks, shares and budgets by hand."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, VOCABULARY, tiny
from torch.nn.functional import cosine_similarity

import methods
from methods.errors import OutOfReach, Unsupported
from methods.model.activations import enter
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import slices_of_attention
from methods.width.modegpt import (
    HeadLoss,
    HeadSizes,
    MoDeGPT,
    collect_moments,
    cut_heads,
    find_shares,
    fit_heads,
    fit_values,
    leverage_of_channels,
    pairs_of_dimensions,
    round_counts,
    score_pairs,
)

LENGTHS = (24, 20, 9, 24, 3, 24)
TINY_DAMPING = 1e-12


def calibration(filler: int = 0, **options: object) -> Calibration:
    """Sequences of LENGTHS, padded on the right with the word `filler`."""
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    return Calibration(ids.where(mask, filler), mask, **options)


@torch.no_grad()
def noted(model: Decoder, modules: list[torch.nn.Module], *, outputs: bool = False) -> list[torch.Tensor]:
    """Return what enters modules, or leaves them, on all real tokens, (T, C) each in float64, from whole forwards."""
    rows: list[list[torch.Tensor]] = [[] for _ in modules]
    hooks = []
    for module, kept in zip(modules, rows, strict=True):

        def note(_: object, x: object, y: object = None, kept: list[torch.Tensor] = kept) -> None:
            value = x if y is None else y
            kept.append((value[0] if isinstance(value, tuple) else value).flatten(0, -2).double())

        hooks.append((module.register_forward_hook if outputs else module.register_forward_pre_hook)(note))
    tokens = calibration()
    for ids, length in zip(tokens.ids, LENGTHS, strict=True):
        model.model(ids[None, :length], use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept) for kept in rows]


def test_a_leverage_is_the_error_of_a_ridge_regression_of_the_channel():
    """min over w of ||z_i - Z w||^2 + T lam ||w||^2 is T lam s_i; each is solved for on its own."""
    of = torch.Generator().manual_seed(0)
    Z = torch.randn(40, 12, generator=of, dtype=torch.float64) @ torch.randn(12, 12, generator=of, dtype=torch.float64)
    C = Z.T @ Z / len(Z)
    lam = 0.3 * float(C.diagonal().mean())
    whole = torch.cat([Z, (len(Z) * lam) ** 0.5 * torch.eye(12, dtype=torch.float64)])
    expected = []
    for i in range(12):
        target = torch.cat([Z[:, i], torch.zeros(12, dtype=torch.float64)])
        w = torch.linalg.lstsq(whole, target[:, None]).solution
        expected.append(float((whole @ w - target[:, None]).square().sum()) / (len(Z) * lam))
    torch.testing.assert_close(leverage_of_channels(C.clone(), 0.3), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(leverage_of_channels(7 * C, 0.3), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi3", "phi"])
@torch.no_grad()
def test_influences_leverages_and_fits_by_hand(family):
    """Of the dense model; the pruned down matrix is the least-squares one on what the dense model gives."""
    dense, model = Decoder(tiny(family)), Decoder(tiny(family))
    Z = noted(dense, [layer.down for layer in dense.layers])
    x = noted(dense, [layer.module for layer in dense.layers])
    y = noted(dense, [layer.module for layer in dense.layers], outputs=True)
    moments = collect_moments(Decoder(tiny(family)), calibration(filler=9), 0.01, "mlp")
    decisions = MoDeGPT(parts="mlp", damping=TINY_DAMPING, smoothing=0.5).prune(model, calibration(), 0.15)
    for number, (layer, cut) in enumerate(zip(dense.layers, model.layers, strict=True)):
        expected = float((1 - cosine_similarity(x[number], y[number], dim=-1)).mean())
        assert float(moments[number].influence) == pytest.approx(expected, abs=1e-5)
        assert decisions["influences"][number] == pytest.approx(expected, abs=1e-5)
        C = Z[number].T @ Z[number]
        lam = 0.01 * float(C.diagonal().mean())
        s = (C @ torch.linalg.inv(C + lam * torch.eye(len(C)))).diagonal()
        torch.testing.assert_close(moments[number].leverage, s, rtol=1e-3, atol=1e-4)
        lost = decisions["removed_channels"][number]
        assert sorted(s.argsort()[: len(lost)].tolist()) == lost
        K = [channel for channel in range(len(C)) if channel not in lost]
        target = Z[number] @ layer.down.weight.double().T
        best = torch.linalg.lstsq(Z[number][:, K], target, driver="gelsd").solution
        missed = float((Z[number][:, K] @ cut.down.weight.double().T - target).square().sum())
        least = float((Z[number][:, K] @ best - target).square().sum())
        assert missed <= 1.001 * least + 1e-6 * float(target.square().sum())
        if lost:
            share = decisions["missed"][number]["channels"]
            assert share == pytest.approx(least / float(target.square().sum()), rel=1e-2, abs=1e-6)
    assert any(decisions["removed_channels"])


def test_a_pruned_prefix_feeds_the_fits():
    """The second layer is fitted on what the cut first layer gives."""
    dense, model = Decoder(tiny("llama")), Decoder(tiny("llama"))
    decisions = MoDeGPT(parts="mlp", damping=TINY_DAMPING, smoothing=0.5, prefix="pruned").prune(
        model, calibration(), 0.15
    )
    plain = MoDeGPT(parts="mlp", damping=TINY_DAMPING, smoothing=0.5).prune(Decoder(tiny("llama")), calibration(), 0.15)
    assert decisions["removed_channels"] == plain["removed_channels"]
    assert decisions["missed"][0] == plain["missed"][0]
    assert decisions["missed"][1] != plain["missed"][1]
    (h,) = noted(model, [model.layers[1].mlp_norm])
    with torch.no_grad():
        layer, normed = dense.layers[1], model.layers[1].mlp_norm(h.float())
        gate, up = (matrix(normed) for matrix in layer.up)
        Z = (torch.nn.functional.silu(gate) * up).double()
        K = [channel for channel in range(48) if channel not in decisions["removed_channels"][1]]
        target = Z @ layer.down.weight.double().T
        best = Z[:, K] @ torch.linalg.lstsq(Z[:, K], target, driver="gelsd").solution
        ours = Z[:, K] @ model.layers[1].down.weight.double().T
    assert float((ours - target).square().sum()) <= 1.001 * float((best - target).square().sum())


def test_shares_are_in_proportion_and_add_up():
    weights, sizes = torch.tensor([4.0, 2.0, 1.0, 1.0]).double(), torch.tensor([10.0, 20.0, 10.0, 40.0]).double()
    most = torch.full_like(weights, 0.5)
    free = find_shares(weights, sizes, most, 6.0)
    torch.testing.assert_close(free / free[3], weights)
    capped = find_shares(weights, sizes, most, 30.0)
    assert capped[:2].tolist() == [0.5, 0.5]
    assert float(capped[2]) == pytest.approx(float(capped[3])) == pytest.approx(0.3)
    assert float((sizes * capped).sum()) == pytest.approx(30.0)
    assert find_shares(weights, sizes, most, 40.0).tolist() == pytest.approx([0.5] * 4)


def test_remainders_go_up_while_that_comes_nearer():
    allowed = [torch.arange(6), torch.arange(6), torch.tensor([0, 4])]
    assert round_counts([1.6, 2.9, 0.0], allowed, [10, 10, 10], 45) == [1, 3, 0]
    assert round_counts([1.6, 2.9, 0.0], allowed, [10, 10, 10], 47) == [2, 3, 0]
    assert round_counts([1.0, 1.0, 3.9], allowed, [10, 10, 10], 59) == [1, 1, 4]
    assert round_counts([5.0, 5.0, 4.0], allowed, [10, 10, 10], 140) == [5, 5, 4]


def test_layers_of_little_influence_lose_more_within_their_most():
    decisions = MoDeGPT(parts="mlp", smoothing=0.2, most=0.5).prune(Decoder(tiny("llama")), calibration(), 0.2)
    order = sorted(range(LAYERS), key=decisions["influences"].__getitem__)
    left = [decisions["channels"][number] for number in order]
    assert left == sorted(left)
    assert left[0] == 24 < left[-1]
    alike = MoDeGPT(parts="mlp", smoothing=1e6).prune(Decoder(tiny("llama")), calibration(), 0.2)["channels"]
    assert max(alike) - min(alike) <= 1


@pytest.mark.parametrize("parts", ["all", "mlp"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_the_budget_is_met_to_half_a_channel(family, parts):
    dense = parameters(Decoder(tiny(family)))
    for ratio in (0.01, 0.12, 0.23):
        model = Decoder(tiny(family))
        cost = sum(matrix.weight.numel() for matrix in (*model.layers[0].up, model.layers[0].down))
        MoDeGPT(parts=parts).prune(model, calibration(), ratio)
        biases = 0 if family != "gpt2" else 1
        assert abs(dense - parameters(model) - ratio * dense) <= (cost / model.layers[0].down.out_features + biases)


def test_equal_and_round_widths():
    uniform = MoDeGPT(parts="mlp", uniform=True, multiple=16).prune(Decoder(tiny("llama")), calibration(), 0.2)
    assert uniform["channels"] == [32] * LAYERS
    widths = MoDeGPT(multiple=8).prune(Decoder(tiny("llama")), calibration(), 0.2)["channels"]
    assert len(set(widths)) > 1
    assert all(width % 8 == 0 for width in widths)


def test_padding_and_micro_batches_change_nothing():
    runs = [
        MoDeGPT().prune(Decoder(tiny("qwen2")), calibration(filler=filler, memory=memory), 0.2)
        for filler, memory in ((0, 2**30), (77, 2**30), (0, 1))
    ]
    assert runs[0]["removed_channels"] == runs[1]["removed_channels"] == runs[2]["removed_channels"]
    for run in runs[1:]:
        assert run["influences"] == pytest.approx(runs[0]["influences"], rel=1e-5)


def test_removals_of_a_record_are_fitted_again():
    first, again = Decoder(tiny("llama")), Decoder(tiny("llama"))
    decisions = MoDeGPT(parts="mlp").prune(first, calibration(), 0.2)
    lost = decisions["removed_channels"]
    order = tuple(f"channels {number} {'+'.join(map(str, units))}" for number, units in enumerate(lost) if units)
    other = MoDeGPT(parts="mlp", smoothing=9.0).prune(again, replace(calibration(), order=order), 0.2)
    assert other["removed_channels"] == lost
    for mine, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(OutOfReach, match=r"with most=0.5 of each layer's channels gone, 0.273 .* larger most"):
        MoDeGPT(parts="mlp", most=0.5).plan(Decoder(tiny("llama")), 0.4)
    with pytest.raises(OutOfReach, match=r"with most=0.5 of each layer's channels and head widths gone, 0\.4\d+ of"):
        MoDeGPT(most=0.5).plan(Decoder(tiny("llama")), 0.6)
    with pytest.raises(Unsupported, match="q and k are normed over all heads at once"):
        MoDeGPT().plan(Decoder(tiny("olmo2")), 0.1)
    assert MoDeGPT(parts="mlp").plan(Decoder(tiny("olmo2")), 0.1)
    with pytest.raises(Unsupported, match="experts"):
        MoDeGPT().plan(Decoder(tiny("mixtral")), 0.1)


def test_nothing_is_looked_at_for_nothing():
    decisions = MoDeGPT().prune(Decoder(tiny("llama")), None, 0.0)
    assert (decisions["channels"], decisions["missed"]) == ([48] * LAYERS, [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": "qk"}, "modegpt:parts"),
        ({"uniform": "true"}, "uniform=true goes with parts=mlp"),
        ({"ridge": "0"}, "modegpt:ridge is float, more than 0 and finite; got '0'"),
        ({"most": "1"}, "modegpt:most is float"),
    ],
)
def test_unsound_parameters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        methods.make("modegpt", given)


# --- heads

HEADS = ["llama", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt2", "cohere2", "qwen2"]


def test_values_are_fitted_as_by_two_decompositions_of_whole_matrices():
    """For one query head: the paper's SVD of C^(1/2) W_v^T and of what is left of it times W^T."""
    of = torch.Generator().manual_seed(1)
    X = torch.randn(200, 20, generator=of, dtype=torch.float64) @ torch.randn(20, 20, generator=of, dtype=torch.float64)
    W_v, W = torch.randn(8, 20, generator=of).double(), torch.randn(20, 8, generator=of).double()
    C = X.T @ X / len(X)
    values, vectors = torch.linalg.eigh(C)
    root = (vectors * values.sqrt()) @ vectors.T
    U, S, Vt = torch.linalg.svd(root @ W_v.T, full_matrices=False)
    U2, S2, V2t = torch.linalg.svd(S[:, None] * Vt @ W.T, full_matrices=False)
    expected = torch.linalg.solve(root, U @ U2[:, :3]) @ (S2[:3, None] * V2t[:3])
    read, write, missed = fit_values((W_v @ C @ W_v.T)[None], (W.T @ W)[None], 3, 1e-14)
    torch.testing.assert_close(W_v.T @ read[0] @ write[0].T @ W.T, expected, rtol=1e-6, atol=1e-8)
    assert missed == pytest.approx(float(S2[3:].square().sum() / S2.square().sum()), rel=1e-6)


def test_no_other_values_miss_less_for_all_query_heads():
    of = torch.Generator().manual_seed(2)
    V = torch.randn(300, 6, generator=of, dtype=torch.float64) @ torch.randn(6, 6, generator=of, dtype=torch.float64)
    heads = torch.randn(3, 10, 6, generator=of, dtype=torch.float64)
    C_v, S = V.T @ V / len(V), torch.einsum("rdi,rdj->ij", heads, heads)
    read, write, share = fit_values(C_v[None], S[None], 4, 1e-14)

    def missed(P: torch.Tensor) -> float:
        return sum(float(((V - V @ P) @ W.T).square().mean(0).sum()) for W in heads)

    best = missed(read[0] @ write[0].T)
    assert best == pytest.approx(share * missed(torch.zeros(6, 6, dtype=torch.float64)), rel=1e-9)
    for seed in range(20):
        other = [
            part + 0.01 * torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(seed)) for part in (read, write)
        ]
        assert missed(other[0][0] @ other[1][0].T) > best


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "glm4", "cohere2", "stablelm", "phi", "nemotron", "qwen3_vl"])
def test_positions_turn_the_dimensions_of_a_pair_among_themselves(family):
    """By the function that the family's own attention calls."""
    model = Decoder(tiny(family))
    pairs, E = pairs_of_dimensions(model), model.layers[0].head_width
    assert sorted(pairs.flatten().tolist()) == list(range(E))
    entry = enter(model, calibration().ids[:1])
    turn = sys.modules[type(model.layers[0].attn).__module__].apply_rotary_pos_emb
    cos, sin = next(iter(entry.arguments.values()))["position_embeddings"]
    for pair in pairs.tolist():
        q = torch.zeros(1, 1, cos.shape[1], E)
        q[..., pair] = 1.0
        turned = q.clone()
        turned[..., : cos.shape[-1]] = turn(q[..., : cos.shape[-1]], q[..., : cos.shape[-1]], cos, sin)[0]
        assert {at for at in range(E) if turned[..., at].any()} <= set(pair)


@pytest.mark.parametrize("family", HEADS)
@torch.no_grad()
def test_moments_of_heads_by_hand(family):
    """Of what the matrices give on whole forwards; behind their norm for the score."""
    model = Decoder(tiny(family))
    moments = collect_moments(Decoder(tiny(family)), calibration(filler=9), 0.01, "all")
    layer, of = model.layers[1], moments[1]
    outputs = noted(model, layer.qkv, outputs=True)
    G, E = layer.kv_heads, layer.head_width
    parts = slices_of_attention(layer)[:3]
    place = {id(matrix): at for at, matrix in enumerate(layer.qkv)}
    q, k, v = (
        outputs[place[id(part.matrix)]][:, part.index.flatten()].view(-1, G, part.index.shape[1] // E, E)
        for part in parts
    )
    torch.testing.assert_close(of.q[0], q.square().mean(0), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(of.C_v, torch.einsum("tgri,tgrj->gij", v, v) / len(v), rtol=1e-4, atol=1e-8)
    normed = [
        states if norm is None else norm(states.float()).double()
        for states, norm in ((q, getattr(layer.attn, "q_norm", None)), (k, getattr(layer.attn, "k_norm", None)))
    ]
    expected = (normed[0].square().mean(0) * normed[1].square().mean(0)).sum(1)
    pairs = pairs_of_dimensions(model)
    torch.testing.assert_close(score_pairs(of, pairs), expected[:, pairs].sum(-1).sqrt(), rtol=1e-4, atol=1e-9)


def narrowed(family: str, loss: HeadLoss) -> tuple[Decoder, dict]:
    model = Decoder(tiny(family))
    moments = collect_moments(model, calibration(), 0.01, "all")
    fits = fit_heads(model, moments, {1: loss, 4: loss}, 1e-6)
    cut_heads(model, fits)
    return model, fits


@pytest.mark.parametrize("family", HEADS)
@torch.no_grad()
def test_cut_heads_are_whole_ones_with_zeros(family, ids):
    """Queries and keys without the rows of what goes, values times read and write, norms with their gains."""
    model, fits = narrowed(family, HeadLoss(2, 3))
    whole = Decoder(tiny(family))
    pairs = pairs_of_dimensions(whole)
    for number, fit in fits.items():
        layer = whole.layers[number]
        q, k, v, _ = slices_of_attention(layer)
        G, R, E = layer.kv_heads, layer.group, layer.head_width
        for group in range(G):
            gone = pairs[fit.removed[group]].flatten()
            for part, heads in ((q, R), (k, 1)):
                rows = part.index[group].view(heads, E)[:, gone].flatten()
                part.matrix.weight[rows] = 0
                if part.matrix.bias is not None:
                    part.matrix.bias[rows] = 0
            P = (fit.read[group] @ fit.write[group].T).T
            v.matrix.weight[v.index[group]] = (P @ v.matrix.weight[v.index[group]].double()).float()
            if v.matrix.bias is not None:
                v.matrix.bias[v.index[group]] = (P @ v.matrix.bias[v.index[group]].double()).float()
        for name, gain in zip(("q_norm", "k_norm"), fit.gains, strict=True):
            if norm := getattr(layer.attn, name, None):
                norm.weight.copy_((norm.weight + whole.family.gain_offset) * gain - whole.family.gain_offset)
    expected = whole.model(ids, use_cache=False).logits
    torch.testing.assert_close(model.model(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)
    sizes = HeadSizes.of(whole.layers[1])
    assert parameters(whole) - parameters(model) == 2 * sizes.parameters_of(HeadLoss(2, 3))


@pytest.mark.parametrize("loss", [HeadLoss(1, 0), HeadLoss(0, 1)])
def test_what_stays_whole_stays_a_plain_matrix(loss):
    model, _ = narrowed("llama", loss)
    kinds = {path: type(matrix).__name__ for path, matrix in model.layers[1].named_matrices().items()}
    changed = {path.rpartition(".")[2]: kind for path, kind in kinds.items() if kind != "Linear"}
    queries, values = {"q_proj": "FewRows", "k_proj": "FewRows"}, {"v_proj": "FewRows", "o_proj": "FewColumns"}
    assert changed == (queries if loss.pairs else values)


@torch.no_grad()
def test_gains_keep_the_size_of_normed_queries(ids):
    """Of what is left: without them a norm would stretch it to the size of a whole head."""
    model, fits = narrowed("qwen3", HeadLoss(5, 0))
    assert all(0.3 < gain < 1 for fit in fits.values() for gain in fit.gains)
    pairs, fit = pairs_of_dimensions(model), fits[1]
    stays = sorted(set(range(model.layers[1].head_width)) - set(pairs[fit.removed[0]].flatten().tolist()))
    sizes = []
    for each in (Decoder(tiny("qwen3")), model):
        (normed,) = noted(each, [each.layers[1].attn.q_norm], outputs=True)
        sizes.append(float(normed.view(-1, each.layers[1].head_width)[:, stays].square().mean().sqrt()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)


def test_decisions_say_what_heads_have_lost():
    model = Decoder(tiny("llama"))
    decisions = MoDeGPT(smoothing=0.5).prune(model, calibration(), 0.15)
    E = model.layers[0].head_width
    for layer, widths, lost in zip(model.layers, decisions["head_widths"], decisions["removed_pairs"], strict=True):
        rows = [sum(part.numel() for part in matrix.parameters()) for matrix in (*layer.qkv, layer.out)]
        D, H, G = 32, layer.kv_heads * layer.group, layer.kv_heads
        assert rows == [D * H * widths[0], D * G * widths[0], D * G * widths[1], D * H * widths[1]]
        assert [E - 2 * len(of_group) for of_group in lost] in ([], [widths[0]] * G)
    assert any(decisions["removed_pairs"])
