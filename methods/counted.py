"""Counts the quantities of which a ratio or a budget is a share.

A ratio may be a share of the decoder or of the layers (--ratio-of). It is turned into a share of all parameters before
a method sees it. So all methods of a run have one budget, whatever their papers count.

A budget (--budget macs=0.8) says which share of a quantity of the dense model may stay. methods.budget finds the ratio
at which a method meets it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from methods.errors import OutOfReach

if TYPE_CHECKING:
    from methods.model.decoder import Decoder
    from methods.model.layer import Layer


Counted = Literal["all", "decoder", "layers"]
COUNTED: tuple[str, ...] = get_args(Counted)
QUANTITIES = {  # of which a budget may be a share, in words
    "bytes": "the weights' bytes",
    "kv": "the KV cache's bytes per token",
    "macs": "the MACs per token",
    "latency": "the milliseconds per token by the table",
}
MISSED = 0.005  # of the dense model's quantity: the largest miss of a budget that is not marked (bench.records.frame)


@dataclass(frozen=True)
class LatencyTable:
    """Says how long a generated token takes on a machine by the sizes of a model's sublayers.

    parts  by "attention" and "mlp", points [parameters, milliseconds] of a sublayer, rising from [0, 0] to the size in
           the dense model. Between two points the line is straight, and beyond the last one its slope goes on
    rest   milliseconds of all that is no layer
    """

    parts: dict[str, list[list[float]]]
    rest: float

    def ms_of_model(self, model: Decoder) -> float:
        """Return the milliseconds that a token takes in a model, by the table."""
        return self.rest + sum(map(self.ms_of_layer, model.layers))

    def ms_of_layer(self, layer: Layer) -> float:
        """Return the milliseconds of a layer. A map of the residual, or what else is no sublayer, counts as MLP."""
        sizes = layer.sizes()
        beside = sizes["layer"] - sizes["attention"] - sizes["mlp"]
        (before, less), (most, ms) = self.parts["mlp"][-2:]
        of_parts = sum(self.ms_of_sublayer(part, sizes[part]) for part in self.parts)
        return of_parts + beside * (ms - less) / (most - before)

    def ms_of_sublayer(self, part: str, parameters: int) -> float:
        """Return the milliseconds of a sublayer, "attention" or "mlp", with this number of parameters."""
        points = self.parts[part]
        pairs = pairwise(points)
        (low, less), (high, more) = next((pair for pair in pairs if parameters <= pair[1][0]), (points[-2], points[-1]))
        return less + (more - less) * (parameters - low) / (high - low)


def count_quantity(model: Decoder, of: str, context: int = 0, table: LatencyTable | None = None) -> float:
    """Return how much of a quantity a model has.

    all      every parameter that is stored
    decoder  all but embedding, table of positions, head and vision tower: the layers and the final norm
    layers   those of the layers; where all are of one size, a share of them is one of their number
    bytes    those of all stored parameters, in their dtypes
    kv       bytes of the key/value cache for each token of context
    macs     multiply-accumulates per token of a sequence of `context` tokens
    latency  milliseconds per generated token, by a table
    """
    from methods.model import sizes

    ways: dict[str, Callable[[], float]] = {
        "all": lambda: sizes.parameters(model),
        "decoder": lambda: sizes.parameters_without_embeddings(model),
        "layers": lambda: sum(map(sizes.layer_parameters, model.layers)),
        "bytes": lambda: sizes.weight_bytes(model),
        "kv": lambda: sizes.kv_bytes_per_token(model),
        "macs": lambda: sizes.macs_per_token(model, context),
    }
    if table is not None:
        ways["latency"] = lambda: table.ms_of_model(model)
    if of in ways:
        return ways[of]()
    raise ValueError(f"a ratio is a share of {', '.join(COUNTED)}; got {of!r}")


def share_of_all(model: Decoder, ratio: float, of: str) -> float:
    """Return the share of all parameters that goes where the share `ratio` of the quantity `of` goes."""
    return ratio if of == "all" else ratio * count_quantity(model, of) / count_quantity(model, "all")


@dataclass(frozen=True)
class Budget:
    """Says how much of a quantity of the dense model may stay.

    of       the quantity, one of QUANTITIES
    context  tokens of the sequence over which MACs are averaged
    dense    what there is of it in the dense model
    share    of it that may stay
    start    the share of all parameters that goes where all layers lose alike
    layer    the share of the quantity that a layer holds, on average
    table    by which latency is told
    """

    of: str
    context: int
    dense: float
    share: float
    start: float
    layer: float
    table: LatencyTable | None = None

    def stays(self, model: Decoder) -> float:
        """Return the share of the dense model's quantity that a model has."""
        return count_quantity(model, self.of, self.context, self.table) / self.dense

    def __str__(self) -> str:
        return f"{self.of}={self.share:.4g}"


def budget_of_quantity(
    model: Decoder, to_remove: float, of: str, context: int, *, whole: bool, table: LatencyTable | None = None
) -> Budget:
    """Return the budget where the share `to_remove` of a quantity of the dense model goes.

    model  may be without weights
    whole  round the share to whole layers, as a ratio is rounded

    Raises OutOfReach where all layers, or with `whole` all but one, hold less.
    """
    layers, dense = model.layers, count_quantity(model, of, context, table)
    L, inside = len(layers), sum(quantity_of_layer(layer, of, context, table) for layer in layers)
    share = to_remove * dense / inside  # of what the layers hold
    share, most = (round(share * L) / L, 1 - 1 / L) if whole else (share, 1.0)
    if share > most:
        which = f"all but one of the {L} layers" if whole else f"all {L} layers"
        reach = most * inside / dense
        raise OutOfReach(f"{of}={1 - to_remove:g} is out of reach: {which} hold {reach:.3f} of {QUANTITIES[of]}")
    start = share * count_quantity(model, "layers") / count_quantity(model, "all")
    return Budget(of, context, dense, 1 - share * inside / dense, start, inside / L / dense, table)


def quantity_of_layer(layer: Layer, of: str, context: int, table: LatencyTable | None) -> float:
    """Return how much of a quantity a layer holds. As much goes when the layer goes."""
    from methods.model.sizes import layer_macs

    if table is not None:
        return table.ms_of_layer(layer)
    parameters = list(layer.module.parameters())
    match of:
        case "bytes":
            return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        case "kv":
            return 2 * parameters[0].element_size() * layer.kv_heads * layer.head_width
    return layer_macs(layer, context)
