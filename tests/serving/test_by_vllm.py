"""vLLM beside this suite: whose tokens agree, what it is given, and that it has the GPU for itself."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny
from emulated import EmulatedGpus
from transformers import AutoModelForCausalLM
from uneven_models import bpe, uneven

from bench.data.texts import EvaluationText
from bench.inference.quantise_script import SCHEMES
from bench.plan.protocol import COMPRESSED, ServedProtocol
from bench.runs.reproduce import PrunedModel
from bench.serving import adapters
from bench.serving.adapters import (
    ByVllm,
    ExportedModel,
    NotServed,
    compare_means,
    compare_tokens,
    perplexity_of_windows,
)
from bench.speed.workloads import TimedPoint, bytes_of_step
from methods.checkpoint import save_load
from methods.errors import UserError
from methods.model.decoder import Decoder

STUB = Path(__file__).parents[1] / "stub"
IDS = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(0))


def asked(**more) -> ServedProtocol:
    given = {"engine": "vllm", "engine_python": "python", "types": ("float32",), "window": 16, "decode": (8,)}
    return ServedProtocol(**given | {"batches": (1, 4)} | more)


class Process:
    """Stands for vLLM's process: it holds what it is given, and answers requests as `answers` says."""

    def __init__(self, **answers):
        self.answers, self.loaded = answers, {}

    def load(self, name, folder, **options):
        self.loaded[name] = options

    def exchange(self, do, **request):
        return self.answers[do](**request)


def served_by(process, device="cpu", **more) -> ByVllm:
    engine = ByVllm(asked(**more), 1)
    engine.process, engine._device = process, {"device": device}
    return engine


def logs(shift=0.0) -> list[list[float]]:
    """Log-probabilities of the model's tokens but the first, by its own forward."""
    with torch.no_grad():
        scores = tiny("llama")(IDS).logits[:, :-1].log_softmax(-1)
    return (scores.gather(-1, IDS[:, 1:, None])[..., 0] + shift).tolist()


def text() -> EvaluationText:
    return EvaluationText(IDS, torch.ones_like(IDS, dtype=torch.bool), 1, 1, IDS[:, 1:].numel(), "", "t", "none", True)


def exported(tmp_path, kind="float32") -> ExportedModel:
    return ExportedModel(tmp_path, "hf", kind, 1)


def test_our_own_model_has_left_the_gpu_when_the_engine_starts(tmp_path, monkeypatch):
    devices, computed = list[set[str]](), []
    window_nll = adapters.nll_of_windows
    monkeypatch.setattr(adapters, "nll_of_windows", lambda *given: computed.append(1) or window_nll(*given))
    with EmulatedGpus():
        model = PrunedModel(Decoder(tiny("llama").to("cuda")), None, {}, None)

        def score(name, sequences):
            devices.append({parameter.device.type for parameter in model.model.model.parameters()})
            return {"logs": logs()}

        engine = served_by(Process(score=score), "cuda")
        for kind in ("float32", "float16"):
            quality = engine.quality(exported(tmp_path, kind), model, text())
            mean = -sum(map(sum, logs())) / IDS[:, 1:].numel()
            assert quality["perplexity"]["perplexity"] == pytest.approx(math.exp(mean))
    assert devices == [{"cpu"}, {"cpu"}]
    assert len(computed) == 1  # for both types
    assert engine.process.loaded["pruned"]["gpu_memory_utilization"] < 0.5  # another model is held beside it


@pytest.mark.parametrize(("kind", "allowed"), [("float32", 1e-3), ("bfloat16", 0.02)])
def test_what_does_not_agree_is_an_error_of_its_row(kind, allowed, tmp_path):
    model = PrunedModel(Decoder(tiny("llama")), None, {}, None)
    engine = served_by(Process(score=lambda **_: {"logs": logs(0.9 * allowed)}))
    assert engine.quality(exported(tmp_path, kind), model, text())["checks"][0][:2] == ["vllm tokens", True]
    for shift in (1.1 * allowed, math.nan):
        engine.process.answers["score"] = lambda shift=shift, **_: {"logs": logs(shift)}
        with pytest.raises(NotServed, match=r"vllm tokens: .*differ by") as caught:
            engine.quality(exported(tmp_path, kind), model, text())
        assert caught.value.status == "error"
        assert caught.value.measured["checks"][0][1] is False


def test_one_token_of_many_is_not_overlooked():
    ours = torch.zeros(4, 1000, dtype=torch.float64)
    theirs = ours.clone()
    theirs[2, 7] = 0.01
    assert not compare_tokens(ours, theirs, lambda: ours).passed
    assert compare_means(ours, theirs).passed  # which is why float32 is compared by tokens


def test_a_model_that_float32_fails_may_differ_as_much_as_float32_does():
    exact = torch.zeros(1, 10, dtype=torch.float64)
    ours, near, far = exact + 0.004, exact - 0.005, exact + 0.02
    assert compare_tokens(ours, near, lambda: exact).passed
    assert not compare_tokens(ours, far, lambda: exact).passed
    assert not compare_tokens(exact + 1e-6, near, lambda: exact).passed


def test_an_export_says_what_a_step_reads(tmp_path):
    model = PrunedModel(uneven("llama", heads=(), gone="mlp 2"), bpe(), {}, None)
    engine = served_by(Process(check_plugin=lambda: {"trouble": ""}))
    for kind, size in (("float32", 4), ("bfloat16", 2)):
        folder = engine.export(model, tmp_path / kind, kind, "model")
        assert save_load.load(folder.path).model.dtype == getattr(torch, kind)
        point = TimedPoint("decode", 4, 8)
        assert folder.step_bytes(point) == bytes_of_step(model.model, point) * size // 4


def test_a_shape_that_needs_the_plugin_is_refused_where_vllm_cannot_have_it(tmp_path):
    engine = served_by(Process(check_plugin=lambda: {"trouble": "No module named 'accelerate'"}))
    uneven_model = PrunedModel(uneven("llama", heads=()), bpe(), {}, None)
    with pytest.raises(UserError, match=r"from layer to layer.* takes no such folders: No module named 'accelerate'"):
        engine.export(uneven_model, tmp_path / "model", "float32", "model")
    assert list(tmp_path.iterdir()) == []
    whole = PrunedModel(Decoder(tiny("llama", vocab_size=260)), bpe(), {}, None)
    engine.export(whole, tmp_path / "whole", "float32", "model")  # a stock folder needs none


@pytest.fixture
def compressing(monkeypatch):
    """An engine of types with fewer bits, with the stub of llmcompressor."""
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    answers = {"describe": lambda: {"version": "0", "device": {"device": "cpu"}}, "drop": dict}
    engine = served_by(Process(**answers), types=("bfloat16", "w8a8"), llmcompressor_python=sys.executable)
    engine.require(engine.protocol)
    return engine


@pytest.mark.parametrize(("kind", "most"), [("w8a8", 255), ("w4a16", 15)])
def test_the_linear_layers_of_a_folder_have_as_few_numbers_as_their_type(kind, most, compressing, tmp_path):
    shape = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 260}
    whole = PrunedModel(Decoder(tiny("llama", layers=1, **shape)), bpe(), {}, None)
    folder = compressing.export(whole, tmp_path / "model", kind, "model")
    assert list(tmp_path.iterdir()) == [folder.path]  # the folder before is removed
    assert folder.bytes == sum(file.stat().st_size for file in folder.path.glob("*.safetensors"))
    mine, its = whole.model.model.state_dict(), AutoModelForCausalLM.from_pretrained(folder.path).state_dict()
    for name, weight in its.items():
        if "_proj" in name:
            rows = weight.view(-1, SCHEMES[kind]["weights"].get("group_size", weight.shape[1]))
            numbers = max(len(row.unique()) for row in rows)
            assert most / 2 < numbers <= most < rows.shape[1]
        else:
            assert torch.equal(weight.bfloat16(), mine[name].bfloat16())


def test_every_type_of_llmcompressor_has_its_scheme():
    assert set(SCHEMES) == set(COMPRESSED)


def test_weights_of_fewer_bits_are_computed_in_bfloat16_and_may_be_further_off(compressing, tmp_path):
    model = PrunedModel(Decoder(tiny("llama")), None, {}, None)
    process = compressing.process
    for shift, passes in ((0.5, True), (1.5, False)):
        process.answers["score"] = lambda shift=shift, **_: {"logs": logs(shift)}
        if passes:
            measured = compressing.quality(exported(tmp_path, "w8a8"), model, text())
            assert measured["quantiser"] == "llmcompressor 0.stub"
            assert process.loaded["pruned"]["dtype"] == "bfloat16"
        else:
            with pytest.raises(NotServed, match="means differ by"):
                compressing.quality(exported(tmp_path, "w8a8"), model, text())
        with pytest.raises(NotServed, match="means differ by"):
            compressing.quality(exported(tmp_path, "bfloat16"), model, text())


def test_what_llmcompressor_cannot_have_or_do_is_an_outcome_of_its_row(compressing, tmp_path, monkeypatch):
    uneven_model = PrunedModel(uneven("llama", heads=()), bpe(), {}, None)
    with pytest.raises(UserError, match=r"from layer to layer.* llmcompressor takes no such folders"):
        compressing.export(uneven_model, tmp_path / "model", "w4a16", "model")
    whole = PrunedModel(Decoder(tiny("llama", vocab_size=260)), bpe(), {}, None)
    monkeypatch.setenv("STUB_COMPRESSOR_FAILS", "ValueError: 24 columns are no whole groups")
    with pytest.raises(NotServed, match="llmcompressor ended: ValueError: 24 columns are no whole groups"):
        compressing.export(whole, tmp_path / "model", "w4a16", "model")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"has no llmcompressor: .*24 columns"):
        compressing.require(compressing.protocol)


def test_a_pass_of_decode_is_its_steps_and_one_of_a_prompt_a_call():
    given = []
    ms = {0: [5.0], 16: [5.0, 2.0, 2.5]}
    process = Process(time_pass=lambda **request: given.append(request) or {"ms": ms[request["steps"]]})
    engine = served_by(process)
    assert engine._time_pass("dense", TimedPoint("prefill", 2, 9), 0).ms == [5.0]
    timed = engine._time_pass("pruned", TimedPoint("decode", 1, 8), 16)
    assert (timed.ms, timed.wall_ms) == ([2.0, 2.5], 4.5)
    assert given[1] == {"name": "pruned", "batch": 1, "tokens": 8, "steps": 16}
    process.answers["time_pass"] = lambda **_: {"ms": [5.0]}
    with pytest.raises(adapters.EngineFailed, match="in more calls than its tokens"):
        engine._time_pass("pruned", TimedPoint("decode", 1, 8), 16)


def test_models_have_room_for_windows_prompts_and_steps(tmp_path):
    engine = served_by(Process(), window=20, prefill=(16,), decode=(8, 40), steps=6)
    engine._load("dense", exported(tmp_path, "bfloat16"))
    assert engine.process.loaded == {"dense": {"dtype": "bfloat16", "max_model_len": 47}}


def test_a_perplexity_beyond_all_numbers_is_an_outcome():
    ids = torch.zeros(2, 2, dtype=torch.long)
    pair = EvaluationText(ids, ids.bool(), 1, 1, 2, "", "t", "none", True)
    found = perplexity_of_windows([10.0, 150.0], pair)
    assert found["perplexity"] == pytest.approx(math.exp(80))
    assert "perplexity_high" not in found  # which is beyond them
    with pytest.raises(NotServed, match="the engine's perplexity is inf, which is no finite number"):
        perplexity_of_windows([1e4, 1e4], pair)
