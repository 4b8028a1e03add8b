"""How much there is, and what a ratio means.

A ratio is the share of all stored parameters removed: unique tensors, tied ones once, everything added counted back in.
The request is rounded to whole decoder layers, the coarsest step of any method, and the resulting count is the budget
of every method of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from methods.errors import OutOfReach, Unsupported
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import Structure, Sublayer, sublayer_sizes


def whole_layers(model: Decoder, ratio: float, stay: int = 1) -> int:
    """The number of layers whose parameters come nearest to `ratio` of all. At least `stay` layers, and one, stay.

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
    """The parameters that `ratio` asks of `blocks`, which never are all that the layers hold.

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
    """`ratio` rounded to whole layers: the budget that every method of a run must meet."""
    each = sum(map(layer_parameters, model.layers)) / len(model.layers)
    return whole_layers(model, ratio) * each / parameters(model)


def fewest(structure: Structure) -> int:
    """Units that a method of the width leaves in a layer: one head; 16 channels, or an eighth where that is less."""
    return 1 if structure.kind == "kv_heads" else max(1, min(16, structure.size // 8))


def lower_widths(structure: Structure, multiple: int = 1) -> Tensor:
    """(n,) how many units can go, rising from 0: what is left of channels is a `multiple`, and the fewest at least."""
    counts = torch.arange(structure.size - fewest(structure) + 1)
    step = multiple if structure.kind == "channels" else 1
    return counts[(counts == 0) | ((structure.size - counts) % step == 0)]


def freed(structure: Structure, counts: Tensor, biases: bool = False) -> Tensor:
    """Parameters that go with so many units, (n,) -> (n,).

    biases  where a unit goes, the output matrix gets a bias if it has none, which is counted back in
    """
    matrix = structure.writer
    added = matrix.out_features if biases and matrix.bias is None else 0
    return structure.cost * counts - added * (counts > 0)


def equal_widths(
    model: Decoder,
    structures: Sequence[Structure],
    ratio: float,
    multiple: int = 1,
    *,
    biases: bool = False,
    takes: Callable[[int], bool] | None = None,
) -> dict[str, int]:
    """How many heads and channels each layer has to lose so that nearest to `ratio` of all parameters go.

    The share of heads is that of the whole, rounded down, and the channels close the gap; `multiple` and `biases` as
    above. With `takes` (methods.checkpoint.transformers_compat), which says whether so many key/value heads may be
    left, it is the nearest such number. Raises Unsupported where layers differ already, OutOfReach where the
    structures do not hold that much.
    """
    target, kinds = ratio * parameters(model), ("kv_heads", "channels")
    units = dict.fromkeys(kinds, torch.zeros(1, dtype=torch.long))
    gone, sizes = dict(units), dict.fromkeys(kinds, 0)
    for structure in structures:
        if sizes[structure.kind] not in (0, structure.size):
            raise Unsupported("the layers' widths differ already, so that no equal cut leaves them equal")
        sizes[structure.kind], units[structure.kind] = structure.size, lower_widths(structure, multiple)
        gone[structure.kind] = gone[structure.kind] + freed(structure, units[structure.kind], biases)
    share = target / sum(structure.cost * structure.size for structure in structures)
    first = int(share * sizes["kv_heads"])
    tried = range(len(units["kv_heads"])) if takes else range(first, len(units["kv_heads"]))
    for k in sorted(tried, key=lambda k: (abs(k - first), k)):
        total = gone["kv_heads"][k] + gone["channels"]
        if total[0] <= target <= total[-1] and (takes is None or k == 0 or takes(sizes["kv_heads"] - k)):
            return {"kv_heads": k, "channels": int(units["channels"][(total - target).abs().argmin()])}
    k = next(k for k in reversed(tried or [0]) if takes is None or k == 0 or takes(sizes["kv_heads"] - k))
    most = {"kv_heads": k, "channels": int(units["channels"][-1])}
    reach = float(gone["kv_heads"][k] + gone["channels"][-1]) / parameters(model)
    left = [f"{sizes[kind] - most[kind]} {kind.replace('_', ' ')}" for kind in kinds if sizes[kind]]
    raise OutOfReach(
        f"ratio {ratio:g} is out of reach: with {' and '.join(left)} left in each layer, {reach:.3f} of the "
        "parameters are gone"
    )
