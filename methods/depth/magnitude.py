"""Drop the layers that add least to the residual, relative to the state that leaves them: relative magnitude.

Samragh, Farajtabar, Mehta, Vemulapalli, Faghri, Naik, Tuzel, Rastegari 2023, "Weight Subcloning: Direct Initialization
of Transformers Using Larger Pretrained Ones", arXiv 2312.09299. Depth pruners use it as their simplest baseline.

    s_l = mean over tokens of ||a_l + m_l|| / ||x_{l+1}||,    x_{l+1} = x_l + a_l + m_l

x_l enters layer l; a_l and m_l are what its attention and its MLP add. The n layers with the smallest s go at once; of
equal ones the lower stays. The score measures the length of what is added, and not its direction, which
methods/depth/shortgpt.py measures.

Departures from the paper. The paper shortens a network by the layers with the smallest score and then trains it;
nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Look, register
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.trials.selection import OneShot


@register("magnitude")
@dataclass(frozen=True)
class Magnitude(OneShot):
    """Drop the layers that add least, relative to the state that leaves them (Samragh et al. 2023)."""

    paper_ratio = ""
    look = Look("dotted", "X")

    def scores(self, model: Decoder, calibration: Calibration) -> list[float]:
        """Return the magnitude s_l of every layer."""

        def of_layer(_: int, steps: Iterator[Step]) -> list[Tensor]:
            total = 0.0
            for step in steps:
                added = (step.a + step.m)[step.mask].float().norm(dim=-1)  # (M,) real tokens of the micro-batch
                total += float((added / step.y[step.mask].float().norm(dim=-1)).double().sum())
            return [torch.tensor(total / int(calibration.mask.sum()), dtype=torch.float64)]

        return [float(s) for (s,) in collect_by_layer(model, calibration, of_layer)]
