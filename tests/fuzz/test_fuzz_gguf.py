"""GGUF files with anything wrong in them are refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from conftest import tiny
from fuzzing import damaged, damages, refused_or_done, scratch, share, watched
from hypothesis import example, given
from hypothesis import strategies as st
from uneven_models import bpe, uneven

from bench.data.gguf import architecture_of_file, bytes_per_step, load, read_config, read_tokenizer
from bench.export import engine_check, gguf_file
from methods.model.decoder import Decoder

FORMS = ("llama", "deci")
PLAN = ["run", "--methods", "drop-tail", "--ratio", "0.3", "--model", "model.gguf", "--tasks", "none", "--plan"]
PLAN += ["--texts", "words.txt", "--calibration", "words.txt", "--window", "16", "--windows", "2", "--device", "cpu"]
PLAN += ["--calibration-sequences", "2", "--calibration-length", "8", "--profile", "smoke", "--speed-rounds", "0"]
KEYS = ("general.architecture", "NAME.block_count", "NAME.attention.head_count", "NAME.attention.head_count_kv")
KEYS += ("NAME.feed_forward_length", "NAME.embedding_length", "NAME.vocab_size", "NAME.context_length")
KEYS += ("NAME.attention.key_length", "NAME.attention.layer_norm_rms_epsilon", "NAME.rope.freq_base")
KEYS += ("NAME.rope.dimension_count", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.model")
KEYS += ("tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.pre")
VALUES: list[Any] = ["", "größe", "llama", "deci", 0, 1, 3, 7, 2**31 - 1, -1, 0.5, float("nan"), True, [0, 0], [1] * 6]
VALUES += [["a"], ["a b", "b"], [2**31 - 1] * 6, [-1] * 6, [0.5]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A GGUF file that transformers reads, and one that it does not."""
    folder = tmp_path_factory.mktemp("gguf")
    models = {"llama": Decoder(tiny("llama", layers=2, vocab_size=260)), "deci": uneven("llama")}
    for form, model in models.items():
        gguf_file.write_gguf(model, bpe(), folder / f"{form}.gguf", torch.float32, "tiny")
    (folder / "words.txt").write_text("\n\n".join("the end of the other one, and the last " * 9 for _ in range(20)))
    return folder


def held_to(files: Path, content: bytes, folder: Path) -> None:
    """Plan with a file of this content, and read it."""
    shutil.copy(files / "words.txt", folder)
    file = folder / "model.gguf"
    file.write_bytes(content)
    watched(PLAN, folder)
    for read in (architecture_of_file, read_config, read_tokenizer, bytes_per_step):
        refused_or_done(lambda read=read: read(file), folder)
    refused_or_done(lambda: load(file, torch.float32), folder)


def rewritten(file: Path, changes: list[tuple[str, Any]], without: int | None, to: Path) -> bytes:
    """A file with some of its values changed, or left out where the change is None, and maybe without a tensor."""
    reader = gguf.GGUFReader(file)
    name = reader.get_field("general.architecture").contents()
    values = {key: reader.get_field(key).contents() for key in reader.fields if not key.startswith("GGUF.")}
    for key, value in changes:
        values[key.replace("NAME", name)] = value
    writer = gguf.GGUFWriter(to, "", endianess=gguf.GGUFEndian.LITTLE)
    writer.kv_data[0].clear()
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            kinds = {str: writer.add_string, bool: writer.add_bool, int: writer.add_int32, float: writer.add_float32}
            kinds[type(value)](key, value)
    for number, tensor in enumerate(reader.tensors):
        if number != without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to.read_bytes()


@pytest.mark.nightly
@share(0.06)
@given(
    form=st.sampled_from(FORMS),
    changes=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([None, *VALUES])), max_size=3),
    without=st.one_of(st.none(), st.integers(0, 19)),
)
@example(form="llama", changes=[("general.architecture", None)], without=None)
@example(form="deci", changes=[("NAME.embedding_length", 0)], without=None)
@example(form="deci", changes=[("NAME.feed_forward_length", [2**31 - 1] * 6)], without=None)
@example(form="llama", changes=[("NAME.block_count", 2**31 - 1)], without=None)
@example(form="deci", changes=[("NAME.block_count", 2**31 - 1), ("NAME.attention.head_count", 4)], without=None)
def test_wild_values_of_gguf_files(form, changes, without, files, tmp_path_factory):
    with scratch(tmp_path_factory, "values") as folder:
        content = rewritten(files / f"{form}.gguf", changes, without, folder / "model.gguf")
        held_to(files, content, folder)


@share(0.03)
@given(form=st.sampled_from(FORMS), changes=damages())
@example(form="llama", changes=[("cut", 2, 0)])
@example(form="deci", changes=[("cut", -1, 0)])
def test_damaged_gguf_files(form, changes, files, tmp_path_factory):
    with scratch(tmp_path_factory, "damaged") as folder:
        held_to(files, damaged((files / f"{form}.gguf").read_bytes(), changes), folder)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", [0, -1])
def test_a_context_of_no_tokens_is_no_model(form, context, files, tmp_path):
    """`verify` ended in a traceback, since nothing can be computed on no tokens."""
    content = rewritten(files / f"{form}.gguf", [("NAME.context_length", context)], None, tmp_path / "model.gguf")
    held_to(files, content, tmp_path)
    (loads,) = engine_check.check_gguf(tmp_path / "model.gguf", bpe(), None, threads=1)
    assert not loads.passed
    assert f"it says a context of {context} tokens" in loads.outcome
