"""The report of a run: the main view for a terminal, as Markdown with everything around it, and the frame as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.records.columns import columns, rows, timed
from bench.records.comparability import apart, setups
from bench.records.record import Record, display_name
from methods.files import write_atomically
from reports import notes
from reports.formats import markdown as markdown_text
from reports.formats import terminal as terminal_text
from reports.formats import tidy_csv
from reports.tables import order
from reports.tables.rows import ReportData
from reports.tables.table import Table, footnotes
from reports.tables.views import view
from reports.text import markdown_escaped

LINE = terminal_text.LINE


def write(folder: Path, records: Sequence[Record]) -> None:
    """Write report.md and report.csv into `folder`, each atomically."""
    write_atomically(folder / "report.md", markdown(records))
    write_atomically(folder / "report.csv", csv(records))


def csv(records: Sequence[Record]) -> str:
    """Return the frame in full precision, one line per cell in the order of the tables.

    Where cells are not compared since they were not measured alike, `conditions` says in what: 'calibration "wiki"'.
    """
    records = order.records(ReportData(records).groups)
    found, different = rows(records), apart(records)
    if any(different.values()):
        found = [
            {"model": row["model"], "conditions": ", ".join(different[key])} | row
            for row, key in zip(found, setups(records), strict=True)
        ]
    table = {name: _written_out([row.get(name) for row in found]) for name in columns(found)}
    return tidy_csv.written(list(table), zip(*table.values(), strict=True))


def _written_out(values: Sequence[Any]) -> list[str]:
    """Write a column as text: whole numbers as such where all are, else with their point; what is missing as ""."""
    if {type(value) for value in values if value is not None} <= {int}:
        return ["" if value is None else str(value) for value in values]
    numbers = all(value is None or type(value) in (int, float) for value in values)
    return ["" if value is None else repr(float(value)) if numbers else str(value) for value in values]


def terminal(records: Sequence[Record]) -> str:
    """Return the main view in lines of at most 100 columns."""
    return terminal_text.render(view("main", records))


def markdown(records: Sequence[Record], tables: Sequence[Table] | None = None, remarks: Sequence[str] = ()) -> str:
    """Return the report: the protocol in plain words; per ratio tables of quality, tasks, checks, cost; the machine.

    tables   of the main view, where they have been made already
    remarks  on several runs in one report
    """
    main = view("main", records) if tables is None else tables
    models = dict.fromkeys(markdown_escaped(display_name(record)) for record in records)
    parts = [
        f"# Structured pruning of {', '.join(models)}",
        "## How to read this",
        markdown_text.bullets([*remarks, *footnotes(main)]),
        *(part for table in main for part in markdown_text.section(table)),
        *speed_markdown(records),
        "## Environment",
        markdown_text.bullets(notes.environment(records)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def speed_terminal(records: Sequence[Record]) -> str:
    """Return the tables of what was timed and of the sizes that explain it, with what is to be known about them."""
    return terminal_text.render(view("speed", records))


def speed_markdown(records: Sequence[Record]) -> list[str]:
    """Return the section on speed of a report; nothing where the main table already has all that was timed."""
    points = [point for record in records for point in record.measured.get("speed", {}).get("points", ())]
    in_main = [timed(record, stage) for record in records for stage in ("prefill", "decode")]
    if len(points) <= sum(point is not None for point in in_main):
        return []
    found = view("speed", records)
    sections = [part for table in found for part in markdown_text.section(table, 3)]
    return ["## Speed", *sections, markdown_text.bullets(footnotes(found))]
