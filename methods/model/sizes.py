"""Counts what a model stores and computes: parameters, bytes, key/value cache, multiply-accumulates."""

from __future__ import annotations

from torch import nn

from methods.model.decoder import Decoder, Layer, Removed


def parameters(model: Decoder) -> int:
    """Stored parameters: each tensor once, however many names it has."""
    return sum(parameter.numel() for parameter in model.model.parameters())


def parameters_without_embeddings(model: Decoder) -> int:
    """Stored parameters without the embedding, the table of positions and the head."""
    tables = [model.embed, model.head] + ([model.positions] if model.positions is not None else [])
    left_out = {id(parameter): parameter.numel() for table in tables for parameter in table.parameters()}
    return parameters(model) - sum(left_out.values())


def layer_parameters(layer: Layer) -> int:
    return sum(parameter.numel() for parameter in layer.module.parameters())


def weight_bytes(model: Decoder) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters())


def kv_bytes_per_token(model: Decoder) -> int:
    """Bytes of the key/value cache for each token of context, in the model's dtype, sliding windows not considered."""
    size = model.embed.weight.element_size()
    counted = sum(isinstance(layer.attn, Removed) and layer.attn.counts for layer in model.layers)
    return 2 * size * (counted + sum(layer.kv_heads * layer.head_width for layer in model.layers))


def macs_per_token(model: Decoder, context: int) -> int:
    """Multiply-accumulates per token, averaged over a sequence of `context` tokens computed at once.

    Each matrix multiplies once per token; attention scores and mixtures take 2 * H * E * context in each layer. The
    causal half that kernels may skip is counted in, as PyTorch's own counter does.
    """
    linear = sum(module.weight.numel() for module in model.model.modules() if isinstance(module, nn.Linear))
    scores = sum(2 * layer.out.in_features * context for layer in model.layers if layer.has_attention)
    return linear + scores
