"""Makes a record of what a cell has found, whatever that is: leaves out what no record holds, and says what that was.

Of a layout's object that has lost what it needs, the smallest that holds it goes: a text, a metric, the learning curve
with its healing. A list is left out whole, since its places count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.records.record import Record
from bench.records.schema import fitting
from bench.records.schema.layouts import RecordLayout

FOUND = ("decisions", "measured")  # the fields of a record that say what was found
GONE = object()  # stands where nothing is left

Lost = dict[str, list[str]]  # {what is wrong: the paths of what is}


def sound(record: Record) -> Record:
    """Return the record as it is where it fits, else as failed, without what does not fit."""
    lost: Lost = {}
    found = {name: _plain(getattr(record, name), name, lost) for name in FOUND}
    data = json.loads(json.dumps(vars(record) | found))
    reasons = [f"{what}: {', '.join(dict.fromkeys(paths))}" for what, paths in lost.items()]
    if wrong := fitting.misfit(data, RecordLayout):
        reasons = reasons or [f"this is no record's: {wrong}"]
        while (places := fitting.misplaced(data, RecordLayout)) and _leave_out(data, places[0]):
            pass
    if not reasons:
        return record
    kept = {name: data[name] for name in FOUND}
    return replace(record, status="error", error=record.error or "; ".join(reasons), **kept)


def _plain(value: Any, path: str, lost: Lost) -> Any:
    """Return a value without what JSON has none of, and note the path of that."""
    if isinstance(value, float) and not math.isfinite(value):
        lost.setdefault("not a finite number", []).append(path)
        return GONE
    if isinstance(value, Mapping):
        parts = {name: _plain(one, f"{path}.{name}", lost) for name, one in value.items()}
        return {name: one for name, one in parts.items() if one is not GONE}
    if isinstance(value, list | tuple):
        items = [_plain(one, path, lost) for one in value]
        return [None if one is GONE else one for one in items]
    if value is None or isinstance(value, str | int | float):
        return value
    lost.setdefault("not a value of JSON", []).append(f"{path} ({type(value).__name__})")
    return GONE


def _leave_out(data: dict[str, Any], place: Sequence[str | int]) -> bool:
    """Leave out the smallest part of what was found in which `place` is; return whether there is one."""
    steps, inside = list[str | int](), [data]
    for step in place:
        here: Any = inside[-1]
        if not (step in here if isinstance(here, dict) else isinstance(here, list) and isinstance(step, int)):
            break  # what is missing, or the name of a kind of value
        steps.append(step)
        inside.append(here[step])
    while steps and isinstance(steps[-1], int):
        steps.pop()
    if len(steps) > 1 and steps[0] in FOUND:
        del inside[len(steps) - 1][steps[-1]]  # type: ignore[arg-type]
        return True
    emptied = steps if steps else [name for name in FOUND if data[name]]  # what is wrong may be between the two
    if not emptied or emptied[0] not in FOUND or not data[emptied[0]]:
        return False
    data[emptied[0]] = {}
    return True
