"""Drop layers without looking at any text: the controls that every other depth method must beat.

    drop:layers=3+20-24   the named layers
    drop-tail             the last n layers, or with `keep_last` the n before the last
    drop-random           n layers drawn without replacement from all but the first and the last

No weight changes. n is the number of layers nearest to the ratio. Layers are numbered from 0, and ranges include both
ends. `drop` needs no ratio. One mention of `drop-random` makes a cell for each of five draws; tables show their mean
and standard deviation in one row, for a perplexity those of its logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from methods.base import Count, Look, Pruner, RandomPruner, register
from methods.budget import whole_layers
from methods.errors import OutOfReach
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.structures import drop_layers
from methods.ranges import read_numbers, read_ranges


@register("drop-tail")
@dataclass(frozen=True)
class DropTail(Pruner):
    """Drop the last layers, or the ones before the last."""

    keep_last: bool = False  # leave the very last layer in place

    looks_at = "nothing"
    cost = ""
    only_cuts = True
    look = Look("solid", "v")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers to remove."""
        return {"layers": whole_layers(model, ratio)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop the last layers, or with `keep_last` the layers in front of the last one."""
        n = whole_layers(model, ratio)
        end = len(model.layers) - self.keep_last
        return drop_layers(model, list(range(end - n, end)))


@register("drop-random")
@dataclass(frozen=True)
class DropRandom(RandomPruner):
    """Drop layers at random, never the first and the last unless nothing else is left."""

    seed: int | None = None  # of the draw; None: one cell for each of the draws, from 1000 times the run's seed on
    draws: Count = 5  # cells of one mention without a seed, which share a row

    looks_at = "nothing"
    cost = ""
    only_cuts = True
    look = Look("dashed", "X")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers to remove."""
        return {"layers": whole_layers(model, ratio)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop the last layer and layers that are drawn; return the seed too."""
        n, last = whole_layers(model, ratio), len(model.layers) - 1
        seed = calibration.seed if self.seed is None else self.seed
        first = max(1, model.fixed_layers)
        order = torch.randperm(last - first, generator=torch.Generator().manual_seed(seed)) + first
        return drop_layers(model, sorted([*order.tolist(), last][:n])) | {"seed": seed}


@register("drop")
@dataclass(frozen=True)
class Drop(Pruner):
    """Drop the layers that are named, as in drop:layers=3+20-24."""

    layers: str = ""  # single layers and ranges, joined by +

    looks_at = "nothing"
    cost = ""
    takes_ratio = False
    only_cuts = True
    look = Look("dotted", "d")
    tiny = "layers=1+3-4"

    def __post_init__(self) -> None:
        if not read_ranges(self.layers):
            raise ValueError("drop needs the layers to drop, as in drop:layers=20-24 or drop:layers=3+20-24")

    def numbers(self) -> list[int]:
        """Return the numbers of the layers that are named, rising."""
        return read_numbers(self.layers)

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers that are named. Raises OutOfReach where the model has no such layer."""
        count, highest = len(model.layers), max(last for _, last in read_ranges(self.layers))
        if highest >= count:
            raise OutOfReach(f"there is no layer {highest}: the model has layers 0 to {count - 1}")
        numbers = self.numbers()
        model.refuse_fixed(numbers[0])
        if len(numbers) == count:
            raise OutOfReach("at least one layer stays; all of them were named")
        return {"layers": len(numbers)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop the layers that are named."""
        self.plan(model, ratio)
        return drop_layers(model, self.numbers())
