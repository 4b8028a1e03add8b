"""Counts what a model stores and computes: parameters, bytes, key/value cache, multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.parts import Removed


def parameters(model: Decoder) -> int:
    """Return how many parameters are stored: each tensor once, however many names it has."""
    return sum(parameter.numel() for parameter in model.model.parameters())


def parameters_without_embeddings(model: Decoder) -> int:
    """Return how many parameters are stored without embedding, table of positions, head and what reads images."""
    tables = [model.embed, model.head, *model.vision] + ([model.positions] if model.positions is not None else [])
    left_out = {id(parameter): parameter.numel() for table in tables for parameter in table.parameters()}
    return parameters(model) - sum(left_out.values())


def layer_parameters(layer: Layer) -> int:
    """Return how many parameters a layer holds, with all that a method has put around it."""
    return sum(parameter.numel() for parameter in layer.module.parameters())


def active_parameters(model: Decoder) -> int:
    """Return how many parameters a token of text is computed with: no experts but its own, and nothing for images."""
    mixtures = [layer.experts for layer in model.layers if layer.experts is not None]
    unused = [(experts.count - experts.experts_per_token) * experts.weights for experts in mixtures]
    unused += [parameter.numel() for module in model.vision for parameter in module.parameters()]
    return parameters(model) - sum(unused)


def weight_bytes(model: Decoder) -> int:
    """Return the bytes of all stored parameters, in their dtypes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters())


def kv_bytes_per_token(model: Decoder) -> int:
    """Return the bytes of the key/value cache per token of context, in the model's dtype, without sliding windows."""
    size = model.embed.weight.element_size()
    counted = sum(isinstance(layer.attn, Removed) and layer.attn.counts for layer in model.layers)
    return 2 * size * (counted + sum(layer.kv_heads * layer.head_width for layer in model.layers))


def state_bytes(model: Decoder) -> int:
    """Return the bytes of what mixers carry from token to token in a sequence, whatever its length.

    These are the latest inputs of each convolution, in the model's dtype, and the states, in float32.
    """
    convolutions = [layer.conv for layer in model.layers]
    latest = sum(taps.nbytes for taps in convolutions if taps is not None)
    return latest + 4 * sum(layer.state_numbers for layer in model.layers)


def cache_bytes_read(model: Decoder, context: int) -> int:
    """Return the bytes that a token behind `context` tokens reads: keys and values, and states of mixers."""
    size = 2 * model.embed.weight.element_size()
    widths = (model.reach(layer, context) * layer.kv_heads * layer.head_width for layer in model.layers)
    return size * sum(widths) + state_bytes(model)


def macs_behind(model: Decoder, context: int) -> int:
    """Return the multiply-accumulates of one token behind `context` tokens, as `macs_per_token` counts them."""
    rest = (_other_macs(layer, model.reach(layer, context)) for layer in model.layers)
    return _macs_of_text(model) + sum(rest)


def macs_per_token(model: Decoder, context: int) -> int:
    """Return the multiply-accumulates per token, averaged over a sequence of `context` tokens computed at once.

    Each matrix multiplies once per token, of a mixture those of the experts that a token takes; attention scores and
    their sums take 2 * H * E * context in each layer. The causal half that kernels may skip is counted in, as PyTorch's
    own counter does. Of a mixer the convolution counts, and updating and reading the state token by token; kernels that
    read many tokens at once compute more.
    """
    return _macs_of_text(model) + sum(_other_macs(layer, context) for layer in model.layers)


def _macs_of_text(model: Decoder) -> int:
    """Return the multiply-accumulates of a text token in all linear layers but those that read images."""
    return linear_macs(model.model) - sum(map(linear_macs, model.vision))


def layer_macs(layer: Layer, context: int) -> int:
    """Return the multiply-accumulates per token of a layer, as `macs_per_token` counts them."""
    return linear_macs(layer.module) + _other_macs(layer, context)


def linear_macs(module: nn.Module) -> int:
    """Return the multiply-accumulates per token of all linear layers in a module."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def _other_macs(layer: Layer, context: int) -> int:
    """Count what is no linear layer: attention's scores and sums or a mixer's state, a mixture's router and experts."""
    scores = 2 * layer.out.in_features * context if layer.has_heads else 0
    if layer.mixer is not None and layer.conv is not None:
        scores += layer.conv.numel() + layer.mixer.macs * layer.state_numbers
    return scores + (0 if layer.experts is None else layer.experts.macs)


@dataclass(frozen=True)
class DenseSizes:
    """Holds the sizes of a model before pruning, by their names in a record."""

    dense_layers: int
    dense_parameters: int
    dense_parameters_without_embeddings: int


def dense_sizes_of(model: Decoder) -> DenseSizes:
    """Return the sizes of a model before pruning."""
    return DenseSizes(len(model.layers), parameters(model), parameters_without_embeddings(model))


@dataclass(frozen=True)
class Sizes:
    """Holds all sizes of a model that follow from its shapes alone, by their names in a record."""

    parameters: int
    active_parameters: int
    parameters_without_embeddings: int
    layers: int
    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int | None  # None without mixers
    macs_per_token: int
    macs_context: int


def sizes_of(model: Decoder, context: int) -> Sizes:
    """Return the sizes of a model; `context` tokens are those over which multiply-accumulates are averaged."""
    return Sizes(
        parameters=parameters(model),
        active_parameters=active_parameters(model),
        parameters_without_embeddings=parameters_without_embeddings(model),
        layers=len(model.layers),
        weight_bytes=weight_bytes(model),
        kv_bytes_per_token=kv_bytes_per_token(model),
        state_bytes=state_bytes(model) or None,
        macs_per_token=macs_per_token(model, context),
        macs_context=context,
    )
