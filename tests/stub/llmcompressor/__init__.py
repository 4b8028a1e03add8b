"""Stands for llmcompressor: it rounds the weights of linear layers as a recipe says, and leaves their dtype."""

import os
import sys

__version__ = "0.stub"

if complaint := os.environ.get("STUB_COMPRESSOR_FAILS"):
    sys.exit(complaint)


def oneshot(model, recipe):
    """Round each weight (d_out, d_in) to the numbers of so many bits, with a scale for each group of inputs."""
    import torch

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name not in recipe.ignore:
            wish = recipe.config_groups["linear"]["weights"]
            highest = 2 ** (wish["num_bits"] - 1) - 1
            rows = layer.weight.data.view(layer.out_features, -1, wish.get("group_size", layer.in_features))
            scale = rows.abs().amax(-1, keepdim=True) / highest
            layer.weight.data = ((rows / scale).round() * scale).view_as(layer.weight)
    save = model.save_pretrained
    model.save_pretrained = lambda to, save_compressed: save(to)
