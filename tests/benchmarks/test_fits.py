"""What a compensation costs, as a multiple of one forward over its calibration tokens: a random model of 8 layers.

    tox -e bench -- tests/benchmarks/test_fits.py

The shape is that of SmolLM2-135M. `forwards` is the time of the fit, solves included, over that of a dense forward
without the head; the pruner's own time, and laco-ls's search, are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import methods
from methods.compensation.base import CompensatedPruner, Pruning, numbers_of_layers_left
from methods.model.activations import enter
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, make_twin
from methods.trials.collapse_fit import Collapse, Fit

PAIRS = {
    "drop+scale": {"layers": "2-3"},
    "drop+linearpatch": {"layers": "2-3"},
    "drop+ghost": {"layers": "2-3"},
    "drop+replaceme": {"layers": "2-3"},
    "minitron-width+refit": {},
}


WINDOWS = [(0, 1), (1, 3), (3, 4), (4, 6), (6, 7), (7, 8)]  # two layers of eight go


@pytest.fixture
def model() -> Decoder:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = AutoConfig.for_model(
        "llama",
        vocab_size=1000,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    return Decoder(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


@pytest.fixture
def calibration(benchmark: Any) -> Calibration:
    shape = (4, 64) if benchmark.disabled else (16, 256)
    ids = torch.randint(3, 1000, shape, generator=torch.Generator().manual_seed(0))
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool))


def measured(benchmark: Any, fit: Callable[[], object], model: Decoder, calibration: Calibration) -> None:
    """Time the fit, once, and say how many forwards it is."""
    forwards = []
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            entry = enter(model, calibration.ids)
            entry.run(model.layers, entry.x)
            forwards.append(time.perf_counter() - start)
    benchmark.pedantic(fit, rounds=1)
    if benchmark.stats:
        benchmark.extra_info["forwards"] = round(benchmark.stats.stats.min / min(forwards), 2)


@pytest.mark.parametrize("pair", PAIRS)
def test_fit(pair, benchmark, model, calibration):
    pruner = methods.make(pair, PAIRS[pair])
    assert isinstance(pruner, CompensatedPruner)
    dense = make_twin(model)
    decisions = pruner.pruner.prune(model, calibration, 0.1)
    pruning = Pruning(dense, model, numbers_of_layers_left(decisions, dense, model))
    measured(benchmark, lambda: pruner.compensation.repair(pruning, calibration), dense, calibration)


@pytest.mark.parametrize("how", [{}, {"attention": True}, {"sweeps": 2}], ids=["down", "attention", "sweeps"])
def test_collapse(how, benchmark, model, calibration):
    dense = make_twin(model)
    measured(benchmark, lambda: Collapse(model, WINDOWS, calibration, Fit(**how)).run(), dense, calibration)
