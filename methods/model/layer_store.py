"""Lets the weights of a model lie in files, so that a model may be larger than the memory.

Weights that are loaded in the dtype in which they are stored lie in the files of the model: the system reads a page of
them when it is used, and drops it where memory is short. Whatever a method writes is new and lies in memory. A store
writes that to a file beside the model's own, which are only read, and maps it back, layer by layer, so that what is in
memory is one layer. The pruned model then is the model's files, those of the store, and its modules.

A file of a store loses its name as soon as it is mapped: the system gives its room back when no weight needs it, or
when the process has ended, however that came about.
"""

from __future__ import annotations

import tempfile
from bisect import bisect
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

ALIGNED = 64  # bytes to a multiple of which a tensor begins, as in memory: products of other ones can round otherwise


class LayerStore:
    """Moves weights from memory into files in a folder, which has to lie on a disk and have room for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def settle(self, *modules: nn.Module) -> None:
        """Move what lies in memory of the parameters of these modules into a file.

        A parameter stays the object that it is, with the same values. Raises OSError where the disk takes no more.
        """
        files = _mapped_files()
        there = {id(one): one for module in modules for one in module.parameters()}
        new = [one for one in there.values() if one.numel() and not _lies_in(files, one)]
        if new:
            for parameter, tensor in zip(new, self._moved([one.detach() for one in new]), strict=True):
                parameter.data = tensor

    def _moved(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors as they lie in a new file."""
        starts, end = list[int](), 0
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="layer-", delete=False) as file:
            path = Path(file.name)
            try:
                for tensor in tensors:
                    starts.append(-(-end // ALIGNED) * ALIGNED)
                    file.write(bytes(starts[-1] - end))
                    file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
                    end = starts[-1] + tensor.nbytes
                file.flush()
                whole = torch.from_file(file.name, shared=False, size=end, dtype=torch.uint8)
            finally:
                with suppress(OSError):  # of a system that keeps a file which is mapped; its folder goes with the cell
                    path.unlink()
        return [
            whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip(starts, tensors, strict=True)
        ]


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the parameters of a module, which stay the objects that they are; buffers keep the dtype they have."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _mapped_files() -> list[tuple[int, int]]:
    """Return at which addresses of this process files are mapped, from the first to one past the last, rising.

    There is none where the system does not say (Linux alone does), so that all that is settled is written.
    """
    found = []
    with suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            addresses, *_, path = line.rstrip("\n").split(None, 5)
            if path.startswith("/") and not path.startswith("/dev/"):
                found.append(tuple(int(each, 16) for each in addresses.split("-")))
    return found  # type: ignore[return-value]  # two each


def _lies_in(files: list[tuple[int, int]], tensor: Tensor) -> bool:
    """Say whether a tensor lies in one of the mapped files."""
    number = bisect(files, (tensor.data_ptr(), 2**64)) - 1
    return number >= 0 and tensor.data_ptr() < files[number][1]
