"""Passes that look: what enters the stack of layers, and what comes out of it.

Letters: B = sequences, T = tokens, D = residual width.

Padding is on the right and attention is causal, so a real token never sees a padded one: no mask is passed, and the
states of real tokens are those of the sequence alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.anatomy import Decoder, Layer


@dataclass(frozen=True)
class Entry:
    """What enters the layers for one batch: the first layer's input, and the other arguments of each kind of layer.

    x          (B, T, D)
    arguments  layer kind -> what the decoder passes besides the hidden states (positions, masks)
    """

    x: Tensor
    arguments: dict[str | None, dict[str, Any]]

    def run(self, layers: Iterable[Layer], x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D) through `layers`, each with the arguments of its kind."""
        for layer in layers:
            x = layer(x, self.arguments[layer.kind])
        return x


class _Recorder(nn.Module):
    """Stands in for a layer: notes what it is called with and passes the hidden states on unchanged."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.x: Tensor | None = None
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.x, self.arguments = hidden_states, self.layer.bind(args, kwargs)
        return hidden_states


@torch.no_grad()
def enter(model: Decoder, ids: Tensor) -> Entry:
    """Embed ids (B, T) and note what each layer would be called with, without running a layer."""
    layers = model.layers
    recorders = [_Recorder(layer) for layer in layers]
    stack = nn.ModuleList(recorders)
    modules = model.swap_stack(stack)
    try:
        model.model(input_ids=ids.to(model.embed.weight.device), use_cache=False, logits_to_keep=1)
    finally:
        model.swap_stack(modules)
    x = recorders[0].x
    if x is None:
        raise RuntimeError("the model did not call its first layer")
    return Entry(x, {recorder.layer.kind: recorder.arguments for recorder in recorders})
