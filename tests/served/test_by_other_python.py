"""An engine in a Python of its own has the GPU for itself: what transformers says is known before it starts."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from emulated import EmulatedGpus

from bench.data.texts import EvaluationText
from bench.plan.served import ServedProtocol
from bench.run.reproduce import PrunedModel
from bench.served import by_other_python
from bench.served.by_other_python import ByOtherPython
from bench.served.engine import Exported, NotServed
from methods.model.decoder import Decoder

IDS = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(0))


def nats() -> list[float]:
    """Of each window, all tokens but the first, by the model's own forward."""
    with torch.no_grad():
        scores = tiny("llama")(IDS).logits[:, :-1].log_softmax(-1)
    return (-scores.gather(-1, IDS[:, 1:, None])).sum((1, 2)).tolist()


@pytest.mark.parametrize("off", [1.0, 1.1])
def test_our_own_model_has_left_the_gpu_when_the_engine_starts(off, tmp_path, monkeypatch):
    asked, found, computed = (
        ServedProtocol(engine="vllm", engine_python="python", types=("bfloat16", "float16")),
        list[set[str]](),
        [],
    )
    text = EvaluationText(IDS, torch.ones_like(IDS, dtype=torch.bool), 1, 1, IDS[:, 1:].numel(), "", "t", "none", True)
    window_nll = by_other_python.window_nll
    monkeypatch.setattr(by_other_python, "window_nll", lambda *given: computed.append(1) or window_nll(*given))
    with EmulatedGpus():
        model = PrunedModel(Decoder(tiny("llama").to("cuda")), None, {}, None)

        def likelihoods(*_):
            found.append({one.device.type for one in model.model.model.parameters()})
            return [off * one for one in nats()]

        engine = ByOtherPython(asked, 1)
        engine.other = SimpleNamespace(likelihoods=likelihoods)
        for kind in ("bfloat16", "float16"):
            if off == 1:
                quality = engine.quality(Exported(tmp_path, "hf", kind, 1), model, text)
                assert quality["perplexity"]["perplexity"] == pytest.approx(math.exp(sum(nats()) / IDS[:, 1:].numel()))
            else:
                with pytest.raises(NotServed, match="vllm perplexity"):
                    engine.quality(Exported(tmp_path, "hf", kind, 1), model, text)
    assert found == [{"cpu"}, {"cpu"}]
    assert len(computed) == 1  # for both types
