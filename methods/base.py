"""The interface that every method has, and the registry that it enters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from methods.model.calibration import Calibration

if TYPE_CHECKING:
    from methods.model.decoder import Decoder


class Pruner(Protocol):
    """Is a frozen dataclass whose fields are the method's hyperparameters."""

    name: ClassVar[str]

    @property
    def fixed(self) -> bool:
        """Say whether the parameters alone decide what goes, so that no ratio is asked for (`drop:layers=20-24`)."""

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return what the ratio turns into (layers to remove, slice width, ...), from shapes alone.

        Works on a model without weights, so that a request is refused before any work.
        Raises Unsupported for a structure, OutOfReach for a ratio, that the method cannot serve.
        """

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Remove `ratio` of all parameters of `model`, in place; 0 changes nothing.

        Returns what was decided, as plain JSON values, which methods.decisions holds to a contract. Raises what `plan`
        raises.
        """


REGISTRY: dict[str, type[Pruner]] = {}

P = TypeVar("P", bound=type)


def register(name: str) -> Callable[[P], P]:
    """Return a class decorator that makes a frozen dataclass available as method `name`."""

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
