"""Remove the heads and MLP channels that add least to the residual: first-width.

AUTHORS YEAR, "TITLE", VENUE, arXiv NUMBER. Code: OWNER/REPOSITORY.

    s_u = sum over columns j of unit u of ||X_j||^2 ||W_j||^2

W writes into the residual: it is the attention's output matrix or the MLP's down matrix, and X its input over all
calibration tokens, in the dense model. A unit is a key/value head with its query heads, or a channel of the MLP. In
every layer the same number of units goes, the lowest first, so that the model keeps the shape of its family.

Departures from the authors' code. SAY WHAT IS COMPUTED OTHERWISE, AND WHY.

Cost. One forward pass over the calibration tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods import Calibration, Decoder, Pruner, register
from methods.base import Count
from methods.model.activations import Step, collect_by_layer
from methods.model.structures import Structure, cuts_of, structures_of
from methods.width.widths import find_equal_widths

KINDS = ("kv_heads", "channels")


@register("first-width")
@dataclass(frozen=True)
class FirstWidth(Pruner):
    """Remove the heads and channels that add least to the residual (AUTHORS YEAR)."""

    multiple: Count = 1  # what is left of the channels is a multiple of it

    cost = "1 forward"
    only_cuts = True  # what stays has the dense model's weights
    axes = ("heads", "channels")
    leaves = ("equal widths",)
    paper_ratio = ""  # what the ratio of its paper is a share of: "the decoder"

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the units to remove from each layer."""
        return {"removed_per_layer": find_equal_widths(model, structures_of(model, *KINDS), ratio, self.multiple)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut the units with the smallest scores."""
        plan, structures = self.plan(model, ratio), structures_of(model, *KINDS)
        counts = plan["removed_per_layer"]
        if any(counts.values()):
            scores = score_units(model, structures, calibration)  # of the dense model, before anything is cut
            for structure, score in zip(structures, scores, strict=True):
                structure.remove(score, counts[structure.kind])
        return plan | cuts_of(model, structures)


def score_units(model: Decoder, structures: list[Structure], calibration: Calibration) -> list[Tensor]:
    """Return s of every unit of each structure, (units,), in float64 on the CPU."""

    def of_layer(number: int, steps: Iterator[Step]) -> list[Tensor]:
        own = [structure for structure in structures if structure.number == number]
        squares = [torch.zeros((), dtype=torch.float64) for _ in own]
        for step in steps:  # one for each micro-batch
            signals = {"kv_heads": step.heads, "channels": step.channels}  # (B, T, C) inputs of the output matrices
            for at, structure in enumerate(own):
                signal = signals[structure.kind][step.mask]  # (M, C) real tokens
                squares[at] = squares[at] + signal.double().square().sum(0).cpu()
        return [sum_columns(structure, square) for structure, square in zip(own, squares, strict=True)]

    return [score for scores in collect_by_layer(model, calibration, of_layer) for score in scores]


def sum_columns(structure: Structure, squares: Tensor) -> Tensor:
    """Return s of every unit, (units,), from ||X_j||^2, (C,)."""
    columns = squares * structure.writer.weight.double().square().sum(0).cpu()  # (C,)
    return columns[structure.parts[-1].index].sum(1)  # the columns of each unit, (units, width)
