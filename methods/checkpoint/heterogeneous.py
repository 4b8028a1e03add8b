"""Writes and reads the configurations of stock classes in which transformers says what each layer has of its own.

Since version 5.14 transformers reads `per_layer_config` in the configuration of any class. It has the values in which a
layer differs from the whole model, by the configuration's own names:

    per_layer_config    {layer: {num_attention_heads, num_key_value_heads, intermediate_size,
                                 skip    ["attention"] or ["mlp"] where one has been removed, with its norm}}

transformers has the configuration and, as of 5.24, no model for it: its classes read one width. A layer here is what
its class makes of the layer's own configuration.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from methods.checkpoint.pruned_config import SHARED, PrunedConfig, PrunedForCausalLM, Uneven, describe, make_empty
from methods.checkpoint.transformers_compat import (
    difference_of_shapes,
    reason_for_own_code,
    shapes_of,
    tensors_to_store,
)
from methods.errors import first_line_of
from methods.model.architectures import FAMILIES
from methods.model.decoder import Decoder
from methods.model.layer import Layer

MIXERS = "some layers have a mixer, which this layout has no sizes of"
HEADS = ("num_attention_heads", "num_key_value_heads")


def heterogeneous_form_of(model: Decoder) -> tuple[PreTrainedConfig, dict[str, Tensor], int]:
    """Return the configuration of a model, its tensors by their stock names, and how many of their numbers are zeros.

    Zeros are biases that other layers have. Raises Uneven for a model that is more than the sizes of its layers.
    """
    config = _config_of_layers(model)
    expected = shapes_by_layer(config)
    tensors = tensors_to_store(model, make_empty(without_layers(config)))
    biases = [name for name in expected if name not in tensors and name.endswith(".bias")]
    for name in biases:
        tensors[name] = model.embed.weight.new_zeros(expected[name])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if problem := difference_of_shapes(shapes, expected):
        raise Uneven(f"what transformers builds of the configuration differs: {problem}")
    return config, tensors, sum(tensors[name].numel() for name in biases)


def _config_of_layers(model: Decoder) -> PreTrainedConfig:
    """Return the configuration of a model with what each layer has of its own, if any has. Raises Uneven."""
    described = describe(model)
    if model.vision:
        raise Uneven(f"a {model.whole_config.model_type} has a vision tower, and per_layer_config is of text alone")
    if reason := reason_for_own_code(described):
        raise Uneven(reason)
    if model.family.mixer is not None:
        raise Uneven(MIXERS)
    layers = [_entry(*pair) for pair in zip(model.layers, described.per_layer_config, strict=True)]
    plain = model.config.to_dict() | _whole_sizes(model, layers)
    plain |= {name: True for name, is_on in _switches(model).items() if is_on and name in plain}
    try:
        config: PreTrainedConfig = type(model.config).from_dict(plain | {"per_layer_config": dict(enumerate(layers))})
    except (RuntimeError, ValueError, StrictDataclassError) as error:  # its own checks may read what layers differ in
        reason = first_line_of(error.__cause__ or error).partition(" Access")[0]
        raise Uneven(f"transformers takes no such layers of a {model.config.model_type}: {reason}") from error
    if not config.to_dict()["per_layer_config"]:
        config.per_layer_config = None  # the layers are alike: it is a stock model
    config.architectures, config.dtype = [type(model.model).__name__], model.config.dtype
    return config


def _whole_sizes(model: Decoder, layers: list[dict[str, Any]]) -> dict[str, int]:
    """Return the sizes that are alike in all layers, and the largest of each that the configuration leaves None.

    GPT-2's leaves the width of its MLPs None, which is then four times the residual's.
    """
    whole, config = dict[str, int](), model.config
    for name in (*HEADS, model.family.mlp_width):
        sizes = [layer[name] for layer in layers if name in layer]
        if sizes and (len(set(sizes)) == 1 or getattr(config, name, 0) is None):
            whole[config.attribute_map.get(name, name)] = max(sizes)
    heads = config.num_attention_heads
    if any(layer.get("num_attention_heads", heads) != heads for layer in layers):
        whole["head_dim"] = model.layers[0].head_width
    return whole


def _entry(layer: Layer, facts: Any) -> dict[str, Any]:
    """Return what a layer has of its own. transformers itself leaves out what the whole model has too."""
    has = {"attention": layer.has_attention, "mlp": layer.has_mlp}
    entry: dict[str, Any] = {"skip": [part for part in has if not has[part]]}
    if layer.has_attention:
        entry |= {name: getattr(facts, name) for name in HEADS}
    if layer.has_mlp and layer.experts is None:
        entry[layer.family.mlp_width] = facts.intermediate_size
    return entry


def _switches(model: Decoder) -> dict[str, bool]:
    """Return the configuration's switches of biases, and whether an output matrix has a bias behind each."""
    single = [layer for layer in model.layers if layer.has_mlp and layer.experts is None]
    return {
        "attention_bias": any(layer.has_attention and layer.out.bias is not None for layer in model.layers),
        "mlp_bias": any(layer.down.bias is not None for layer in single),
    }


def shapes_by_layer(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a model whose layers are made each from its own configuration."""
    whole = make_empty(without_layers(config))
    family = FAMILIES[config.model_type]
    stack = attrgetter(family.layers)(whole)
    for number, facts in enumerate(config.per_layer_config):
        with torch.device("meta"), no_init_weights():
            stack[number] = type(stack[number])(facts, number)
        layer = Layer(stack[number], family, {}, 1, 1, number=number)
        for part in getattr(facts, "skip", []):
            {"attention": layer.remove_attention, "mlp": layer.remove_mlp}[part]()
    return shapes_of(whole)


def without_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the whole model alone."""
    plain: PreTrainedConfig = type(config).from_dict(config.to_dict() | {"per_layer_config": None})
    return plain


def pruned_config_of(config: PreTrainedConfig) -> PrunedConfig:
    """Return the description of the model that a configuration with `per_layer_config` has.

    Its base has the largest sizes of all layers. Raises ValueError where layers differ in more than sizes and `skip`.
    """
    if FAMILIES[config.model_type].mixer is not None:
        raise ValueError(MIXERS)
    layers, base = list(config.per_layer_config), without_layers(config)
    sizes = (*HEADS, FAMILIES[config.model_type].mlp_width)
    largest: dict[str, Any] = {}
    for name in sorted(config.per_layer_attributes or ()):
        values = [getattr(facts, name) for facts in layers]
        if None in values:  # as GPT-2's width, which then follows from others
            raise ValueError(f"a layer says nothing of its {name}")
        if name not in sizes and any(value != values[0] for value in values):
            raise ValueError(f"its layers differ in {name}, and are read with {', '.join(sizes)} and skip of their own")
        largest[name] = max(values)
    if set(HEADS) & largest.keys():
        largest["head_dim"] = getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads
    base = type(base).from_dict(base.to_dict() | largest)
    whole = Decoder(make_empty(base)).layers
    described: PrunedConfig = PrunedConfig.from_dict(
        {
            "architectures": [PrunedForCausalLM.__name__],
            "base_config": base.to_diff_dict() | {"model_type": base.model_type},
            "per_layer_config": {number: _facts(*pair) for number, pair in enumerate(zip(layers, whole, strict=True))},
            "dtype": base.dtype,
            **{name: getattr(base, name) for name in SHARED},
        }
    )
    return described


def _facts(facts: PreTrainedConfig, layer: Layer) -> dict[str, Any]:
    """Return what is left of a layer, by the names of pruned_config."""
    has_attention, has_mlp = "attention" not in facts.skip, "mlp" not in facts.skip
    heads = facts.num_attention_heads
    single = has_mlp and layer.experts is None
    return {
        "skip": facts.skip,
        "num_attention_heads": heads if has_attention else 0,
        "num_key_value_heads": (getattr(facts, "num_key_value_heads", None) or heads) if has_attention else 0,
        "intermediate_size": getattr(facts, layer.family.mlp_width) if single else 0,
        "attention_output_bias": has_attention and layer.out.bias is not None,
        "mlp_output_bias": single and layer.down.bias is not None,
    }
