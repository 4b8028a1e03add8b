"""Writes a pruned model as one GGUF file, for engines that read those.

Layers of one width are written under the architecture's own name. GGUF's `deci` says for each layer how many heads and
channels it has, none included, so that it holds every other Llama-like model. A file counts only once transformers, or
bench.data.gguf_reader for `deci`, has made the same tensors, logits and tokens of it. Tensors are rounded, written
and compared one at a time, and the reader's model is in the file's dtype, so that the host holds a few matrices in
float32 and never the model.

What llama.cpp asks of `deci`, and gets:
    a layer with an attention has an MLP       it forgets the attention of one without: 32 channels of zeros stand there
    the first layer has an attention           it takes the width of a head from there: one group of zeros stands there
    rotary halves are interleaved, as in llama it turns pairs of neighbours

Rotary halves: transformers keeps the two halves of a head apart, GGUF's llama interleaves them, so that rows of q and k
go from (heads, 2, E / 2) to (heads, E / 2, 2).

Letters: D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from bench.data import gguf_reader
from bench.export import vocabulary
from bench.export.engine_form import EngineForm, engine_form, require_plain_llama
from bench.serving import llama_cpp
from bench.system.failures import Failure, room_left
from methods.checkpoint.pruned_config import describe
from methods.checkpoint.save_load import default_probe
from methods.checkpoint.stock import Uneven, empty
from methods.checkpoint.transformers_compat import (
    TOLERANCE,
    difference,
    logits,
    rebuilt,
    shapes,
    tensors,
    tolerance,
    uniform_config,
)
from methods.checkpoint.weight_files import cast_to
from methods.errors import Unwritable, UserError, first_line
from methods.model.decoder import Decoder

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # by GGUF's names
INTERLEAVED = ("llama", gguf_reader.DECI)
BLOCK = 32  # numbers that share a scale where llama.cpp quantises
CHANNELS = 32  # of the MLP of zeros that stands where a layer has an attention alone
TYPES = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


class NotQuantised(UserError):
    """Says what became of llama.cpp when it was to quantise a file."""

    def __init__(self, kind: str, failure: Failure) -> None:
        super().__init__(f"llama.cpp does not write {kind}: {failure.status}, {failure.reason}")
        self.status = failure.status


@dataclass(frozen=True)
class Contents:
    """Says what goes into a file.

    architecture  GGUF's name for it
    form          sizes and tensors of the layers
    """

    architecture: str
    form: EngineForm


def write(
    model: Decoder,
    tokenizer: Any,
    path: Path,
    dtype: torch.dtype,
    name: str,
    *,
    multiple: int = 1,
    quantised: str | None = None,
) -> Contents:
    """Write `model` with its tokenizer to `path`, matrices in `dtype`, vectors in float32. Returns what is in it.

    multiple   channels of each MLP are filled up with zeros to a multiple of this
    quantised  one of bench.serving.llama_cpp.FILE_TYPES in which llama.cpp then writes the matrices

    Raises UserError, and leaves no file, for a model or tokenizer that GGUF or its reader cannot hold; of its kinds
    Unwritable where the disk takes no file, and NotQuantised where llama.cpp does not finish.
    """
    if path.exists():
        raise UserError(f"{path} exists; name a new file")
    contents = contents_of(model, multiple)
    if quantised:
        _require_blocks(contents, quantised)
    words = vocabulary.describe(tokenizer, model.config.vocab_size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
            file = Path(temporary) / path.name
            writer = gguf.GGUFWriter(file, contents.architecture)
            writer.add_name(name)
            _write(writer, model, contents, dtype, words)
            problem = _read_back(file, model, contents, dtype) or vocabulary.other_tokens(file, tokenizer)
            if problem:
                raise UserError(f"GGUF's reader does not give this model back: {problem}")
            if quantised:
                small = file.with_name(f"{quantised}-{path.name}")
                if failure := llama_cpp.quantise(file, small, quantised, threads=torch.get_num_threads()):
                    raise _not_quantised(file, path, quantised, failure)
                file = small
            file.rename(path)
    except OSError as error:
        raise Unwritable(f"{path} cannot be written: {error.strerror or error}") from error
    return contents


def _not_quantised(file: Path, path: Path, quantised: str, failure: Failure) -> UserError:
    """Return Unwritable where the disk has no room for what `file` is quantised to, and else NotQuantised."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[quantised.upper()]]
    if failure.status == "error" and shutil.disk_usage(file.parent).free < file.stat().st_size / (4 * block) * size:
        left = room_left([path.parent])
        return Unwritable(f"{path} cannot be written: llama.cpp does not finish {quantised}, and {left}")
    return NotQuantised(quantised, failure)


def _require_blocks(contents: Contents, quantised: str) -> None:
    """Raise UserError where llama.cpp is not here, or a matrix has rows that are no whole blocks."""
    llama_cpp.require(f"{quantised} is written by llama.cpp")
    for name, tensor in contents.form.tensors.items():
        if tensor.ndim > 1 and tensor.shape[1] % BLOCK:
            raise UserError(
                f"{quantised} holds rows of whole blocks of {BLOCK} numbers, and {name} has rows of {tensor.shape[1]}; "
                f"--multiple {BLOCK} fills channels up with zeros"
            )


def contents_of(model: Decoder, multiple: int = 1) -> Contents:
    """Return what goes into the file of a model. Raises UserError for a model that GGUF does not hold."""
    require_plain_llama(model.config, "GGUF", tuple(ARCHITECTURES))
    R = model.layers[0].group
    form = engine_form(model, "GGUF", multiple=multiple, heads=(R, 1), channels=CHANNELS)
    architecture = ARCHITECTURES[model.config.model_type]
    try:
        uniform_config(model, describe(model))
    except Uneven:
        architecture = gguf_reader.DECI
    if architecture == "llama" and any(name.endswith(".bias") for name in form.tensors):
        architecture = gguf_reader.DECI  # since the reader of transformers has no place for them
    return Contents(architecture, form)


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a tensor as the file does, in float32 on the CPU. Raises UserError where `dtype` cannot hold it."""
    return (cast_to(name, tensor, dtype) if tensor.ndim > 1 else tensor).float().cpu().contiguous()


def _write(
    writer: gguf.GGUFWriter, model: Decoder, contents: Contents, dtype: torch.dtype, words: dict[str, Any]
) -> None:
    config, form, E = model.config, contents.form, model.layers[0].head_width
    sizes: dict[str, Any] = {letter: [getattr(layer, letter) for layer in form.layers] for letter in "HGI"}
    if contents.architecture != gguf_reader.DECI:
        sizes = {letter: numbers[0] for letter, numbers in sizes.items()}
    kind, file_type = TYPES[dtype]
    writer.add_file_type(file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(len(form.layers))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(sizes["I"])
    writer.add_head_count(sizes["H"])
    writer.add_head_count_kv(sizes["G"])
    writer.add_key_length(E)
    writer.add_value_length(E)
    writer.add_rope_dimension_count(E)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary.add(writer, words)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[contents.architecture.upper()], len(form.layers))
    targets = dict[str, str]()
    kinds = {
        tensor: kind if value.ndim > 1 else gguf.GGMLQuantizationType.F32 for tensor, value in form.tensors.items()
    }
    for tensor, value in form.tensors.items():
        stem, _, suffix = tensor.rpartition(".")
        target = names.get_name(stem)
        if target is None:
            raise UserError(f"GGUF's {contents.architecture} has no place for {tensor}")
        targets[tensor], size = target, (dtype if value.ndim > 1 else torch.float32).itemsize * value.numel()
        writer.add_tensor_info(
            f"{target}.{suffix}", tuple(value.shape), np.dtype(np.float32), size, raw_dtype=kinds[tensor]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, value in form.tensors.items():
        rows = rounded(tensor, value, dtype)
        if contents.architecture in INTERLEAVED and targets[tensor].endswith((".attn_q", ".attn_k")):
            rows = interleaved(rows, len(rows) // E)
        writer.write_tensor_data(gguf.quants.quantize(rows.numpy(), kinds[tensor]))
    writer.close()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of (heads * E, ...) from (heads, 2, E / 2) to (heads, E / 2, 2)."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape).contiguous()


def _read_back(file: Path, model: Decoder, contents: Contents, dtype: torch.dtype) -> str | None:
    """Read the file again and say how that differs from what was written; None where it does not."""
    stored = contents.form.tensors
    try:
        if contents.architecture != gguf_reader.DECI:
            shell = empty(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))
            if problem := difference({name: tuple(tensor.shape) for name, tensor in stored.items()}, shapes(shell)):
                return problem
        found = gguf_reader.read(file, dtype)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        return first_line(error)
    again = found.model.state_dict()
    for name, tensor in stored.items():
        if not torch.equal(again[name], rounded(name, tensor, dtype).to(dtype)):
            return f"{name} differs"
    kind = torch.bfloat16 if dtype == torch.float16 else dtype  # since logits may overflow in float16
    for parameter in found.model.parameters():
        parameter.data = parameter.data.to(kind)
    shell = empty(type(model.config).from_dict(model.config.to_dict()))
    whole = {name: tensor.to("cpu", dtype).to(kind) for name, tensor in tensors(model, shell).items()}
    expected = Decoder(rebuilt(describe(model), whole, kind))
    ids = default_probe(expected)
    wanted = logits(expected, ids)
    off = float((logits(found, ids) - wanted).abs().max())
    share = tolerance(kind) if contents.architecture == gguf_reader.DECI else TOLERANCE
    if not off <= share * float(wanted.abs().max()):
        return f"its configuration has no place for all of this model's; logits differ by {off:.2g}"
    return None
