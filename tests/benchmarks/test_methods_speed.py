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

from bench import models
from methods.anatomy import Decoder
from methods.laco import LaCo
from methods.llm_pruner import LLMPruner
from methods.pruner import Calibration
from methods.slicegpt import SliceGPT

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "laco_smol_c4_i2_t065.json").read_text())
pytestmark = pytest.mark.default_model


def sentences() -> Calibration:
    rows = GOLDEN["sentence_token_ids"]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return Calibration(ids, mask)


def block(sequences: int, length: int) -> Calibration:
    ids = torch.randint(17, 49152, (sequences, length), generator=torch.Generator().manual_seed(0))
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool))


WORKLOADS = {
    "laco, released rule, C 4, I 2, T 0.65, five sentences": (LaCo(C=4, I=2, T=0.65, tokens=22), sentences()),
    "slicegpt, d 320, 16 x 128 tokens": (SliceGPT(d=320), block(16, 128)),
    "llm-pruner, element1, 10 x 64 tokens, layers 4 to 27": (LLMPruner(r=0.3282), block(10, 64)),
}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_pruning(workload, benchmark):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    method, calibration = WORKLOADS[workload]

    def fresh():
        model, _ = models.load("smollm2-135m", torch.device("cpu"), torch.float32)
        return (Decoder(model), calibration, 0.0), {}

    decisions = benchmark.pedantic(method.prune, setup=fresh, rounds=3, warmup_rounds=1)
    assert decisions
