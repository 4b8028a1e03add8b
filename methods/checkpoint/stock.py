"""What a stock transformers class takes: one width for all layers, among those that its configuration allows.

Letters: G = key/value heads, I = MLP width.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from methods.errors import first_line
from methods.model.decoder import Decoder
from methods.model.layer import Layer


class Uneven(ValueError):
    """Says that stock transformers cannot hold the model, and what it has no place for."""


def stock_class(config: PreTrainedConfig) -> Any:
    """Return the class that transformers has for causal language models of this configuration."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def empty(config: PreTrainedConfig) -> Any:
    """Return the model of a configuration without weights, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]


def stock_config(model: Decoder, G: int, I: int | None) -> PreTrainedConfig:
    """Return the model's configuration with G key/value heads and I channels in every layer. Raises Uneven.

    I is None where no layer has a single MLP; those of experts are never cut.
    """
    layers, config = model.layers, type(model.config).from_dict(model.config.to_dict())
    sizes = {"num_attention_heads": G * layers[0].group} | ({} if I is None else {model.family.mlp_width: I})
    if hasattr(config, "num_key_value_heads"):
        sizes["num_key_value_heads"] = G
    if hasattr(config, "head_dim") or G * layers[0].group != config.num_attention_heads:
        sizes["head_dim"] = layers[0].head_width
    switches = {
        "attention_bias": any(layer.has_attention and layer.out.bias is not None for layer in layers),
        "mlp_bias": any(has_one_mlp(layer) and layer.down.bias is not None for layer in layers),
    }
    values = config.to_dict() | {config.attribute_map.get(name, name): size for name, size in sizes.items()}
    values |= {name: True for name, on in switches.items() if on and hasattr(config, name)}
    try:
        stock: PreTrainedConfig = type(config).from_dict(values)
        empty(stock)
    except (ValueError, StrictDataclassError) as error:
        raise Uneven(f"transformers takes no such widths: {first_line(error.__cause__ or error)}") from error
    stock.architectures, stock.dtype = [type(model.model).__name__], model.config.dtype
    stock._attn_implementation = model.config._attn_implementation
    return stock


def has_one_mlp(layer: Layer) -> bool:
    """Say whether a layer has an MLP that is no mixture of experts."""
    return layer.has_mlp and layer.experts is None


def takes(model: Decoder, G: int) -> bool:
    """Say whether the stock class takes G key/value heads in every layer."""
    try:
        stock_config(model, G, model.layers[0].down.in_features)
    except Uneven:
        return False
    return True
