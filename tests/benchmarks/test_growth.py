"""How time and memory of pruning grow: random bfloat16 models in the shapes of real ones, cut to a few layers.

    tox -e bench -- tests/benchmarks/test_growth.py

Each case prints, beside its time, the highest resident memory above that of the model at rest. Depth and calibration
tokens are doubled in turn. Off in the ordinary test run: set PRUNEBENCH_GROWTH=1.
"""

from __future__ import annotations

import os

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import methods
from bench.system.memory import peaks_of_devices, reset_peaks
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

CPU = [torch.device("cpu")]
pytestmark = pytest.mark.skipif(not os.environ.get("PRUNEBENCH_GROWTH"), reason="set PRUNEBENCH_GROWTH=1")

# width, MLP width, query heads, key/value heads
SHAPES = {
    "SmolLM2-135M": (576, 1536, 9, 3),
    "SmolLM2-360M": (960, 2560, 15, 5),
    "TinyLlama-1.1B": (2048, 5632, 32, 4),
}
KNOBS = {
    "laco": {"C": 3, "I": 1, "T": 1.0, "sentences": 64, "tokens": 64},
    "slicegpt": {"sparsity": 0.25},
    "llm-pruner": {"r": 0.25, "sequences": 64, "tokens": 64},
}


@pytest.mark.parametrize(("layers", "sequences"), [(8, 16), (16, 16), (8, 32)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", KNOBS)
def test_growth(method, shape, layers, sequences, benchmark):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    width, mlp, heads, kv_heads = SHAPES[shape]
    ids = torch.randint(3, 1000, (sequences, 64), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), memory=2**26)
    pruner = methods.make(method, KNOBS[method])
    config = AutoConfig.for_model(
        "llama",
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )

    def fresh():
        model = Decoder(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval())
        reset_peaks(CPU)
        benchmark.extra_info["at_rest_mb"] = peaks_of_devices(CPU)["resident_bytes"] // 10**6
        benchmark.extra_info["model_mb"] = sum(p.numel() * 2 for p in model.model.parameters()) // 10**6
        return (model, calibration, 0.0), {}

    benchmark.pedantic(pruner.prune, setup=fresh, rounds=1)
    peak = peaks_of_devices(CPU)["resident_bytes"] // 10**6
    benchmark.extra_info["above_rest_mb"] = peak - benchmark.extra_info["at_rest_mb"]
