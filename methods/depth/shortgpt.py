"""Drop the layers that turn the hidden state least: ShortGPT.

Men, Xu, Zhang, Wang, Lin, Lu, Han, Chen 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You
Expect", arXiv 2403.03853. Code: icip-cas/ShortGPT, of the authors' laboratory.

The block influence of layer l compares what enters it with what leaves it:

    BI_l = 1 - mean over tokens t of cos(x_{l,t}, x_{l+1,t})

x_l enters layer l. What leaves the last layer is taken before the final norm; behind it, that layer would seem to do
more than it does. The n layers with the lowest influence go at once, and no influence is computed again; of equal ones
the lower stays. One score for each layer of the dense model cannot know that two layers stand in for each other;
methods/depth/sleb.py scores again after each removal.

Departures from the authors' code. There what leaves the last layer is taken behind the final norm. As there, all
positions count and no layer is protected. `token=last` compares the last token of each sequence alone, as some later
work does.

Measured. docs/studies/departures.md compares `token=last`, which ports use, with the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods.base import Layers, Look, register
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.trials.selection import OneShot


@register("shortgpt")
@dataclass(frozen=True)
class ShortGPT(OneShot):
    """Drop the layers of least block influence, 1 - cos of input and output (Men et al. 2024)."""

    token: Literal["all", "last"] = "all"  # tokens that are compared: all, or the last of each sequence
    keep_first: Layers = 0  # layers at the front that stay
    keep_last: Layers = 0  # layers at the end that stay

    paper_reads = "50 books of PG19 in sequences of 256 tokens"  # shortgpt/run_shortgpt.py
    look = Look("solid", "^")

    def scores(self, model: Decoder, calibration: Calibration) -> list[float]:
        """Return the block influence BI_l of every layer."""
        (BI,) = shared_statistics(influence_of_layers, model, calibration, self.token)
        return BI.tolist()


def influence_of_layers(model: Decoder, calibration: Calibration, token: str) -> list[Tensor]:
    """Return BI, (L,), in float64, over all tokens or the last of each sequence."""

    def of_layer(_: int, steps: Iterator[Step]) -> list[Tensor]:
        total, count = 0.0, 0
        for step in steps:
            where = step.mask if token == "all" else step.last
            cos = cosine_similarity(step.x[where].float(), step.y[where].float(), dim=-1)  # (M,) tokens
            total += float((1 - cos).double().sum())
            count += len(cos)
        return [torch.tensor(total / count, dtype=torch.float64)]

    return [torch.stack([BI for (BI,) in collect_by_layer(model, calibration, of_layer, token)])]
