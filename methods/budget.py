"""How much there is, and what a ratio means.

A ratio is the share of all stored parameters removed: unique tensors, tied ones once, everything added counted back in.
The request is rounded to whole decoder layers, the coarsest step of any method, and the resulting count is the budget
of every method of the run.
"""

from __future__ import annotations

from collections.abc import Collection

from methods.errors import OutOfReach
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import Sublayer, sublayer_sizes


def whole_layers(model: Decoder, ratio: float, stay: int = 1) -> int:
    """Return how many layers hold nearest to `ratio` of all parameters. At least `stay` layers, and one, stay.

    Raises OutOfReach when the layers that may go do not hold that much.
    """
    layers, stay = model.layers, max(1, stay)
    total, each = parameters(model), sum(map(layer_parameters, layers)) / len(layers)
    count, most = round(ratio * total / each), max(0, len(layers) - stay)
    if count > most:
        kept, reach = "one" if stay == 1 else stay, most * each / total
        raise OutOfReach(
            f"ratio {ratio:g} is out of reach: all but {kept} of the {len(layers)} layers hold {reach:.3f} of the model"
        )
    return count


def block_parameters(model: Decoder, ratio: float, blocks: Collection[Sublayer]) -> int:
    """Return the parameters that `ratio` asks of `blocks`, which never are all that the layers hold.

    Raises OutOfReach when the blocks hold less.
    """
    whole_layers(model, ratio)
    total, held = parameters(model), sum(sublayer_sizes(model, blocks).values())
    wanted = round(ratio * total)
    if wanted > held:
        kinds = " and ".join(sorted({block.part for block in blocks}))
        raise OutOfReach(
            f"ratio {ratio:g} is out of reach: all {kinds} blocks that may go hold {held / total:.3f} of the model"
        )
    return wanted


def matched_ratio(model: Decoder, ratio: float) -> float:
    """Return `ratio` rounded to whole layers: the budget that every method of a run must meet."""
    each = sum(map(layer_parameters, model.layers)) / len(model.layers)
    return whole_layers(model, ratio) * each / parameters(model)
