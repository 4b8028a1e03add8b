"""The report of a run: the main view for a terminal, as Markdown with everything around it, and the frame as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.record import Record, write_atomically
from reports import markdown as markdown_text
from reports import notes, speed
from reports import terminal as terminal_text
from reports.frame import display_name, frame
from reports.tables import Table
from reports.text import markdown_escaped, printable
from reports.views import view

LINE = terminal_text.LINE


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
