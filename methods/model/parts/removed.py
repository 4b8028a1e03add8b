"""Stands where an attention or an MLP was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Removed(nn.Module):
    """Stands where an attention or an MLP was, and adds nothing to the residual."""

    def __init__(self, *, attention: bool, pair: bool = False) -> None:
        """Stand for an attention, or for an MLP whose forward gives back a `pair`, the result first, or the result."""
        super().__init__()
        self.pair = attention or pair
        self.layer_idx = 0
        self.counts = False  # no attention of the layer's kind is left, so that this one tells the cache its length

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        if not self.pair:
            return nothing
        cache = kwargs.get("cache", kwargs.get("layer_past"))
        if self.counts and cache is not None:
            one_number = nothing[:, None, :, :1]  # per token, (B, 1, T, 1): a cache of no numbers has no length
            cache.update(one_number, one_number, self.layer_idx)
        return nothing, None
