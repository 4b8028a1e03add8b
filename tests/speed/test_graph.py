"""Captured steps: what a replay computes, what may not be captured, and when a point has one. No GPU is needed.

RecordedGraph replays operations as CUDA does, without Python in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, refused, tiny
from made_cells import made_cell
from recorded_graph import RecordedGraph, Refused
from tiny_methods import pruned

from bench.cli.main import main
from bench.plan import validate
from bench.plan.kinds import to_plain
from bench.plan.protocol import PROFILES, Protocol, protocol_for_cuda, protocol_of_profile
from bench.plan.run_spec import RunSpec
from bench.speed import workloads
from bench.speed.workloads import TimedPoint, make_capturable_cache, points_of_protocol, workload_of_point
from methods.errors import UserError

GRAPH = dataclasses.replace(protocol_of_profile("smoke"), cache="static", mode="graph", decode_steps=4)
CAPTURED = [family for family in TINY if family != "opt"]


def replayed(model, size, protocol=GRAPH, passes=2):
    """(the ids, the last logits of each step (steps, B, V), of several passes) of captured steps."""
    found = []
    with torch.inference_mode():
        work = workload_of_point(model, TimedPoint("decode", 2, size, "graph"), protocol, RecordedGraph)
        state = work.step.__self__
        for _ in range(passes):
            work.reset()
            steps = []
            for _ in range(work.steps):
                work.step()
                steps.append(state.last.logits[:, 0].clone())
            found.append(torch.stack(steps))
        whole = model(state.ids).logits
    return state, found, whole[:, size:].transpose(0, 1)


# --- what is replayed


@pytest.mark.parametrize("size", [3, 8, 20])  # within a window of 8, where it is just full, and beyond
@pytest.mark.parametrize("family", CAPTURED)
def test_replayed_steps_compute_the_models_logits_in_each_pass(family, size):
    _, found, whole = replayed(tiny(family), size)
    for logits in found:
        torch.testing.assert_close(logits, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize(
    "method", ["slicegpt", "llm-pruner", "flap", "2ssp", "blockpruner", "llm-drop", "svd-llm", "shortgpt+ghost"]
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3"])
def test_steps_of_pruned_models_are_captured_too(family, method):
    model, _ = pruned(method, family, 0.3)
    _, found, whole = replayed(model.model, 3)
    for logits in found:
        torch.testing.assert_close(logits, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_a_captured_step_equals_the_eager_one_to_the_last_bit():
    model = tiny("llama")
    _, (first, second), _ = replayed(model, 5)
    with torch.inference_mode():
        work = workload_of_point(model, TimedPoint("decode", 2, 5, "eager"), GRAPH, RecordedGraph)
        work.reset()
        eager = []
        for _ in range(work.steps):
            work.step()
            eager.append(work.step.__self__.last.logits[:, 0].clone())
    assert torch.equal(first, torch.stack(eager))
    assert torch.equal(first, second)


def test_the_memory_of_a_captured_step_stays_where_it_is():
    model = tiny("mistral")  # whose full windows are filled anew for each pass
    with torch.inference_mode():
        work = workload_of_point(model, TimedPoint("decode", 1, 20, "graph"), GRAPH, RecordedGraph)
        state = work.step.__self__

        def places():
            return [tensor.data_ptr() for layer in state.cache.layers for tensor in (layer.keys, layer.values)]

        work.reset()
        before = places()
        for _ in range(work.steps):
            work.step()
        work.reset()
        assert places() == before


def test_a_step_that_waits_for_the_device_is_refused():
    """OPT makes a mask as long as the cache is filled, a number that the host has to ask for."""
    with pytest.raises(Refused, match="makes the host wait"):
        replayed(tiny("opt"), 3)


def test_a_window_that_fills_within_a_pass_is_refused():
    with pytest.raises(ValueError, match=r"window of 8 tokens fills between 6 and 10.*decode behind 8 tokens or more"):
        replayed(tiny("mistral"), 6)
    config = tiny("mistral").config
    assert not any(layer.is_sliding for layer in make_capturable_cache(config, 4, 8).layers)
    assert all(layer.is_sliding for layer in make_capturable_cache(config, 8, 12).layers)


@pytest.mark.parametrize(
    "method",
    [
        None,
        "slicegpt",
        *(pytest.param(one, marks=pytest.mark.nightly) for one in ("flap", "llm-drop", "shortgpt+ghost")),
    ],
)
def test_a_step_is_traced_to_one_graph_that_is_never_traced_anew(method):
    model = tiny("llama") if method is None else pruned(method, "llama", 0.3)[0].model
    traced = []

    def backend(module, inputs):
        traced.append(module)
        return module

    torch.compiler.reset()
    with torch.inference_mode():
        work = workload_of_point(model, TimedPoint("decode", 2, 5, "graph"), GRAPH, RecordedGraph)
        state = work.step.__self__
        work.reset()
        step = torch.compile(state.launched, backend=backend, fullgraph=True)
        for _ in range(4):
            step()
    assert len(traced) == 1


# --- the recorder of these tests


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0]),
        torch.unique,
    ],
)
def test_the_recorder_refuses_what_cuda_does(wait):
    x = torch.arange(4.0)
    with pytest.raises(Refused):
        RecordedGraph().capture(lambda: wait(x), lambda: None)


def test_the_recorder_bakes_in_what_python_decides():
    x, count, out = torch.zeros(2), [0], []

    def step():
        count[0] += 1
        out[:] = [(x + count[0]) * 2]

    recorded = RecordedGraph()
    recorded.capture(step, lambda: None)
    assert out[0].tolist() == [4, 4]  # it was run once before
    x.fill_(10)
    recorded.replay()
    recorded.replay()
    assert out[0].tolist() == [24, 24]
    assert count == [2]


# --- CUDA's own


def test_on_cuda_a_step_runs_beside_the_main_stream_before_it_is_captured(monkeypatch):
    log, inside = [], ["main"]

    class Captured:
        def replay(self):
            log.append("replay")

    def within(name):
        @contextlib.contextmanager
        def entered(_):
            inside.append(name)
            yield
            inside.pop()

        return entered

    stream = SimpleNamespace(wait_stream=lambda other: log.append("waits"))
    for name, value in {
        "CUDAGraph": Captured,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": within("aside"),
        "graph": within("captured"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    made = workloads.CudaGraph()
    made.capture(lambda: log.append(f"step {inside[-1]}"), lambda: log.append(f"rewind {inside[-1]}"))
    made.replay()
    runs = ["step aside", "rewind aside"] * workloads.UNCAPTURED
    assert log == ["rewind main", "waits", *runs, "waits", "step captured", "replay"]


# --- when


def test_points_of_captured_steps_have_eager_ones_beside_them_at_the_batches_asked_for():
    protocol = dataclasses.replace(GRAPH, prefill=(8,), decode=(16, 4), max_batch=2)
    assert [str(point) for point in points_of_protocol(protocol)] == [
        "prefill of 8 tokens, batch 1, eager",
        "decode behind 4 tokens, batch 1, graph",
        "decode behind 4 tokens, batch 1, eager",
        "decode behind 16 tokens, batch 1, graph",
        "decode behind 16 tokens, batch 1, eager",
        "prefill of 8 tokens, batch 2, eager",
        "decode behind 16 tokens, batch 2, graph",
    ]
    assert to_plain(points_of_protocol(protocol)[1].timing()) == {
        "kind": "decode",
        "batch": 1,
        "context": 4,
        "mode": "graph",
    }
    assert "mode" not in to_plain(TimedPoint("decode", 1, 4).timing())


def test_a_gpu_has_defaults_of_its_own_where_nothing_else_was_said():
    found = protocol_for_cuda(protocol_of_profile("speed"), (), None)
    assert (found.mode, found.cache, found.prefill, found.decode) == ("graph", "static", *[(1024, 128, 8192)] * 2)
    said = protocol_for_cuda(
        protocol_of_profile("speed", decode=(7,), max_batch=0, mode="eager"), ("decode", "max_batch", "mode"), None
    )
    assert (said.mode, said.cache, said.prefill[0], said.decode, said.max_batch) == ("eager", "static", 1024, (7,), 0)
    smoke = dataclasses.replace(protocol_of_profile("smoke"), cache="static", mode="graph", calibration_memory_mib=0)
    assert protocol_for_cuda(protocol_of_profile("smoke"), (), None) == smoke
    assert (
        protocol_for_cuda(protocol_of_profile("smoke"), ("calibration_memory_mib",), None).calibration_memory_mib
        == 1024
    )
    assert protocol_for_cuda(protocol_of_profile("speed", compile=True), ("compile",), None).mode == "eager"
    assert protocol_for_cuda(protocol_of_profile("speed", cache="dynamic"), ("cache",), None).mode == "eager"


@pytest.mark.parametrize("name", PROFILES)
def test_what_macs_are_averaged_over_does_not_depend_on_whether_anything_is_timed(name):
    timed, untimed = (
        protocol_for_cuda(protocol_of_profile(name, **rounds), rounds, 4096) for rounds in ({}, {"speed_rounds": 0})
    )
    assert untimed.macs_context == timed.macs_context
    asked = protocol_of_profile(name, speed_rounds=0)
    assert untimed == dataclasses.replace(asked, prefill=timed.prefill, calibration_memory_mib=0)
    assert (
        protocol_for_cuda(protocol_of_profile(name, speed_rounds=0, prefill=(7,)), ("prefill",), None).macs_context == 7
    )


def test_default_sizes_that_a_model_has_no_positions_for_are_left_out():
    found = protocol_for_cuda(protocol_of_profile("quick"), (), 8192)
    assert (found.prefill, found.decode) == ((1024, 128, 8192), (1024, 128))
    small = protocol_for_cuda(protocol_of_profile("quick"), (), 128)
    assert (small.prefill, small.decode) == ((128,), protocol_of_profile("quick").decode)


def cell(protocol):
    return made_cell("dense", None, protocol)


def test_only_captured_steps_are_a_part_of_a_key():
    assert '"mode"' not in cell(protocol_of_profile("smoke")).question
    assert cell(GRAPH).plain()["protocol"]["mode"] == "graph"
    eager = dataclasses.replace(GRAPH, mode="eager")
    assert cell(GRAPH).key != cell(eager).key


def test_captured_steps_that_cannot_be_are_refused(model_folder, text_file, capsys):
    for wrong, message in (
        ({"compile": True, "cache": "static"}, "leave --compile out"),
        ({"cache": "dynamic"}, "add --cache static"),
    ):
        with pytest.raises(UserError, match=message):
            Protocol(mode="graph", **wrong)
    here = [
        "speed",
        str(model_folder),
        "--device",
        "cpu",
        "--calibration",
        str(text_file),
        "--calibration-length",
        "16",
    ]
    message = refused(capsys, [*here, "--mode", "graph", "--cache", "static"])
    assert "--mode graph needs a CUDA device, and cells run on cpu" in message


def test_a_cell_for_machines_with_gpus_has_their_defaults(model_folder, text_file):
    named = {"texts": [str(text_file)], "calibration": str(text_file), "tasks": (), "window": 64, "stride": 32}
    spec = RunSpec("dense", model=str(model_folder), device="cuda", profile="smoke", protocol=named)
    (found,) = validate.cells_of_spec(spec, is_here=False)
    assert (found.protocol.mode, found.protocol.cache) == ("graph", "static")


def test_the_list_of_profiles_says_what_they_are_on_a_gpu(capsys):
    assert main(["list", "profiles", "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("    mode = eager") == lines.count("    mode = graph on CUDA") == 4
    assert lines.count("    max_batch = 1024 on CUDA") == 2
