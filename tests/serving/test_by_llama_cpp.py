"""What llama.cpp does to a model while it is exported is an outcome of its row, and no refusal of its shape."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from uneven_models import bpe, droped

from bench.export import gguf_file
from bench.inference import llama_cpp
from bench.plan.protocol import ServedProtocol
from bench.runs.reproduce import PrunedModel
from bench.serving.adapters import ByLlamaCpp, NotServed
from bench.system.failures import Failure
from methods.errors import Unwritable, UserError


@pytest.mark.parametrize("status", ["crashed", "timed_out", "error"])
def test_the_failure_of_quantising_has_its_own_status(status, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "require", lambda what: None)
    monkeypatch.setattr(llama_cpp, "quantise", lambda *_, **__: Failure(status, "killed by SIGSEGV"))
    model = PrunedModel(droped("llama", intermediate_size=64), bpe(), {}, None)
    with pytest.raises(NotServed, match=f"llama.cpp does not write q8_0: {status}, killed by SIGSEGV") as caught:
        ByLlamaCpp(ServedProtocol(), 1).export(model, tmp_path / "model", "q8_0", "tiny")
    assert caught.value.status == status
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_outcome_of_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "require", lambda what: None)
    monkeypatch.setattr(llama_cpp, "quantise", lambda *_, **__: Failure("error", "not quantised"))
    monkeypatch.setattr(gguf_file.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    model = PrunedModel(droped("llama", intermediate_size=64), bpe(), {}, None)
    with pytest.raises(Unwritable, match=r"cannot be written: llama[.]cpp does not finish q8_0, and left are 0 MB in"):
        ByLlamaCpp(ServedProtocol(), 1).export(model, tmp_path / "model", "q8_0", "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_shape_is_refused(tmp_path):
    with pytest.raises(UserError, match="GGUF is written for llama"):
        ByLlamaCpp(ServedProtocol(), 1).export(
            PrunedModel(droped("gemma"), bpe(), {}, None), tmp_path / "m", "float32", "m"
        )
