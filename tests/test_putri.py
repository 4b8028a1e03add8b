"""Putri, as a plugin of the studies, fits what it keeps and removes what is missed least."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from conftest import padded, tiny
from made_samples import paired_perplexity
from pages import ROOT, text

import methods
from methods.model.decoder import Decoder, make_twin
from methods.model.sizes import parameters
from methods.model.structures import sublayers_of
from methods.trials.blocks import Replacements, Trial

CALIBRATION = padded(torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(4)).tolist())


@pytest.fixture
def putri():
    return methods.load([str(ROOT / "docs/studies/putri.py")])["putri"]


@pytest.fixture
def model():
    return Decoder(tiny("llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=4))


def module_of(putri):
    return sys.modules[putri.__module__]


def test_what_is_kept_of_an_output_matrix_is_the_nearest_one(putri, model):
    """Among all matrices of the columns that are left: least squares on what enters the whole one."""
    parts, (layer, *_) = module_of(putri), model.layers
    seen = list[torch.Tensor]()
    hook = layer.out.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    with torch.no_grad():
        model.model(CALIBRATION.ids, use_cache=False)
    hook.remove()
    X = seen[0].flatten(0, 1).double()
    fitted = parts.Fitted([X.T @ X], 1e-12)(layer, [parts.Without("kv_heads", 0, 3, 1)])
    width = X.shape[1] // 4
    kept = [*range(width), *range(2 * width, 4 * width)]
    wanted = torch.linalg.lstsq(X[:, kept], X @ layer.out.weight.double().T).solution.T
    torch.testing.assert_close(fitted.out.weight.double(), wanted, rtol=1e-4, atol=1e-6)
    assert layer.kv_heads == 4


def test_heads_go_one_at_a_time_until_the_budget_is_met(putri, model):
    """Whose last head goes has no attention; what stays is within half a head of what 2ssp would leave."""
    for ratio in (0.2, 0.35):
        pruned = make_twin(model)
        decided = methods.make("putri").prune(pruned, CALIBRATION, ratio)
        assert decided["heads_in_order"]
        left = [layer.kv_heads if layer.has_attention else 0 for layer in pruned.layers]
        gone = [sum(name.startswith(f"{number}.") for name in decided["heads_in_order"]) for number in range(len(left))]
        assert [one + other for one, other in zip(left, gone, strict=True)] == [4] * len(left)
        head = model.layers[0].sizes()["attention"] / 4
        assert abs(parameters(pruned) - (1 - ratio) * parameters(model)) <= head


def test_the_first_head_to_go_is_the_one_without_which_the_loss_is_lowest(putri, model):
    parts = module_of(putri)
    method = methods.make("putri")
    H = parts.inputs(model, CALIBRATION)
    every = [
        parts.Without("kv_heads", block.layer, 0, head)
        for block in sublayers_of(model, "attention")
        for head in range(4)
    ]
    trial = Trial(model, CALIBRATION, "nll", narrow=parts.Fitted(H, method.damping))
    losses = [trial.losses([Replacements([one])])[0] for one in every]
    best = every[min(range(len(every)), key=losses.__getitem__)]
    found = method.search(make_twin(model), CALIBRATION, model.layers[0].sizes()["attention"] / 4)
    assert found["heads_in_order"] == [f"{best.layer}.{best.head}"]


def test_what_the_study_says_of_it_is_what_the_script_wrote():
    lines = [json.loads(line) for line in (ROOT / "docs/studies/putri.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 * len({line["ratio"] for line in lines})
    pairs = []
    for other, ours in zip(lines[::2], lines[1::2], strict=True):
        assert (other["method"], ours["method"]) == ("2ssp+refit", "putri+refit")
        assert abs(ours["parameters"] - other["parameters"]) < 1e-3 * other["parameters"]
        for name in ("wiki", "c4"):
            nll = [np.array(one[name]["nll"]) for one in (other, ours)]
            pairs.append(paired_perplexity(*nll, np.ones(len(nll[0]))))
    least, most = (end(pair.estimate for pair in pairs) for end in (min, max))
    assert f"has {least:.2f} to {most:.2f} times the perplexity" in text("docs/studies/laco-puzzle.md")
    assert all(pair.low > 1 for pair in pairs)
