"""Writes a pruned model with its tokenizer as one GGUF file, for engines that read those.

Layers of one width are written under the architecture's own name. GGUF's `deci` says for each layer how many heads and
channels it has, none included, so that it holds every other Llama-like model. A file counts only once transformers, or
bench.data.gguf for `deci`, has made the same tensors, logits and tokens of it. Tensors are rounded, written
and compared one at a time, and the reader's model is in the file's dtype, so that the host holds a few matrices in
float32 and never the model.

What llama.cpp needs of `deci`, and gets:
    a layer with an attention has an MLP       it forgets the attention of one without: 32 channels of zeros stand there
    the first layer has an attention           it takes the width of a head from there: one group of zeros stands there
    rotary halves are interleaved, as in llama it turns pairs of neighbours

Rotary halves: transformers keeps the two halves of a head apart, GGUF's llama interleaves them, so that rows of q and k
go from (heads, 2, E / 2) to (heads, E / 2, 2).

Letters: D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width, V = vocabulary.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast

from bench.data.gguf import DECI, read, refuse_damage
from bench.export.engine_form import EngineForm, form_of_model, require_plain_llama
from bench.inference import llama_cpp
from bench.system.failures import Failure, words_of_room
from methods.checkpoint.pruned_config import Uneven, describe, make_empty
from methods.checkpoint.save_load import make_probe
from methods.checkpoint.transformers_compat import (
    TOLERANCE,
    build_from_tensors,
    compute_logits,
    config_of_uniform,
    difference_of_shapes,
    shapes_of,
    tensors_to_store,
    tolerance_of,
)
from methods.checkpoint.weight_files import cast_to
from methods.errors import CheckpointError, Unwritable, UserError, first_line_of
from methods.model.decoder import Decoder

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # by GGUF's names
INTERLEAVED = ("llama", DECI)
BLOCK = 32  # numbers that share a scale where llama.cpp quantises
CHANNELS = 32  # of the MLP of zeros that stands where a layer has an attention alone
TYPES = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


class NotQuantised(UserError):
    """Says why llama.cpp did not quantise a file."""

    def __init__(self, kind: str, failure: Failure) -> None:
        super().__init__(f"llama.cpp does not write {kind}: {failure.status}, {failure.reason}")
        self.status = failure.status


@dataclass(frozen=True)
class Contents:
    """Holds the contents of a file.

    architecture  GGUF's name for it
    form          sizes and tensors of the layers
    """

    architecture: str
    form: EngineForm


def write_gguf(
    model: Decoder,
    tokenizer: Any,
    path: Path,
    dtype: torch.dtype,
    name: str,
    *,
    multiple: int = 1,
    quantised: str | None = None,
) -> Contents:
    """Write `model` with its tokenizer to `path`, matrices in `dtype`, vectors in float32, and return the contents.

    multiple   channels of each MLP are filled up with zeros to a multiple of this
    quantised  one of bench.inference.llama_cpp.FILE_TYPES in which llama.cpp then writes the matrices

    Raises UserError, and leaves no file, for a model or tokenizer that GGUF or its reader cannot hold. Of its kinds,
    Unwritable is raised where the disk takes no file, and NotQuantised where llama.cpp does not finish.
    """
    if path.exists():
        raise UserError(f"{path} exists; name a new file")
    contents = contents_of(model, multiple)
    if quantised:
        _require_blocks(contents, quantised)
    words = describe_tokenizer(tokenizer, model.config.vocab_size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
            file = Path(temporary) / path.name
            writer = gguf.GGUFWriter(file, contents.architecture)
            writer.add_name(name)
            _write(writer, model, contents, dtype, words)
            problem = _read_back(file, model, contents, dtype) or find_unlike_tokens(file, tokenizer)
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
        room = words_of_room([path.parent])
        return Unwritable(f"{path} cannot be written: llama.cpp does not finish {quantised}, and {room}")
    return NotQuantised(quantised, failure)


def _require_blocks(contents: Contents, quantised: str) -> None:
    """Raise UserError where llama.cpp is not installed, or a matrix has rows that are no whole blocks."""
    llama_cpp.require(f"{quantised} is written by llama.cpp")
    for name, tensor in contents.form.tensors.items():
        if tensor.ndim > 1 and tensor.shape[1] % BLOCK:
            raise UserError(
                f"{quantised} holds rows of whole blocks of {BLOCK} numbers, and {name} has rows of {tensor.shape[1]}; "
                f"--multiple {BLOCK} fills channels up with zeros"
            )


def contents_of(model: Decoder, multiple: int = 1) -> Contents:
    """Return the contents of a model's file. Raises UserError for a model that GGUF does not hold."""
    require_plain_llama(model.whole_config, "GGUF", tuple(ARCHITECTURES))
    R = model.layers[0].group
    form = form_of_model(model, "GGUF", multiple=multiple, heads=(R, 1), channels=CHANNELS)
    architecture = ARCHITECTURES[model.config.model_type]
    try:
        config_of_uniform(model, describe(model))
    except Uneven:
        architecture = DECI
    if architecture == "llama" and any(name.endswith(".bias") for name in form.tensors):
        architecture = DECI  # since the reader of transformers has no place for them
    return Contents(architecture, form)


def round_tensor(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor rounded as in the file, in float32 on the CPU. Raises UserError where `dtype` cannot hold it."""
    return (cast_to(name, tensor, dtype) if tensor.ndim > 1 else tensor).float().cpu().contiguous()


def _write(
    writer: gguf.GGUFWriter, model: Decoder, contents: Contents, dtype: torch.dtype, words: dict[str, Any]
) -> None:
    config, form, E = model.config, contents.form, model.layers[0].head_width
    sizes: dict[str, Any] = {letter: list(map(attrgetter(letter), form.layers)) for letter in "HGI"}
    if contents.architecture != DECI:
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
    add_vocabulary(writer, words)
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
        rows = round_tensor(tensor, value, dtype)
        if contents.architecture in INTERLEAVED and targets[tensor].endswith((".attn_q", ".attn_k")):
            rows = reorder_interleaved(rows, len(rows) // E)
        writer.write_tensor_data(gguf.quants.quantize(rows.numpy(), kinds[tensor]))
    writer.close()


def reorder_interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of (heads * E, ...) from (heads, 2, E / 2) to (heads, E / 2, 2)."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape).contiguous()


def _read_back(file: Path, model: Decoder, contents: Contents, dtype: torch.dtype) -> str | None:
    """Read the file again and return how it differs from what was written; None where it does not."""
    stored = contents.form.tensors
    try:
        if contents.architecture != DECI:
            shell = make_empty(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))
            if problem := difference_of_shapes(
                {name: tuple(tensor.shape) for name, tensor in stored.items()}, shapes_of(shell)
            ):
                return problem
        decoder = read(file, dtype)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        return first_line_of(error)
    again = decoder.model.state_dict()
    for name, tensor in stored.items():
        if not torch.equal(again[name], round_tensor(name, tensor, dtype).to(dtype)):
            return f"{name} differs"
    kind = torch.bfloat16 if dtype == torch.float16 else dtype  # since logits may overflow in float16
    for parameter in decoder.model.parameters():
        parameter.data = parameter.data.to(kind)
    shell = make_empty(type(model.config).from_dict(model.config.to_dict()))
    whole = {name: tensor.to("cpu", dtype).to(kind) for name, tensor in tensors_to_store(model, shell).items()}
    expected = Decoder(build_from_tensors(describe(model), whole, kind))
    ids = make_probe(expected)
    logits = compute_logits(expected, ids)
    off = float((compute_logits(decoder, ids) - logits).abs().max())
    share = tolerance_of(kind) if contents.architecture == DECI else TOLERANCE
    if not off <= share * float(logits.abs().max()):
        return f"its configuration has no place for all of this model's; logits differ by {off:.2g}"
    return None


SAMPLE = "The Eiffel Tower, built in 1889, isn't in Lyon.\n  It's 330 m high: naïve? 42%!"


def describe_tokenizer(tokenizer: Any, V: int) -> dict[str, Any]:
    """Return GGUF's fields of a BPE tokenizer: its kind and split, tokens and their types, merges, special ids."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = described["model"]
    if bpe["type"] != "BPE" or not bpe["merges"]:
        raise UserError(f"GGUF is written for BPE tokenizers with merges; this one is a {bpe['type']}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {entry["id"]: entry["special"] for entry in described["added_tokens"]}
    kinds = gguf.TokenType

    def type_of(number: int) -> gguf.TokenType:
        if number in added:
            return kinds.CONTROL if added[number] else kinds.USER_DEFINED
        if number not in by_id:
            return kinds.UNUSED
        return kinds.BYTE if bpe["byte_fallback"] and by_id[number].startswith("<0x") else kinds.NORMAL

    ranks = {merge.replace(" ", "", 1): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(V)]
    template = tokenizer.chat_template
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    return {
        "model": "llama" if bpe["byte_fallback"] else "gpt2",
        "pre": "default" if bpe["byte_fallback"] else _split(described["pre_tokenizer"]),
        "tokens": tokens,
        "types": [type_of(number) for number in range(V)],
        "merges": merges,
        "scores": [ranks.get(token, 0.0) for token in tokens] if bpe["byte_fallback"] else None,
        "special": {name: number for name, number in special.items() if number is not None},
        "add_bos": tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id],
        "chat_template": template if isinstance(template, str) else None,
    }


def _split(pre_tokenizer: dict[str, Any] | None) -> str:
    """Return GGUF's word for how a byte-level tokenizer splits text. Raises UserError where it has none."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex")
        for word in ("llama-bpe", "qwen2", "tekken", "gpt-4o"):
            if GGUF_PRE_TOKENIZER_SPLITS.get(word) == pattern:
                return word
    raise UserError(f"GGUF has no word for how this tokenizer splits text: {', '.join(map(str, kinds))}")


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: dict[str, Any]) -> None:
    """Add a tokenizer, as `describe_tokenizer` returns it, to a GGUF file that is being written."""
    writer.add_tokenizer_model(vocabulary["model"])
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    if vocabulary["scores"] is not None:
        writer.add_token_scores(vocabulary["scores"])
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, number in vocabulary["special"].items():
        add[name](number)
    writer.add_add_bos_token(vocabulary["add_bos"])
    if vocabulary["chat_template"]:
        writer.add_chat_template(vocabulary["chat_template"])


def read_tokenizer(file: Path) -> Any:
    """Return the tokenizer in a file, through the reader of transformers. Raises CheckpointError."""
    with refuse_damage(file):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
        split = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
        if split is not None and split.contents() == "smollm":  # unknown to the reader: digits stay together
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        return tokenizer


def find_unlike_tokens(file: Path, tokenizer: Any) -> str | None:
    """Return how the tokenizer that is read from the file splits a sample differently; None where it does not."""
    try:
        words = read_tokenizer(file)
    except CheckpointError as error:
        return first_line_of(error)
    return None if words(SAMPLE)["input_ids"] == tokenizer(SAMPLE)["input_ids"] else "its tokens differ"
