"""What a compensation costs, as a multiple of one forward over its calibration tokens: a random model of 8 layers.

    tox -e bench -- tests/benchmarks/test_fits.py

The shape is that of SmolLM2-135M. `forwards` is the time of the fit, solves included, over that of a dense forward
without the head; the pruner's own time is left out.
"""

from __future__ import annotations

import os
import time

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import methods
from methods.anatomy import Decoder
from methods.compensation import Compensated, twin
from methods.cuts import Pruning, kept_layers
from methods.pruner import Calibration
from methods.signals import enter

PAIRS = {
    "drop+scale": {"layers": "2-3"},
    "drop+linearpatch": {"layers": "2-3"},
    "drop+ghost": {"layers": "2-3"},
    "drop+replaceme": {"layers": "2-3"},
    "minitron-width+refit": {},
}


@pytest.mark.parametrize("pair", PAIRS)
def test_fit(pair, benchmark):
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
    model = Decoder(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    ids = torch.randint(3, 1000, (16, 256), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(ids, torch.ones_like(ids, dtype=torch.bool))
    pruner = methods.make(pair, PAIRS[pair])
    assert isinstance(pruner, Compensated)
    dense = twin(model)
    decisions = pruner.pruner.prune(model, calibration, 0.1)
    pruning = Pruning(dense, model, kept_layers(decisions, dense, model))
    start = time.perf_counter()
    with torch.no_grad():
        entry = enter(dense, ids)
        entry.run(dense.layers, entry.x)
    forward = time.perf_counter() - start
    benchmark.pedantic(pruner.compensation.mend, args=(pruning, calibration), rounds=1)
    if benchmark.stats:
        benchmark.extra_info["forwards"] = round(benchmark.stats.stats.min / forward, 2)
