"""Puts tiny models on emulated GPUs, as bench.data.pretrained loads them."""

from __future__ import annotations

import torch
from conftest import tiny

from methods.model import spread as spreading

BOTH = [torch.device("cuda", number) for number in range(2)]


def model_of(family: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Make a model whose weights are in `dtype`, and rotary frequencies in float32."""
    model = tiny(family)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Spread a model's layers over two GPUs."""
    return spreading.put(model, BOTH)
