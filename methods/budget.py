"""How much there is, and what a ratio means.

A ratio is the share of all stored parameters removed: unique tensors, tied ones once, everything added counted back in.
The request is rounded to whole decoder layers, the coarsest step of any method, and the resulting count is the budget
of every method of the run.
"""

from __future__ import annotations

from torch import nn

from methods.anatomy import Decoder, Layer
from methods.pruner import OutOfReach


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
    return sum(2 * layer.kv_heads * layer.head_width * size for layer in model.layers)


def macs_per_token(model: Decoder, context: int) -> int:
    """Multiply-accumulates per token, averaged over a sequence of `context` tokens computed at once.

    Each matrix multiplies once per token; attention scores and mixtures take 2 * H * E * context in each layer. The
    causal half that kernels may skip is counted in, as PyTorch's own counter does.
    """
    linear = sum(module.weight.numel() for module in model.model.modules() if isinstance(module, nn.Linear))
    scores = sum(2 * layer.out.in_features * context for layer in model.layers)
    return linear + scores


def whole_layers(model: Decoder, ratio: float) -> int:
    """The number of layers whose parameters come nearest to `ratio` of all. At least one layer stays.

    Raises OutOfReach when the layers that may go do not hold that much.
    """
    layers = model.layers
    total, each = parameters(model), sum(map(layer_parameters, layers)) / len(layers)
    count = round(ratio * total / each)
    if count > len(layers) - 1:
        reach = (len(layers) - 1) * each / total
        raise OutOfReach(
            f"ratio {ratio:g} is out of reach: all but one of the {len(layers)} layers hold {reach:.3f} of the model"
        )
    return count


def matched_ratio(model: Decoder, ratio: float) -> float:
    """`ratio` rounded to whole layers: the budget that every method of a run must meet."""
    each = sum(map(layer_parameters, model.layers)) / len(model.layers)
    return whole_layers(model, ratio) * each / parameters(model)
