"""Mixtures of experts whose weights every version of the libraries draws alike, and a text for them."""

from __future__ import annotations

import numpy as np
import torch
from conftest import VOCABULARY, padded, tiny

from methods.model.calibration import Calibration


def drawn(family: str) -> torch.nn.Module:
    """Return the tiny mixture of a family with three layers and normal weights from numpy's frozen generator."""
    model, generator = tiny(family, layers=3), np.random.RandomState(0)
    with torch.no_grad():
        for _, one in sorted(model.named_parameters()):
            values = torch.from_numpy(generator.standard_normal(tuple(one.shape))).float()
            one.copy_(1 + 0.1 * values if one.ndim == 1 else 0.15 * values)
    return model


def sentences() -> Calibration:
    """Return four sequences of other lengths, so that some tokens are padding."""
    generator = np.random.RandomState(1)
    return padded([generator.randint(3, VOCABULARY, length).tolist() for length in (40, 64, 17, 50)])
