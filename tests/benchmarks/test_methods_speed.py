"""How long pruning takes, on the real default model, float32, all cores.

    tox -e bench -- tests/benchmarks/test_methods_speed.py

The workloads are those for which the authors' own code was timed; see README.md beside this file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import padded

from bench.data import pretrained
from methods.depth.blockpruner import BlockPruner
from methods.depth.laco import LaCo
from methods.depth.sleb import SLEB
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.width.llm_pruner import LLMPruner
from methods.width.slicegpt import SliceGPT

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "laco_smol_c4_i2_t065.json").read_text())
SENTENCES = GOLDEN["sentence_token_ids"]
pytestmark = pytest.mark.default_model


def block(sequences: int, length: int) -> Calibration:
    ids = torch.randint(17, 49152, (sequences, length), generator=torch.Generator().manual_seed(0))
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool))


WORKLOADS = {  # method, calibration, layers that go; where none is named, the method's own knob decides
    "laco, released rule, C 4, I 2, T 0.65, five sentences": (
        LaCo(C=4, I=2, T=0.65, tokens=22),
        padded(GOLDEN["sentence_token_ids"]),
        0,
    ),
    "slicegpt, d 320, 16 x 128 tokens": (SliceGPT(d=320), block(16, 128), 0),
    "llm-pruner, element1, 10 x 64 tokens, layers 4 to 27": (LLMPruner(r=0.3282), block(10, 64), 0),
    "sleb, 8 of 30 layers, 8 x 256 tokens": (SLEB(), block(8, 256), 8),
    "blockpruner, as much as 3 of 30 layers, 2 x 256 tokens": (BlockPruner(), block(2, 256), 3),
}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_pruning(workload, benchmark):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    method, calibration, layers = WORKLOADS[workload]
    if layers and benchmark.disabled:
        pytest.skip("minutes of searching; tests/test_greedy.py checks what is found")

    def fresh():
        model = Decoder(pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)[0])
        return (model, calibration, layers * layer_parameters(model.layers[0]) / parameters(model)), {}

    rounds, warmup_rounds = (1, 0) if layers else (3, 1)  # a search takes minutes and warms up on the way
    decisions = benchmark.pedantic(method.prune, setup=fresh, rounds=rounds, warmup_rounds=warmup_rounds)
    assert decisions
