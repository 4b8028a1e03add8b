"""Keep the most active MLP channels, and if asked the most active heads, as many in every layer: Minitron's width.

Muralidharan, Sreenivas, Joshi, Chochowski, Patwary, Shoeybi, Catanzaro, Kautz, Molchanov 2024, "Compact Language
Models via Pruning and Knowledge Distillation", NeurIPS, arXiv 2407.14679. Code: NVIDIA/Model-Optimizer.

The importance of channel j of the MLP is the size of what enters the down matrix there, X (B, T, I): its magnitude is
averaged over the tokens of a sequence, and the sequences are joined by their L2 norm,

    F_j = sqrt( sum over sequences b of ( mean over tokens t of |X_btj| )^2 )

For a head the same is taken of what enters the attention's output matrix, joined over the head's channels by their L2
norm. The highest stay, as many in every layer, so the model keeps the shape of its family. A ratio that channels alone
cannot reach is refused with how far they reach: 0.586 for SmolLM2-135M.

The method was made to be followed by distillation. Without it, as here, it is a plain control of more careful methods.

Departures from the authors' code. A head is a key/value head with its query heads; the code takes query heads away
inside each group. Padding is left out of the means. The width of the residual stream and the depth, the paper's other
axes, are not pruned. One head and 16 channels stay in each layer, or an eighth of fewer than 128 channels.

Measured. docs/studies/departures.md says why no parameter restores the code's heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Count, Look, WidthPruner, register
from methods.errors import OutOfReach
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Structure, cuts_of, structures_of
from methods.width.widths import find_equal_widths


@register("minitron-width")
@dataclass(frozen=True)
class MinitronWidth(WidthPruner):
    """Keep the most active MLP channels, as many in every layer (Muralidharan et al. 2024)."""

    heads: bool = False  # remove key/value heads too, of which the same share goes, rounded down
    multiple: Count = 1  # what is left of the channels is a multiple of it
    uniform: bool = False  # as many heads as stock transformers takes; the widths are equal anyway

    only_cuts = True
    axes = ("channels",)
    leaves = ("equal widths",)
    paper_ratio = "nothing: it names widths"
    paper_reads = "1,024 x 4,096 tokens of Nemotron-Post-Training-Dataset-v2"  # prune_minitron.py
    look = Look("mixed", "D")

    def structures(self, model: Decoder) -> list[Structure]:
        """Return the channels of the model, and its heads where these are cut too."""
        return structures_of(model) if self.heads else structures_of(model, "channels")

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the units to remove from each layer."""
        try:
            return {
                "removed_per_layer": find_equal_widths(
                    model, self.structures(model), ratio, self.multiple, uniform=self.uniform
                )
            }
        except OutOfReach as error:
            raise OutOfReach(f"{error}" if self.heads else f"{error}; heads=True reaches further") from None

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut the units with the least activity."""
        plan, structures = self.plan(model, ratio), self.structures(model)
        counts = plan["removed_per_layer"]
        if any(counts.values()):
            F = dict(zip(places_of(model), shared_statistics(activity_of_channels, model, calibration), strict=True))
            for structure in structures:
                f = F[structure.number, structure.kind][structure.parts[-1].index]
                structure.remove(f.square().sum(1).sqrt(), counts[structure.kind])
        return plan | {"parameters": parameters(model)} | cuts_of(model, structures)


def places_of(model: Decoder) -> list[tuple[int, str]]:
    """Return the places of F: layer, and kind of the units that enter its output matrix; "" where no head can go."""
    return [(number, kind) for number, layer in enumerate(model.layers) for kind in (layer.kind_of_heads, "channels")]


def activity_of_channels(model: Decoder, calibration: Calibration) -> list[Tensor]:
    """Return F of every channel that enters an output matrix, (C,) for each of `places_of`, in float64."""

    def of_layer(_: int, steps: Iterator[Step]) -> list[Tensor]:
        squares = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
        for step in steps:
            real = step.mask[:, :, None]
            means = [(X.double().abs() * real).sum(1) / real.sum(1) for X in (step.heads, step.channels)]
            squares = [total + mean.square().sum(0).cpu() for total, mean in zip(squares, means, strict=True)]
        return [total.sqrt() for total in squares]

    return [F for pair in collect_by_layer(model, calibration, of_layer) for F in pair]
