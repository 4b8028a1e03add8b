"""The calibration tokens, the logs of sweeps over them, and statistics of them that cells share.

Calibration holds the tokens that a method may look at while it decides.

SweepLog keeps a sweep over the layers on disk, so that an interrupted sweep goes on where it stood. A sweep takes layer
after layer. It has of each a few tensors that it needs later (statistics, a basis) and, between two layers, the states
of all tokens. Both are written every few seconds: the tensors of the layers since the last time to one file, the states
to another, which replaces the earlier states. All else is computed again by the same products, so that the pruned model
is the same to the last bit.

`shared_statistics` shares statistics of the dense model between cells. They do not depend on the ratio or on the
compensation that follows. The key under which a run keeps them has all that they depend on: the function, the tokens
and the arguments. The run itself knows the model (`Calibration.keep`).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from methods.files import write_atomically
from methods.model.decoder import Decoder

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    Note = Callable[[list[str]], object]
    Statistics = list[torch.Tensor]
    Keep = Callable[[str, Callable[[], Statistics]], Statistics]  # (key, what computes them) -> statistics


Wait = Callable[["torch.Tensor"], "torch.Tensor"]  # states -> the same states, put where they wait for a later layer


def keep_in_memory(x: torch.Tensor) -> torch.Tensor:
    """Return the states themselves."""
    return x


@dataclass(frozen=True)
class Calibration:
    """Holds the tokens that a method may look at, the same block for every method of a run.

    ids     (N, T) token ids, padded on the right
    mask    (N, T) true at real tokens, so that sequences may differ in length
    source  where the text is from, for the record
    seed    of the draw
    sha256  of ids and mask
    memory  bytes that a method's states of one micro-batch may take. It changes no decision
    order   removals that are known for the same method, parameters, model and tokens: the first ones of a greedy
            search ("mlp 3") by a cell at another ratio, or all of a record (of LaCo "window 20", where layers merge
            into layer 20; of FLAP "channels 3 0+17"). It saves time and changes no decision
    note    takes all removals so far, in the form of `order`, after each removal of a greedy search that no budget has
            bound; None: they are not needed before the search ends
    sweeps  the logs of sweeps over the layers; None: no log is kept
    keep    returns statistics that another cell has computed on these tokens, or computes and keeps them; None: none
            are kept
    offload  folder for states that wait for a later layer (methods.model.layer_store); None: they are in memory. It
            changes no decision
    """

    ids: torch.Tensor
    mask: torch.Tensor
    source: str = "unnamed"
    seed: int = 0
    sha256: str = ""
    memory: int = 2**30
    order: tuple[str, ...] = ()
    note: Note | None = None
    sweeps: SweepLogs | None = None
    keep: Keep | None = None
    offload: Path | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.mask.shape:
            raise ValueError(f"ids and mask are both (N, T); got {tuple(self.ids.shape)} and {tuple(self.mask.shape)}")
        if bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any()):
            raise ValueError("padding belongs on the right: the mask has a real token behind a padded one")

    def first(self, tokens: int | None) -> Calibration:
        """Return the calibration with the first whole sequences that hold at most `tokens` real tokens; None: all.

        It has at least one sequence, which is cut where it is longer.
        """
        if tokens is None:
            return self
        rows, columns = max(1, int((self.mask.sum(1).cumsum(0) <= tokens).sum())), min(self.ids.shape[1], tokens)
        return dataclasses.replace(self, ids=self.ids[:rows, :columns], mask=self.mask[:rows, :columns])

    def log(self, states: Sequence[torch.Tensor], *of: Any) -> SweepLog:
        """Return the log of a sweep on these tokens that begins with `states`, a tensor for each micro-batch.

        `repr` of `of` says all else that the sweep depends on, such as what is to be removed. The tokens, the method
        with its parameters and the dense model are known.
        """

        tokens = self.sha256, tuple(self.ids.shape)
        return SweepLog(None, states) if self.sweeps is None else self.sweeps.log(states, tokens, *of, wait=self.wait)

    def wait(self, x: torch.Tensor) -> torch.Tensor:
        """Return states, put to wait for a later layer: in a file where there is a folder for it."""
        if self.offload is None:
            return keep_in_memory(x)
        from methods.model.layer_store import put_to_wait

        return put_to_wait(x, self.offload)

    def batches(self, values_per_token: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (ids, mask) in micro-batches of whole sequences, for `values_per_token` numbers of a type each."""
        rows = max(1, self.memory // (dtype.itemsize * values_per_token * self.ids.shape[1]))
        starts = range(0, len(self.ids), rows)
        return [(self.ids[start : start + rows], self.mask[start : start + rows]) for start in starts]


def with_known_removals(calibration: Calibration, decisions: dict[str, Any]) -> Calibration:
    """Return the calibration with the removals of a greedy search, which the next search begins with."""
    order = decisions.get("removal_order", [])[: decisions.get("free_removals", 0)]
    return dataclasses.replace(calibration, order=max(calibration.order, tuple(order), key=len))


SECONDS = 15.0  # between two times that a sweep is written down


class SweepLog:
    """Knows how far a sweep has come, and keeps that in a folder.

    folder  keeps the tensors of layers, and may have some of an interrupted sweep; None: nothing is kept
    states  the first states of the sweep, a tensor for each micro-batch, sequences first; empty for a sweep that has no
            states
    wait    keeps states that have been read, as `Calibration.wait` does

    done     number of layers whose tensors `kept` yields
    seconds  that the interrupted sweep has taken for them
    """

    def __init__(self, folder: Path | None, states: Sequence[Tensor], wait: Wait = keep_in_memory) -> None:
        self.folder, self.done, self.seconds = folder, 0, 0.0
        self._states = list(states)
        self._new: list[list[Tensor]] = []  # tensors of layers that are not written yet
        if folder is not None:
            with suppress(OSError, SafetensorError, KeyError, ValueError):  # layers that cannot be read are not done
                self._read(folder, wait)
        self._written, self._start = self.done, time.perf_counter()
        self._last = self._start

    def take(self) -> list[Tensor]:
        """Return the states behind the layers that are done, and let go of them."""
        states, self._states = self._states, []
        return states

    def kept(self) -> Iterator[list[Tensor]]:
        """Yield the tensors of each layer that is done, on the CPU, in the order of the sweep."""
        read = 0
        while self.folder is not None and read < self.done:
            layers, _ = _load(_found_file(self.folder, read))
            yield from layers
            read += len(layers)

    def add(self, tensors: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        """Add the tensors of the next layer, and the states behind it. Raises Unwritable."""
        if self.folder is None:
            return
        self._new.append([tensor.cpu() for tensor in tensors])
        if time.perf_counter() - self._last >= SECONDS:
            self._write(self.folder, states)
            self._last = time.perf_counter()

    def _write(self, folder: Path, states: Sequence[Tensor]) -> None:
        """Write the states, and then the tensors: these count only where the states behind them are there."""
        before, self._written = self._written, self._written + len(self._new)
        _save(_states_file(folder, self._written), [states], 0.0)
        _save(_found_file(folder, before), self._new, self.seconds + time.perf_counter() - self._start)
        _states_file(folder, before).unlink(missing_ok=True)
        self._new = []

    def _read(self, folder: Path, wait: Wait) -> None:
        done, seconds = 0, 0.0
        while (file := _found_file(folder, done)).exists():
            layers, seconds = _load(file)
            done += len(layers)
        if not done:
            return
        (states,), _ = _load(_states_file(folder, done))
        if self._states:
            rows = [row for batch in states for row in torch.split(batch, 1)]
            ends = list(accumulate(map(len, self._states)))  # of the micro-batches of this time
            parts = (torch.cat(rows[start:end]) for start, end in pairwise([0, *ends]))
            self._states = [wait(kept.to(like.device)) for kept, like in zip(parts, self._states, strict=True)]
        self.done, self.seconds = done, seconds


class SweepLogs:
    """Gives each sweep of a cell its log, in a folder of the cell.

    seconds  that interrupted attempts had taken for the layers that have been read from their logs
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, 0.0
        self._counted = set[Path]()  # folders of logs whose seconds have been added

    def log(self, states: Sequence[Tensor], *of: Any, wait: Wait = keep_in_memory) -> SweepLog:
        """Return the log of a sweep that begins with `states`; `repr` of `of` says all else that it depends on."""
        folder = self.folder / hashlib.sha256(repr(of).encode()).hexdigest()[:16]
        log = SweepLog(folder, states, wait)
        if folder not in self._counted:
            self.seconds += log.seconds
            self._counted.add(folder)
        return log


def _found_file(folder: Path, first: int) -> Path:
    return folder / f"found-{first:04}.safetensors"


def _states_file(folder: Path, behind: int) -> Path:
    return folder / f"states-{behind:04}.safetensors"


def _save(file: Path, groups: Sequence[Sequence[Tensor]], seconds: float) -> None:
    named = {(layer, number): tensor for layer, group in enumerate(groups) for number, tensor in enumerate(group)}
    tensors = {f"{layer}.{number}": tensor.detach().cpu().contiguous() for (layer, number), tensor in named.items()}
    notes = {"sizes": " ".join(str(len(group)) for group in groups), "seconds": repr(seconds)}

    def write(path: Path) -> None:
        try:
            save_file(tensors, path, notes)  # with no copy of them in memory
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error

    write_atomically(file, write)


def _load(file: Path) -> tuple[list[list[Tensor]], float]:
    with safe_open(file, "pt") as stored:
        notes = stored.metadata()
        sizes = enumerate(map(int, notes["sizes"].split()))
        groups = []
        for layer, size in sizes:
            groups.append([stored.get_tensor(f"{layer}.{number}") for number in range(size)])
        return groups, float(notes["seconds"])


def shared_statistics(
    function: Callable[..., list[Tensor]], model: Decoder, calibration: Calibration, *arguments: Any
) -> list[Tensor]:
    """Return function(model, calibration, *arguments), on the CPU; another cell may have computed it.

    The model is dense: no method has changed it yet. `function` is a function of a module and reads its arguments
    alone, and `repr` of an argument says all of it.
    """

    def compute() -> list[Tensor]:
        return [statistic.cpu() for statistic in function(model, calibration, *arguments)]

    if calibration.keep is None:
        return compute()
    tokens = (calibration.sha256, tuple(calibration.ids.shape), calibration.memory)
    request = repr((function.__module__, function.__qualname__, tokens, arguments))
    return calibration.keep(hashlib.sha256(request.encode()).hexdigest(), compute)
