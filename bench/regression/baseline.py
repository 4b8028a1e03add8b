"""The baseline file of a gate: a small JSON that lives in the user's repository and is changed by review alone.

    {"schema": 1, "cells": {NAME: {identity, status, about, conditions, sizes, tasks, texts, speed}}}

Sorted, a metric in a line, no path, no host, no time: equal results give an equal file, and a change of one figure is
one line of a diff. Layout of a cell: bench.regression.cell_results.to_json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.regression import cell_results
from bench.regression.cell_results import CellResults
from methods.errors import UserError
from methods.files import write_atomically

SCHEMA = 1
OPEN = 4  # levels of the file that are written over several lines


class NoBaseline(Exception):
    """There is no file, or it is no baseline; the message says which, in one line."""


def read(file: Path) -> dict[str, CellResults]:
    """The cells of a baseline file by their names. Raises NoBaseline."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        if plain["schema"] != SCHEMA:
            raise NoBaseline(f"{file} has schema {plain['schema']}; this version reads {SCHEMA}; accept a run again")
        found = {name: cell_results.from_json(cell) for name, cell in plain["cells"].items()}
    except OSError as error:
        raise NoBaseline(
            f"no baseline {file}: {error.strerror}; `baseline accept RUN --out {file}` makes one"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise NoBaseline(f"{file} is no baseline file: {type(error).__name__}: {error}") from None
    if not found:
        raise NoBaseline(f"{file} holds no cell")
    return found


def accept(run: Path, file: Path, *, allow_failed: bool = False, replace: bool = False) -> list[str]:
    """Write what `run` measured to `file`; lines on what is in it, or on what changed. Raises UserError."""
    cells = cell_results.of_run(run)
    failed = [f"{name} ({cell.status})" for name, cell in cells.items() if cell.status != "ok"]
    if failed and not allow_failed:
        raise UserError(f"{run} has failed cells: {', '.join(failed)}; --allow-failed accepts them as failed")
    plain = {name: cell_results.to_json(cell) for name, cell in cells.items()}
    before: dict[str, Any] = {}
    if file.exists():
        if not replace:
            raise UserError(f"{file} exists; --replace overwrites it and prints what changes")
        before = _cells(file)
    write_atomically(file, text(plain))
    untested = [f"{name}: {task}" for name, cell in cells.items() for task in cell.untested]
    left_out = [f"left out, since it has no figure per document: {name}" for name in untested]
    return [*changes(before, plain), *left_out, f"{file}: {len(plain)} cells, {file.stat().st_size:,} bytes"]


def _cells(file: Path) -> dict[str, Any]:
    """The plain cells of a file that is about to be replaced, none where it is damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["cells"])
    except (ValueError, KeyError, TypeError):
        return {}


def text(cells: Mapping[str, Any]) -> str:
    """The file."""
    return _lines({"schema": SCHEMA, "cells": cells}, 0) + "\n"


def _lines(value: Any, level: int) -> str:
    if not isinstance(value, dict) or not value or level >= OPEN:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    indent = " " * (level + 1)
    pairs = (f"{indent}{json.dumps(key, ensure_ascii=False)}: {_lines(value[key], level + 1)}" for key in sorted(value))
    return "{\n" + ",\n".join(pairs) + "\n" + " " * level + "}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each cell that comes or goes and for each figure or condition that changes."""
    found = [f"- {name}" for name in before if name not in after]
    for name, cell in after.items():
        if name not in before:
            found.append(f"+ {name}")
        else:
            found += [f"  {name}: {line}" for line in _cell_changes(before[name], cell)]
    return found


def _cell_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    one, other = _flat(before), _flat(after)
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            old, new = (_figure(figures[key]) if key in figures else "nothing" for figures in (one, other))
            yield f"{' '.join(key)}: {old} -> {new}" if old != new else f"{' '.join(key)}: {old}, of other {_what(key)}"


def _flat(cell: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """{(group, metric): what stands in its line}."""
    found: dict[tuple[str, ...], Any] = {}
    for group, value in cell.items():
        found |= {(group, key): inner for key, inner in value.items()} if isinstance(value, dict) else {(group,): value}
    return found


def _figure(value: Any) -> str:
    """The one figure that a reader looks for."""
    if isinstance(value, dict):
        return str(value.get("value", value.get("perplexity")))
    if isinstance(value, list) and value and isinstance(value[0], float):
        return str(value[0])
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _what(key: tuple[str, ...]) -> str:
    return {"tasks": "answers", "texts": "windows", "speed": "interval"}.get(key[0], "content")
