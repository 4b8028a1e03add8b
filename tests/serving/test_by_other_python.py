"""An engine in a Python of its own has the GPU for itself: what transformers says is known before it starts."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from emulated import EmulatedGpus
from transformers import AutoConfig
from uneven_models import bpe, uneven

from bench.data.texts import EvaluationText
from bench.export import engine_form
from bench.plan.protocol import ServedProtocol
from bench.runs.reproduce import PrunedModel
from bench.serving import adapters
from bench.serving.adapters import ByOtherPython, ExportedModel, NotServed, perplexity_of_windows
from methods.errors import UserError
from methods.model.decoder import Decoder

IDS = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(0))


def nats() -> list[float]:
    """Of each window, all tokens but the first, by the model's own forward."""
    with torch.no_grad():
        scores = tiny("llama")(IDS).logits[:, :-1].log_softmax(-1)
    return (-scores.gather(-1, IDS[:, 1:, None])).sum((1, 2)).tolist()


@pytest.mark.parametrize("off", [1.0, 1.1, math.nan])
def test_our_own_model_has_left_the_gpu_when_the_engine_starts(off, tmp_path, monkeypatch):
    asked, found, computed = (
        ServedProtocol(engine="vllm", engine_python="python", types=("bfloat16", "float16")),
        list[set[str]](),
        [],
    )
    text = EvaluationText(IDS, torch.ones_like(IDS, dtype=torch.bool), 1, 1, IDS[:, 1:].numel(), "", "t", "none", True)
    window_nll = adapters.nll_of_windows
    monkeypatch.setattr(adapters, "nll_of_windows", lambda *given: computed.append(1) or window_nll(*given))
    with EmulatedGpus():
        model = PrunedModel(Decoder(tiny("llama").to("cuda")), None, {}, None)

        def likelihoods(*_):
            found.append({one.device.type for one in model.model.model.parameters()})
            return [off * one for one in nats()]

        engine = ByOtherPython(asked, 1)
        engine.program = SimpleNamespace(likelihoods=likelihoods)
        for kind in ("bfloat16", "float16"):
            if off == 1:
                quality = engine.quality(ExportedModel(tmp_path, "hf", kind, 1), model, text)
                assert quality["perplexity"]["perplexity"] == pytest.approx(math.exp(sum(nats()) / IDS[:, 1:].numel()))
            else:
                with pytest.raises(
                    NotServed, match="vllm perplexity" if off == 1.1 else "perplexity is nan, which is no fin"
                ):
                    engine.quality(ExportedModel(tmp_path, "hf", kind, 1), model, text)
    assert found == [{"cpu"}, {"cpu"}]
    assert len(computed) == 1  # for both types


def test_an_engine_agrees_with_no_model_that_has_no_perplexity(tmp_path, monkeypatch):
    ids = torch.zeros(2, 2, dtype=torch.long)
    text = EvaluationText(ids, ids.bool(), 1, 1, 2, "", "t", "none", True)
    engine = ByOtherPython(ServedProtocol(engine="vllm", engine_python="python", types=("bfloat16",)), 1)
    engine.program = SimpleNamespace(likelihoods=lambda *_: [1.0, 1.0])
    monkeypatch.setattr(engine, "_perplexity", lambda *_: math.nan)
    with pytest.raises(NotServed, match=r"vllm perplexity: .*transformers has nan"):
        engine.quality(ExportedModel(tmp_path, "hf", "bfloat16", 1), None, text)


def test_a_perplexity_beyond_all_numbers_is_an_outcome():
    ids = torch.zeros(2, 2, dtype=torch.long)
    text = EvaluationText(ids, ids.bool(), 1, 1, 2, "", "t", "none", True)
    found = perplexity_of_windows([10.0, 150.0], text)
    assert found["perplexity"] == pytest.approx(math.exp(80))
    assert "perplexity_high" not in found  # which is beyond them
    with pytest.raises(NotServed, match="the engine's perplexity is inf, which is no finite number"):
        perplexity_of_windows([1e4, 1e4], text)


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_layers_of_sizes_of_their_own_are_refused_before_a_folder_is_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters.save_load, "save", lambda *_, **__: pytest.fail("a folder was written"))
    made = ByOtherPython(ServedProtocol(engine=name, engine_python="python", types=("auto",)), 1)
    for model in (uneven("llama", heads=()), uneven("llama", heads=(), gone="mlp 2")):
        with pytest.raises(UserError, match=f"{name} is given folders that transformers alone loads, and .*layer"):
            made.export(PrunedModel(model, bpe(), {}, None), tmp_path / "model", "float32", "model")
    assert list(tmp_path.iterdir()) == []


def test_transformers_has_no_class_for_the_configuration_of_nemotron_nas(tmp_path):
    """By which SGLang loads its own, and vLLM without the plugin."""
    engine_form.write_nemotron(uneven("llama", heads=()), bpe(), tmp_path / "nas", torch.float32, shard_bytes=10**9)
    with pytest.raises(ValueError, match="nemotron-nas"):
        AutoConfig.from_pretrained(tmp_path / "nas")
