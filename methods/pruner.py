"""The common interface of every method, and the registry that finds methods by name.

Letters: N = calibration sequences, T = tokens per sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

    from methods.anatomy import Decoder


class Unsupported(Exception):
    """The method cannot serve this model's structure. A recorded outcome with its reason, not a failure."""


class OutOfReach(ValueError):
    """The requested ratio lies beyond what the method can remove from this model. The user's mistake."""


@dataclass(frozen=True)
class Calibration:
    """The tokens a method may look at; the same block for every method of a run.

    ids     (N, T) token ids, padded on the right
    mask    (N, T) true at real tokens, so that sequences may differ in length
    source  where the text is from, for the record
    seed    of the draw
    sha256  of ids and mask
    memory  bytes that a method's states of one micro-batch may take; changes no decision
    order   the first removals of a greedy search ("mlp 3"), as a cell of the same method, with the same parameters,
            model and tokens, has found them at another ratio; saves time and changes no decision
    """

    ids: torch.Tensor
    mask: torch.Tensor
    source: str = "unnamed"
    seed: int = 0
    sha256: str = ""
    memory: int = 2**30
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.mask.shape:
            raise ValueError(f"ids and mask are both (N, T); got {tuple(self.ids.shape)} and {tuple(self.mask.shape)}")
        if bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any()):
            raise ValueError("padding belongs on the right: the mask has a real token behind a padded one")

    def first(self, tokens: int) -> Calibration:
        """The first whole sequences that hold `tokens` real tokens; one at least, its start where it is longer."""
        rows, columns = max(1, int((self.mask.sum(1).cumsum(0) <= tokens).sum())), min(self.ids.shape[1], tokens)
        return dataclasses.replace(self, ids=self.ids[:rows, :columns], mask=self.mask[:rows, :columns])

    def batches(self, values_per_token: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(ids, mask) in micro-batches of whole sequences, with `values_per_token` numbers of four bytes in memory."""
        rows = max(1, self.memory // (4 * values_per_token * self.ids.shape[1]))
        starts = range(0, len(self.ids), rows)
        return [(self.ids[start : start + rows], self.mask[start : start + rows]) for start in starts]


class Pruner(Protocol):
    """A frozen dataclass whose fields are the method's hyperparameters."""

    name: ClassVar[str]

    @property
    def fixed(self) -> bool:
        """Whether the parameters alone decide what goes, so that no ratio is asked for (`drop:layers=20-24`)."""

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """The knob that the ratio turns into (layers to remove, slice width, ...), from shapes alone.

        Works on a model without weights, so that a request is refused before any work.
        Raises Unsupported for a structure, OutOfReach for a ratio, that the method cannot serve.
        """

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Remove `ratio` of all parameters of `model`, in place; 0 changes nothing.

        Returns what was decided, as plain JSON values. Raises as `plan` does.
        """


REGISTRY: dict[str, type[Pruner]] = {}

P = TypeVar("P", bound=type)


def register(name: str) -> Callable[[P], P]:
    """Class decorator: make a frozen dataclass available as method `name`."""

    def add(cls: P) -> P:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"@register goes above @dataclass: {cls.__name__} is not a dataclass")
        known = REGISTRY.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"two methods are called {name!r}: {known.__module__} and {cls.__module__}")
        cls.name = name  # type: ignore[attr-defined]
        REGISTRY[name] = cls  # type: ignore[assignment]  # the protocol's `name` was set a line above
        return cls

    return add
