"""Puts tiny models on emulated GPUs, as bench.data.pretrained loads them."""

from __future__ import annotations

import torch
from accelerate import dispatch_model
from conftest import LAYERS, tiny

from methods.model.decoder import Decoder


def model_of(family: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Make a model whose weights are in `dtype`, and rotary frequencies in float32."""
    model = tiny(family)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Put the layers' first half on one GPU and the others on another, with the head if that has weights of its own."""
    decoder = Decoder(model)
    layers, last = decoder.family.layers, int(decoder.head.weight is not decoder.embed.weight)
    at_the_end = {id(decoder.head): last, id(decoder.final_norm): last}
    leaves = [(name, module) for name, module in model.named_modules() if name and not any(module.children())]
    places = {name: at_the_end.get(id(one), 0) for name, one in leaves if not name.startswith(f"{layers}.")}
    return dispatch_model(model, places | {f"{layers}.{number}": 2 * number // LAYERS for number in range(LAYERS)})
