"""llama.cpp computes what is exported, and whatever it makes of a file is an outcome of a check."""

from __future__ import annotations

import contextlib
import dataclasses

import engine_children
import psutil
import pytest
import torch
from uneven_models import bpe, droped, uneven

from bench.data import gguf
from bench.export import engine_check, gguf_file
from bench.export.engine_form import Sizes
from bench.inference import llama_cpp
from bench.system import worker
from methods.errors import UserError

engine = pytest.mark.skipif(not llama_cpp.is_installed(), reason="needs the extra `llama`")
WINDOWS = torch.randint(3, 128, (2, 40), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    def running():
        found = set()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile, or waits to be asked how
                if not any("resource_tracker" in word for word in child.cmdline()):
                    found.add(child.pid)
        return found - {worker._server()}  # which forks those of later tests too

    before = running()
    yield
    assert running() <= before


def outcomes(model, folder, dtype=torch.float32, **how):
    """What the checks of an export say, by name."""
    file = folder / "model.gguf"
    gguf_file.write_gguf(model, bpe(), file, dtype, "tiny", **how)
    return {check.name: check for check in engine_check.check_gguf(file, bpe(), WINDOWS, threads=1)}


def failed(checks):
    return [name for name, check in checks.items() if not check.passed]


MODELS = {
    "stock": lambda: droped("llama"),
    "qwen3": lambda: droped("qwen3", head_dim=128),
    "uneven": lambda: uneven("llama", gone="attention 1", biases=True),
    "uneven qwen2": lambda: uneven("qwen2", use_sliding_window=False, gone="mlp 4"),
    "layers gone": lambda: uneven("llama", gone="attention 0, mlp 0, attention 5, mlp 5"),
}


@engine
@pytest.mark.parametrize("kind", MODELS)
def test_llama_cpp_computes_the_model(kind, tmp_path):
    checks = outcomes(MODELS[kind](), tmp_path)
    assert failed(checks) == []
    assert list(checks)[2:] == ["llama.cpp tokens", "llama.cpp logits", "llama.cpp perplexity"]


@engine
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_llama_cpp_computes_the_model_in_half_precision(dtype, tmp_path):
    assert failed(outcomes(uneven("llama", gone="mlp 2"), tmp_path, dtype)) == []


def without_channels(form):
    form.layers = [
        dataclasses.replace(sizes, I=0 if sizes.I == gguf_file.CHANNELS else sizes.I) for sizes in form.layers
    ]
    gone = [number for number, sizes in enumerate(form.layers) if not sizes.I]
    parts = tuple(f"layers.{number}.{part}" for number in gone for part in ("mlp", "post_attention"))
    form.tensors = {name: tensor for name, tensor in form.tensors.items() if not any(part in name for part in parts)}


def without_first_attention(form):
    form.layers[0] = Sizes(0, 0, form.layers[0].I)
    parts = ("layers.0.self_attn", "layers.0.input")
    form.tensors = {name: tensor for name, tensor in form.tensors.items() if not any(part in name for part in parts)}


TRAPS = {  # what is gone; the zeros that llama.cpp needs; what it does without them
    "an attention without an MLP": ("mlp 1", without_channels, ["llama.cpp logits", "llama.cpp perplexity"]),
    "no MLP in the last layer": ("mlp 5", without_channels, ["llama.cpp"]),
    "no attention in the first layer": ("attention 0", without_first_attention, ["llama.cpp"]),
}


@engine
@pytest.mark.parametrize("trap", TRAPS)
def test_what_llama_cpp_does_not_compute_is_given_to_it_as_zeros(trap, tmp_path, monkeypatch):
    gone, without, fails = TRAPS[trap]
    (tmp_path / "with").mkdir()
    assert failed(outcomes(uneven("llama", gone=gone), tmp_path / "with")) == []
    whole = gguf_file.form_of_model

    def bare(*args, **how):
        form = whole(*args, **how)
        without(form)
        return form

    monkeypatch.setattr(gguf_file, "form_of_model", bare)
    assert failed(outcomes(uneven("llama", gone=gone), tmp_path)) == fails


@engine
def test_llama_cpp_turns_pairs_of_neighbours(tmp_path, monkeypatch):
    """A file whose query and key rows are not interleaved is another model there, though it reads back as the same."""
    monkeypatch.setattr(gguf_file, "reorder_interleaved", lambda rows, heads: rows)
    monkeypatch.setattr(gguf, "reorder_halves", lambda rows, heads: rows)
    assert failed(outcomes(uneven("llama"), tmp_path))[0] == "llama.cpp logits"


@engine
def test_another_tokenizer_is_found_out(tmp_path):
    file = tmp_path / "model.gguf"
    gguf_file.write_gguf(droped("llama"), bpe(), file, torch.float32, "tiny")
    checks = {check.name: check for check in engine_check.check_gguf(file, bpe(bos=False), None, threads=1)}
    assert failed(checks) == ["llama.cpp tokens"]


@engine
@pytest.mark.parametrize("kind", llama_cpp.FILE_TYPES)
def test_llama_cpp_quantises_what_has_whole_blocks(kind, tmp_path):
    with pytest.raises(UserError, match=r"mlp[.]down_proj[.]weight has rows of 48; --multiple 32 fills"):
        outcomes(uneven("llama", gone="mlp 2"), tmp_path, quantised=kind)
    assert list(tmp_path.iterdir()) == []
    model = uneven("llama", heads=(), num_attention_heads=2, num_key_value_heads=1)
    checks = outcomes(model, tmp_path, quantised=kind, multiple=32)
    assert failed(checks) == []
    types = {str(tensor.tensor_type.name) for tensor in gguf.gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert types == {"F32", kind.upper()}


@engine
def test_a_file_that_llama_cpp_cannot_read_is_an_outcome(tmp_path):
    file = tmp_path / "model.gguf"
    gguf_file.write_gguf(droped("llama"), bpe(), file, torch.float32, "tiny")
    file.write_bytes(file.read_bytes()[:-64])
    failure = llama_cpp.compute(file, [[1, 2]], "a", threads=1)
    assert (failure.status, "cannot read the file" in failure.reason) == ("error", True)
    (check,) = engine_check.check_gguf(file, bpe(), WINDOWS, threads=1)
    assert (check.name, check.passed) == ("loads", False)
    assert "\n" not in check.outcome


def test_an_engine_that_hangs_or_crashes_is_an_outcome():
    failure = llama_cpp.run_alone(engine_children.hang, {}, 1 / 60, lambda news: None)
    assert (failure.status, failure.reason) == ("timed_out", "silent for 1 s while it thought, and ended")
    failure = llama_cpp.run_alone(engine_children.crash, {}, 1, lambda news: None)
    assert failure.status == "crashed"
    assert failure.reason == "killed by SIGABRT while it computed; ggml.c:12: GGML_ASSERT(rows > 0) failed"


@pytest.mark.parametrize("spoil", ["hangs", "is garbage"])
def test_what_the_engine_does_is_in_the_check(spoil, tmp_path, monkeypatch):
    file, model = tmp_path / "model.gguf", droped("llama")
    gguf_file.write_gguf(model, bpe(), file, torch.float32, "tiny")
    garbage = llama_cpp.EngineAnswer(bpe()(gguf_file.SAMPLE)["input_ids"], torch.zeros(24, 260).numpy(), 0)
    answer = llama_cpp.Failure("timed_out", "silent for 600 s") if spoil == "hangs" else garbage
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: True)
    monkeypatch.setattr(llama_cpp, "compute", lambda *args, **how: answer)
    checks = {check.name: check for check in engine_check.check_gguf(file, bpe(), None, threads=1)}
    assert failed(checks) == (["llama.cpp"] if spoil == "hangs" else ["llama.cpp logits"])
    if spoil == "hangs":
        assert checks["llama.cpp"].outcome == "timed_out, silent for 600 s"


def test_a_missing_engine_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    checks = outcomes(droped("llama"), tmp_path)
    assert failed(checks) == []
    assert checks["llama.cpp"].outcome == "not asked, for it is not installed: pip install 'prunebench[llama]'"
    with pytest.raises(UserError, match=r"q8_0 is written by llama\.cpp, which is not installed: pip install"):
        gguf_file.write_gguf(droped("llama"), bpe(), tmp_path / "q.gguf", torch.float32, "tiny", quantised="q8_0")
