"""Compares numbers that two machines, or two ways on one, have computed."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
# How far apart two computations may be, as a share of how much the numbers vary (root mean square of both). Measured on
# a CPU: noise of 1e-6 in every weight moves logits by less than 2e-5, and bfloat16 by less than 0.05, with the same
# decisions; a wrong decision moves them by 0.05 and more, which float32 shows.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}


def apart(got: Tensor, want: Tensor) -> float:
    """Return the root mean square of the difference as a share of the standard deviation of `want`; nan for nan."""
    got, want = got.double().cpu(), want.double().cpu()
    return float((got - want).square().mean().sqrt() / want.std())


def is_close(share: float, dtype: torch.dtype) -> bool:
    """Say whether such a share is rounding; nan is not."""
    return share <= TOLERANCE[dtype]


def named(dtype: torch.dtype) -> str:
    """Return a dtype's name."""
    return str(dtype).removeprefix("torch.")
