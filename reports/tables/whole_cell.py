"""One whole cell: its question, decisions, measurements and environment, by the names of bench.records.schema.

record -> [Fact], a tree of names and values -> lines for a terminal (reports.formats.terminal), or the HTML page
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from bench.plan.cell import words_of_amount
from bench.plan.kinds import defaults_of_later_fields
from bench.plan.protocol import Protocol, Recipe
from bench.records.quantity import format_bytes
from bench.records.record import Record, name_of_model
from reports.tables.table import Column, Row, Table, TableCell

NESTED = (dict, list, tuple)
RUN = 3  # from so many neighbours on a range or a repetition is written


@dataclass(frozen=True)
class Fact:
    """A name with a value, with facts inside, or with a table."""

    name: str
    value: str = ""
    inside: tuple[Fact, ...] = ()
    table: Table | None = None


def title_of_cell(record: Record) -> str:
    """Return a cell's title, as in 'laco at ratio 0.3 of SmolLM2-135M-Instruct'; with the seed if it is not 0."""
    amount = words_of_amount(record.cell.ratio, record.cell.ratio_of)
    ratio = f" at {amount}" if amount else ""
    seed = f", seed {record.cell.seed}" if record.cell.seed else ""
    return f"{record.cell.label}{ratio} of {name_of_model(record)}{seed}"


def facts_of(record: Record) -> list[Fact]:
    """Return the parts of a record that are not empty: question, outcome, decisions, measurements and environment.

    A setting that earlier versions did not have is left out where it has its default.
    """
    cell = record.plain()["cell"]
    settings = {"protocol": _without_later(Protocol, cell["protocol"])}
    if "healing" in cell:
        settings["healing"] = _without_later(Recipe, cell["healing"])
    outcome = {"status": record.status} | ({"error": record.error} if record.error else {})
    blocks = {
        "asked": cell | settings,
        "outcome": outcome,
        "decided": record.decisions,
        "measured": record.plain()["measured"],
        "environment": record.environment,
    }
    return [_fact(name, block) for name, block in blocks.items() if block]


def _without_later(owner: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those at their default that earlier versions did not have."""
    later = defaults_of_later_fields(owner)
    return {name: value for name, value in settings.items() if name not in later or value != later[name]}


def _fact(name: str, value: Any) -> Fact:
    if isinstance(value, dict):
        if set(value) == {"value", "stderr"}:
            return Fact(name, f"{_scalar(value['value'])}, stderr {_scalar(value['stderr'])}")
        return Fact(name, "" if value else "none", tuple(_fact(str(key), entry) for key, entry in value.items()))
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(row, dict) and _is_flat(row) for row in value):
            return Fact(name, table=_table(name, value))
        if any(isinstance(entry, NESTED) for entry in value):
            return Fact(name, inside=tuple(_facts_by_number(value)))
        return Fact(name, _words_of_list(value))
    return Fact(name, _scalar(value) + _in_bytes(name, value))


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of rows of plain values; the first column holds the rows' labels."""
    first, *heads = dict.fromkeys(str(key) for row in rows for key in row)
    columns = tuple(Column(head, head) for head in heads)
    filled = []
    for row in rows:
        cells = tuple(TableCell(_scalar(row.get(head, ""))) for head in heads)
        filled.append(Row(_scalar(row.get(first, "")), "", None, cells))
    return Table(name, "show", "", name, (), columns, tuple(filled), head=first)


def _facts_by_number(values: Sequence[Any]) -> Iterator[Fact]:
    """Yield the entries of a list by their numbers from 0; equal neighbours share one: '4-27'."""
    start = 0
    for _, group in groupby(values, key=repr):
        end = start + len(list(group))
        yield _fact(str(start) if end - start == 1 else f"{start}-{end - 1}", values[start])
        start = end


def _is_flat(row: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, NESTED) for value in row.values())


def _scalar(value: Any) -> str:
    """Return a single value as text: whole numbers with separators, others with six digits, words unchanged."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _in_bytes(name: str, value: Any) -> str:
    """Return ' (39.0 KiB)' for a number of bytes of at least 1,024; otherwise nothing."""
    counts_bytes = name.endswith("_bytes") or name.startswith("kv_bytes")
    return f" ({format_bytes(value)})" if counts_bytes and isinstance(value, int) and value >= 2**10 else ""


def _words_of_list(values: Sequence[Any]) -> str:
    """Return a list as text: '0-3, 5' for neighbouring numbers, '192 (30 times)' for equal ones, 'none' for none."""
    parts: list[Any] = []
    for same, group in groupby(values, key=lambda value: (type(value), value)):
        alike = [same[1]] * len(list(group))
        parts += [f"{_plain(alike[0])} ({len(alike)} times)"] if len(alike) >= RUN else alike
    return ", ".join(_ranges(parts)) or "none"


def _ranges(parts: Sequence[Any]) -> Iterator[str]:
    """Yield the parts as text; RUN or more whole numbers, each one more than the last, become 'first-last'."""
    follows = [type(a) is int and type(b) is int and b == a + 1 for a, b in pairwise(parts)]
    ends = [*(at for at, is_next in enumerate(follows, start=1) if not is_next), len(parts)]
    for start, end in pairwise([0, *ends]):
        if end - start >= RUN:
            yield f"{parts[start]}-{parts[end - 1]}"
        else:
            yield from map(_plain, parts[start:end])


def _plain(value: Any) -> str:
    """Return a value as `_scalar` does, but without separators, since commas separate the entries of a list."""
    return str(value) if type(value) is int else _scalar(value)
