"""Computes how many heads and channels go, the part of a width method that follows from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.checkpoint.pruned_config import may_have_heads
from methods.errors import OutOfReach, Unsupported
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import HEADS_AND_CHANNELS, Structure


def fewest_of(structure: Structure) -> int:
    """Return the least number of units that stays in a layer: one head; 16 channels, or an eighth if that is less."""
    return 1 if structure.is_of_heads else max(1, min(16, structure.size // 8))


def list_lower_widths(structure: Structure, multiple: int = 1) -> Tensor:
    """Return the numbers of units that can go, (n,), rising from 0. At least `fewest_of` stay.

    multiple  the number of channels that stay is a multiple of it
    """
    counts = torch.arange(structure.size - fewest_of(structure) + 1)
    step = multiple if structure.kind == "channels" else 1
    return counts[(counts == 0) | ((structure.size - counts) % step == 0)]


def refuse_beyond_reach(ratio: float, reach: float) -> None:
    """Raise OutOfReach for a ratio above `reach`, the share that is gone where `fewest_of` stay in each layer."""
    if ratio > reach:
        raise OutOfReach(
            f"ratio {ratio:g} is out of reach: with one head and few channels left in each layer, {reach:.3f} of the "
            "parameters are gone"
        )


def parameters_freed(structure: Structure, counts: Tensor, biases: bool = False) -> Tensor:
    """Return the numbers of parameters that go with these numbers of units, (n,) -> (n,).

    biases  where a unit goes, an output matrix without a bias gets one, and it is counted back in
    """
    matrix = structure.writer
    added = matrix.out_features if biases and matrix.bias is None else 0
    return structure.cost * counts - added * (counts > 0)


def find_equal_widths(
    model: Decoder,
    structures: Sequence[Structure],
    ratio: float,
    multiple: int = 1,
    *,
    biases: bool = False,
    uniform: bool = False,
) -> dict[str, int]:
    """Return how many heads and channels each layer loses to come nearest to `ratio` of all parameters.

    The share of heads is that of the whole, rounded down, of attentions and of mixers, and the channels close the gap.
    With `uniform` the number of an attention's heads that stay is the nearest one that stock transformers takes.

    multiple  the number of channels that stay is a multiple of it
    biases    an output matrix that loses units gets a bias if it has none, and it is counted back in

    Raises Unsupported where layers differ already, and OutOfReach where the structures hold less.
    """

    def fits(kv_heads: int) -> bool:
        return not uniform or may_have_heads(model, kv_heads)

    target, kinds = ratio * parameters(model), HEADS_AND_CHANNELS
    units = dict.fromkeys(kinds, torch.zeros(1, dtype=torch.long))
    freed, sizes = dict(units), dict.fromkeys(kinds, 0)
    for structure in structures:
        if sizes[structure.kind] not in (0, structure.size):
            raise Unsupported("the layers' widths differ already, so that no equal cut leaves them equal")
        sizes[structure.kind], units[structure.kind] = structure.size, list_lower_widths(structure, multiple)
        freed[structure.kind] = freed[structure.kind] + parameters_freed(structure, units[structure.kind], biases)
    share = target / sum(structure.cost * structure.size for structure in structures)
    first = int(share * sizes["kv_heads"])
    of_mixers = min(int(share * sizes["mixer_heads"]), len(units["mixer_heads"]) - 1)
    beside = {"mixer_heads": of_mixers} if sizes["mixer_heads"] else {}
    fixed = freed["mixer_heads"][of_mixers]
    tried = range(0 if uniform else first, len(units["kv_heads"]))
    for k in sorted(tried, key=lambda k: (abs(k - first), k)):
        total = freed["kv_heads"][k] + fixed + freed["channels"]
        if total[0] <= target <= total[-1] and (k == 0 or fits(sizes["kv_heads"] - k)):
            return {"kv_heads": k} | beside | {"channels": int(units["channels"][(total - target).abs().argmin()])}
    k = next(k for k in reversed(tried or [0]) if k == 0 or fits(sizes["kv_heads"] - k))
    most = {"kv_heads": k} | beside | {"channels": int(units["channels"][-1])}
    reach = float(freed["kv_heads"][k] + fixed + freed["channels"][-1]) / parameters(model)
    widths_left = [f"{sizes[kind] - most[kind]} {kind.replace('_', ' ')}" for kind in kinds if sizes[kind]]
    raise OutOfReach(
        f"ratio {ratio:g} is out of reach: with {' and '.join(widths_left)} left in each layer, {reach:.3f} of the "
        "parameters are gone"
    )
