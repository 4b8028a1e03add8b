"""The report of a run: the main view for a terminal, as Markdown with everything around it, and the frame as CSV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from csv import writer as csv_writer
from pathlib import Path
from typing import Any

from bench.record import Record, write_atomically
from reports import markdown as markdown_text
from reports import notes, speed
from reports import terminal as terminal_text
from reports.blocks import apart
from reports.frame import columns, display_name, rows, setup
from reports.tables import Table
from reports.text import markdown_escaped, printable
from reports.views import view

LINE = terminal_text.LINE


def write(folder: Path, records: Sequence[Record]) -> None:
    """Write report.md and report.csv into `folder`, each atomically."""
    write_atomically(folder / "report.md", markdown(records))
    write_atomically(folder / "report.csv", csv(records))


def csv(records: Sequence[Record]) -> str:
    """The frame in full precision, one line per cell; line breaks within a text are written as \\n.

    Where cells are not compared since they were not measured alike, `conditions` says in what: 'calibration "wiki"'.
    """
    found, different = rows(records), apart(records)
    if any(different.values()):
        found = [
            {"model": row["model"], "conditions": ", ".join(different[setup(record)])} | row
            for row, record in zip(found, records, strict=True)
        ]
    table = {name: _written_out([row.get(name) for row in found]) for name in columns(found)}
    file = io.StringIO()
    csv_writer(file, lineterminator="\n").writerows([list(table), *zip(*table.values(), strict=True)])
    return file.getvalue()


def _written_out(values: Sequence[Any]) -> list[str]:
    """A column as text: whole numbers as such where all are, else with their point; nothing where there is nothing."""
    if {type(value) for value in values if value is not None} <= {int}:
        return ["" if value is None else str(value) for value in values]
    numbers = all(value is None or type(value) in (int, float) for value in values)
    return ["" if value is None else repr(float(value)) if numbers else printable(str(value)) for value in values]


def terminal(records: Sequence[Record]) -> str:
    """The main view in lines of at most 100 columns."""
    return terminal_text.render(view("main", records))


def markdown(records: Sequence[Record], tables: Sequence[Table] | None = None, remarks: Sequence[str] = ()) -> str:
    """The report: the protocol in plain words; per ratio tables of quality, tasks, checks and cost; the environment.

    tables   of the main view, where they have been made already
    remarks  on several runs in one report
    """
    main = view("main", records) if tables is None else tables
    models = dict.fromkeys(markdown_escaped(display_name(record)) for record in records)
    parts = [
        f"# Structured pruning of {', '.join(models)}",
        "## How to read this",
        markdown_text.bullets([*remarks, *dict.fromkeys(sentence for table in main for sentence in table.protocol)]),
        *(part for table in main for part in markdown_text.section(table)),
        *speed.markdown(records),
        "## Environment",
        markdown_text.bullets(notes.environment(records)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
