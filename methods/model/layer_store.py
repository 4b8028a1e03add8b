"""Lets the weights of a model, and states that wait, lie in files, so that both may be larger than the memory.

Weights that are loaded in the dtype in which they are stored lie in the files of the model: the system reads a page of
them when it is used, and drops it where memory is short. Whatever a method writes is new and lies in memory. A store
writes that to a file beside the model's own, which are only read, and maps it back, layer by layer, so that what is in
memory is one layer. The pruned model then is the model's files, those of the store, and its modules.

Where the store has a device, layers compute on it: each visits it while it is used (`LayerStore.visit`), and what lies
around the layers stays there. So a model may also be larger than the memory of the GPU that computes.

Between two layers the states of all tokens wait, N T D numbers; a greedy search has them of several candidates, what is
fitted to the dense model has them of both models, gradients need them in front of each layer. `put_to_wait` puts them
into files: the system writes their pages out where memory is short, and reads them when the next layer wants them.

A file loses its name as soon as it is mapped: the system gives its room back when no tensor needs it, or when the
process has ended, however that came about. So what is in one is of this process, and whole.
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

ALIGNED = 64  # bytes to a multiple of which a tensor begins, as in memory: products of other ones can round otherwise


class LayerStore:
    """Moves weights from memory into files in a folder, which has to lie on a disk and have room for them.

    device  on which layers compute, and on which all that is no layer lies; None: where the weights lie
    """

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self.folder, self.device = folder, None if device is None else to_numbered(device)
        self._visiting = set[int]()  # ids of the modules that are on the device now

    def read_ahead(self, module: nn.Module) -> None:
        """Ask the system to read what lies in files of a module's parameters, and do not wait for it."""
        files = _mapped_files()
        for parameter in module.parameters():
            if parameter.device.type == "cpu" and _lies_in(files, parameter):
                read_tensor_ahead(parameter)

    @contextmanager
    def visit(self, module: nn.Module, whole: Callable[[], nn.Module]) -> Iterator[None]:
        """Let copies on the device stand where the parameters and buffers of a module do, meanwhile.

        whole  returns the module at the end. What nobody has changed of it then is again the object that it was; all
               else is brought back, and goes into a file
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
        """Move what lies in memory of the parameters of these modules into a file.

        A parameter stays the object that it is, with the same values. Raises OSError where the disk takes no more.
        """
        self._settle([parameter for module in modules for parameter in module.parameters()])

    def _settle(self, parameters: Sequence[Tensor]) -> None:
        on_host = [each for each in parameters if each.device.type == "cpu" and each.numel()]
        files, distinct = _mapped_files(), {id(parameter): parameter for parameter in on_host}
        new = [parameter for parameter in distinct.values() if not _lies_in(files, parameter)]
        if new:
            for parameter, tensor in zip(new, self._move([parameter.detach() for parameter in new]), strict=True):
                parameter.data = tensor

    def _move(self, tensors: list[Tensor]) -> list[Tensor]:
        return write_to_file(self.folder, "layer-", tensors)


def to_numbered(device: torch.device) -> torch.device:
    """Return a device as tensors name theirs: a GPU without a number is the first one that the process sees."""
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


class _Copies:
    """Knows of which tensor each copy on a device is.

    changed  what was brought back, since it is new or has been written to
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.changed: list[Tensor] = []
        self._copies: dict[int, Tensor] = {}  # by the ids of the tensors that they are of
        # by their own: themselves, of what they are, and what tells whether they have been written to
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
        """Return the tensor of which one is the copy, with what has been written to it; or one that is not there."""
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
    """Return what is another when a tensor has been written to, or has got other data."""
    return tensor.data_ptr(), tensor._version


def move_modules(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Move the parameters and buffers of some modules to a device; those that are shared stay shared."""
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


def cast(named: Iterable[tuple[str, nn.Parameter]], held: Callable[[str], torch.dtype]) -> None:
    """Convert parameters, which stay the objects that they are, to the type that their name is held in."""
    for name, parameter in named:
        parameter.data = parameter.data.to(held(name))


def copy_tensors(module: nn.Module, device: torch.device) -> dict[int, Any]:
    """Return copies of all tensors on a device, by the ids of the tensors, as copy.deepcopy takes them for those."""
    copies: dict[int, Any] = {id(buffer): buffer.to(device, copy=True) for buffer in module.buffers()}
    for parameter in module.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().to(device, copy=True), parameter.requires_grad)
    return copies


def write_to_file(folder: Path, prefix: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors as they lie in a new file of the folder, which has lost its name.

    What is written to one of them later is in memory, and not in the file. Raises OSError where the disk takes no more.
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
            with suppress(OSError):  # of a system that keeps a file which is mapped; its folder goes with the cell
                path.unlink()
    return [
        whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, tensors, strict=True)
    ]


def put_to_wait(x: Tensor, folder: Path) -> Tensor:
    """Return states with the same values that lie in a file of the folder; those on a GPU are left there.

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
    """Tell the system that the pages of a tensor which lies in a file will be read soon; say whether it heard that.

    Linux alone is told. It is a hint: without it the pages are read when they are used.
    """
    if sys.platform != "linux":
        return False
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    size = ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - first)
    return bool(ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_WILLNEED) == 0)


def _mapped_files() -> list[tuple[int, int]]:
    """Return at which addresses of this process files are mapped, from the first to one past the last, rising.

    There is none where the system does not say (Linux alone does), so that all that is settled is written.
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
