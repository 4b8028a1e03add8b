"""One cell whole: everything that was asked, decided and measured, and where, by the names of bench.records.record.

record -> [Fact], a tree of names and values -> lines for a terminal, or nested lists of the HTML page
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from bench.records.record import Record, display_name, label, requested_ratio
from reports.metrics import binary
from reports.text import printable, width, wrap

LINE = 100  # columns of a terminal
NAME = 30  # columns of a name, before its value starts in the next line
INDENT = "  "
NESTED = (dict, list, tuple)
RUN = 3  # as many neighbours are written as a range, or as a repetition


@dataclass(frozen=True)
class Fact:
    """A name with a value, or with facts of its own, or with a table whose first row holds the headings."""

    name: str
    value: str = ""
    inside: tuple[Fact, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


def title(record: Record) -> str:
    """'laco at ratio 0.3 of SmolLM2-135M-Instruct'; the seed only where it is not 0."""
    requested = requested_ratio(record)
    ratio = "" if requested is None else f" at ratio {requested:g}"
    seed = f", seed {record.cell['seed']}" if record.cell["seed"] else ""
    return f"{label(record.cell)}{ratio} of {display_name(record)}{seed}"


def facts(record: Record) -> list[Fact]:
    """What was asked, what came of it, what was decided and measured, and where."""
    cell = dict(record.cell)
    outcome = {"status": record.status} | ({"error": record.error} if record.error else {})
    blocks = {
        "asked": cell,
        "outcome": outcome,
        "decided": record.decisions,
        "measured": record.measured,
        "environment": record.environment,
    }
    return [_fact(name, block) for name, block in blocks.items() if block]


def text(record: Record, key: str) -> str:
    """The cell in lines of at most 100 columns; a table that is wider is written row by row. `key` names its file."""
    lines = [*wrap(printable(title(record)), LINE, indent=INDENT), *wrap(printable(key), LINE), ""]
    for block in facts(record):
        lines += [block.name.upper(), *_lines(block, 1), ""]
    return "\n".join(lines[:-1]) + "\n"


def _fact(name: str, value: Any) -> Fact:
    if isinstance(value, dict):
        if set(value) == {"value", "stderr"}:
            return Fact(name, f"{_scalar(value['value'])}, stderr {_scalar(value['stderr'])}")
        return Fact(name, "" if value else "none", tuple(_fact(str(key), one) for key, one in value.items()))
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(row, dict) and _is_flat(row) for row in value):
            heads = tuple(dict.fromkeys(str(key) for row in value for key in row))
            return Fact(name, table=(heads, *(tuple(_scalar(row.get(head, "")) for head in heads) for row in value)))
        if any(isinstance(one, NESTED) for one in value):
            return Fact(name, inside=tuple(_numbered(value)))
        return Fact(name, _listed(value))
    return Fact(name, _scalar(value) + _in_bytes(name, value))


def _numbered(values: Sequence[Any]) -> Iterator[Fact]:
    """The entries of a list by their numbers from 0; equal neighbours share one: '4-27'."""
    start = 0
    for _, group in groupby(values, key=repr):
        end = start + len(list(group))
        yield _fact(str(start) if end - start == 1 else f"{start}-{end - 1}", values[start])
        start = end


def _is_flat(row: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, NESTED) for value in row.values())


def _scalar(value: Any) -> str:
    """A single value: whole numbers with separators, others with six significant digits, words as they are."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _in_bytes(name: str, value: Any) -> str:
    """' (39.0 KiB)' behind a number of bytes that has more than three digits."""
    counts_bytes = name.endswith("_bytes") or name.startswith("kv_bytes")
    return f" ({binary(value)})" if counts_bytes and isinstance(value, int) and value >= 2**10 else ""


def _listed(values: Sequence[Any]) -> str:
    """'0-3, 5, 7' for whole numbers that follow each other, '192 (30 times)' for equal values; 'none' for no value."""
    parts: list[Any] = []
    for same, group in groupby(values, key=lambda value: (type(value), value)):
        alike = [same[1]] * len(list(group))
        parts += [f"{_plain(alike[0])} ({len(alike)} times)"] if len(alike) >= RUN else alike
    return ", ".join(_ranges(parts)) or "none"


def _ranges(parts: Sequence[Any]) -> Iterator[str]:
    """The parts as text; RUN or more whole numbers, each one more than the last, become 'first-last'."""
    follows = [type(a) is int and type(b) is int and b == a + 1 for a, b in pairwise(parts)]
    ends = [*(at for at, one in enumerate(follows, start=1) if not one), len(parts)]
    for start, end in pairwise([0, *ends]):
        if end - start >= RUN:
            yield f"{parts[start]}-{parts[end - 1]}"
        else:
            yield from map(_plain, parts[start:end])


def _plain(value: Any) -> str:
    """As in _scalar, without separators, which a list has of its own."""
    return str(value) if type(value) is int else _scalar(value)


def _lines(block: Fact, depth: int) -> Iterator[str]:
    """The facts inside `block`, names in one column, values beside them or, where a name is long, below."""
    margin = INDENT * depth
    column = min(NAME, max((width(printable(fact.name)) for fact in block.inside), default=0))
    for fact in block.inside:
        name = printable(fact.name)
        if fact.inside:
            yield from wrap(margin + name, LINE, indent=margin + INDENT)
            yield from _lines(fact, depth + 1)
        elif fact.table:
            yield from wrap(f"{margin}{name}", LINE, indent=margin + INDENT)
            yield from _table(fact.table, margin + INDENT)
        else:
            beside = margin + name + " " * max(0, column - width(name)) + INDENT
            behind = " " * width(beside) if width(beside) < LINE // 2 else margin + INDENT * 2
            first, *more = fact.value.splitlines() or [""]
            yield from wrap(beside + printable(first), LINE, indent=behind)
            for line in more:
                yield from wrap(behind + printable(line), LINE, indent=behind + INDENT)


def _table(rows: tuple[tuple[str, ...], ...], margin: str) -> Iterator[str]:
    """Aligned columns if they fit; else each row as one wrapped line of 'name value' pairs."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(width(row[number]) for row in cells) for number in range(len(cells[0]))]
    if width(margin) + sum(widths) + len(INDENT) * (len(widths) - 1) <= LINE:
        for row in cells:
            padded = [" " * (wide - width(cell)) + cell for wide, cell in zip(widths, row, strict=True)]
            yield (margin + INDENT.join(padded)).rstrip()
        return
    heads, *body = cells
    for row in body:
        pairs = ", ".join(f"{head} {cell}" for head, cell in zip(heads, row, strict=True) if cell)
        yield from wrap(f"{margin}{pairs}", LINE, indent=margin + INDENT)
