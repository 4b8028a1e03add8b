"""Which experts become one and what they become, against copies, enumeration, SciPy, and sums by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from conftest import padded, tiny
from scipy.cluster.hierarchy import fcluster, linkage
from tiny_methods import calibration
from torch import Tensor

import methods
from bench.workshop.tiny_models import MIXTURES
from methods.errors import OutOfReach
from methods.experts import merging
from methods.experts.ream import Ream
from methods.experts.reap import sum_routed_outputs
from methods.model.calibration import SweepLog, SweepLogs
from methods.model.decoder import Decoder
from methods.model.parts import Experts


def mixtures(model: Decoder) -> list[Experts]:
    return [layer.experts for layer in model.layers if layer.experts is not None]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_a_copy(family: str) -> tuple[Experts, Tensor, dict[str, Tensor]]:
    """A mixture whose expert 1 is expert 0 with channels in another order, tokens, and the tensors of expert 0."""
    experts = mixtures(Decoder(tiny(family)))[0]
    for name, tensor in experts.bank.named_parameters():
        if name.endswith("bias"):  # of a new model they are zero
            tensor.data.copy_(0.2 * drawn(*tensor.shape))
    order = torch.randperm(experts.channels, generator=torch.Generator().manual_seed(1))
    experts.put(1, experts.reorder_channels(0, order))
    return experts, drawn(64, 32).float(), {name: one.clone() for name, one in experts.tensors_of(0).items()}


def merged(experts: Experts, h: Tensor, **how: object) -> dict[str, Tensor]:
    report = {"merged_experts": [[0, 1]], "weights": [[0.3, 0.7]]}
    tensors = Ream(**how).merge(experts, report, h, seed=0)
    return dict(zip(experts.tensors_of(0), tensors, strict=True))


@pytest.mark.parametrize("family", MIXTURES)
def test_channels_in_another_order_give_the_same_from_the_same_activations(family):
    experts, h, _ = with_a_copy(family)
    with torch.no_grad():
        first, copy = experts.outputs(h, torch.tensor([[0, 1]] * len(h))).unbind(1)
        A, B = (experts.activations(h, number) for number in (0, 1))
    torch.testing.assert_close(copy, first)
    assert not torch.equal(A, B)
    torch.testing.assert_close(A.sum(1), B.sum(1))
    down = experts.tensors_of(0)["down_proj"]
    bias = experts.tensors_of(0).get("down_proj_bias", 0)
    torch.testing.assert_close(A @ (down if family == "gpt_oss" else down.T) + bias, first)


@pytest.mark.parametrize("how", ["both", "activations", "weights"])
@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_and_its_copy_become_that_expert(family, how):
    experts, h, original = with_a_copy(family)
    for name, tensor in merged(experts, h, merging=how).items():
        torch.testing.assert_close(tensor, original[name])
    plain = merged(experts, h, merging="mean")
    assert (plain["down_proj"] - original["down_proj"]).abs().max() > 0.1


def test_tokens_that_are_drawn_for_each_expert_do_not_align_a_copy():
    experts, h, original = with_a_copy("mixtral")
    aligned = merged(experts, h, merging="activations", sample="released")["down_proj"]
    assert (aligned - original["down_proj"]).abs().max() > 0.1


def test_the_mean_of_two_experts_is_weighed():
    experts, h, _ = with_a_copy("gpt_oss")
    for name, tensor in merged(experts, h, merging="mean").items():
        first, second = (experts.tensors_of(number)[name] for number in (0, 1))
        torch.testing.assert_close(tensor, 0.3 * first + 0.7 * second)


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_those_of_scipy(seed):
    a = drawn(12, 5, seed=seed)
    for count in (3, 5, 11):
        labels = fcluster(linkage(a.numpy(), "average"), count, "maxclust")
        theirs = {tuple(j for j in range(12) if labels[j] == label) for label in labels}
        groups = merging.group_by_clusters(a, count)
        assert {tuple(sorted(group)) for group in groups} == theirs
        for first, *others in groups:
            mean = a[[first, *others]].mean(0)
            assert all((a[first] - mean).norm() <= (a[j] - mean).norm() * (1 + 1e-9) for j in others)


def test_of_two_rows_that_are_alone_the_first_is_the_centre():
    for seed in range(20):  # their distances from the mean differ by rounding alone
        assert merging.group_by_clusters(drawn(2, 7, seed=seed), 1) == [[0, 1]]


def every_assignment(lost: list[int], centres: list[int]) -> Iterator[dict[int, list[int]]]:
    for targets in product(centres, repeat=len(lost)):
        pairs = list(zip(lost, targets, strict=True))
        yield {centre: [number for number, target in pairs if target == centre] for centre in centres}


@pytest.mark.parametrize("size", [2, 3, 4, 0])
@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_best_of_all_that_there_are(seed, size):
    """The first centre is filled at the least cost, then the next one; without a size the sum of all is least."""
    d, S, lost = drawn(6, 6, seed=seed).abs(), drawn(6, seed=seed + 9).abs(), [0, 2, 5]
    d = d + d.T
    centres = sorted([1, 3, 4], key=lambda j: -S[j])

    def cost(assignment: dict[int, list[int]]) -> list[tuple[int, float]]:
        costs = [(-len(members), float(d[centre, members].sum())) for centre, members in assignment.items()]
        return costs if size else [(0, sum(value for _, value in costs))]

    allowed = [each for each in every_assignment(lost, centres) if not size or max(map(len, each.values())) < size]
    best = min(allowed, key=cost)
    groups = merging.group_by_saliency(S, d, lost, size)
    assert [group[0] for group in groups] == centres
    assert {group[0]: sorted(group[1:]) for group in groups} == best


@pytest.mark.parametrize("family", MIXTURES)
def test_without_merging_the_experts_of_reap_stay(family):
    tokens, reap, ream = padded([list(range(3, 40)), list(range(60, 71))]), *(Decoder(tiny(family)) for _ in range(2))
    expected = methods.make("reap").prune(reap, tokens, 0.3)
    decided = methods.make("ream", {"merging": None, "sequential": False}).prune(ream, tokens, 0.3)
    assert decided["removed_experts"] == expected["removed_experts"]
    assert decided["scores"] == [pytest.approx(each, rel=1e-5) for each in expected["scores"]]
    assert decided["merged_experts"] == [[] for _ in expected["scores"]]
    with torch.no_grad():
        torch.testing.assert_close(ream.model(tokens.ids).logits, reap.model(tokens.ids).logits)


def test_a_layer_is_fed_by_merged_ones():
    pruned, dense = Decoder(tiny("mixtral")), Decoder(tiny("mixtral"))
    decided = methods.make("ream").prune(pruned, calibration(), 0.3)
    for number in range(5):
        dense.model.model.layers[number] = pruned.model.model.layers[number]
    N, _, weighed = sum_routed_outputs(Decoder(dense.model), calibration())[-1]
    assert decided["scores"][-1] == pytest.approx((weighed / N.clamp(min=1)).tolist(), rel=1e-5)
    apart = methods.make("ream", {"sequential": False}).prune(Decoder(tiny("mixtral")), calibration(), 0.3)
    assert apart["scores"][0] == decided["scores"][0]
    assert apart["scores"][-1] != pytest.approx(decided["scores"][-1], rel=1e-3)


@pytest.mark.parametrize("similarity", ["mean", "token", "output", "router"])
def test_distances_are_those_of_a_loop_over_pairs(similarity):
    """Of the first layer, in which some tokens are padding."""
    tokens, model = padded([list(range(3, 40)), list(range(60, 71))]), Decoder(tiny("mixtral"))
    experts, entered = mixtures(model)[0], list[Tensor]()
    experts.router.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    with torch.no_grad():
        for row, mask in zip(tokens.ids, tokens.mask, strict=True):
            model.model(row[mask][None], use_cache=False)
        h = torch.cat(entered)
        f = experts.outputs(h, torch.arange(8).expand(len(h), -1)).double()
        logits = h.double() @ experts.router.weight.double().T
    a = (logits.softmax(1)[..., None] * f).mean(0)
    units = logits / logits.norm(dim=0)
    apart = torch.stack([torch.stack([(units[:, i] - units[:, j]).norm() for j in range(8)]) for i in range(8)])
    routing = 1 - apart / apart.max()
    cos = torch.nn.functional.cosine_similarity
    s = {"token": cos(f[:, :, None], f[:, None], dim=-1).mean(0)}.get(similarity, cos(a[:, None], a, dim=-1))
    expected = {"output": (s + 1) / 2, "router": routing}.get(similarity, ((s + 1) / 2 + routing) / 2)
    decided = methods.make("ream", {"similarity": similarity}).prune(Decoder(tiny("mixtral")), tokens, 0.3)
    for (centre, *members), distances in zip(decided["merged_experts"][0], decided["distances"][0], strict=True):
        assert distances == pytest.approx((1 - expected)[centre, members].tolist(), rel=1e-4)


@pytest.mark.parametrize("method", ["ream", "mc-smoe", "hc-smoe"])
def test_what_is_merged_lies_in_one_group_of_the_router(method):
    decided = methods.make(method).prune(Decoder(tiny("glm4_moe")), calibration(), 0.3)
    assert any(decided["merged_experts"])
    for layer, removed in zip(decided["merged_experts"], filter(None, decided["removed_experts"]), strict=True):
        assert all(len({number // 4 for number in group}) == 1 for group in layer)
        assert sorted(number for group in layer for number in group[1:]) == removed


def test_weights_are_shares_of_the_saliency_and_nobody_has_none():
    S = torch.tensor([0.0, 3.0, 1.0, 0.25])
    assert merging.weights_of_experts(S).tolist() == [0.25, 3.0, 1.0, 0.25]
    assert merging.weights_of_experts(torch.tensor([0.0, 7.0])).tolist() == [0.5, 7.0]
    decided = methods.make("mc-smoe").prune(Decoder(tiny("gpt_oss")), calibration(), 0.3)
    layers = zip(decided["scores"], decided["merged_experts"], decided["weights"], strict=True)
    for scores, groups, weights in layers:
        filled = [score or 0.5 for score in scores]
        for group, shares in zip(groups, weights, strict=True):
            total = sum(filled[number] for number in group)
            assert shares == pytest.approx([filled[number] / total for number in group])


def test_components_are_those_of_a_whole_decomposition():
    x = drawn(40, 9) * 3.0 ** -torch.arange(9)
    U, sigma, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = U[:, :4] * sigma[:4] ** 2
    scores = merging.score_components(x.clone(), 4)
    torch.testing.assert_close(scores @ scores.T, expected @ expected.T, rtol=1e-6, atol=1e-6)
    assert merging.score_components(x, 64).shape == (40, 9)


def test_groups_that_cannot_hold_all_experts_are_refused_before_work():
    with pytest.raises(OutOfReach) as refused:
        methods.make("ream", {"group_size": 3}).plan(Decoder(tiny("mixtral")), 0.65)
    assert str(refused.value) == (
        "ratio 0.65 is out of reach: 2 groups of group_size=3 experts do not hold all 8; a group_size of 4 does, and 0 "
        "has no limit"
    )
    assert methods.make("ream", {"group_size": 4}).plan(Decoder(tiny("mixtral")), 0.65)
    assert methods.make("hc-smoe", {"group_size": 2}).plan(Decoder(tiny("mixtral")), 0.65)


def test_memory_changes_no_decision():
    few, many = (replace(calibration(), memory=memory) for memory in (2**16, 2**30))
    first, second = (methods.make("ream").prune(Decoder(tiny("olmoe")), tokens, 0.3) for tokens in (few, many))
    assert first["merged_experts"] == second["merged_experts"]
    assert first["scores"] == [pytest.approx(each, rel=1e-5) for each in second["scores"]]


@pytest.mark.parametrize("method", ["ream", "hc-smoe"])
def test_an_interrupted_sweep_goes_on_where_it_stood(method, tmp_path, monkeypatch):
    monkeypatch.setattr("methods.model.calibration.SECONDS", 0.0)
    tokens, add = replace(calibration(), sweeps=SweepLogs(tmp_path)), SweepLog.add

    def interrupted(self: SweepLog, tensors: list[Tensor], states: list[Tensor]) -> None:
        add(self, tensors, states)
        if self._written == 3:
            raise KeyboardInterrupt

    models = [Decoder(tiny("qwen3_moe")) for _ in range(3)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SweepLog, "add", interrupted)
        methods.make(method).prune(models[0], tokens, 0.3)
    merge_layer, merged_layers = Ream.merge_layer, list[object]()
    monkeypatch.setattr(Ream, "merge_layer", lambda *of: merged_layers.append(of) or merge_layer(*of))
    resumed = methods.make(method).prune(models[1], tokens, 0.3)
    assert len(merged_layers) == 3
    assert resumed == methods.make(method).prune(models[2], calibration(), 0.3)
    for one, other in zip(models[1].model.parameters(), models[2].model.parameters(), strict=True):
        assert torch.equal(one, other)
