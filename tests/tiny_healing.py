"""A text with something to learn, a small recipe, and pruned tiny models, for the tests of healing."""

from __future__ import annotations

from dataclasses import replace

import torch
from conftest import padded, tiny

import methods
from bench.healing.training import Text
from methods.model.decoder import Decoder

GENERATOR = torch.Generator().manual_seed(3)
# Each token follows from the one before, so that there is something to learn.
IDS = (torch.randint(3, 100, (24, 1), generator=GENERATOR) + torch.arange(16)) % 100
TEXT = Text(IDS[:16], IDS[16:], "made here", "0" * 64)
SMALL = {"tokens": 16 * 16, "length": 16, "batch": 4, "points": 2}
CALIBRATION = padded(torch.randint(3, 128, (8, 24), generator=GENERATOR).tolist())


def pruned(family="llama", method="laco", ratio=0.3):
    model = Decoder(tiny(family))
    methods.make(method).prune(model, CALIBRATION, ratio)
    return model


def timeless(curve):
    """The curve without the one thing that no two trainings share."""
    return [replace(point, seconds=0.0) for point in curve]


def weights(model):
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}
