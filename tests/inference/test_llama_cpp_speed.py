"""What is timed in llama.cpp: the prompt, then one token after the other on a cache that returns to the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import timed_children
import torch
from conftest import tiny
from uneven_models import bpe, uneven

from bench.data import gguf
from bench.export import gguf_file
from bench.inference import llama_cpp
from bench.speed.workloads import TimedPoint
from methods.model.decoder import Decoder
from methods.model.sizes import kv_bytes_per_token

engine = pytest.mark.skipif(not llama_cpp.is_installed(), reason="needs the extra `llama`")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny Llama and one with layers of sizes of their own, as GGUF files in float32, with their models."""
    folder, found = tmp_path_factory.mktemp("gguf"), {}
    for name, model in (("even", Decoder(tiny("llama", vocab_size=260))), ("uneven", uneven("llama"))):
        gguf_file.write_gguf(model, bpe(), folder / f"{name}.gguf", torch.float32, name)
        found[name] = (folder / f"{name}.gguf", model)
    return found


@engine
@pytest.mark.parametrize(
    ("name", "kind", "batch"), [("even", "prefill", 2), ("even", "decode", 2), ("uneven", "decode", 1)]
)
def test_what_is_timed_are_the_tokens_behind_the_context(name, kind, batch, files):
    file, _ = files[name]
    found: dict = {}
    point = TimedPoint(kind, batch, 7)
    task = {"file": str(file), "point": point, "steps": 4}
    assert llama_cpp.run_alone(timed_children.replay, task, 1, found.update) is None
    steps = np.array(found["steps"])  # (passes * steps, batch, V)
    first, second = np.split(steps, 2)
    assert np.array_equal(first, second)  # the second pass begins where the first one did
    for sequence, ids in enumerate(found["ids"]):
        exact = llama_cpp.compute(file, [ids], "", threads=1)
        wanted = exact.logits[7:] if kind == "decode" else exact.logits[6:]
        assert len(wanted) == len(first) == (4 if kind == "decode" else 1)
        off = np.abs(first[:, sequence] - wanted).max() / np.abs(wanted).max()
        assert off < 5e-3  # keys and values in float16
    rows = [tuple(ids) for ids in found["ids"]]
    assert len(set(rows)) == batch


@engine
def test_a_file_is_as_fast_as_itself_and_its_memory_is_told(files):
    file, _ = files["even"]
    points = [TimedPoint("prefill", 1, 16), TimedPoint("decode", 2, 8)]
    heard = []
    found, failure = llama_cpp.time_files(file, file, points, steps=4, rounds=6, threads=1, hear=heard.append)
    assert failure is None
    assert [(one["kind"], one["batch"]) for one in found["points"]] == [("prefill", 1), ("decode", 2)]
    for one in found["points"]:
        assert one["speedup_low"] <= one["speedup"] <= one["speedup_high"]
        assert {len(one["rounds"][name]) for name in ("dense", "pruned")} == {6}
    decode = found["points"][1]["rounds"]["pruned"][0]
    assert len(decode) % 4 == 0  # whole passes
    assert found["engine"]["name"] == "llama.cpp"
    assert all(one["resident_bytes"] > found["memory"]["resident_before_bytes"] for one in found["memory"]["points"])
    assert len(heard) == 5


@engine
def test_a_point_that_the_engine_cannot_do_is_an_outcome_of_its_own(files, tmp_path):
    file, _ = files["even"]
    found, failure = llama_cpp.time_files(file, tmp_path / "none", [], steps=4, rounds=6, threads=1)
    assert failure.status == "error"
    assert "cannot read the file" in failure.reason
    assert found["engine"]["name"] == "llama.cpp"  # what was told before stands
    points = [TimedPoint("decode", 512, 16), TimedPoint("decode", 1, 16)]
    found, failure = llama_cpp.time_files(file, file, points, steps=4, rounds=6, threads=1)
    assert failure is None
    assert "makes no context" in found["points"][0]["failed"]
    assert "makes no context" in found["memory"]["points"][0]["failed"]
    assert found["points"][1]["pruned_ms"] > 0
    assert found["memory"]["points"][1]["resident_bytes"] > 0


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_bytes_of_a_step_are_those_of_the_matrices_and_the_cache(name, files):
    file, model = files[name]
    matrices, cached = gguf.bytes_per_step(file)
    linear = sum(4 * part.weight.numel() for part in model.model.modules() if isinstance(part, torch.nn.Linear))
    assert matrices == linear
    assert 4 * cached == kv_bytes_per_token(model)


def test_an_embedding_that_is_no_head_is_not_read_in_a_step(tmp_path):
    model, file = Decoder(tiny("llama", vocab_size=260, tie_word_embeddings=False)), tmp_path / "model.gguf"
    gguf_file.write_gguf(model, bpe(), file, torch.bfloat16, "untied")
    linear = sum(2 * part.weight.numel() for part in model.model.modules() if isinstance(part, torch.nn.Linear))
    assert gguf.bytes_per_step(file)[0] == linear
