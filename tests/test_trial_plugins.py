"""Two published methods, as plugins of the studies, choose what their formulas say on tiny models."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from conftest import padded, tiny
from made_samples import paired_perplexity
from pages import ROOT, text
from torch import nn

import methods
from methods.compensation.base import Pruning
from methods.compensation.scale import Scale
from methods.depth.shortgpt import ShortGPT
from methods.errors import OutOfReach
from methods.model.decoder import Decoder, make_twin
from methods.model.sizes import parameters
from methods.model.structures import drop_layers, structures_of

CALIBRATION = padded(
    [
        torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        for length in (24, 17, 23, 9)
    ]
)
NAMES = ("prune_and_comp", "slimllm")


@pytest.fixture(autouse=True)
def plugins():
    """The modules of the plugins, by name."""
    registered = methods.load([str(ROOT / f"docs/studies/{name}.py") for name in NAMES])
    return {name: sys.modules[registered[name.replace("_", "-")].__module__] for name in NAMES}


@pytest.fixture
def model():
    return Decoder(tiny("llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=4, layers=6))


def inputs_of(model: Decoder, module: nn.Module) -> torch.Tensor:
    """What enters a module at the real tokens, (M, C)."""
    seen = list[torch.Tensor]()
    hook = module.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    with torch.no_grad():
        model.model(CALIBRATION.ids, use_cache=False)
    hook.remove()
    return seen[0][CALIBRATION.mask].double()


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.3])
def test_what_is_left_has_the_parameters_that_were_wanted(ratio, model):
    """Within two channels of a layer."""
    whole, size = parameters(model), structures_of(model, "channels")[0].cost
    methods.make("slimllm").prune(model, CALIBRATION, ratio)
    assert abs(parameters(model) - (1 - ratio) * whole) <= 2 * size
    assert ratio or parameters(model) == whole


def test_what_no_cut_reaches_is_refused(model):
    with pytest.raises(OutOfReach):
        methods.make("slimllm").prune(model, CALIBRATION, 0.95)


def added_by_heads(layer, model: Decoder) -> torch.Tensor:
    """What each head of an attention adds to the residual, (M, G, D)."""
    X, W = inputs_of(model, layer.out).view(-1, 4, 16), layer.out.weight.detach().double().view(64, 4, 16)
    return torch.einsum("tgw,dgw->tgd", X, W)


def correlate(o: torch.Tensor, K: list[int]) -> float:
    """The sum over features of |Pearson correlation| of what the heads K add with what all add."""
    part, whole = o[:, K].sum(1).numpy(), o.sum(1).numpy()
    return sum(abs(np.corrcoef(part[:, d], whole[:, d])[0, 1]) for d in range(whole.shape[1]))


@pytest.fixture
def statistics(plugins, model):
    """What slimllm keeps of each layer."""

    def of_layer(number, steps):
        return plugins["slimllm"].statistics_of(model.layers[number], steps)

    return plugins["slimllm"].collect_by_layer(model, CALIBRATION, of_layer)


def test_correlations_are_those_of_what_heads_add(plugins, model, statistics):
    for number, layer in enumerate(model.layers):
        o, (_, moments, means, _) = added_by_heads(layer, model), statistics[number]
        for K in ([0], [1, 3], [0, 1, 2], [0, 1, 2, 3]):
            assert plugins["slimllm"].correlation(moments, means, K) == pytest.approx(correlate(o, K), rel=1e-4)


def test_no_swap_of_a_head_that_goes_would_be_better(plugins):
    """On heads that depend on each other: what leaving out one at a time chooses is improved on, somewhere."""
    improved = 0
    for seed in range(20):
        of = torch.Generator().manual_seed(seed)
        mixed = torch.einsum("tgd,gh->thd", torch.randn(60, 5, 8, generator=of), torch.randn(5, 5, generator=of))
        o = mixed.double()
        moments, means = torch.einsum("tgd,thd->ghd", o, o) / 60, o.mean(0)
        go = plugins["slimllm"].choose_heads(moments, means, 2)
        stay = sorted(set(range(5)) - set(go))
        one_by_one = sorted(range(5), key=lambda head: correlate(o, [h for h in range(5) if h != head]))[:3]
        assert correlate(o, stay) >= correlate(o, sorted(one_by_one)) - 1e-9
        improved += stay != sorted(one_by_one)
    assert improved


def test_a_layer_has_the_statistics_of_its_states(model, statistics):
    for number, layer in enumerate(model.layers):
        x, y = inputs_of(model, layer.module), inputs_of(model, model.layers[number + 1].module) if number < 5 else None
        cos, _, _, score = statistics[number]
        if y is not None:
            assert float(cos) == pytest.approx(float(nn.functional.cosine_similarity(x, y, dim=-1).mean()), rel=1e-5)
        entering, channels = inputs_of(model, layer.module.mlp), inputs_of(model, layer.down)
        covariance = torch.cov((channels @ layer.down.weight.double().T).T, correction=0)
        eigenvalues, V = torch.linalg.eigh(covariance)
        principal = (layer.down.weight.double().T @ V).abs() * (eigenvalues / eigenvalues.mean()).sigmoid()
        wanted = (principal * channels.norm(dim=0)[:, None]).norm(dim=1)
        for matrix in (layer.module.mlp.gate_proj, layer.module.mlp.up_proj):
            wanted += (matrix.weight.double() * entering.norm(dim=0)).norm(dim=1)
        torch.testing.assert_close(score, wanted, rtol=1e-3, atol=1e-6)


def test_layers_that_turn_the_residual_less_lose_more():
    made = methods.make("slimllm", {"layers": "0.5", "alpha": "3"})
    cos = torch.tensor([0.2, 0.9, 0.5, 0.7], dtype=torch.float64)
    wanted = 2 * np.exp([2.7, 2.1]) / np.exp([2.7, 2.1]).sum()
    assert made.shares(cos).tolist() == pytest.approx([0, wanted[0], 0, wanted[1]])


def test_each_layer_is_chosen_on_a_model_whose_sizes_are_compensated(model):
    """Where layers add more or less, so that the third one is another than without compensation."""
    factors = 2 ** (2 * torch.rand(6, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        for layer, factor in zip(model.layers, factors, strict=True):
            layer.out.weight.mul_(factor)
            layer.down.weight.mul_(factor)
    decided = methods.make("prune-and-comp").prune(make_twin(model), CALIBRATION, 3 / 6)
    order = decided["order"]
    for step, chosen in enumerate(order):
        pruned, kept = make_twin(model), [l for l in range(6) if l not in order[:step]]
        if step:
            drop_layers(pruned, order[:step])
            Scale().repair(Pruning(model, pruned, kept, {"removed_layers": sorted(order[:step])}), CALIBRATION)
        scores = ShortGPT().scores(pruned, CALIBRATION)
        assert kept[min(range(len(kept)), key=scores.__getitem__)] == chosen
    assert decided["removed_layers"] == sorted(order)


def test_what_the_study_says_of_them_is_what_the_script_wrote():
    page = text("docs/studies/laco-puzzle.md")
    lines = map(json.loads, (ROOT / "docs/studies/trials.jsonl").read_text(encoding="utf-8").splitlines())
    found = {(line["ratio"], line["seed"], line["method"]): line for line in lines}

    def compare(ratio, one, other, seeds=range(3)):
        """How many times the perplexity of the other the one has, on both texts by each draw."""
        pairs = []
        for seed in seeds:
            both = [found[ratio, seed, name] for name in (other, one)]
            assert abs(both[0]["parameters"] - both[1]["parameters"]) < 3e-3 * both[0]["parameters"]
            for name in ("wiki", "c4"):
                nll = [np.array(each[name]["nll"]) for each in both]
                pairs.append(paired_perplexity(*nll, np.ones(len(nll[0]))))
        return pairs

    def ends(pairs):
        estimates = [pair.estimate for pair in pairs]
        return f"{min(estimates):.2f} to {max(estimates):.2f} times"

    kin = compare(0.3, "nirvana+refit", "llm-pruner+refit")
    assert all(pair.high < 1 for pair in kin)
    assert f"by each of three draws, with {ends(kin)} its perplexity." in page
    beside = compare(0.3, "nirvana+refit", "2ssp+refit")
    assert sum(pair.high < 1 for pair in beside) == 1 and not any(pair.low > 1 for pair in beside)
    assert f"It has {ends(beside)} that of `2ssp+refit`, shown once in six." in page
    assert (
        f"At 0.2 it has {ends(compare(0.2, 'nirvana+refit', 'llm-pruner+refit'))} that of `llm-pruner+refit`." in page
    )
    for ratio in (0.2, 0.3):
        assert all(pair.high > 1 for pair in compare(ratio, "slimllm+refit", "nirvana+refit", [0]))
        assert all(pair.low > 1 for pair in compare(ratio, "prune-and-comp+scale", "sleb+scale", [0]))
