"""Holds the tokens that a method may look at while it decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from methods.model.sweep_log import SweepLog, SweepLogs

    Note = Callable[[list[str]], object]
    Statistics = list[torch.Tensor]
    Keep = Callable[[str, Callable[[], Statistics]], Statistics]  # (name, how it is found) -> what it is

Wait = Callable[["torch.Tensor"], "torch.Tensor"]  # states -> the same, as they wait until a later layer wants them


def in_memory(x: torch.Tensor) -> torch.Tensor:
    """Return states as they are."""
    return x


@dataclass(frozen=True)
class Calibration:
    """Holds the tokens that a method may look at, the same block for every method of a run.

    ids     (N, T) token ids, padded on the right
    mask    (N, T) true at real tokens, so that sequences may differ in length
    source  where the text is from, for the record
    seed    of the draw
    sha256  of ids and mask
    memory  bytes that a method's states of one micro-batch may take; changes no decision
    order   removals that are known, with the same method, parameters, model and tokens: the first ones of a greedy
            search ("mlp 3"), which another cell has found at another ratio; or all that a record names (of LaCo
            "window 20", where layers merge into layer 20; of FLAP "channels 3 0+17"). It saves time and changes no
            decision
    note    is given all removals so far, as `order` has them, each time a greedy search has found one that no budget
            has bound; None: they are not needed before the search ends
    sweeps  keeps where sweeps over the layers stand (methods.model.sweep_log); None: nothing is kept
    keep    returns what another cell has found of the dense model on these tokens, or finds it and keeps it
            (methods.shared); None: nothing is kept
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
        """Return the first whole sequences that hold `tokens` real tokens, or all of them where that is None.

        One at least, and its start where it is longer.
        """
        if tokens is None:
            return self
        rows, columns = max(1, int((self.mask.sum(1).cumsum(0) <= tokens).sum())), min(self.ids.shape[1], tokens)
        return dataclasses.replace(self, ids=self.ids[:rows, :columns], mask=self.mask[:rows, :columns])

    def log(self, states: Sequence[torch.Tensor], *of: Any) -> SweepLog:
        """Return the log of a sweep on these tokens that begins with `states`, a tensor for each micro-batch.

        `repr` of `of` says all that it depends on beside the tokens, the method with its parameters and the dense
        model, such as what is to be removed.
        """
        from methods.model.sweep_log import SweepLog  # here, since lists of methods import no torch

        tokens = self.sha256, tuple(self.ids.shape)
        return SweepLog(None, states) if self.sweeps is None else self.sweeps.log(states, tokens, *of, wait=self.wait)

    def wait(self, x: torch.Tensor) -> torch.Tensor:
        """Return states as they wait until a later layer wants them: in a file where there is a folder for it."""
        if self.offload is None:
            return in_memory(x)
        from methods.model.layer_store import put_to_wait

        return put_to_wait(x, self.offload)

    def batches(self, values_per_token: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (ids, mask) in micro-batches of whole sequences, for `values_per_token` numbers of a type each."""
        rows = max(1, self.memory // (dtype.itemsize * values_per_token * self.ids.shape[1]))
        starts = range(0, len(self.ids), rows)
        return [(self.ids[start : start + rows], self.mask[start : start + rows]) for start in starts]
