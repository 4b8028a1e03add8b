"""Drop the layers whose output is most like their input: first-depth.

AUTHORS YEAR, "TITLE", VENUE, arXiv NUMBER. Code: OWNER/REPOSITORY.

    s_l = mean over tokens t of cos(x_{l,t}, x_{l+1,t})

x_l enters layer l, and x_{l+1} leaves it, the last layer in front of the final norm. The n layers with the largest s go
at once; of equal ones the lower stays.

Departures from the authors' code. SAY WHAT IS COMPUTED OTHERWISE, AND WHY.

Cost. One forward pass over the calibration tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods import Calibration, Decoder, Pruner, register
from methods.base import Layers
from methods.budget import whole_layers
from methods.model.activations import Step, collect_by_layer
from methods.model.structures import drop_layers


@register("first-depth")
@dataclass(frozen=True)
class FirstDepth(Pruner):
    """Drop the layers whose output is most like their input (AUTHORS YEAR)."""

    keep_first: Layers = 1  # layers at the front that stay
    keep_last: Layers = 0  # layers at the end that stay

    cost = "1 forward"
    only_cuts = True  # what stays has the dense model's weights
    paper_ratio = ""  # what the ratio of its paper is a share of: "layers, by their number"

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the number of layers to remove."""
        return {"layers": whole_layers(model, ratio, stay=self.keep_first + self.keep_last)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop the layers with the largest scores, and return the scores too."""
        count, layers = self.plan(model, ratio)["layers"], len(model.layers)
        if not count:
            return {"removed_layers": []}
        scores = score_layers(model, calibration)
        ranked = sorted(range(self.keep_first, layers - self.keep_last), key=scores.__getitem__)
        return drop_layers(model, ranked[-count:]) | {"scores": scores}


def score_layers(model: Decoder, calibration: Calibration) -> list[float]:
    """Return s of every layer: how much its output is like its input, from -1 to 1."""

    def of_layer(_: int, steps: Iterator[Step]) -> list[Tensor]:
        total, count = 0.0, 0
        for step in steps:  # one for each micro-batch; its states are (B, T, D)
            alike = cosine_similarity(step.x[step.mask].float(), step.y[step.mask].float(), dim=-1)  # (M,) real tokens
            total += float(alike.double().sum())
            count += len(alike)
        return [torch.tensor(total / count, dtype=torch.float64)]

    return [float(s) for (s,) in collect_by_layer(model, calibration, of_layer)]
