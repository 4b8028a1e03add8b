"""Computes a folder with `per_layer_config` by transformers alone, each layer made from its own configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM


class Zeros(nn.Module):
    """Stands for an attention or an MLP that a layer skips, and returns what that returns."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor, None]:
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if self.pair else zeros


SKIPPED = {  # the norm in front of it, the part itself, and whether that returns a pair
    "attention": ("input_layernorm", "self_attn", True),
    "mlp": ("post_attention_layernorm", "mlp", False),
}


@torch.no_grad()
def logits(folder: Path, ids: Tensor) -> Tensor:
    """The logits of (B, T) token ids by a model with Llama's names, (B, T, V). Every tensor of the folder is used."""
    config = AutoConfig.from_pretrained(folder)
    whole = type(config).from_dict(config.to_dict() | {"per_layer_config": None})
    model = AutoModelForCausalLM.from_config(whole)
    for number, own in enumerate(config.per_layer_config):
        own._attn_implementation = model.config._attn_implementation
        layer = type(model.model.layers[number])(own, number)
        for part in getattr(own, "skip", []):
            norm, name, pair = SKIPPED[part]
            setattr(layer, norm, nn.Identity())
            setattr(layer, name, Zeros(pair))
        model.model.layers[number] = layer
    stored: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    absent, unknown = model.load_state_dict(stored, strict=False)
    assert not unknown
    assert set(absent) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()(ids, use_cache=False).logits
