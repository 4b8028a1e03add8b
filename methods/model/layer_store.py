"""Keeps weights of a model, and states that wait, in files, so that both may be larger than the memory.

Weights that are loaded in their stored dtype lie in the files of the model: the system reads a page of them when it is
used, and drops it where memory is short. New weights of a method lie in memory. A store writes them to a file of its
own and maps them back, layer by layer, so that memory holds one layer. The model's own files are only read.

Where the store has a device, layers compute on it. Each visits the device while it is used (`LayerStore.visit`), and
the modules around the layers stay there. So a model may also be larger than the memory of its GPU.

Between two layers the states of all tokens wait, N T D numbers. A greedy search has them of several candidates, a fit
to the dense model has them of both models, and gradients need them in front of each layer. `put_to_wait` puts them into
files: the system writes their pages out where memory is short, and reads them for the next layer.

A file loses its name as soon as it is mapped. The system frees its room when no tensor needs it, or when the process
ends for any reason. So a file belongs to one process, and is whole.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.errors import NoRoom, first_line_of

ALIGNED = 64  # bytes: each tensor begins at a multiple, as in memory, since products of others can round differently


class LayerStore:
    """Moves weights from memory into files of a folder on a disk.

    device  computes the layers, and holds all modules around them; None: weights are used where they lie
    """

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self.folder, self.device = folder, None if device is None else to_numbered(device)
        self._visiting = set[int]()  # ids of the modules that are on the device now

    def read_ahead(self, module: nn.Module) -> None:
        """Ask the system to read those parameters of a module that lie in files, and do not wait for it."""
        files = _mapped_files()
        for parameter in module.parameters():
            if parameter.device.type == "cpu" and _lies_in(files, parameter):
                read_tensor_ahead(parameter)

    @contextmanager
    def visit(self, module: nn.Module, whole: Callable[[], nn.Module]) -> Iterator[None]:
        """Replace the parameters and buffers of a module by copies on the device, meanwhile.

        whole  returns the module at the end. Tensors that nobody has changed are the old objects again. Changed ones
               are moved back, and go into a file
        """
        if self.device is None or id(module) in self._visiting:
            yield
            return
        copies = _Copies(self.device)
        _replace(module, copies.to_device)
        self._visiting.add(id(module))
        try:
            yield
        finally:
            self._visiting.discard(id(module))
            _replace(whole(), copies.to_home)
            self._settle(copies.changed)

    def settle(self, *modules: nn.Module) -> None:
        """Move the parameters of these modules that lie in memory into a file.

        A parameter stays the same object with the same values. Raises OSError where the disk takes no more.
        """
        self._settle([parameter for module in modules for parameter in module.parameters()])

    def _settle(self, parameters: Sequence[Tensor]) -> None:
        on_host = [each for each in parameters if each.device.type == "cpu" and each.numel()]
        files = _mapped_files() if on_host else []  # which takes a millisecond
        distinct = {id(parameter): parameter for parameter in on_host}
        new = [parameter for parameter in distinct.values() if not _lies_in(files, parameter)]
        if new:
            for parameter, tensor in zip(new, self._move([parameter.detach() for parameter in new]), strict=True):
                parameter.data = tensor

    def _move(self, tensors: list[Tensor]) -> list[Tensor]:
        return write_to_file(self.folder, "layer-", tensors)


def to_numbered(device: torch.device) -> torch.device:
    """Return a device with its number, as tensors name theirs: a GPU without a number is the first of the process."""
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


class _Copies:
    """Holds copies of tensors on a device, and knows the tensor of each copy.

    changed  tensors that were moved back, since they are new or have been written to
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.changed: list[Tensor] = []
        self._copies: dict[int, Tensor] = {}  # by the ids of their tensors
        # by the ids of the copies: a copy, its tensor, and its state, which differs once it is written to
        self._of: dict[int, tuple[Tensor, Tensor, tuple[int, int]]] = {}

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return the copy of a tensor, or the tensor itself where it is on the device."""
        if tensor.device == self.device:
            return tensor
        if id(tensor) not in self._copies:
            copy = _like(tensor, tensor.detach().to(self.device))
            self._copies[id(tensor)] = copy
            self._of[id(copy)] = copy, tensor, _state(copy)
        return self._copies[id(tensor)]

    def to_home(self, tensor: Tensor) -> Tensor:
        """Return the tensor of a copy, with the values of the copy, or a tensor on the host for any other tensor."""
        if id(tensor) in self._of:
            copy, was, state = self._of[id(tensor)]
            if _state(copy) != state:
                was.data = copy.detach().cpu()
                self.changed.append(was)
            return was
        if tensor.device != self.device:
            return tensor
        new = _like(tensor, tensor.detach().cpu())
        self._of[id(tensor)] = tensor, new, _state(tensor)
        self.changed.append(new)
        return new


def _state(tensor: Tensor) -> tuple[int, int]:
    """Return a pair that changes when a tensor is written to or gets other data."""
    return tensor.data_ptr(), tensor._version


def move_modules(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Move the parameters and buffers of modules to a device; shared ones stay shared."""
    copies = _Copies(device)
    for module in modules:
        _replace(module, copies.to_device)


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _replace(module: nn.Module, by: Callable[[Tensor], Tensor]) -> None:
    """Put other tensors where the parameters and buffers of a module are."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = by(tensor)  # type: ignore[assignment]


def cast(named: Iterable[tuple[str, nn.Parameter]], dtype_of_name: Callable[[str], torch.dtype]) -> None:
    """Convert parameters, which stay the same objects, to the dtype that `held` gives for their names."""
    for name, parameter in named:
        parameter.data = parameter.data.to(dtype_of_name(name))


def copy_tensors(module: nn.Module, device: torch.device) -> dict[int, Any]:
    """Return copies of all tensors of a module on a device, by the ids of the tensors: a memo for copy.deepcopy."""
    copies: dict[int, Any] = {id(buffer): buffer.to(device, copy=True) for buffer in module.buffers()}
    for parameter in module.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().to(device, copy=True), parameter.requires_grad)
    return copies


def write_to_file(folder: Path, prefix: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return equal tensors that lie in a new file of the folder. The file has no name any more.

    Later changes of them are in memory, and not in the file. Raises OSError where the disk takes no more.
    """
    starts, end = list[int](), 0
    with tempfile.NamedTemporaryFile(dir=folder, prefix=prefix, delete=False) as file:
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
            with suppress(OSError):  # a system may keep a mapped file; its folder goes with the cell
                path.unlink()
    return [
        whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, tensors, strict=True)
    ]


def put_to_wait(x: Tensor, folder: Path) -> Tensor:
    """Return equal states that lie in a file of the folder; states on a GPU themselves.

    Raises NoRoom where the folder takes no more.
    """
    if x.device.type != "cpu" or not x.numel():
        return x
    try:
        (stored,) = write_to_file(folder, "states-", [x.detach()])
    except (OSError, RuntimeError) as error:  # torch has its own for a file that it cannot map
        raise NoRoom(
            f"the folder of --offload takes no more states: {first_line_of(error)}; name a larger one"
        ) from error
    return stored


def read_tensor_ahead(tensor: Tensor) -> bool:
    """Tell the system that the pages of a tensor in a file will be read soon, and return whether it takes the hint.

    Only Linux does. Without the hint the pages are read when they are used.
    """
    if sys.platform != "linux":
        return False
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    size = ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - first)
    return bool(ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_WILLNEED) == 0)


def _mapped_files() -> list[tuple[int, int]]:
    """Return the ranges of addresses of this process where files are mapped, rising; each ends one past its last.

    There are none where the system does not list them (only Linux does). Then every settled tensor is written.
    """
    files = []
    with suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            addresses, *_, path = line.rstrip("\n").split(None, 5)
            if path.startswith("/") and not path.startswith("/dev/"):
                files.append(tuple(int(each, 16) for each in addresses.split("-")))
    return files  # type: ignore[return-value]  # two each


def _lies_in(files: list[tuple[int, int]], tensor: Tensor) -> bool:
    """Say whether a tensor lies in one of the mapped files."""
    number = bisect(files, (tensor.data_ptr(), 2**64)) - 1
    return number >= 0 and tensor.data_ptr() < files[number][1]
