"""Reads a GGUF file: through transformers, or (`deci`, Llama-like layers of sizes of their own) by what it says.

Letters: D = residual width, H = query heads, G = key/value heads, E = head width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    PreTrainedConfig,
    TokenizersBackend,
)

from methods.checkpoint.pruned_config import PrunedConfig, make_empty
from methods.checkpoint.transformers_compat import build_from_tensors, load_with_all_weights, shapes_of
from methods.errors import CheckpointError, first_line_of
from methods.model.decoder import Decoder

DECI = "deci"
EMBEDDING = "token_embd.weight"
NFC = {"type": "NFC"}  # a normalizer: the composed form of Unicode


@contextmanager
def refuse_damage(file: Path) -> Iterator[None]:
    """Turn every error of gguf, transformers and tokenizers on a damaged file into CheckpointError, in one line."""
    try:
        yield
    except (CheckpointError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{file} cannot be read as GGUF: {first_line_of(error)}; copy or convert it again"
        ) from error


def architecture_of_file(file: Path) -> str:
    """Return GGUF's name of the architecture in a file. Raises CheckpointError where that cannot be read."""
    with refuse_damage(file):
        return str(_value(gguf.GGUFReader(file), "general.architecture"))


def read(file: Path, dtype: torch.dtype) -> Decoder:
    """Return the model in `file` in `dtype` on the CPU, quantised matrices as the numbers that they stand for.

    Raises CheckpointError for a file that is cut short, of an unknown architecture, or whose tensors are not its
    layers'.
    """
    with refuse_damage(file):
        reader = gguf.GGUFReader(file)
        described = _describe(file, reader)  # refuses what it should not begin to make
        if isinstance(described, PrunedConfig):
            return _read_deci(reader, described, dtype)
        options = {"gguf_file": file.name, "dtype": dtype, "quantization_config": GgufConfig(dequantize=True)}
        with redirect_stderr(io.StringIO()):  # a progress bar for each tensor
            return Decoder(load_with_all_weights(AutoModelForCausalLM, file.parent, left_over=True, **options))


def load(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model in `file` in `dtype`, and its tokenizer. Raises CheckpointError as `read` does."""
    return read(file, dtype).model, read_tokenizer(file)


def read_config(file: Path) -> PreTrainedConfig:
    """Return the configuration that a file describes. Raises CheckpointError where it describes none."""
    with refuse_damage(file):
        return _describe(file, gguf.GGUFReader(file))


def _describe(file: Path, reader: gguf.GGUFReader) -> PreTrainedConfig:
    parts = reader.get_field("split.count")
    if parts is not None and parts.contents() > 1:
        raise CheckpointError(
            f"{file} is one of {parts.contents()} parts of a model; `llama-gguf-split --merge FIRST_PART WHOLE` of "
            "llama.cpp joins them, and the whole file is read"
        )
    name, tensors = _value(reader, "general.architecture"), len(reader.tensors)
    if not 0 < (layers := _value(reader, f"{name}.block_count")) <= tensors:
        raise ValueError(f"it says {layers} layers, and holds {tensors} tensors")
    context = reader.get_field(f"{name}.context_length")
    if context is not None and context.contents() < 1:
        raise ValueError(f"it says a context of {context.contents()} tokens")
    if name == DECI:
        return _config(reader, {tensor.name for tensor in reader.tensors})
    described: PreTrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    return described


def read_tokenizer(file: Path) -> Any:
    """Return the tokenizer that a file holds. Raises CheckpointError where it holds none."""
    with refuse_damage(file):
        if architecture_of_file(file) == DECI:
            options = {"name_or_path": str(file.parent), "gguf_file": file.name}
            return TokenizersBackend(**options)  # type: ignore[no-untyped-call]
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)


def save_tokenizer(tokenizer: Any, folder: Path, file: Path) -> None:
    """Write the tokenizer of `file` into a folder, from which it is loaded with the same rules and special tokens.

    The class that its files name may build rules of its own. Then a class that takes the rules unchanged is named
    there. Of some types transformers takes the model's own class whatever the files name, as of Qwen2, whose class
    brings text into the normal form NFC. GGUF has no place for that rule, so that it may be added. Raises
    CheckpointError where more differs.
    """
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    own_class = settings.read_text(encoding="utf-8")
    if _comes_back(tokenizer, folder):
        return
    plain = json.loads(own_class) | {"tokenizer_class": TokenizersBackend.__name__}
    settings.write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
    if _comes_back(tokenizer, folder):
        return
    settings.write_text(own_class, encoding="utf-8")
    with refuse_damage(file):
        if not _comes_back(tokenizer, folder, may_compose=True):
            raise ValueError("its tokenizer does not come back as it was stored")


def _comes_back(tokenizer: Any, folder: Path, *, may_compose: bool = False) -> bool:
    """Say whether the tokenizer that was written into a folder loads unchanged.

    may_compose  whether it may bring text into NFC, where the tokenizer had no such rule
    """
    try:
        again = AutoTokenizer.from_pretrained(folder)
    except Exception:  # whatever a class that its files name makes of them
        return False
    written, loaded = (_rules(each) for each in (tokenizer, again))
    if may_compose and written.get("normalizer", NFC) is None and loaded["normalizer"] == NFC:
        loaded["normalizer"] = None
    return bool(written == loaded and tokenizer.special_tokens_map == again.special_tokens_map)


def _rules(tokenizer: Any) -> dict[str, Any]:
    """Return the rules of a tokenizer, or of a slow one its vocabulary."""
    rules: dict[str, Any] = (
        json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    )
    return rules


def bytes_per_step(file: Path) -> tuple[int, int]:
    """Return the bytes of all matrices that a token is multiplied with, and the numbers that it leaves in the cache.

    The embedding counts where it is the head too; otherwise a token reads one row of it. Raises CheckpointError as
    `read`.
    """
    with refuse_damage(file):
        reader = gguf.GGUFReader(file)
        tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
        matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1 and (tied or tensor.name != EMBEDDING)]
        name = _value(reader, "general.architecture")
        n = _describe(file, reader).num_hidden_layers
        G = _each(_value(reader, f"{name}.attention.head_count_kv"), n)
        E = sum(_value(reader, f"{name}.attention.{part}_length") for part in ("key", "value"))
        return sum(int(tensor.n_bytes) for tensor in matrices), sum(G) * E


def _read_deci(reader: gguf.GGUFReader, described: PrunedConfig, dtype: torch.dtype) -> Decoder:
    entry_by_name = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, described.num_hidden_layers)
    E, stored = _value(reader, f"{DECI}.attention.key_length"), dict[str, Tensor]()
    for name, shape in shapes_of(make_empty(described)).items():
        stem, _, suffix = name.rpartition(".")
        target = f"{names.get_name(stem)}.{suffix}"
        entry = entry_by_name.pop(target, None)
        if entry is None:
            stored[name] = torch.zeros(shape, dtype=dtype)  # a bias that other layers have
            if suffix != "bias":
                raise ValueError(f"{target} is missing")
            continue
        rows = torch.from_numpy(gguf.quants.dequantize(entry.data, entry.tensor_type).copy())
        if tuple(rows.shape) != shape:
            raise ValueError(f"{target} is {tuple(rows.shape)} and should be {shape}")
        turned = target.endswith((f".attn_q.{suffix}", f".attn_k.{suffix}"))
        stored[name] = (reorder_halves(rows, len(rows) // E) if turned else rows).to(dtype)
    if entry_by_name:
        raise ValueError(f"there is no place for {next(iter(entry_by_name))}")
    return Decoder(build_from_tensors(described, stored, dtype))


def reorder_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of (heads * E, ...) from (heads, E / 2, 2) to (heads, 2, E / 2)."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape).contiguous()


def _config(reader: gguf.GGUFReader, names: set[str]) -> PrunedConfig:
    """Return the configuration that a file describes."""

    def of(name: str) -> Any:
        return _value(reader, f"{DECI}.{name}")

    E = of("attention.key_length")
    _refuse_positions(reader, E)
    n = of("block_count")
    H, G = _each(of("attention.head_count"), n), _each(of("attention.head_count_kv"), n)
    I = _each(of("feed_forward_length"), n)
    widest = max(int(size) for tensor in reader.tensors for size in tensor.shape)
    if not 0 <= min(*H, *G, *I) <= max(*H, *G, *I) <= widest:
        raise ValueError(
            f"it says sizes from {min(*H, *G, *I)} to {max(*H, *G, *I)}, and no tensor is wider than {widest}"
        )
    groups = {h // g for h, g in zip(H, G, strict=True) if g}
    if len(groups) != 1:
        raise ValueError(f"layers have {sorted(groups)} query heads for each key/value head, and are read with one")

    def has(*parts: str) -> bool:
        return any(f"blk.{layer}.{part}.bias" in names for layer in range(n) for part in parts)

    base = LlamaConfig(
        vocab_size=of("vocab_size"),
        hidden_size=of("embedding_length"),
        intermediate_size=max(I),
        num_hidden_layers=n,
        num_attention_heads=max(H),
        num_key_value_heads=max(G),
        head_dim=E,
        max_position_embeddings=of("context_length"),
        rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base")},
        tie_word_embeddings="output.weight" not in names,
        attention_bias=has("attn_q", "attn_k", "attn_v"),
        mlp_bias=has("ffn_gate", "ffn_up"),
    )
    layers = []
    for layer in range(n):
        sizes = {
            "num_attention_heads": H[layer],
            "num_key_value_heads": G[layer],
            "intermediate_size": I[layer],
            "attention_output_bias": f"blk.{layer}.attn_output.bias" in names,
            "mlp_output_bias": f"blk.{layer}.ffn_down.bias" in names,
            "skip": [part for part, size in (("attention", G[layer]), ("mlp", I[layer])) if not size],
        }
        layers.append(sizes)
    described: PrunedConfig = PrunedConfig.from_dict(
        {
            "base_config": base.to_diff_dict() | {"model_type": base.model_type},
            "per_layer_config": dict(enumerate(layers)),
            "num_hidden_layers": n,
        }
    )
    return described


def _refuse_positions(reader: gguf.GGUFReader, E: int) -> None:
    """Raise ValueError where positions are not plain rotary ones over the whole of a head."""
    scaling = reader.get_field(f"{DECI}.rope.scaling.type")
    fields = [name for name in reader.fields if name.startswith((f"{DECI}.rope.scaling.", f"{DECI}.rope.scale"))]
    if fields and (scaling is None or scaling.contents() != "none"):
        kind = "in a way of its own" if scaling is None else f"by {scaling.contents()}"
        raise ValueError(f"its rotary positions are scaled {kind}, and are read as plain ones")
    turned = reader.get_field(f"{DECI}.rope.dimension_count")
    if turned is not None and turned.contents() != E:
        raise ValueError(f"it turns {turned.contents()} of {E} dimensions of a head, and is read as turning all")


def _each(sizes: Any, n: int) -> list[int]:
    """Return a size of each of n layers, which a file gives once where all have the same."""
    each = [int(size) for size in sizes] if isinstance(sizes, list) else [int(sizes)] * n
    if len(each) != n:
        raise ValueError(f"sizes are given of {len(each)} layers, and there are {n}")
    return each


def _value(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise ValueError(f"the file says nothing of {name}")
    return field.contents()
