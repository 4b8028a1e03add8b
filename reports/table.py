"""The main view of a run: one table per ratio, for a terminal, as Markdown and as CSV.

records -> frame -> blocks (one per ratio, the dense model on top) -> text
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.record import Record, write_atomically
from reports import notes, speed
from reports.frame import (
    display_name,
    draws,
    frame,
    frame_rows,
    label,
    pooled,
    requested_ratio,
    setup,
    task_columns,
    texts,
)
from reports.metrics import metric, shown
from reports.text import markdown_escaped, printable, width, wrap

LINE = 100  # columns of a terminal
LABEL = 28  # columns of a method's name, before it goes on in the next line
GAP = "  "
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}
SUMMARY = ("average", "kept", "prefill_speed", "decode_speed", "prune_seconds")
CHECKS = ("kl", "agreement", "copying", "counting", "repetition", "distinct_2")
COST = ("prefill_tokens_per_second", "decode_ms_per_token", "weight_bytes", "kv_bytes_per_token", "peak_memory_bytes")


def write(folder: Path, records: Sequence[Record]) -> None:
    """Write report.md and report.csv into `folder`, each atomically."""
    write_atomically(folder / "report.md", markdown(records))
    write_atomically(folder / "report.csv", csv(records))


def csv(records: Sequence[Record]) -> str:
    """The frame in full precision, one line per cell; line breaks within a text are written as \\n."""
    table = frame(records)
    for name in table.columns[table.dtypes == "object"]:
        table[name] = table[name].map(lambda value: printable(value) if isinstance(value, str) else value)
    return table.to_csv(index=False, lineterminator="\n")


def terminal(records: Sequence[Record]) -> str:
    """The main view in lines of at most 100 columns: what does not fit goes on in a table below, never cut."""
    table = frame(records)
    parts = []
    for block, rows in _blocks(records, table):
        parts.append(_heading(block))
        parts += _pages(block, rows)
        parts.append(_bullets(notes.exceptions(block)))
    parts.append(_bullets(notes.protocol(records, table)))
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def markdown(records: Sequence[Record]) -> str:
    """The report: the protocol in plain words; per ratio tables of quality, tasks, checks and cost; the environment."""
    table = frame(records)
    models = dict.fromkeys(markdown_escaped(display_name(record)) for record in records)
    parts = [
        f"# Structured pruning of {', '.join(models)}",
        "## How to read this",
        _list(notes.protocol(records, table)),
    ]
    for block, rows in _blocks(records, table):
        title = markdown_escaped(notes.ratio(block) or "dense model")
        parts.append(f"## {title[0].upper()}{title[1:]}")
        parts.append(markdown_escaped(", ".join([display_name(block[0]), *notes.conditions(block)])))
        size, by_task, summary = _columns(block)
        for columns in (size + summary, by_task, CHECKS, COST):
            parts.append(_markdown_table(block, rows, _present(rows, columns)))
        parts.append(_list(notes.exceptions(block)))
    parts += speed.markdown(records)
    parts += ["## Environment", _list(notes.environment(records))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _blocks(records: Sequence[Record], table: pd.DataFrame) -> Iterator[tuple[list[Record], list[dict[str, Any]]]]:
    """(records, rows of the frame) per setup and ratio, rising, methods of a fixed ratio last, dense on top of each."""
    rows = frame_rows(table)
    groups: dict[str, list[tuple[Record, dict[str, Any]]]] = {}
    for record, row in zip(records, rows, strict=True):
        groups.setdefault(setup(record), []).append((record, row))
    for cells in groups.values():
        dense = [cell for cell in cells if cell[0].cell["method"] == "dense"]
        pruned = [cell for cell in cells if cell[0].cell["method"] != "dense"]
        ratios = {requested_ratio(record) for record, _ in pruned}
        for ratio in sorted(ratios, key=lambda ratio: (ratio is None, ratio or 0)) or [None]:
            block = [*dense, *(cell for cell in pruned if requested_ratio(cell[0]) == ratio)]
            shared = draws([record for record, _ in block])
            together = [[block[number][1] for number in numbers] for numbers in shared]
            rows_of_block = [pooled(rows) if len(rows) > 1 else rows[0] for rows in together]
            yield [block[numbers[0]][0] for numbers in shared], rows_of_block


def _columns(records: Sequence[Record]) -> tuple[list[str], list[str], list[str]]:
    """The columns of the main view: size, perplexity and divergence; tasks; summary."""
    size = ["ratio", "parameters", *(f"perplexity_{text}" for text in texts(records)), "kl"]
    return size, task_columns(records), [*SUMMARY]


def _present(rows: list[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """The columns that have a figure in any row."""
    return [column for column in columns if any(pd.notna(row.get(column)) for row in rows)]


def _label(record: Record, records: Sequence[Record]) -> str:
    """The method's name, with the seed where the block has several."""
    seeds = {other.cell["seed"] for other in records}
    return label(record.cell) + (f" (seed {record.cell['seed']})" if len(seeds) > 1 else "")


def _cell(record: Record, row: dict[str, Any], column: str, *, spread: bool = True) -> str:
    """One figure; a removed share that misses the budget has a star."""
    missed = column == "ratio" and "missed_ratio" in str(row["flags"])
    return shown(row, column, spread=spread) + "*" * missed


def _markdown_table(records: list[Record], rows: list[dict[str, Any]], columns: list[str]) -> str:
    """A table whose failed cells hold their status word in the first column of figures; nothing without columns."""
    if not columns:
        return ""
    lines = []
    for record, row in zip(records, rows, strict=True):
        cells = [_cell(record, row, column) for column in columns]
        if record.status != "ok":
            cells = [notes.status(record), *[""] * (len(columns) - 1)]
        lines.append([_label(record, records), *cells])
    heads = ["method", *(_markdown_head(column) for column in columns)]
    return tabulate(
        [[markdown_escaped(cell) for cell in line] for line in lines],
        headers=[markdown_escaped(head) for head in heads],
        tablefmt="pipe",
        colalign=("left", *["right"] * len(columns)),
        disable_numparse=True,
    )


def _markdown_head(column: str) -> str:
    found = metric(column)
    unit = f" ({found.unit})" if found.unit and not found.unit_in_cell else ""
    return f"{found.label}{unit}{ARROWS[found.better]}"


def _list(sentences: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {markdown_escaped(sentence)}" for sentence in sentences)


def _heading(records: Sequence[Record]) -> list[str]:
    """One line if it fits, else one for model and ratio and one for the conditions."""
    halves = [
        printable("   ".join(part for part in half if part))
        for half in ([display_name(records[0]), notes.ratio(records)], notes.conditions(records))
    ]
    line = "   ".join(halves)
    return [line] if width(line) <= LINE else [line for half in halves for line in wrap(half, LINE)]


def _bullets(sentences: Iterator[str] | Sequence[str]) -> list[str]:
    return [line for sentence in sentences for line in wrap(printable(sentence), LINE, indent=GAP)]


def _pages(records: list[Record], rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The block as one table if it fits, else the tasks in a table of their own; each with the methods' names."""
    labels = [wrap(printable(_label(record, records)), LABEL, breaks=",", indent=GAP) for record in records]
    room = LINE - max(width(line) for line in ["method", *(line for lines in labels for line in lines)])
    size, by_task, summary = (
        [_aligned(records, rows, column) for column in _present(rows, columns)] for columns in _columns(records)
    )
    page, rest = _fill(size + by_task + summary, room)
    if rest:
        page, rest = _fill(size + summary, room)
        rest += by_task
    yield _grid(records, labels, page)
    while rest:
        page, rest = _fill(rest, room)
        yield _grid(records, labels, page)


def _fill(columns: list[list[str]], room: int) -> tuple[list[list[str]], list[list[str]]]:
    """Split columns into those that fit into `room`, at least one, and the rest."""
    used = 0
    for number, column in enumerate(columns):
        used += len(GAP) + width(column[0])
        if used > room and number:
            return columns[:number], columns[number:]
    return columns, []


def _aligned(records: list[Record], rows: list[dict[str, Any]], column: str) -> list[str]:
    """Heading and cells, all equally wide, figures right- and what follows them (unit, ±, star) left-aligned."""
    in_markdown_alone = ("task_", "score_", "kl", "prefill_", "decode_")
    spread = not column.startswith(in_markdown_alone)
    cells = [_cell(record, row, column, spread=spread) for record, row in zip(records, rows, strict=True)]
    parts = [re.match(r"([-<]?[\d.,e]+x?)(.*)", cell) or re.match(r"(.*)()", cell) for cell in cells]
    left, right = (max(width(part[side]) for part in parts if part) for side in (1, 2))
    cells = [part[1].rjust(left) + part[2].ljust(right) for part in parts if part]
    head = printable(metric(column).label)
    return [cell.rjust(max(left + right, width(head)) + len(cell) - width(cell)) for cell in [head, *cells]]


def _grid(records: list[Record], labels: list[list[str]], columns: list[list[str]]) -> list[str]:
    """Lines of one table; a failed cell shows its status word instead of figures."""
    first = max(width(line) for line in ["method", *(line for lines in labels for line in lines)])
    lines = [GAP.join(["method".ljust(first), *(column[0] for column in columns)])]
    for number, (record, (name, *more)) in enumerate(zip(records, labels, strict=True), start=1):
        figures = [column[number] for column in columns] if record.status == "ok" else [notes.status(record)]
        lines.append(GAP.join([name + " " * (first - width(name)), *figures]).rstrip())
        lines += more
    return lines
