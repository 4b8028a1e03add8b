"""Lays a pruned model out as inference engines take it, and writes folders of Nemotron-NAS and `per_layer_config`.

Engines know layers by their sizes alone. A layer without attention and MLP adds nothing and is left out. Where an
engine cannot do without an attention, an MLP or a bias, one of zeros stands there, which adds nothing either.

MLX-LM loads the folder, and vLLM where this package is its plugin (bench.inference.vllm_plugin). SGLang knows the
architecture too, and does not load the folder: it reads `block_configs` as objects, which a class of configurations
makes that comes as code with NVIDIA's models (configuration_decilm.py). TensorRT-LLM has not been tried.

config.json has the fields of Llama, and `block_configs` with what each layer holds:

    attention   {"no_op": true}, or {"no_op": false, "n_heads_in_group": H / G}
    ffn         {"no_op": true}, or {"no_op": false, "ffn_mult": 3 I / 2 D} or {..., "intermediate_size": I}

Weights have Llama's names, and a removed part has no norm either. All layers have the same H; G and I are each
layer's own. As vLLM reads that (vllm/model_executor/models/nemotron_nas.py), it takes ffn_mult where there is one and
rounds the width up to a multiple of 256, and its first layer needs an attention. MLX-LM knows no intermediate_size. So
ffn_mult is written where every width is a multiple of 256, else intermediate_size; and where the first attention was
removed, one of zeros with a single key/value head stands there. A bias is in all layers or in none, q, k, v and the
output matrix alike, so that zeros stand where other layers have one.

Letters: D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.checkpoint import weight_files
from methods.checkpoint.heterogeneous import heterogeneous_form_of
from methods.checkpoint.pruned_config import Uneven, describe, make_empty
from methods.checkpoint.transformers_compat import reason_for_own_code, tensors_to_store
from methods.errors import UserError
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.precision import dtype_by_name


@dataclass(frozen=True)
class Sizes:
    """Holds the sizes of one layer: H query heads, G key/value heads, I channels; 0 for a removed attention or MLP."""

    H: int
    G: int
    I: int


@dataclass
class EngineForm:
    """Holds a model as an engine takes it.

    layers   the sizes of each layer
    tensors  what is stored, by the names of transformers, in the model's dtype
    parts    of each layer the names of the matrices in its "attention" and "mlp"
    zeros    how many parameters are zeros that stand where something was removed
    """

    layers: list[Sizes]
    tensors: dict[str, Tensor]
    parts: list[dict[str, list[str]]]
    zeros: int = 0

    def put(self, name: str, tensor: Tensor) -> None:
        """Add a tensor that stands for something removed."""
        self.tensors[name] = tensor
        self.zeros += tensor.numel()

    def has_biases(self, part: str) -> bool:
        """Say whether a matrix in the attentions or the MLPs has a bias."""
        return any(f"{name}.bias" in self.tensors for parts in self.parts for name in parts[part])

    def complete_biases(self, part: str) -> None:
        """Put zeros where a matrix in the attentions or the MLPs has no bias, if any of those has one."""
        if not self.has_biases(part):
            return
        for name in [name for parts in self.parts for name in parts[part] if f"{name}.bias" not in self.tensors]:
            weight = self.tensors[f"{name}.weight"]
            self.put(f"{name}.bias", weight.new_zeros(len(weight)))


def form_of_model(
    model: Decoder, format_name: str, *, multiple: int = 1, heads: tuple[int, int], channels: int = 0
) -> EngineForm:
    """Return the layout of a Llama-like model for an engine.

    multiple  channels of each MLP are filled up with zeros to a multiple of this
    heads     H and G of an attention of zeros that stands in the first layer where that has none
    channels  of an MLP of zeros that stands where a layer has an attention and no MLP; 0 for none

    Raises UserError, in which `format_name` stands, for a model that is more than its layers' sizes.
    """
    if reason := reason_for_own_code(describe(model)):
        raise UserError(f"{format_name} holds no such layers: {reason}")
    shell = make_empty(type(model.config).from_dict(model.config.to_dict()))
    whole, prefix = Decoder(shell).layers, model.family.layers
    kept = [number for number, layer in enumerate(model.layers) if layer.has_attention or layer.has_mlp]
    moved = {f"{prefix}.{number}.": f"{prefix}.{new}." for new, number in enumerate(kept)}
    form = EngineForm([], {}, [])
    for name, tensor in tensors_to_store(model, shell).items():
        old = next((start for start in moved if name.startswith(start)), "")
        form.tensors[moved.get(old, "") + name[len(old) :]] = tensor
    names = {id(module): name for name, module in shell.named_modules()}
    for new, number in enumerate(kept):
        layer = model.layers[number]
        H, G, I = layer.kv_heads * layer.group, layer.kv_heads, layer.down.in_features if layer.has_mlp else 0
        if not layer.has_attention and new == 0:
            (H, G), E = heads, layer.head_width
            for name, tensor in _attention(whole[new], names, H * E, G * E):
                form.put(name, tensor.to(model.embed.weight))
        if not layer.has_mlp and channels:
            I = -(-channels // multiple) * multiple
            for name, tensor in _mlp(whole[new], names, I):
                form.put(name, tensor.to(model.embed.weight))
        elif layer.has_mlp and I % multiple:
            more = multiple - I % multiple
            _fill_up(form, whole[new], names, more)
            I += more
        form.layers.append(Sizes(H, G, I))
        attention, mlp = [*whole[new].qkv, whole[new].out] if H else [], [*whole[new].up, whole[new].down] if I else []
        form.parts.append(
            {"attention": [names[id(matrix)] for matrix in attention], "mlp": [names[id(matrix)] for matrix in mlp]}
        )
    return form


def _attention(layer: Layer, names: dict[int, str], HE: int, GE: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an attention of zeros by name, with a norm."""
    q, k, v = layer.qkv
    D = layer.out.out_features
    for matrix, rows in ((q, HE), (k, GE), (v, GE)):
        yield f"{names[id(matrix)]}.weight", torch.zeros(rows, D)
        if matrix.bias is not None:
            yield f"{names[id(matrix)]}.bias", torch.zeros(rows)
    yield f"{names[id(layer.out)]}.weight", torch.zeros(D, HE)
    yield f"{names[id(layer.attn_norm)]}.weight", torch.ones(D)


def _mlp(layer: Layer, names: dict[int, str], I: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an MLP of zeros by name, with a norm."""
    D = layer.down.out_features
    for matrix in layer.up:
        yield f"{names[id(matrix)]}.weight", torch.zeros(I, D)
    yield f"{names[id(layer.down)]}.weight", torch.zeros(D, I)
    yield f"{names[id(layer.mlp_norm)]}.weight", torch.ones(D)


def _fill_up(form: EngineForm, layer: Layer, names: dict[int, str], more: int) -> None:
    """Add channels of zeros to the MLP of a layer."""
    for matrix in layer.up:
        for name in (f"{names[id(matrix)]}.weight", f"{names[id(matrix)]}.bias"):
            if name in form.tensors:
                tensor = form.tensors[name]
                form.tensors[name] = torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])
                form.zeros += more * tensor[0].numel()
    name = f"{names[id(layer.down)]}.weight"
    form.tensors[name] = nn.functional.pad(form.tensors[name], (0, more))
    form.zeros += more * len(form.tensors[name])


def require_plain_llama(config: Any, format_name: str, families: tuple[str, ...]) -> None:
    """Raise UserError for a model whose layers are no Llama's: of another family, with windows or scaled positions."""
    if config.model_type not in families:
        raise UserError(f"{format_name} is written for {', '.join(families)}; this model is a {config.model_type}")
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if getattr(config, "sliding_window", None) and "sliding_attention" in kinds:
        raise UserError(f"{format_name} is written for attention to all tokens; this model's has a sliding window")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"{format_name} is written for plain rotary positions; this model's are {rope}")


FORMAT = "nemotron-nas"
FAMILIES = ("llama", "mistral")
WHOLE = 256  # an MLP's width is a multiple of it where it is written as ffn_mult


def write_nemotron(
    model: Decoder, tokenizer: Any, folder: Path, dtype: torch.dtype, *, shard_bytes: int, multiple: int = 1
) -> EngineForm:
    """Write `model` with its tokenizer into `folder`, weights in `dtype`, and return its layout.

    shard_bytes  the most that one weight file holds, unless a single tensor is larger
    multiple     channels of each MLP are filled up with zeros to a multiple of this

    Raises UserError, and leaves nothing behind, for a model that the format cannot hold.
    """
    form = nemotron_form_of(model, multiple)
    config = config_of_form(model, form) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    with weight_files.write_folder_whole(folder) as inside:
        weight_files.write_weights(inside, form.tensors, lambda _: dtype, shard_bytes)
        _write_rest(inside, model, json.dumps(config, indent=1) + "\n", tokenizer)
    return form


def _write_rest(folder: Path, model: Decoder, config: str, tokenizer: Any) -> None:
    """Write what a folder holds beside its weights."""
    (folder / "config.json").write_text(config, encoding="utf-8")
    if model.model.generation_config is not None:
        model.model.generation_config.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)


def write_heterogeneous(model: Decoder, tokenizer: Any, folder: Path, dtype: torch.dtype, *, shard_bytes: int) -> int:
    """Write `model` with its tokenizer into `folder`, weights in `dtype`, as a stock class with `per_layer_config`.

    Returns how many numbers are zeros, as biases are that other layers have. Raises UserError, and leaves nothing
    behind, for a model that is more than the sizes of its layers (methods.checkpoint.heterogeneous).
    """
    try:
        config, tensors, zeros = heterogeneous_form_of(model)
    except Uneven as error:
        raise UserError(f"per_layer_config does not hold this model: {error}") from error
    config.dtype = dtype
    with weight_files.write_folder_whole(folder) as inside:
        weight_files.write_weights(inside, tensors, dtype_by_name(model.model, dtype), shard_bytes)
        _write_rest(inside, model, config.to_json_string(), tokenizer)
    return zeros


def nemotron_form_of(model: Decoder, multiple: int = 1) -> EngineForm:
    """Return the layout of a model in the folder. Raises UserError for a model that the format cannot hold."""
    require_plain_llama(model.whole_config, FORMAT, FAMILIES)
    if model.config.hidden_act != "silu":
        raise UserError(f"{FORMAT} is written for the activation silu; this model's is {model.config.hidden_act}")
    with_attention = [(number, layer) for number, layer in enumerate(model.layers) if layer.has_attention]
    if not with_attention:
        raise UserError(f"{FORMAT} takes a number of heads from a layer's attention, and no layer has one")
    first, whole = with_attention[0]
    H = whole.kv_heads * whole.group
    for number, layer in with_attention:
        if layer.kv_heads * layer.group != H:
            raise UserError(
                f"{FORMAT} has one number of query heads for all layers: layer {number} has "
                f"{layer.kv_heads * layer.group}, layer {first} has {H}; prune with --uniform, or use --pad-to-uniform"
            )
    form = form_of_model(model, FORMAT, multiple=multiple, heads=(H, 1))
    for part in ("attention", "mlp"):
        form.complete_biases(part)
    return form


def config_of_form(model: Decoder, form: EngineForm) -> dict[str, Any]:
    """Return config.json as plain values."""
    config, D = model.config, model.config.hidden_size
    whole = all(sizes.I % WHOLE == 0 for sizes in form.layers)
    special = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": FORMAT,
        "vocab_size": config.vocab_size,
        "hidden_size": D,
        "num_hidden_layers": len(form.layers),
        "num_attention_heads": max(sizes.H for sizes in form.layers),
        "head_dim": model.layers[0].head_width,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]},
        "hidden_act": config.hidden_act,
        "attention_bias": form.has_biases("attention"),
        "mlp_bias": form.has_biases("mlp"),
        "tie_word_embeddings": config.tie_word_embeddings,
        "block_configs": [_block(sizes, D, whole=whole) for sizes in form.layers],
        **{name: number for name, number in special.items() if number is not None},
    }


def _block(sizes: Sizes, D: int, *, whole: bool) -> dict[str, dict[str, Any]]:
    """Return the entry of a layer; `whole` where all widths are multiples of 256."""
    attention: dict[str, Any] = {"no_op": sizes.H == 0}
    ffn: dict[str, Any] = {"no_op": sizes.I == 0}
    if sizes.H:
        attention["n_heads_in_group"] = sizes.H // sizes.G
    if sizes.I:
        ffn |= {"ffn_mult": 3 * sizes.I / (2 * D)} if whole else {"intermediate_size": sizes.I}
    return {"attention": attention, "ffn": ffn}
