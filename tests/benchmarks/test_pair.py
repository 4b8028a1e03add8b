"""Two random Llamas beside each other, as `python -m bench speed` times them: 8 layers against 8, and against 4.

    tox -e bench -- tests/benchmarks/test_pair.py

Both sides are measured in turns within one run, so that the ratio in `extra_info` can be compared between runs even
where milliseconds cannot. Of the pair of equal models its interval should contain 1.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import tiny

from bench.plan.protocol import protocol_of_profile
from bench.speed.benchmark import SpeedBenchmark
from bench.speed.timing import WallClock

SHAPE = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 704}
PROTOCOL = dataclasses.replace(protocol_of_profile("smoke"), prefill=(64,), decode=(32,), speed_rounds=12)
QUICKLY = dataclasses.replace(PROTOCOL, prefill=(8,), decode=(2,), speed_rounds=6)


@pytest.mark.parametrize("layers", [8, 4])
def test_pair(layers, benchmark):
    dense, pruned = tiny("llama", layers=8, **SHAPE), tiny("llama", layers=layers, **SHAPE)
    stand = SpeedBenchmark(
        QUICKLY if benchmark.disabled else PROTOCOL, WallClock(), [torch.device("cpu")], [], lambda where: None
    )
    points = benchmark.pedantic(lambda: list(stand.time(dense, pruned)), rounds=1)
    for point in points:
        names = ("speedup", "speedup_low", "speedup_high", "speedup_by_macs", "dense_ms", "pruned_ms", "flags")
        benchmark.extra_info[point.kind] = {name: getattr(point, name) for name in names}
    assert [point.kind for point in points] == ["prefill", "decode"]
