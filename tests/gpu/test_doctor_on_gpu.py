"""The doctor's whole table on two emulated GPUs: every row is right, and what is broken on purpose is named."""

from __future__ import annotations

import json

import pytest
from emulated import EmulatedGpus

from bench.cli.main import main
from bench.doctor import machine, measuring, pruning
from bench.speed.benchmark import SpeedBenchmark
from bench.speed.workloads import TimedPoint
from methods.depth.shortgpt import ShortGPT

METHODS = ("shortgpt", "slicegpt")
TIMES = {"speedup": 1.0, "speedup_low": 0.99, "speedup_high": 1.01, "flags": (), "dense_ms": 2.0, "pruned_ms": 2.0}
ROWS = {
    *("versions", "processor", "GPU", "product, float64", "product, float32", "product, bfloat16"),
    *("matrix rate, bfloat16", "bandwidth", "perplexity, float32", "perplexity, bfloat16"),
    *("scorer, made-up documents, float32", "scorer, made-up documents, bfloat16", "save and generate, drop"),
    *("captured decode, float32", "captured decode, bfloat16", "timing, decode, graph", "timing, prefill, eager"),
    *("out of memory", "copies", "copies between GPUs", "weights in files"),
    *("shortgpt on cuda:1", "slicegpt over both GPUs", *METHODS),
}


class Again:
    """Does a step again where a GPU would replay it."""

    def capture(self, step, rewind):
        self.replay = step
        rewind()
        step()


@pytest.fixture
def examined(monkeypatch, capsys, tmp_path):
    """Return a call of the command for a GPU, with few methods and small sizes: its exit code, and its findings."""
    stored = {name: answer for name, answer in pruning.read_answers().items() if name in METHODS}
    points = [TimedPoint(*size).timing(**TIMES) for size in (("decode", 1, 4, "graph"), ("prefill", 1, 4, "eager"))]
    monkeypatch.setattr(pruning, "read_answers", lambda: stored)
    monkeypatch.setattr(pruning, "list_cases", lambda: list(METHODS))
    monkeypatch.setattr("methods.load", lambda *_: {})
    monkeypatch.setattr(machine, "SECOND", METHODS[:1])
    monkeypatch.setattr(machine, "COPIED", 1000)
    monkeypatch.setitem(machine.SIZES, "cuda", {"copied": 2**16, "side": 64})
    monkeypatch.setattr(pruning, "FORMS", {"drop": pruning.FORMS["drop"]})
    monkeypatch.setattr(pruning, "STEPS", 2)
    monkeypatch.setattr(machine, "SIZE", 2**16)
    monkeypatch.setattr(machine, "BLOCK", 2**12)
    monkeypatch.setattr(measuring, "MADE_UP", measuring.MADE_UP[:1])
    monkeypatch.setattr(measuring, "CudaGraph", Again)
    monkeypatch.setattr(SpeedBenchmark, "time", lambda *_: iter(points))  # which has tests of its own
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))

    def call(*arguments: str):
        with EmulatedGpus(count=2):
            code = main(["doctor", "--device", "cuda", "--json", *arguments])
        return code, {one["what"]: one for one in json.loads(capsys.readouterr().out)["findings"]}

    return call


@pytest.mark.nightly
def test_every_row_of_the_table_is_right_on_two_gpus(examined):
    code, found = examined()
    assert code == 0
    assert {what for what, one in found.items() if one["status"] == "ok"} == ROWS
    assert found.keys() - ROWS == {"scorer, piqa and arc_easy"}  # of an empty cache


def test_a_method_that_decides_otherwise_on_the_second_gpu_is_named(examined, monkeypatch):
    right = ShortGPT.scores
    monkeypatch.setattr(ShortGPT, "scores", lambda *asked: [-score for score in right(*asked)])
    code, found = examined("--only", "copies")
    assert code == 1
    assert {what for what, one in found.items() if one["status"] == "wrong"} == {"shortgpt on cuda:1"}
