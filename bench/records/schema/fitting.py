"""Says whether plain JSON values are a record, and if not, which field is wrong and what would be right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

SHOWN = 40  # characters of a value that a message shows

WANTED = {  # what would be right, by the kind of mistake
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number below 2^63",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
LIMITS = {  # and where a limit is crossed
    "greater_than_equal": "{ge} or more",
    "greater_than": "above {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "below {lt}",
    "literal_error": "{expected}",
}


def misfit(data: Any, layout: type[BaseModel]) -> str:
    """Say in one sentence what keeps plain JSON values from being of a layout; empty where nothing does."""
    try:
        _reader(layout).validate_python(data)
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        others = f", and {len(more)} more fields do not fit" if len(more) > 1 else ", and another field does not fit"
        return _said(first) + (others if more else "")
    return ""


def misplaced(data: Any, layout: type[BaseModel]) -> list[tuple[str | int, ...]]:
    """Return where plain JSON values do not fit a layout, as keys and numbers from the outside in."""
    try:
        _reader(layout).validate_python(data)
    except ValidationError as error:
        return [one["loc"] for one in error.errors(include_url=False, include_context=False, include_input=False)]
    return []


@cache
def _reader(layout: type[BaseModel]) -> TypeAdapter[Any]:
    return TypeAdapter(layout)


def _said(error: ErrorDetails) -> str:
    """Say what is wrong with a field, and what would be right."""
    path, kind, limits = _path(error["loc"]), error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"{path} is missing"
    if kind == "value_error":
        return f"{path} {limits['error']}"
    if kind in LIMITS:
        wanted = LIMITS[kind].format(**{name: _limit(limit) for name, limit in limits.items()})
    elif kind in ("too_short", "too_long", "string_too_short"):
        wanted = "empty" if kind == "too_long" and not limits["max_length"] else _length(kind, limits)
    else:
        wanted = WANTED.get(kind, error["msg"].lower())
    return f"{path} is {_shown(error['input'])}, not {wanted}"


def _limit(limit: Any) -> Any:
    return f"{limit:g}" if isinstance(limit, float) else limit


def _length(kind: str, limits: Mapping[str, Any]) -> str:
    """Say how long a list or a text is to be."""
    if kind == "string_too_short":
        return "a text with a letter in it"
    return f"a list of {limits.get('min_length', limits.get('max_length'))}" + " or more" * (kind == "too_short")


def _path(places: Sequence[str | int]) -> str:
    """Write where a field stands, as in measured.speed.points[0].batch."""
    path = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places)
    return path.removeprefix(".") or "it"


def _shown(value: Any) -> str:
    """Write a value so short that a sentence can hold it."""
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
