"""Drop the run of consecutive layers across which the hidden state turns least: angular distance.

Gromov, Tirumala, Shapourian, Glorioso, Roberts 2024, "The Unreasonable Ineffectiveness of the Deeper Layers",
arXiv 2403.17887.

The distance across the n layers from s on is the angle between the states at both ends, and the run with the smallest
distance goes at once:

    D(s) = mean over sequences of arccos(cos(x_s, x_{s+n})) / pi,    s* = argmin D(s)

x_s is the state that enters layer s, at the last token of each sequence; the state behind the last layer is taken
before the final norm. n is the number of layers nearest to the ratio, and the layers s* .. s*+n-1 are removed.

Departures from the paper. The authors heal the model by training after the cut; nothing is trained here, so their
figures are not this method's. They have released no code. Their text keeps the last layer, and the common
reimplementation can never remove the first, because it compares what leaves layers; both are kept by default.
`token=all` with the smallest angle chooses nearly as the largest mean cosine does.

Cost. One forward pass over the calibration text. The states in front of every layer are held, for the last tokens alone
unless `token=all`. With the last token a sequence is one sample: the quick profile has 16. The paper wants so many that
the mean hardly fluctuates, and names no number; PruneMe, a port, reads 4,000.

Measured. docs/studies/departures.md: without kept ends the same run of the default model goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods.base import Holds, Layers, Look, register
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.structures import drop_layers
from methods.trials.selection import OneShot

AT_ONCE = 2**22  # numbers of states that are compared in float64 at a time


@register("angular")
@dataclass(frozen=True)
class Angular(OneShot):
    """Drop the run of layers with the smallest angle between what enters and what leaves it (Gromov et al. 2024)."""

    token: Literal["last", "all"] = "last"  # tokens that are compared: the last of each sequence, or all
    keep_first: Layers = 1  # layers at the front that stay
    keep_last: Layers = 1  # layers at the end that stay

    look = Look("dashed", "v")

    @property
    def holds(self) -> Holds:
        """Return the memory of states in front of two layers, or of all where every token counts."""
        return Holds(states=2, all_layers=1.0 if self.token == "all" else 0.0, parks="all_layers")

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop the run of layers whose ends are nearest by angle; return the distances too."""
        n, L = self.plan(model, ratio)["layers"], len(model.layers)
        if not n:
            return {"removed_layers": []}
        D = self.distances(model, calibration, n)
        s = min(range(max(self.keep_first, model.fixed_layers), L - self.keep_last - n + 1), key=lambda s: D[s])
        return drop_layers(model, list(range(s, s + n))) | {"distances": D}

    def distances(self, model: Decoder, calibration: Calibration, n: int) -> list[float]:
        """Return D(s) for s = 0 .. L-n, as shares of a half turn."""
        (D,) = shared_statistics(distances_of_layers, model, calibration, n, self.token)
        return D.tolist()


def distances_of_layers(model: Decoder, calibration: Calibration, n: int, token: str) -> list[Tensor]:
    """Return D, (L-n+1,), in float64, at the last token of each sequence or at all."""
    h, D = states_between_layers(model, calibration, token), []
    for s in range(len(h) - n):
        angle = cosines_of_rows(h[s], h[s + n]).clamp(-1, 1).arccos()
        D.append(float(angle.sum()) / math.pi / len(angle))
    return [torch.tensor(D, dtype=torch.float64)]


def cosines_of_rows(x: Tensor, y: Tensor) -> Tensor:
    """Return cos(x, y) of each row, (M, D) -> (M,), in float64. Few rows at a time are in float64."""
    rows = max(1, AT_ONCE // x.shape[-1])
    pairs = zip(torch.split(x, rows), torch.split(y, rows), strict=True)
    return torch.cat([cosine_similarity(of_x.double(), of_y.double(), dim=-1) for of_x, of_y in pairs])


def states_between_layers(model: Decoder, calibration: Calibration, token: str) -> list[Tensor]:
    """Return the states in front of each layer and behind the last, L + 1 of (M, D).

    token  "all": at all tokens, or "last": at the last token of each sequence
    """

    def of_layer(l: int, steps: Iterator[Step]) -> list[Tensor]:
        chosen = ((step, step.last if token == "last" else step.mask) for step in steps)
        pairs = [(step.x[where].cpu(), step.y[where].cpu()) for step, where in chosen]
        x, y = (calibration.wait(torch.cat(states)) for states in zip(*pairs, strict=True))
        return [x, y] if l == last else [x]

    last = len(model.layers) - 1
    return [state for states in collect_by_layer(model, calibration, of_layer, token) for state in states]
