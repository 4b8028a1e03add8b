"""A graph as CUDA captures one, on the CPU: operations are recorded once, and a replay does them on the same memory.

What Python decides while a step is recorded is decided for all replays, as on CUDA, so that a number that changes from
step to step is found to be wrong. What CUDA refuses while it captures is refused here: all that waits for the device,
or copies from the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITS = {  # of which the host needs the result, or the size of it
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"),
    *("unique_consecutive", "bincount"),
    "lift_fresh",  # made of numbers of the host, as by torch.tensor
}


class Refused(torch.AcceleratorError):
    """CUDA would not capture this, and says so as it says of a GPU that is lost."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"CUDA error: operation not permitted when stream is capturing: {reason}")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = (args[1] if name in ("index", "index_put_") else None) or ()
        if name in WAITS or any(index is not None and index.dtype == torch.bool for index in indices):
            raise Refused(f"{name} makes the host wait")
        found = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, found))
        return found


class _Host(TorchFunctionMode):
    """Refuses what reads a tensor's memory without an operation."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
            raise Refused(f"{function.__name__} makes the host wait")
        return function(*args, **(kwargs or {}))


class RecordedGraph:
    """Records a step and replays it, as bench.speed.workloads.StepGraph has it."""

    def capture(self, step, rewind) -> None:
        rewind()
        step()  # as on CUDA, where a few steps run before the one that is captured
        rewind()
        with _Host(), _Recorder() as recorder:
            step()
        self.operations = [one for one in recorder.operations if not _is_view(*one)]

    def replay(self) -> None:
        for function, args, kwargs, found in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(_tensors(found), _tensors(again), strict=True):
                if old is not new and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _is_view(function: Any, args: tuple, kwargs: dict, found: Any) -> bool:
    """Whether the result is there already once its input is: it shares the memory, and nothing was written."""
    inputs = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))}
    outputs = [one.untyped_storage().data_ptr() for one in _tensors(found)]
    return not function._schema.is_mutable and bool(outputs) and all(one in inputs for one in outputs)
