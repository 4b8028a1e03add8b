"""Holds the tests that new-method writes beside each kind of first file: what only that method promises."""

from __future__ import annotations

HEAD = '''"""Tests what first-kind alone promises. What all methods promise is looked at by check-method."""

from __future__ import annotations

from pathlib import Path

import torch

import methods
'''

LOADED = """
methods.load([str(Path(__file__).with_name("first_kind.py"))])
"""

PRUNE = """from bench.workshop.tiny_models import draw_calibration, draw_tiny_model
from methods import Decoder
from methods.decisions import prune
"""

BODIES = {
    "depth": PRUNE
    + LOADED
    + """

def test_a_layer_that_adds_nothing_goes_first():
    model = Decoder(draw_tiny_model("llama"))
    with torch.no_grad():
        for matrix in (model.layers[3].out, model.layers[3].down):
            matrix.weight.zero_()
    decisions = prune(methods.make("first-kind"), model, draw_calibration(), 0.15)  # a layer of six
    assert decisions["removed_layers"] == [3]


def test_layers_at_both_ends_stay():
    model = Decoder(draw_tiny_model("llama"))
    pruner = methods.make("first-kind", {"keep_first": 2, "keep_last": 3})
    assert prune(pruner, model, draw_calibration(), 0.15)["removed_layers"] == [2]
""",
    "width": PRUNE
    + LOADED
    + """

def test_a_channel_that_adds_nothing_goes_first():
    model = Decoder(draw_tiny_model("llama"))
    with torch.no_grad():
        for layer in model.layers:
            layer.down.weight[:, 7] = 0
    decisions = prune(methods.make("first-kind"), model, draw_calibration(), 0.1)
    assert all(7 in units for units in decisions["removed_channels"])


def test_all_layers_keep_as_many_units():
    model = Decoder(draw_tiny_model("llama"))
    decisions = prune(methods.make("first-kind", {"multiple": 4}), model, draw_calibration(), 0.3)
    assert len(set(decisions["channels"])) == len(set(decisions["kv_heads"])) == 1
    assert decisions["channels"][0] % 4 == 0
""",
    "search": PRUNE
    + LOADED
    + """

def test_the_set_with_the_lowest_loss_is_removed():
    dense, model = (Decoder(draw_tiny_model("llama")) for _ in range(2))
    pruner = methods.make("first-kind", {"sets": 6})
    decisions = prune(pruner, model, draw_calibration(), 0.3)
    sets = pruner.draw_sets(dense, decisions["attentions"], draw_calibration().seed)
    best = sets[decisions["losses"].index(min(decisions["losses"]))]
    removed = {f"attention {number}" for number in decisions["removed_attention"] + decisions["removed_layers"]}
    removed |= {f"mlp {number}" for number in decisions["removed_mlp"] + decisions["removed_layers"]}
    assert removed == {str(block) for block in best}


def test_a_seed_draws_the_same_sets_and_another_one_others():
    model, pruner = Decoder(draw_tiny_model("llama")), methods.make("first-kind")
    first, again, another = (pruner.draw_sets(model, 2, seed) for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(another)
""",
    "compensation": """from methods.compensation.base import BoundaryStates
"""
    + LOADED
    + """

def test_channels_that_differ_by_factors_are_met():
    y = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([0.5, 1.0, 2.0, -1.0])
    where, sink = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    pruner = methods.make("shortgpt+first-kind")
    fitted = pruner.compensation.fit([BoundaryStates(y, y, y * factors, where, sink)])
    torch.testing.assert_close(y.double() + y.double() @ fitted.W, (y * factors).double())
""",
}


def build_test(kind: str) -> str:
    """Return the text of the test of a kind of first file, as of a method `first-kind` in `first_kind.py`."""
    return HEAD + BODIES[kind]
