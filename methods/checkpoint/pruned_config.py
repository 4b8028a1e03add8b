"""Describes models whose layers differ, as plain values, and builds them from such a description.

A pruned model is its base architecture with fewer units. PrunedConfig keeps the base's configuration and the units that
are left of each layer. A model that is built from it has the base's own class, cut to these shapes with the same cuts
that methods use. Importing this file makes such folders load through the Auto classes of transformers.

    per_layer_config    {layer: {num_attention_heads, num_key_value_heads, intermediate_size (0 of a mixture),
                                 mixer_heads, state_channels     of a mixer in the attention's place that can lose some
                                 attention_output_bias, mlp_output_bias    whether the output matrix has a bias
                                 skip       ["attention"] or ["mlp"] where one has been removed
                                 ranks      {matrix: rank} of those that are two factors, (rank, in) and (out, rank)
                                 rows       {matrix: places} where only these outputs are computed and the others are 0
                                 columns    {matrix: places} where only these inputs are read, "0-11+13" for both
                                 maps       ["before"] or ["behind"] where a linear map of the residual stands
                                 scaling    of the attention's scores, where it is not what the layer's number gives}}
    residual            {"hidden_size": d, "output_size": e} where the residual stream has been cut to d and ends as e

A stock class of transformers takes one width for all layers, among those that its configuration allows.
`stock_config_of` gives such a configuration.

Letters: D = residual width of the base, d, e = what is left of it in and behind the layers, G = key/value heads,
         I = MLP width.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from methods.errors import first_line_of
from methods.model.architectures import FAMILIES
from methods.model.decoder import Decoder, set_dtype
from methods.model.inserted import (
    FewColumns,
    FewRows,
    SlicedLayer,
    StandIn,
    cut_columns,
    factor_matrix,
    fuse_norms,
    keep_few,
    maps_of,
    places_of,
    put_map,
    ranks_of,
    read_in_basis,
    write_in_basis,
)
from methods.model.layer import Layer
from methods.model.structures import keep_channels, keep_kv_groups, keep_mixer_heads, keep_state_channels
from methods.ranges import read_numbers, read_ranges, write_ranges

STAND_INS: dict[str, type[FewRows | FewColumns]] = {"rows": FewRows, "columns": FewColumns}
OF_MIXERS = {"mixer_heads": keep_mixer_heads, "state_channels": keep_state_channels}
SHARED = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")  # shown beside the base's own


class PrunedConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Holds the base's configuration and what is left of each layer."""

    model_type = "prunebench"
    base_config: dict[str, Any] | None = None
    num_hidden_layers: int = 0
    residual: dict[str, int] | None = None

    def base(self) -> PreTrainedConfig:
        """Return the configuration of the architecture that has been pruned, with the layers that are left."""
        base = config_of_base(self.base_config or {})
        base._attn_implementation = self._attn_implementation
        set_dtype(base, self.dtype)
        return base


class PrunedForCausalLM:
    """Stands behind the Auto classes for a PrunedConfig, and gives them a model of the base's class."""

    config_class = PrunedConfig

    @classmethod
    def from_pretrained(cls, *args: Any, config: PrunedConfig, **options: Any) -> Any:
        """Return a pruned model, of the class that its configuration names, cut to its shapes."""
        return class_that_cuts(config).from_pretrained(*args, config=config, **options)

    @classmethod
    def _from_config(cls, config: PrunedConfig, **options: Any) -> Any:
        return class_that_cuts(config)._from_config(config, **options)


AutoConfig.register(PrunedConfig.model_type, PrunedConfig, exist_ok=True)
AutoModelForCausalLM.register(PrunedConfig, PrunedForCausalLM, exist_ok=True)


def class_that_cuts(config: PrunedConfig) -> Any:
    """Return the base's class with an __init__ that cuts, so that transformers' own loader fills the cut model."""
    stock = class_of_config(config.base())

    def build(self: Any, config: PrunedConfig) -> None:
        stock.__init__(self, config.base())
        self.__class__ = stock  # it now is an ordinary model of its family, which can be copied and sent elsewhere
        cut(Decoder(self), config)

    return type(stock.__name__, (stock,), {"__init__": build, "config_class": PrunedConfig})


def describe(model: Decoder) -> PrunedConfig:
    """Return the configuration that describes `model`."""
    layers, maps = [_facts(layer) for layer in model.layers], maps_of(model)
    if any(maps):
        layers = [facts | {"maps": places} for facts, places in zip(layers, maps, strict=True)]
    for name in OF_MIXERS:
        counts = [getattr(layer, name) for layer in model.layers]
        if any(counts):
            layers = [facts | {name: count} for facts, count in zip(layers, counts, strict=True)]
    ranks = [ranks_of(layer.named_matrices()) for layer in model.layers]
    if any(ranks):
        layers = [facts | {"ranks": of_layer} for facts, of_layer in zip(layers, ranks, strict=True)]
    for name, kind in STAND_INS.items():
        places = [places_of(layer.named_matrices(), kind) for layer in model.layers]
        if any(places):
            layers = [facts | {name: _to_texts(each)} for facts, each in zip(layers, places, strict=True)]
    scales = [getattr(layer.attn, "scaling", None) for layer in model.layers]
    if has_own_scales(scales, model.whole_config):
        layers = [facts | {"scaling": scale} for facts, scale in zip(layers, scales, strict=True)]
    sliced = isinstance(model.layers[-1].module, SlicedLayer)
    whole = model.whole_config
    plain = whole.to_dict() if model.vision else whole.to_diff_dict()  # which would leave out defaults of parts
    base = {name: value for name, value in plain.items() if name != "dtype"}
    residual = {"hidden_size": model.embed.embedding_dim, "output_size": model.head.in_features}
    described: PrunedConfig = PrunedConfig.from_dict(
        {
            "architectures": [PrunedForCausalLM.__name__],
            "base_config": base | {"architectures": [type(model.model).__name__]},
            "per_layer_config": dict(enumerate(layers)),
            "residual": residual if sliced else None,
            "dtype": whole.dtype,
            **{name: getattr(model.config, name) for name in SHARED},
        }
    )
    described._attn_implementation = whole._attn_implementation
    return described


def _to_texts(places: Mapping[str, Sequence[int]]) -> dict[str, str]:
    return {matrix: write_ranges(numbers) for matrix, numbers in places.items()}


def has_own_scales(scales: Sequence[float | None], config: PreTrainedConfig) -> bool:
    """Say whether an attention scales its scores by another number than in the stock model. None is no number."""
    if not any(scales):
        return False
    stock = scales_of_stock(config.to_json_string())
    return any(scale not in (None, of_stock) for scale, of_stock in zip(scales, stock, strict=True))


@functools.lru_cache(maxsize=16)
def scales_of_stock(config: str) -> tuple[float | None, ...]:
    """Return what each layer of the stock model of a configuration, as JSON, scales the scores of its attention by.

    None stands for a layer without such a number.
    """
    layers = Decoder(make_empty(config_of_base(PreTrainedConfig._decode_special_floats(json.loads(config))))).layers
    return tuple(getattr(layer.attn, "scaling", None) for layer in layers)


def config_of_base(values: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration of these values, of the class that transformers has for its model_type."""
    given = dict(values)
    config: PreTrainedConfig = CONFIG_MAPPING[given.pop("model_type")].from_dict(given)
    return config


def _facts(layer: Layer) -> dict[str, Any]:
    facts = {
        "num_attention_heads": layer.kv_heads * layer.group,
        "num_key_value_heads": layer.kv_heads,
        "intermediate_size": layer.down.in_features if has_one_mlp(layer) else 0,
        "attention_output_bias": bool(layer.kind_of_heads) and layer.out.bias is not None,
        "mlp_output_bias": has_one_mlp(layer) and layer.down.bias is not None,
    }
    return facts | {"skip": layer.lost} if layer.lost else facts


def cut(model: Decoder, config: PrunedConfig) -> None:
    """Cut a model of the base's shapes to those of `config`, in place. Weights are filled in later.

    Raises ValueError for a description that does not fit the base.
    """
    layers = model.layers
    if len(config.per_layer_config) != len(layers):
        raise ValueError(f"per_layer_config describes {len(config.per_layer_config)} layers of {len(layers)}")
    for number, (layer, facts) in enumerate(zip(layers, config.per_layer_config, strict=True)):
        _cut_heads(layer, facts, number)
        if "mlp" in facts.skip:
            layer.remove_mlp()
        elif has_one_mlp(layer):
            _within("intermediate_size", facts.intermediate_size, layer.down.in_features, number)
            keep_channels(layer, range(facts.intermediate_size))
            _set_bias(layer.down, facts.mlp_output_bias)
        _factor(layer, getattr(facts, "ranks", {}), number)
        _leave_few(layer, facts, number)
        _keep_from_being_drawn(layer)
    model.set_layers(layers)
    for number, facts in enumerate(config.per_layer_config):
        for place in getattr(facts, "maps", []):
            _put_empty_map(model, number, place)
    if config.residual is not None:
        _cut_residual(model, config.residual["hidden_size"], config.residual["output_size"])


def _cut_heads(layer: Layer, facts: Any, number: int) -> None:
    """Cut or remove the attention of a layer, or the mixer in its place."""
    if "attention" in facts.skip:
        layer.remove_attention()
    elif layer.has_heads:
        _cut_attention(layer, facts, number)
    elif layer.mixer_heads or layer.state_channels:
        _cut_mixer(layer, facts, number)


def _cut_attention(layer: Layer, facts: Any, number: int) -> None:
    G = facts.num_key_value_heads
    _within("num_key_value_heads", G, layer.kv_heads, number)
    if facts.num_attention_heads != G * layer.group:
        raise ValueError(
            f"layer {number} has {layer.group} query heads for each key/value head, which num_attention_heads "
            f"{facts.num_attention_heads} and num_key_value_heads {G} are not"
        )
    if layer.kv_heads != G:
        keep_kv_groups(layer, range(G))
    _set_bias(layer.out, facts.attention_output_bias)
    if (scaling := getattr(facts, "scaling", None)) is not None:
        layer.attn.scaling = scaling


def _cut_mixer(layer: Layer, facts: Any, number: int) -> None:
    for name, keep in OF_MIXERS.items():
        count, whole = getattr(facts, name, None), getattr(layer, name)
        if count is None or not whole:  # in folders of before mixers are whole
            continue
        _within(name, count, whole, number)
        if count != whole:
            keep(layer, range(count))
        if name == "mixer_heads":
            _set_bias(layer.out, facts.attention_output_bias)


def _factor(layer: Layer, ranks: dict[str, int], number: int) -> None:
    """Let two empty factors stand where matrices of these names are."""
    matrices = layer.named_matrices()
    for name, k in ranks.items():
        if name not in matrices:
            raise ValueError(f"ranks are of {', '.join(matrices)}; config.json has one of {name} in layer {number}")
        weight = matrices[name].weight.detach()
        _within(f"the rank of {name}", k, min(weight.shape), number)
        factors = weight.new_empty(k, weight.shape[1]), weight.new_empty(weight.shape[0], k)
        layer.put(name, factor_matrix(matrices[name], *factors))


def _leave_few(layer: Layer, facts: Any, number: int) -> None:
    """Let stand-ins without values stand where matrices have lost rows or columns."""
    for name, kind in STAND_INS.items():
        for path, text in getattr(facts, name, {}).items():
            matrices = layer.named_matrices()
            if path not in matrices:
                raise ValueError(
                    f"{name} are of {', '.join(matrices)}; config.json has some of {path} in layer {number}"
                )
            matrix = matrices[path]
            size = matrix.out_features if kind is FewRows else matrix.in_features
            ranges = read_ranges(text)
            if not ranges or max(last for _, last in ranges) >= size or write_ranges(read_numbers(text)) != text:
                wrong = f"config.json says {text[:40]!r}"
                raise ValueError(f"{name} of {path} in layer {number} rise from 0 to {size - 1}; {wrong}")
            layer.put(path, keep_few(matrix, kind, read_numbers(text)))


def _keep_from_being_drawn(layer: Layer) -> None:
    """Keep GPT-2's rule from drawing a weight for its output matrices where something stands for one."""
    for module in layer.inner.modules():
        if any(isinstance(child, StandIn) for child in module.children()):
            module._is_hf_initialized = True


def _put_empty_map(model: Decoder, number: int, place: str) -> None:
    if place not in ("before", "behind") or (place == "before" and number):
        raise ValueError(f"a map stands before the first layer or behind any; config.json says {place} {number}")
    weight, D = model.embed.weight, model.embed.embedding_dim
    put_map(model, number if place == "behind" else -1, weight.detach().new_empty(D, D))


def _within(name: str, size: int, most: int, number: int) -> None:
    if not 1 <= size <= most:
        raise ValueError(f"{name} of layer {number} lies between 1 and {most}; config.json says {size}")


def _set_bias(matrix: nn.Linear, has_bias: bool) -> None:
    if has_bias != (matrix.bias is not None):
        matrix.register_parameter("bias", nn.Parameter(matrix.weight.detach()[:, 0].clone()) if has_bias else None)


def _cut_residual(model: Decoder, d: int, e: int) -> None:
    """Cut every shape to that of a sliced model: norms without gains, shortcuts, and d or e instead of D."""
    fuse_norms(model, centre_embeddings=False)
    weight = model.embed.weight
    Q = torch.eye(model.embed.embedding_dim, dtype=torch.float64, device=weight.device)
    _within("residual", min(d, e), len(Q), 0)
    for table in [model.embed, *([] if model.positions is None else [model.positions])]:
        table.weight = cut_columns(table.weight, Q, d)
        table.embedding_dim = d
    layers = model.layers
    for layer in layers:
        end = e if layer is layers[-1] else d
        middle = end if layer.parallel else d
        read_in_basis([*layer.qkv, *layer.up], Q, d)
        write_in_basis(layer.out, Q, middle)
        write_in_basis(layer.down, Q, end)
        shortcuts = [Q[:d, :end]] if layer.parallel else [Q[:d, :d], Q[:d, :end]]
        layer.module = SlicedLayer(layer, [shortcut.to(weight.dtype) for shortcut in shortcuts])
    model.head.weight = cut_columns(model.head.weight, Q, e)
    model.head.in_features = e
    model.set_layers(layers)


class Uneven(ValueError):
    """Is raised where stock transformers cannot hold a model. The message says what it has no place for."""


def class_of_config(config: PreTrainedConfig) -> Any:
    """Return the class of transformers for language models of this configuration."""
    return (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if has_vision(config) else MODEL_FOR_CAUSAL_LM_MAPPING)[type(config)]


def auto_class_of(config: PreTrainedConfig) -> Any:
    """Return the Auto class that makes models of this configuration."""
    return AutoModelForImageTextToText if has_vision(config) else AutoModelForCausalLM


def has_vision(config: PreTrainedConfig) -> bool:
    """Say whether a model of this configuration has a vision tower beside its text tower, by its family's row."""
    return config.model_type in FAMILIES and bool(FAMILIES[config.model_type].vision)


def make_empty(config: PreTrainedConfig) -> Any:
    """Return the model of a configuration without weights, on the meta device, where none is drawn."""
    with torch.device("meta"), no_init_weights():
        model = auto_class_of(config).from_config(config)
    model.tie_weights()
    return model


def stock_config_of(model: Decoder, G: int, I: int | None) -> PreTrainedConfig:
    """Return the model's configuration with G key/value heads and I channels in every layer. Raises Uneven.

    Where all mixers have as many heads, or channels of their state, it has as many of these, too.
    I is None where no layer has a single MLP; those of experts are never cut.
    """
    layers, whole = model.layers, model.whole_config
    config = type(model.config).from_dict(model.config.to_dict())
    sizes = {"num_attention_heads": G * layers[0].group} | ({} if I is None else {model.family.mlp_width: I})
    if hasattr(config, "num_key_value_heads"):
        sizes["num_key_value_heads"] = G
    if hasattr(config, "head_dim") or G * layers[0].group != config.num_attention_heads:
        sizes["head_dim"] = layers[0].head_width
    mixers = {layer.mixer_heads for layer in layers} - {0}
    channels = {layer.state_channels for layer in layers} - {0}
    if model.family.mixer is not None and len(mixers) == 1:
        (heads,), names = mixers, model.family.mixer.counts
        sizes |= {names[0]: heads, names[1]: heads * getattr(config, names[1]) // getattr(config, names[0])}
    if model.family.mixer is not None and len(channels) == 1:
        (sizes[model.family.mixer.channels],) = channels
    switches = {
        "attention_bias": any(layer.has_heads and layer.out.bias is not None for layer in layers),
        "mlp_bias": any(has_one_mlp(layer) and layer.down.bias is not None for layer in layers),
    }
    values = config.to_dict() | {config.attribute_map.get(name, name): size for name, size in sizes.items()}
    values |= {name: True for name, on in switches.items() if on and hasattr(config, name)}
    if model.vision:
        values = whole.to_dict() | {"text_config": values}
    try:
        stock: PreTrainedConfig = type(whole).from_dict(values)
        make_empty(stock)
    except (ValueError, StrictDataclassError) as error:
        raise Uneven(f"transformers takes no such widths: {first_line_of(error.__cause__ or error)}") from error
    stock.architectures, stock._attn_implementation = [type(model.model).__name__], whole._attn_implementation
    set_dtype(stock, model.whole_config.dtype)
    return stock


def has_one_mlp(layer: Layer) -> bool:
    """Say whether a layer has an MLP, and no mixture of experts."""
    return layer.has_mlp and layer.experts is None


def may_have_heads(model: Decoder, G: int) -> bool:
    """Say whether the stock class takes G key/value heads in every layer."""
    try:
        stock_config_of(model, G, model.layers[0].down.in_features)
    except Uneven:
        return False
    return True
