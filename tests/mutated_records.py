"""Plain values, such as records, in which one thing was changed at random."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

REMOVED = object()
LARGE, HUGE = 10**30, 1e300


def replacements(value: Any) -> list[Any]:
    """What may stand in place of a value: another type, nothing, an empty or a huge one, its negative."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    others = ["many", "", None, [], {}, -5, 0.5, 0, True, LARGE, HUGE, [value], {"a": value}, -value if number else 7]
    return [REMOVED, REMOVED, *others]


def mutated(
    plain: dict[str, Any], draw: random.Random, offered: Callable[[Any], list[Any]] = replacements
) -> tuple[dict[str, Any], str, Any]:
    """A copy of a record in which a field was removed or replaced, where that is, and what stands there now."""
    plain = copy.deepcopy(plain)
    place: Any = plain
    path = ""
    while True:
        name = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        path += f"[{name}]" if isinstance(name, int) else f".{name}"
        inner = place[name]
        if not (isinstance(inner, dict | list) and inner and draw.random() < 0.93):
            break
        place = inner
    new = draw.choice(offered(inner))
    if new is REMOVED:
        del place[name]
    else:
        place[name] = new
    return plain, path.removeprefix("."), new
