"""Which experts go: scores by a loop over tokens and experts, what a budget asks, and who is refused."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from conftest import padded, tiny
from made_records import DENSE, PER_LAYER, measured, ok, with_measured
from tiny_methods import EXPERTS, calibration

import methods
from bench.healing.trainable import make_trainable
from bench.plan.protocol import Recipe
from bench.workshop.tiny_models import MIXTURES
from methods.errors import OutOfReach, Unsupported
from methods.experts.reap import experts_to_go, lowest_of_groups, sum_routed_outputs
from methods.model import activations
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from reports import removed
from reports.tables.views import build_view

ROWS = [
    list(range(3, 20)),
    list(range(60, 71)),
    list(range(100, 104)),
]  # of other lengths, so that some tokens are padding


def by_hand(model: Decoder, tokens: Calibration) -> list[dict[str, torch.Tensor]]:
    """What the methods score, token after token, from the weights alone: no router or bank of the model is called."""
    found = []
    for layer in (layer for layer in model.layers if layer.experts is not None):
        seen = []
        hook = layer.experts.router.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            for row, mask in zip(tokens.ids, tokens.mask, strict=True):
                model.model(row[mask][None], use_cache=False)
        hook.remove()
        router, bank = (
            {name: one.double() for name, one in part.state_dict().items()}
            for part in (layer.experts.router, layer.experts.bank)
        )
        sums = {name: torch.zeros(8, dtype=torch.float64) for name in ("N", "norms", "weighed")}
        for h in torch.cat([each.reshape(-1, 32) for each in seen]).detach().double():
            for j, g in taken(model, router, h).items():
                size = float(output(model, bank, j, h).norm())
                sums["N"][j] += 1
                sums["norms"][j] += size
                sums["weighed"][j] += g * size
        found.append(sums)
    return found


def taken(model: Decoder, router: dict[str, torch.Tensor], h: torch.Tensor) -> dict[int, float]:
    """The experts of a token and their weights."""
    logits, k = router["weight"] @ h + router.get("bias", 0), model.config.num_experts_per_tok
    if "e_score_correction_bias" not in router:
        p = torch.softmax(logits, 0)
        best = p.topk(k).indices.tolist()
        return {j: float(p[j] / p[best].sum()) if renormalises(model) else float(p[j]) for j in best}
    p, wanted = torch.sigmoid(logits), (torch.sigmoid(logits) + router["e_score_correction_bias"]).tolist()
    group = max((range(4), range(4, 8)), key=lambda members: sum(sorted(wanted[j] for j in members)[-2:]))
    best = sorted(group, key=lambda j: wanted[j])[-k:]
    return {j: 1.5 * float(p[j] / p[best].sum()) for j in best}


def output(model: Decoder, bank: dict[str, torch.Tensor], j: int, h: torch.Tensor) -> torch.Tensor:
    """What an expert makes of a token."""
    up, down = bank["gate_up_proj"][j], bank["down_proj"][j]
    if model.config.model_type != "gpt_oss":
        gate, linear = (up @ h).chunk(2)
        return down @ (torch.nn.functional.silu(gate) * linear)
    gate, linear = (h @ up + bank["gate_up_proj_bias"][j]).view(-1, 2).T
    gate, linear = gate.clamp(max=7), linear.clamp(-7, 7)
    return (linear + 1) * gate * torch.sigmoid(1.702 * gate) @ down + bank["down_proj_bias"][j]


def renormalises(model: Decoder) -> bool:
    return getattr(model.config, "norm_topk_prob", True)


@pytest.mark.parametrize("family", MIXTURES)
def test_scores_are_those_of_a_loop_over_tokens_and_experts(family):
    model, tokens = Decoder(tiny(family)), padded(ROWS)
    want = by_hand(model, tokens)
    for sums, (N, norms, weighed) in zip(want, sum_routed_outputs(model, tokens), strict=True):
        assert torch.equal(N, sums["N"])
        assert int(N.sum()) == int(tokens.mask.sum()) * model.config.num_experts_per_tok
        torch.testing.assert_close(norms, sums["norms"], rtol=1e-5, atol=0)
        torch.testing.assert_close(weighed, sums["weighed"], rtol=1e-5, atol=0)
    said = {
        "reap": [(sums["weighed"] / sums["N"].clamp(min=1)).tolist() for sums in want],
        "expert-norm": [sums["norms"].tolist() for sums in want],
        "expert-frequency": [sums["N"].tolist() for sums in want],
    }
    for method, scores in said.items():
        decisions = methods.make(method).prune(Decoder(tiny(family)), tokens, 0.3)
        assert decisions["scores"] == [pytest.approx(each, rel=1e-5) for each in scores]
        n = decisions["removed_per_layer"]["experts"]
        groups = (range(4), range(4, 8)) if family == "glm4_moe" else (range(8),)
        wanted = [
            sorted(j for group in groups for j in sorted(group, key=lambda j: (each[j], j))[: n // len(groups)])
            for each in scores
        ]
        assert [gone for gone in decisions["removed_experts"] if gone] == wanted


def test_an_expert_that_no_token_takes_scores_nothing_and_goes_first():
    model = Decoder(tiny("mixtral"))
    for layer in model.layers:
        rows = layer.experts.router.weight.data
        rows[1], rows[3], rows[5] = -rows[0], -rows[2], 0  # two others are always above 0
    N = torch.stack([counts[0] for counts in sum_routed_outputs(model, calibration())])
    assert N[:, 5].tolist() == [0] * 6
    decisions = methods.make("reap").prune(model, calibration(), 0.1)
    for counts, scores, gone in zip(N, decisions["scores"], decisions["removed_experts"], strict=True):
        never = [j for j in range(8) if counts[j] == 0]
        assert all(scores[j] == 0 for j in never)
        assert set(gone) <= set(never) or set(never) <= set(gone)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.25, 0.3, 0.4])
@pytest.mark.parametrize("family", MIXTURES)
def test_the_number_of_experts_is_the_one_nearest_to_the_ratio(family, ratio):
    dense = Decoder(tiny(family))
    total, left, most = parameters(dense), {}, 4 if family == "glm4_moe" else 5
    for n in range(0, most + 1, 2 if family == "glm4_moe" else 1):
        model = Decoder(tiny(family))
        for layer in model.layers:
            if layer.experts is not None:
                half = n // 2
                layer.experts.keep([*range(4 - half), *range(4, 8 - n + half)])
        left[n] = abs(total - parameters(model) - ratio * total)
    if min(left, key=left.get) == most and total - parameters(model) < ratio * total:
        return  # which may be out of reach
    assert experts_to_go(dense, ratio) == min(left, key=left.get)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("method", EXPERTS)
def test_every_layer_loses_as_many_experts_and_the_budget_is_met(method, family):
    model, total = Decoder(tiny(family)), parameters(Decoder(tiny(family)))
    decisions = methods.make(method).prune(model, calibration(), 0.3)
    n = decisions["removed_per_layer"]["experts"]
    counts = {0 if layer.experts is None else layer.experts.count for layer in model.layers}
    assert counts - {0} == {8 - n}
    assert decisions["experts"] == [0 if layer.experts is None else 8 - n for layer in model.layers]
    mixtures = [layer.experts for layer in model.layers if layer.experts is not None]
    step = mixtures[0].groups * sum(each.parameters for each in mixtures) / total
    assert abs(1 - parameters(model) / total - 0.3) <= step / 2
    assert mixtures[0].router.num_experts == 8 - n


@pytest.mark.parametrize("method", EXPERTS)
def test_ratio_zero_of_a_mixture_changes_nothing_and_reads_nothing(method, monkeypatch):
    monkeypatch.setattr(activations, "enter", None)
    model = Decoder(tiny("mixtral"))
    decisions = methods.make(method).prune(model, calibration(), 0.0)
    assert decisions["removed_experts"] == [[]] * 6
    assert model.config.to_dict() == tiny("mixtral").config.to_dict()


@pytest.mark.parametrize("method", EXPERTS)
def test_a_token_finds_as_many_experts_as_it_takes(method):
    pruner = methods.make(method)
    model = Decoder(tiny("mixtral"))
    held = 6 * 6 * model.layers[0].experts.parameters / parameters(model)
    assert pruner.plan(model, held)["removed_per_layer"] == {"experts": 6}
    with pytest.raises(OutOfReach) as refused:
        pruner.plan(model, 0.9)
    assert str(refused.value) == (
        "ratio 0.9 is out of reach: 2 of 8 experts must stay in each layer, since a token takes 2, and the others "
        f"hold {held:.3f} of the model"
    )


@pytest.mark.parametrize("method", EXPERTS)
def test_a_model_without_experts_is_refused_with_those_that_have_some(method):
    with pytest.raises(Unsupported, match=r"llama has no experts: this method serves mixtral, .*qwen3_moe"):
        methods.make(method).plan(Decoder(tiny("llama")), 0.3)


def test_layers_with_other_numbers_of_experts_are_refused():
    model = Decoder(tiny("mixtral"))
    model.layers[1].experts.keep(range(7))
    with pytest.raises(Unsupported, match="different numbers of experts"):
        methods.make("reap").plan(model, 0.1)


def test_groups_lose_as_many_each():
    score = torch.tensor([0.1, 0.2, 0.9, 0.8, 0.5, 0.6, 0.3, 0.7])
    assert lowest_of_groups(score, 4, 1) == [0, 1, 4, 6]
    assert lowest_of_groups(score, 4, 2) == [0, 1, 4, 6]
    assert lowest_of_groups(score, 4, 4) == [0, 3, 4, 6]
    assert lowest_of_groups(torch.zeros(6), 2, 2) == [0, 3]


def test_three_scores_at_two_ratios_read_the_calibration_once(monkeypatch):
    kept, read = {}, []

    def keep(name, found):
        if name not in kept:
            kept[name] = found()
        return kept[name]

    monkeypatch.setattr(
        "methods.experts.reap.collect_by_layer", lambda *given: read.append(1) or activations.collect_by_layer(*given)
    )
    ids = calibration().ids
    tokens = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), sha256=hashlib.sha256(b"").hexdigest(), keep=keep)
    for method in EXPERTS:
        for ratio in (0.1, 0.3):
            with_keep = methods.make(method).prune(Decoder(tiny("mixtral")), tokens, ratio)
            assert with_keep == methods.make(method).prune(Decoder(tiny("mixtral")), calibration(), ratio)
    assert len(kept) == 1
    assert len(read) == 1 + 2 * 3  # and each one without what is kept


def test_draws_are_others_by_seed_and_by_layer():
    draws = [
        methods.make("expert-random", {"seed": seed}).prune(Decoder(tiny("mixtral")), calibration(), 0.3)
        for seed in (0, 1, 0)
    ]
    assert draws[0] == draws[2]
    assert draws[0]["removed_experts"] != draws[1]["removed_experts"]
    assert len(set(map(tuple, draws[0]["removed_experts"]))) > 1
    assert [draw["seed"] for draw in draws] == [0, 1, 0]
    assert "scores" not in draws[0]


def test_a_draw_without_a_seed_of_its_own_is_that_of_the_run():
    draws = [
        methods.make("expert-random", {"seed": own}).prune(
            Decoder(tiny("mixtral")), dataclasses.replace(calibration(), seed=seed), 0.3
        )
        for own, seed in ((None, 3), (3, 0), (None, 0))
    ]
    assert draws[0] == draws[1]
    assert draws[0]["removed_experts"] != draws[2]["removed_experts"]


def test_layers_and_experts_go_one_after_the_other():
    model = Decoder(tiny("qwen3_moe"))
    methods.make("drop", {"layers": "0+3"}).prune(model, calibration(), 0.0)
    before = sum(map(layer_parameters, model.layers))
    methods.make("reap").prune(model, calibration(), 0.2)
    assert sum(map(layer_parameters, model.layers)) < before
    assert model.config.mlp_only_layers == [0]


def test_reports_tell_what_is_left_of_experts_and_which_parameters_are_active():
    sizes = {"parameters": 3e6, "active_parameters": 2e6}
    decided = {"experts": [6, 0, 6], "removed_experts": [[0, 3], [], [1, 2]]}
    plain = ok("reap", 0.2, measured(6 * PER_LAYER, (50.0, 60.0, 70.0), [0.4] * 5, 60.0) | {"dense_layers": 3} | sizes)
    record = dataclasses.replace(plain, decisions=decided)
    assert removed.remaining_of(record) == removed.Remaining((1.0, 1.0, 1.0), (0.75, 1.0, 0.75), "units")
    assert removed.removals_of(record) == {"experts": "0 to 2 of a layer, mean 1.3"}
    for active, shown in ((2e6, True), (3e6, False)):
        one = with_measured(record, active_parameters=active)
        (table,) = build_view("main", [DENSE, one])
        assert ("active_parameters" in [column.name for column in table.columns]) == shown


def test_adapters_lie_beside_the_attention_of_a_mixture():
    model = Decoder(tiny("mixtral", layers=2))
    before = {name: one.clone() for name, one in model.model.named_parameters()}
    with make_trainable(model, Recipe(kind="lora", tokens=64, length=16, batch=2)) as weights:
        assert len(weights) == 2 * 2 * 4
        assert all("attn" in name for name in weights)
    assert before.keys() == dict(model.model.named_parameters()).keys()
