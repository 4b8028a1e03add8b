"""MoDeGPT: leverages by ridge regressions, fits by lstsq on activations noted by hooks, shares and budgets by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, VOCABULARY, tiny
from torch.nn.functional import cosine_similarity

import methods
from methods.errors import OutOfReach, Unsupported
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.width.modegpt import (
    MoDeGPT,
    collect_influence_and_leverage,
    find_shares,
    leverage_of_channels,
    round_counts,
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
    BI, *leverages = collect_influence_and_leverage(Decoder(tiny(family)), calibration(filler=9), 0.01)
    decisions = MoDeGPT(damping=TINY_DAMPING, smoothing=0.5).prune(model, calibration(), 0.15)
    for number, (layer, cut) in enumerate(zip(dense.layers, model.layers, strict=True)):
        expected = float((1 - cosine_similarity(x[number], y[number], dim=-1)).mean())
        assert float(BI[number]) == pytest.approx(expected, abs=1e-5)
        assert decisions["influences"][number] == pytest.approx(expected, abs=1e-5)
        C = Z[number].T @ Z[number]
        lam = 0.01 * float(C.diagonal().mean())
        s = (C @ torch.linalg.inv(C + lam * torch.eye(len(C)))).diagonal()
        torch.testing.assert_close(leverages[number], s, rtol=1e-3, atol=1e-4)
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
    decisions = MoDeGPT(damping=TINY_DAMPING, smoothing=0.5, prefix="pruned").prune(model, calibration(), 0.15)
    plain = MoDeGPT(damping=TINY_DAMPING, smoothing=0.5).prune(Decoder(tiny("llama")), calibration(), 0.15)
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
    decisions = MoDeGPT(smoothing=0.2, most=0.5).prune(Decoder(tiny("llama")), calibration(), 0.2)
    order = sorted(range(LAYERS), key=decisions["influences"].__getitem__)
    left = [decisions["channels"][number] for number in order]
    assert left == sorted(left)
    assert left[0] == 24 < left[-1]
    alike = MoDeGPT(smoothing=1e6).prune(Decoder(tiny("llama")), calibration(), 0.2)["channels"]
    assert max(alike) - min(alike) <= 1


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_the_budget_is_met_to_half_a_channel(family):
    dense = parameters(Decoder(tiny(family)))
    for ratio in (0.01, 0.12, 0.23):
        model = Decoder(tiny(family))
        cost = sum(matrix.weight.numel() for matrix in (*model.layers[0].up, model.layers[0].down))
        MoDeGPT().prune(model, calibration(), ratio)
        biases = 0 if family != "gpt2" else 1
        assert abs(dense - parameters(model) - ratio * dense) <= (cost / model.layers[0].down.out_features + biases)


def test_equal_and_round_widths():
    uniform = MoDeGPT(uniform=True, multiple=16).prune(Decoder(tiny("llama")), calibration(), 0.2)
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
    decisions = MoDeGPT().prune(first, calibration(), 0.2)
    lost = decisions["removed_channels"]
    order = tuple(f"channels {number} {'+'.join(map(str, units))}" for number, units in enumerate(lost) if units)
    assert MoDeGPT(smoothing=9.0).prune(again, replace(calibration(), order=order), 0.2)["removed_channels"] == lost
    for mine, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_cannot_be_reached_is_refused():
    with pytest.raises(OutOfReach, match=r"with most=0.5 of the channels gone in each layer, 0.273 .* larger most"):
        MoDeGPT(most=0.5).plan(Decoder(tiny("llama")), 0.4)
    with pytest.raises(Unsupported, match="experts"):
        MoDeGPT().plan(Decoder(tiny("mixtral")), 0.1)


def test_nothing_is_looked_at_for_nothing():
    decisions = MoDeGPT().prune(Decoder(tiny("llama")), None, 0.0)
    assert (decisions["channels"], decisions["missed"]) == ([48] * LAYERS, [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": "qk"}, "modegpt:parts"),
        ({"ridge": "0"}, "modegpt:ridge is float, more than 0 and finite; got '0'"),
        ({"most": "1"}, "modegpt:most is float"),
    ],
)
def test_unsound_parameters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        methods.make("modegpt", given)
