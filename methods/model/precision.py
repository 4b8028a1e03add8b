"""Gives the types in which weights are held and matrices are multiplied and summed, and the rows that fit a cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CACHED = 2**18  # numbers in float32 that stay in a core's cache: 1 MiB


def dtype_by_name(model: Any, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """Return a function that gives the type in which transformers holds a tensor, by its name, in a model of `dtype`.

    It is `dtype`, except for tensors that the model's class keeps in float32, such as the biases of some routers.
    """
    kept = [*((model._keep_in_fp32_modules or ()) if dtype == torch.float16 else ())]
    if dtype in (torch.float16, torch.bfloat16):
        kept += model._keep_in_fp32_modules_strict or ()
    if not kept:
        return lambda name: dtype
    pattern = re.compile("|".join(name.replace("*", ".*") for name in sorted(kept)))  # as transformers reads them
    return lambda name: torch.float32 if pattern.search(name) else dtype


def widen(x: Tensor, of: torch.dtype | None = None) -> Tensor:
    """Return x in the type in which it is multiplied: float32 for numbers of half precision, float64 for all others.

    of  the type that x's numbers come from, where that is not its own

    A product of two numbers in bfloat16 or float16 is exact in float32, whose rounding of sums is far below that of
    the numbers; GPUs without fast float64 take 60 times as long for it.
    """
    half = (of or x.dtype) in (torch.bfloat16, torch.float16)
    return x.to(torch.float32 if half else torch.float64)


def rows_in_cache(x: Tensor) -> int:
    """Return how many rows of x (M, V) in float32 fit a CPU core's cache; at least one, and on a GPU all."""
    return max(1, CACHED // x.shape[-1]) if x.device.type == "cpu" else max(1, len(x))


def add_product(sums: Tensor, x: Tensor, y: Tensor, w: float = 1.0) -> None:
    """Add w x^T y to `sums` (I, O) in float64, in place, for x (M, I) and y (M, O) of one type."""
    if x.dtype == sums.dtype:
        sums.addmm_(x.T, y, alpha=w)
    else:
        sums.add_(x.T @ y, alpha=w)
