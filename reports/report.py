"""The report of runs: as text for a terminal, as Markdown, as CSV, and as Python objects.

Jupyter shows the objects as tables and figures, and a terminal shows them as text.

report = bench.report("results/mine")
report                          # the main tables
report.table("cost")            # those of another view
report.figure("perplexity")     # a figure, by the start of its name
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.plan.fields import parse_ratios, split_list
from bench.records import run_folder
from bench.records.comparability import differences_of_setups, setups_of_records
from bench.records.frame import columns_of_rows, main_timing, rows_of_records
from bench.records.record import Record, name_of_model
from bench.records.run_folder import Merged
from bench.records.samples import Samples
from bench.records.selection import Selection
from methods.cards import needs_of_methods
from methods.errors import UserError
from methods.files import write_atomically
from reports import protocol
from reports.figures import catalogue as figures
from reports.figures.figure import Figure, to_svg
from reports.formats import markup, terminal
from reports.tables import rows as order
from reports.tables.rows import ReportData
from reports.tables.table import Table, footnotes_of, protocol_of
from reports.tables.views import build_view
from reports.text import escape_markdown

LINE = terminal.LINE


def write_report(folder: Path, records: Sequence[Record]) -> None:
    """Write report.md and report.csv of the records of the run in `folder`, each atomically."""
    samples = samples_of_run(folder, records)
    write_atomically(folder / "report.md", to_markdown(records, build_view("main", records, samples=samples)))
    write_atomically(folder / "report.csv", to_csv(records, samples))


def to_csv(records: Sequence[Record], samples: Samples | None = None) -> str:
    """Return the frame as CSV in full precision, one line per cell in the order of the tables.

    If there are several setups, the column `conditions` says in what they differ: 'calibration "wiki"'.

    samples  of the records, in their order; without them there are no flips
    """
    row_by_id = dict(zip(map(id, records), rows_of_records(records, samples), strict=True))
    records = order.records_of(ReportData(records).groups)
    rows, different = [row_by_id[id(record)] for record in records], differences_of_setups(records)
    if any(different.values()):
        rows = [
            {"model": row["model"], "conditions": ", ".join(different[key])} | row
            for row, key in zip(rows, setups_of_records(records), strict=True)
        ]
    table = {}
    for name in columns_of_rows(rows):
        table[name] = _write_out([row.get(name) for row in rows])
    return markup.csv_of_lines(list(table), zip(*table.values(), strict=True))


def _write_out(values: Sequence[Any]) -> list[str]:
    """Return a column as text. Whole numbers have no point if all are whole; a missing value is ""."""
    if {type(value) for value in values if value is not None} <= {int}:
        return ["" if value is None else str(value) for value in values]
    numbers = all(value is None or type(value) in (int, float) for value in values)
    return ["" if value is None else repr(float(value)) if numbers else str(value) for value in values]


def to_terminal(records: Sequence[Record], samples: Samples | None = None, *, explain: bool = True) -> str:
    """Return the main view in lines of at most 100 columns.

    samples  of the records, in their order, for paired tests
    explain  whether all notes are shown, see reports.formats.terminal.render
    """
    return terminal.render(build_view("main", records, samples=samples), explain=explain)


def samples_of_run(folder: Path, records: Sequence[Record]) -> Samples:
    """Return the samples of a run's records, in their order."""
    return Samples([run_folder.folder_of_samples(folder, record.cell.key) for record in records], records)


def to_markdown(records: Sequence[Record], tables: Sequence[Table] | None = None, remarks: Sequence[str] = ()) -> str:
    """Return the report as Markdown: the protocol in words; tables per ratio, then of speed; the environment.

    tables   the tables of the main view, if they have been made already
    remarks  sentences on several runs in one report
    """
    main = build_view("main", records) if tables is None else tables
    models = dict.fromkeys(escape_markdown(name_of_model(record)) for record in records)
    parts = [
        f"# Structured pruning of {', '.join(models)}",
        "## How to read this",
        markup.bullets_to_markdown([*remarks, *footnotes_of(main)]),
        *(part for table in main for part in markup.section_of_table(table)),
        *speed_to_markdown(records),
        *["## Protocol"] * bool(protocol_of(main)),
        markup.protocol_to_markdown(protocol_of(main)),
        "## Environment",
        markup.bullets_to_markdown(protocol.describe_environment(records)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def speed_to_terminal(records: Sequence[Record], *, explain: bool = True) -> str:
    """Return the tables of speed for a terminal: everything that was timed, and the sizes that explain it.

    explain  whether all notes are shown, see reports.formats.terminal.render
    """
    return terminal.render(build_view("speed", records), explain=explain)


def speed_to_markdown(records: Sequence[Record]) -> list[str]:
    """Return the section on speed of a report; empty if the main table has everything that was timed."""
    points = [point for record in records for point in record.measured.timed_points]
    in_main = [main_timing(record, stage) for record in records for stage in ("prefill", "decode")]
    if len(points) <= sum(point is not None for point in in_main):
        return []
    tables = build_view("speed", records)
    sections = [part for table in tables for part in markup.section_of_table(table, 3)]
    return ["## Speed", *sections, markup.bullets_to_markdown(footnotes_of(tables))]


def report(*runs: Path | str, methods: Any = (), ratio: Any = (), model: Any = ()) -> RunReport:
    """Return the report of one or several run folders. Runs that can be compared share their tables.

    methods, ratio, model  what is reported of them, as text with commas, as one value, or as a list; by default all

    Raises UserError if one is no run folder, if no record fits, and if no record has a method, ratio or model.
    """
    if not runs:
        raise UserError('a report is of runs: name their folders, as in report("results/mine")')
    selection = Selection(split_list(methods), parse_ratios(ratio), split_list(model))
    return RunReport(run_folder.load_runs([Path(run) for run in runs], selection))


class RunReport:
    """The report of one or several runs, see `report`. Jupyter shows its main tables.

    merged  the records of the runs with their samples, see bench.records.run_folder.load_runs
    """

    def __init__(self, merged: Merged) -> None:
        self._merged = merged

    @cached_property
    def _drawn(self) -> dict[str, Figure]:
        merged = self._merged
        drawn = figures.figures_of_report(
            merged.records, merged.samples, served=merged.served, needs=needs_of_methods()
        )
        return {figure.name: figure for figure in drawn}

    @property
    def figures(self) -> dict[str, str]:
        """Return {name: title} of each figure that the records have data for."""
        return {name: figure.title for name, figure in self._drawn.items()}

    def table(self, name: str = "main", reference: str | None = None, sort: str = "") -> ShownTables:
        """Return the tables of a view, as `python -m bench report --view` names it.

        reference  the label of a method; values that differ from its values in paired tests are marked
        sort       the column of `bench.read` that orders rows; empty for that of the view

        Raises UserError for an unknown view, for a reference that no record has, and for a column without a number.
        """
        merged, more = self._merged, {"served": self._merged.served, "sort": sort}
        return ShownTables(build_view(name, merged.records, reference, merged.samples, needs_of_methods(), **more))

    def figure(self, name: str) -> ShownFigure:
        """Return the figure of a name, or the first whose name starts with it. Raises UserError if there is none."""
        matches = [figure for own, figure in self._drawn.items() if own.startswith(name)]
        matches.sort(key=lambda figure: figure.name != name)
        if not matches:
            names = ", ".join(self._drawn) or "none of these cells"
            raise UserError(f"no figure is called {name!r}; there are {names}")
        return ShownFigure(matches[0])

    def __str__(self) -> str:
        return "".join(f"{note}\n" for note in self._merged.notes) + str(self.table())

    def __repr__(self) -> str:
        return f"<report of {len(self._merged.records)} cells>"

    def _repr_html_(self) -> str:
        return markup.bullets_to_html(self._merged.notes) + self.table()._repr_html_()


@dataclass(frozen=True)
class ShownTables:
    """Tables of a view for Jupyter and the terminal. `tables` are the tables as data (reports.tables.table)."""

    tables: list[Table]

    def __str__(self) -> str:
        return terminal.render(self.tables)

    def __repr__(self) -> str:
        return f"<tables {', '.join(table.name for table in self.tables)}>"

    def _repr_html_(self) -> str:
        return markup.render_html(self.tables)


@dataclass(frozen=True)
class ShownFigure:
    """A figure for Jupyter. `figure` is the figure as data (reports.figures.figure)."""

    figure: Figure

    @cached_property
    def svg(self) -> str:
        """Return the drawing as an SVG file, with its title and a description for those who cannot see it."""
        return to_svg(self.figure)

    def save(self, path: Path | str) -> None:
        """Write the drawing as an SVG file. Raises UserError if the disk does not take it."""
        write_atomically(Path(path), self.svg)

    def __repr__(self) -> str:
        return f"<figure {self.figure.name}: {self.figure.title}>"

    def _repr_svg_(self) -> str:
        return self.svg
