"""Sends a model to another process through memory: nothing is written to a disk, and no shared memory is needed.

The model's structure is pickled without its tensors, and the tensors follow as raw bytes, each once however often the
model refers to it. The receiver's copies lie in memory of its own, as those of a model that it loads itself do; memory
shared between processes would be paged differently and so be timed differently.
"""

from __future__ import annotations

import io
import pickle
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 2**18  # bytes in one message; a buffer of that size is made for each, and larger ones take fresh pages


class NotPortable(Exception):
    """Says that a model holds something that cannot be sent to another process."""


class _Structure(pickle.Pickler):
    """Pickles everything but tensors, for which it leaves a number behind."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.numbers: dict[int, int] = {}

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, Tensor):
            return None
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.tensors)
            self.tensors.append(thing)
        return self.numbers[id(thing)]


class _Restored(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]


def send(pipe: Connection, model: nn.Module) -> None:
    """Send `model`, wherever its tensors lie. Raises NotPortable before anything is sent."""
    file = io.BytesIO()
    structure = _Structure(file)
    try:
        structure.dump(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotPortable(f"{type(model).__name__} cannot be sent to another process: {error}") from None
    pipe.send([(tensor.dtype, tensor.shape, _leaf(tensor)) for tensor in structure.tensors])
    for tensor in structure.tensors:
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        for start in range(0, len(values), CHUNK):
            pipe.send_bytes(values[start : start + CHUNK].data)
    pipe.send_bytes(file.getvalue())


def receive(pipe: Connection, device: torch.device) -> Any:
    """Return the model that the other side sends. The modules of its classes must be importable here.

    Each tensor goes to the device as it arrives, so that beside a GPU one at a time lies in the host's memory.
    """
    tensors = []
    for dtype, shape, leaf in pipe.recv():
        there = _tensor(pipe, dtype, shape).to(device)
        tensors.append(there if leaf is None else nn.Parameter(there, requires_grad=leaf))
    return _Restored(io.BytesIO(pipe.recv_bytes()), tensors).load()


def _tensor(pipe: Connection, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return the next tensor, in the host's memory."""
    tensor = torch.empty(shape, dtype=dtype)
    values = tensor.flatten().view(torch.uint8).numpy()
    for start in range(0, len(values), CHUNK):
        pipe.recv_bytes_into(values[start : start + CHUNK].data)
    return tensor


def _leaf(tensor: Tensor) -> bool | None:
    """Return whether a parameter wants a gradient; None for what is no parameter."""
    return tensor.requires_grad if isinstance(tensor, nn.Parameter) else None
