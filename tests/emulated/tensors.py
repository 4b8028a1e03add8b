"""Tensors that say that they are on a GPU, and the memory that they take there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from emulated.gpus import EmulatedGpus

CPU = torch.device("cpu")


class Memory:
    """Counts the bytes of the storages on one GPU that are alive."""

    def __init__(self, size: int) -> None:
        self.size, self.now, self.peak = size, 0, 0
        self._tensors: Counter[int] = Counter()  # of each storage

    def take(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._tensors:
            if self.now + storage.nbytes() > self.size:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {storage.nbytes()} bytes.")
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
        self._tensors[storage._cdata] += 1

    def free(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            del self._tensors[key]
            self.now -= size


class _Held:
    """Holds a place in memory for as long as the tensor that it belongs to."""

    def __init__(self, memory: Memory, storage: torch.UntypedStorage) -> None:
        self._memory, self._key, self._size = None, storage._cdata, storage.nbytes()
        memory.take(storage)
        self._memory = memory

    def __del__(self) -> None:
        if self._memory is not None:
            self._memory.free(self._key, self._size)


class OnGpu(torch.Tensor):
    """Says that it is on GPU number `index` of `gpus`; `inner` is what it really is."""

    inner: torch.Tensor
    gpus: EmulatedGpus
    index: int

    @staticmethod
    def __new__(cls, inner: torch.Tensor, gpus: EmulatedGpus, index: int) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
            requires_grad=False,
        )
        made.inner, made.gpus, made.index = inner, gpus, index
        gpus.initialised = True
        made.held = _Held(gpus.memories[index], inner.untyped_storage())
        return made

    def __init__(self, *_: Any) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = [*args, *(kwargs or {}).values()]
        mine = next((one for one in flat if isinstance(one, OnGpu)), None)
        if mine is None or not mine.gpus.running:
            raise RuntimeError(f"{func} on a tensor of an emulated GPU, outside of `with EmulatedGpus()`")
        return mine.gpus.run(func, args, kwargs or {})

    device = property(lambda self: torch.device("cuda", self.index))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return self.index

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, OnGpu):
            raise RuntimeError("incompatible tensor type: .data of a CUDA tensor was set to a CPU tensor")
        with torch._C.DisableTorchFunction():
            torch.Tensor.data.__set__(self, value)
        self.inner, self.held, self.index = value.inner, value.held, value.index

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        self.gpus.wait("tolist")
        return self.inner.tolist()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.inner!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = self.detach().clone()
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("a tensor that is on the GPU was pickled")


class Moved(torch.autograd.Function):
    """Copies to another device, and the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gpus: EmulatedGpus, device: torch.device) -> torch.Tensor:
        ctx.gpus, ctx.home = gpus, x.device
        return gpus.copied(x, device)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return ctx.gpus.copied(grad, ctx.home), None, None
