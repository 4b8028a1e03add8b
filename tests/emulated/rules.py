"""What CUDA takes and what it refuses, and what an operation costs there."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emulated.tensors import OnGpu

aten = torch.ops.aten

INDEXING = {  # x[i]: indices may lie on the CPU; then they are copied, for which the host waits
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
COPIES = {aten.copy_.default, aten.copy.default}
LISTS = ("_foreach", "_fused", "_amp_foreach")  # of tensors, grouped by device
SCALARS = ("where", "masked_fill", "index_fill", "clamp", "lerp", "addcmul", "addcdiv", "fill_", "result_type")
SIZES = {  # the size of what comes out is known to the GPU alone, so that the host waits
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "repeat_interleave",
}
FACTORISATIONS = {
    "linalg_cholesky_ex",
    "linalg_eigh",
    "_linalg_eigh",
    "linalg_qr",
    "_linalg_svd",
    "linalg_lu_factor_ex",
}
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
VIEWS = {  # no kernel is started
    *("view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze", "permute"),
    *("detach", "alias", "split", "split_with_sizes", "unbind", "as_strided", "diagonal", "_reshape_alias", "unfold"),
    *("lift_fresh", "is_same_size", "size", "stride"),
}


@dataclass(frozen=True)
class Traits:
    """Says of an operation what is the same at each of its calls.

    launches  whether a kernel is started
    may_wait  whether the host may wait for the GPU (`wait_of`)
    computes  whether it counts as FLOPs (`flops_of`)
    on_cpu    what computes on a CPU what it does on a GPU, which counts whole numbers too
    """

    launches: bool
    may_wait: bool
    computes: bool
    on_cpu: Callable[..., Any]


@functools.cache
def traits_of(func: Any) -> Traits:
    name = func.overloadpacket.__name__
    may_wait = name in SIZES or name in FACTORISATIONS or func in INDEXING or func in COPIES
    computes = name in PRODUCTS or name in FACTORISATIONS or name == "linalg_solve_triangular"
    return Traits(name not in VIEWS, may_wait, computes, _counts_whole if func is aten.histc.default else func)


def _counts_whole(x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
    return aten.histc.default(x.float(), *rest, **named).to(x.dtype)


class DeviceMismatch(RuntimeError):
    """Says what torch says as "Expected all tensors to be on the same device"."""


def refuse_mixture(func: Any, args: Any, tensors: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """Raise DeviceMismatch where CUDA would; return whether an index has to be copied to the GPU first.

    others  the tensors that lie elsewhere than the first one on a GPU
    """
    name = func.overloadpacket.__name__
    if func in COPIES or name.startswith(LISTS):
        return False
    if func in INDEXING and isinstance(args[0], OnGpu):
        values = [one for one in args[2:3] if isinstance(one, torch.Tensor) and one.device != args[0].device]
        if not any(one.ndim for one in values) and not any(one.device.type == "cuda" for one in others):
            return True
    are_scalars = all(one.ndim == 0 and one.device.type == "cpu" for one in others)
    if are_scalars and (torch.Tag.pointwise in func.tags or name.startswith(SCALARS)):
        return False
    shapes = [f"{one.device} {tuple(one.shape)}" for one in tensors]
    raise DeviceMismatch(f"{func}: expected all tensors to be on the same device, got {shapes}, at {line()}")


def wait_of(func: Any, args: Any) -> str | None:
    """Return for what the host waits in an operation on tensors of the GPU, or None."""
    name = func.overloadpacket.__name__
    if name in SIZES:
        return name.removeprefix("_").replace("local_scalar_dense", "item")
    if func in INDEXING and any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in args[1]):
        return "mask as index"
    if func in COPIES and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
        return "copy between devices"
    return name if name in FACTORISATIONS else None


def flops_of(func: Any, tensors: list[torch.Tensor]) -> float:
    """Return the floating-point operations of a product or a factorisation; 0 for all else."""
    name = func.overloadpacket.__name__
    if name in PRODUCTS:
        return 2.0 * tensors[-2].numel() * tensors[-1].shape[-1]
    if name in FACTORISATIONS:
        n = tensors[0].shape[-1]
        return n**3 / 3 if name == "linalg_cholesky_ex" else 9.0 * n**3
    if name == "linalg_solve_triangular":
        return float(tensors[0].shape[-1] * tensors[1].numel())
    return 0.0


_LIBRARIES = tuple(f"{os.sep}{name}{os.sep}" for name in ("torch", "transformers", "accelerate", "peft"))
_SKIPPED = (*_LIBRARIES, str(Path(__file__).parent), "contextlib.py")


def line() -> str:
    """Return the nearest line outside of libraries and of the emulation."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(part in file for part in _SKIPPED) and not file.startswith("<"):
            return f"{'/'.join(Path(file).parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
