"""Shared by several test files."""

from __future__ import annotations

import torch
from conftest import VOCABULARY

from methods.model.calibration import Calibration

LENGTHS = (24, 20, 9, 24, 3, 15)


def calibration(filler: int = 0, **options: object) -> Calibration:
    """Sequences of LENGTHS, padded on the right with the word `filler`."""
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    return Calibration(ids.where(mask, filler), mask, **options)
