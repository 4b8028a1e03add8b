"""Writes a pruned model as a folder of the architecture Nemotron-NAS, which MLX-LM loads.

vLLM and SGLang know the architecture too, and do not load the folder as it is: they read `block_configs` as objects,
which a class of configurations makes that comes as code with NVIDIA's models (configuration_decilm.py). transformers
has none for the model type nemotron-nas, and no code travels with a model here. TensorRT-LLM has not been tried.

config.json has the fields of Llama, and `block_configs` with what each layer holds:

    attention   {"no_op": true}, or {"no_op": false, "n_heads_in_group": H / G}
    ffn         {"no_op": true}, or {"no_op": false, "ffn_mult": 3 I / 2 D} or {..., "intermediate_size": I}

Weights have Llama's names, and a part that is gone has no norm either. All layers have the same H; G and I are each
layer's own. As vLLM reads that (vllm/model_executor/models/nemotron_nas.py), it takes ffn_mult where it is given and
rounds the width up to a multiple of 256, and its first layer needs an attention. MLX-LM knows no intermediate_size. So
ffn_mult is written where every width is a multiple of 256, else intermediate_size; and where the first attention is
gone, one of zeros with a single key/value head stands there. A bias is in all layers or in none, q, k, v and the output
matrix alike, so that zeros stand where other layers have one.

Letters: D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bench.export.engine_form import EngineForm, Sizes, engine_form, require_plain_llama
from methods.checkpoint import weight_files
from methods.errors import UserError
from methods.model.decoder import Decoder

FORMAT = "nemotron-nas"
FAMILIES = ("llama", "mistral")
WHOLE = 256  # of which an MLP's width is a multiple where it is written as ffn_mult


def write(
    model: Decoder, tokenizer: Any, folder: Path, dtype: torch.dtype, *, shard_bytes: int, multiple: int = 1
) -> EngineForm:
    """Write `model` with its tokenizer into `folder`, weights in `dtype`, and return what is in it.

    shard_bytes  the most that one weight file holds, unless a single tensor is larger
    multiple     channels of each MLP are filled up with zeros to a multiple of this

    Raises UserError, and leaves nothing behind, for a model that the format cannot hold.
    """
    form = form_of(model, multiple)
    with weight_files.staged(folder) as inside:
        weight_files.write(inside, form.tensors, lambda _: dtype, shard_bytes)
        config = configuration(model, form) | {"torch_dtype": str(dtype).removeprefix("torch.")}
        (inside / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        if model.model.generation_config is not None:
            model.model.generation_config.to_json_file(inside / "generation_config.json")
        tokenizer.save_pretrained(inside)
    return form


def form_of(model: Decoder, multiple: int = 1) -> EngineForm:
    """Return what the folder of a model holds. Raises UserError for a model that the format cannot hold."""
    require_plain_llama(model.config, FORMAT, FAMILIES)
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
    form = engine_form(model, FORMAT, multiple=multiple, heads=(H, 1))
    for part in ("attention", "mlp"):
        form.complete_biases(part)
    return form


def configuration(model: Decoder, form: EngineForm) -> dict[str, Any]:
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
