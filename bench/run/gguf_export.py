"""Writes a pruned model as one GGUF file, for engines that read those.

GGUF has one width for all layers and names for some architectures, so that only Llama-like models of uniform widths can
be written. A file counts only once the reader of transformers has made the same tensors, logits and tokens of it.
Tensors are rounded, written and compared one at a time, and the reader's model is in the file's dtype, so that the host
holds a few matrices in float32 and never the model.

Rotary halves: transformers keeps the two halves of a head apart, GGUF's llama interleaves them, so that rows of q and k
go from (heads, 2, E / 2) to (heads, E / 2, 2).

Letters: H = query heads, G = key/value heads, E = head width, V = vocabulary.
"""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from methods.checkpoint.save_load import default_probe
from methods.checkpoint.transformers_compat import (
    TOLERANCE,
    difference,
    logits,
    rebuilt,
    shapes,
    tensors,
    uniform_config,
)
from methods.errors import UserError, first_line
from methods.model.decoder import Decoder
from methods.model.stock import Uneven, empty

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # by GGUF's names
TYPES = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
SAMPLE = "The Eiffel Tower, built in 1889, isn't in Lyon.\n  It's 330 m high: naïve? 42%!"


def write(model: Decoder, tokenizer: Any, path: Path, dtype: torch.dtype, name: str) -> None:
    """Write `model` with its tokenizer to `path`, matrices in `dtype`, vectors in float32.

    Raises UserError, and leaves no file, for a model or tokenizer that GGUF or its reader cannot hold.
    """
    if path.exists():
        raise UserError(f"{path} exists; name a new file")
    config = check(model)
    stored = tensors(model, empty(config))
    vocabulary = _vocabulary(tokenizer, model.config.vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        file = Path(temporary) / path.name
        try:
            writer = gguf.GGUFWriter(file, ARCHITECTURES[model.config.model_type])
            writer.add_name(name)
            _write(writer, config, stored, dtype, vocabulary)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        problem = _read_back(file, config, stored, dtype) or _other_tokens(file, tokenizer, vocabulary["pre"])
        if problem:
            raise UserError(f"GGUF's reader does not give this model back: {problem}")
        file.rename(path)


def check(model: Decoder) -> Any:
    """Return the stock configuration of a model that GGUF can hold. Raises UserError for any other."""
    if model.config.model_type not in ARCHITECTURES:
        raise UserError(f"GGUF is written for {', '.join(ARCHITECTURES)}; this model is a {model.config.model_type}")
    try:
        config: Any = uniform_config(model)
    except Uneven as error:
        raise UserError(f"GGUF holds layers of one kind and width only: {error}") from error
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if getattr(config, "sliding_window", None) and "sliding_attention" in kinds:
        raise UserError("GGUF is written for attention to all tokens; this model's has a sliding window")
    if config.rope_parameters.get("rope_type", "default") != "default":
        raise UserError(f"GGUF is written for plain rotary positions; this model's are {config.rope_parameters}")
    return config


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a tensor as the file does, in float32 on the CPU."""
    return (tensor.to(dtype) if tensor.ndim > 1 else tensor).float().cpu().contiguous()


def _write(
    writer: gguf.GGUFWriter, config: Any, stored: dict[str, Tensor], dtype: torch.dtype, vocabulary: dict[str, Any]
) -> None:
    architecture = writer.arch
    E = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kind, file_type = TYPES[dtype]
    writer.add_file_type(file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(E)
    writer.add_value_length(E)
    writer.add_rope_dimension_count(E)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_vocabulary(writer, vocabulary)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    targets = dict[str, str]()
    kinds = {tensor: kind if value.ndim > 1 else gguf.GGMLQuantizationType.F32 for tensor, value in stored.items()}
    for tensor, value in stored.items():
        stem, _, suffix = tensor.rpartition(".")
        target = names.get_name(stem)
        if target is None:
            raise UserError(f"GGUF has no place for {tensor}")
        targets[tensor], size = target, (dtype if value.ndim > 1 else torch.float32).itemsize * value.numel()
        writer.add_tensor_info(
            f"{target}.{suffix}", tuple(value.shape), np.dtype(np.float32), size, raw_dtype=kinds[tensor]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, value in stored.items():
        rows = rounded(value, dtype)
        if architecture == "llama" and targets[tensor].endswith((".attn_q", ".attn_k")):
            heads = config.num_attention_heads if targets[tensor].endswith("q") else config.num_key_value_heads
            rows = interleaved(rows, heads)
        writer.write_tensor_data(gguf.quants.quantize(rows.numpy(), kinds[tensor]))
    writer.close()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of (heads * E, ...) from (heads, 2, E / 2) to (heads, E / 2, 2)."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape).contiguous()


def _vocabulary(tokenizer: Any, V: int) -> dict[str, Any]:
    """Return what GGUF says of a BPE tokenizer: its kind and split, tokens and their types, merges, special ids."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = described["model"]
    if bpe["type"] != "BPE" or not bpe["merges"]:
        raise UserError(f"GGUF is written for BPE tokenizers with merges; this one is a {bpe['type']}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {entry["id"]: entry["special"] for entry in described["added_tokens"]}
    kinds = gguf.TokenType
    types = [
        (kinds.CONTROL if added[number] else kinds.USER_DEFINED)
        if number in added
        else kinds.UNUSED
        if number not in by_id
        else kinds.BYTE
        if bpe["byte_fallback"] and by_id[number].startswith("<0x")
        else kinds.NORMAL
        for number in range(V)
    ]
    ranks = {merge.replace(" ", "", 1): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(V)]
    template = tokenizer.chat_template
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    return {
        "model": "llama" if bpe["byte_fallback"] else "gpt2",
        "pre": "default" if bpe["byte_fallback"] else _split(described["pre_tokenizer"]),
        "tokens": tokens,
        "types": types,
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


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: dict[str, Any]) -> None:
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


def _read_back(file: Path, config: Any, stored: dict[str, Tensor], dtype: torch.dtype) -> str | None:
    """Read the file with transformers and say how that differs from what was written; None where it does not."""
    options = {"gguf_file": file.name, "dtype": dtype, "quantization_config": GgufConfig(dequantize=True)}
    try:
        shell = empty(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))
        if problem := difference({name: tuple(tensor.shape) for name, tensor in stored.items()}, shapes(shell)):
            return problem
        with redirect_stderr(io.StringIO()):  # a progress bar for each tensor
            model: Any = AutoModelForCausalLM.from_pretrained(file.parent, **options)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        return first_line(error)
    found = model.state_dict()
    for name, tensor in stored.items():
        if not torch.equal(found[name], rounded(tensor, dtype).to(dtype)):
            return f"{name} differs"
    if dtype == torch.float16:  # in which logits may overflow
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    found = model.state_dict()
    expected = Decoder(rebuilt(config, {name: found[name] for name in stored}, model.dtype))  # of the same tensors
    ids = default_probe(expected)
    wanted = logits(expected, ids)
    off = float((logits(Decoder(model), ids) - wanted).abs().max())
    if not off <= TOLERANCE * float(wanted.abs().max()):
        return f"its configuration has no place for all of this model's; logits differ by {off:.2g}"
    return None


def _other_tokens(file: Path, tokenizer: Any, split: str) -> str | None:
    """Say whether the tokenizer that transformers reads from the file splits a sample otherwise."""
    try:
        words = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        return first_line(error)
    # The reader knows smollm's split by no name and leaves digits together, which engines do not.
    sample = "".join(letter for letter in SAMPLE if split != "smollm" or not letter.isdigit())
    return None if words(sample)["input_ids"] == tokenizer(sample)["input_ids"] else "its tokens differ"
