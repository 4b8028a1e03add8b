"""Puts tiny models on emulated GPUs, as bench.data.pretrained loads them."""

from __future__ import annotations

import torch
from conftest import tiny
from tiny_methods import FEW_LAYERS

from methods.model import decoder as spreading
from methods.model.decoder import Decoder

BOTH = [torch.device("cuda", number) for number in range(2)]
CUDA = BOTH[0]


def model_of(family: str, dtype: torch.dtype = torch.float32, layers: int = FEW_LAYERS) -> torch.nn.Module:
    """Make a model whose weights are in `dtype`, and rotary frequencies in float32."""
    model = tiny(family, layers=layers)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Spread a model's layers over two GPUs."""
    return spreading.put_model(model, BOTH)


def devices_of(decoder: Decoder) -> tuple[set[torch.device], set[torch.device]]:
    """Return where the layers lie, and where all else does."""
    inside = {id(one) for layer in decoder.layers for one in layer.module.parameters()}
    found = {True: set[torch.device](), False: set[torch.device]()}
    for one in decoder.model.parameters():
        found[id(one) in inside].add(one.device)
    return found[True], found[False]
