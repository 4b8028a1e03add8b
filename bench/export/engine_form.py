"""Lays a pruned model out as inference engines take it: sizes and tensors of each layer, zeros where one must stand.

Engines know layers by their sizes alone. A layer without attention and MLP adds nothing and is left out; where an
engine cannot do without an attention, an MLP or a bias, one of zeros stands there, which adds nothing either.

Letters: D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.checkpoint.pruned_config import describe
from methods.checkpoint.stock import empty
from methods.checkpoint.transformers_compat import needs_own_code, tensors
from methods.errors import UserError
from methods.model.decoder import Decoder
from methods.model.layer import Layer


@dataclass(frozen=True)
class Sizes:
    """Says what one layer has: H query heads and G key/value heads, I channels; 0 where attention or MLP are gone."""

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


def engine_form(
    model: Decoder, format_name: str, *, multiple: int = 1, heads: tuple[int, int], channels: int = 0
) -> EngineForm:
    """Return what an engine takes of a Llama-like model.

    multiple  channels of each MLP are filled up with zeros to a multiple of this
    heads     H and G of an attention of zeros that stands in the first layer where that has none
    channels  of an MLP of zeros that stands where a layer has an attention and no MLP; 0 for none

    Raises UserError, in which `format_name` stands, for a model that is more than its layers' sizes.
    """
    if reason := needs_own_code(describe(model)):
        raise UserError(f"{format_name} holds no such layers: {reason}")
    shell = empty(type(model.config).from_dict(model.config.to_dict()))
    whole, prefix = Decoder(shell).layers, model.family.layers
    kept = [number for number, layer in enumerate(model.layers) if layer.has_attention or layer.has_mlp]
    moved = {f"{prefix}.{number}.": f"{prefix}.{new}." for new, number in enumerate(kept)}
    form = EngineForm([], {}, [])
    for name, tensor in tensors(model, shell).items():
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
