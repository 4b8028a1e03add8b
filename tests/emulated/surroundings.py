"""What stands around the tensors: torch.cuda, modules that move, and backward passes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn

from emulated.tensors import Memory, OnGpu
from emulated.trees import first

if TYPE_CHECKING:
    from emulated.gpus import EmulatedGpus


def patches(gpus: EmulatedGpus) -> list[Any]:
    """Return the contexts in which torch sees the GPUs."""
    to, backward = nn.Module.to, torch.autograd.backward

    def moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type not in ("cuda", "cpu"):
            return to(module, *args, **kwargs)
        return _move(module, gpus.device(device), dtype)

    def back(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        root = first([tensors], OnGpu)
        gpus.calls.append(None if root is None else root.index)
        try:
            return backward(tensors, *args, **kwargs)
        finally:
            gpus.calls.pop()

    return [
        *(mock.patch.object(torch.cuda, name, value) for name, value in _cuda(gpus).items()),
        # whom an optimiser asks before each step, from torch 2.15 on
        mock.patch.object(torch.accelerator, "current_stream", lambda *_: SimpleNamespace(is_capturing=lambda: False)),
        mock.patch.object(nn.Module, "to", moved),
        mock.patch.object(torch.autograd, "backward", back),
        # threads do not see the GPUs, so that transformers is to load in none
        mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"}),
    ]


def _cuda(gpus: EmulatedGpus) -> dict[str, Callable[..., Any]]:
    """Return what torch.cuda has, by name."""

    def initialise(*_: Any) -> None:
        gpus.initialised = True

    def index_of(device: Any) -> int:
        initialise()
        return gpus.current if device is None else gpus.device(device).index

    def memory_of(device: Any) -> Memory:
        return gpus.memories[index_of(device)]

    def set_device(device: Any) -> None:
        if not isinstance(device, int) and torch.device(device).index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        gpus.current = index_of(device)

    def reset(device: Any = None) -> None:
        index = device if device is None or isinstance(device, int) else torch.device(device).index
        if index is not None and not gpus.initialised:  # a number is taken at its word, and nothing is initialised
            raise RuntimeError(f"Invalid device argument {index}: did you call init?")
        memory_of(index).peak = memory_of(index).now

    def properties(device: Any = None) -> SimpleNamespace:
        size = memory_of(device).size
        return SimpleNamespace(
            name=gpus.name, total_memory=size, major=9, minor=0, multi_processor_count=132, uuid=str(index_of(device))
        )

    def free(device: Any = None) -> tuple[int, int]:
        return memory_of(device).size - memory_of(device).now, memory_of(device).size

    return {
        "_lazy_init": initialise,
        "init": initialise,
        "is_initialized": lambda: gpus.initialised,
        "is_available": lambda: True,
        "device_count": lambda: len(gpus.memories),
        "current_device": lambda: index_of(None),
        "set_device": set_device,
        "current_stream": lambda device=None: SimpleNamespace(device=torch.device("cuda", index_of(device))),
        "synchronize": lambda device=None: gpus.wait("synchronize"),
        "empty_cache": lambda: None,
        "Event": _event,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: gpus.name,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": free,
        "memory_allocated": lambda device=None: memory_of(device).now,
        "memory_reserved": lambda device=None: memory_of(device).now,
        "max_memory_allocated": lambda device=None: memory_of(device).peak,
        "max_memory_reserved": lambda device=None: memory_of(device).peak,
        "reset_peak_memory_stats": reset,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed_all": lambda seed: None,
        "manual_seed": lambda seed: None,
    }


def _event(*_: Any, **__: Any) -> Any:
    """Return a CUDA event: work is done when it is given, so that the time of both is the same."""
    made = SimpleNamespace(at=0.0)
    made.record = lambda *_: setattr(made, "at", time.perf_counter())
    made.elapsed_time = lambda other: 1e3 * (other.at - made.at)
    made.synchronize = made.query = lambda: True
    return made


def _move(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Do what nn.Module.to does on a real GPU: parameters that are tied stay so."""
    memo: dict[int, tuple[Any, Any]] = {}

    def over(tensor: torch.Tensor) -> torch.Tensor:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device).to(kind)

    for one in module.modules():
        for name, parameter in one._parameters.items():
            if parameter is not None:
                if id(parameter) not in memo:
                    memo[id(parameter)] = nn.Parameter(over(parameter), parameter.requires_grad), parameter
                one._parameters[name] = memo[id(parameter)][0]
        for name, buffer in one._buffers.items():
            if buffer is not None:
                one._buffers[name] = over(buffer)
    return module
