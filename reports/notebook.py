"""The report of runs as Python objects, which Jupyter shows as tables and figures and a terminal as text.

report = bench.report("results/mine")
report                          # the main tables
report.table("cost")            # those of another view
report.figure("perplexity")     # a figure, by the start of its name
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.records import run_folder
from bench.records.run_folder import Merged
from methods.errors import UserError
from methods.files import write_atomically
from methods.listed.cards import needs
from reports.figures import catalogue as figures
from reports.figures.figure import Figure, svg
from reports.formats import html, terminal
from reports.tables.table import Table
from reports.tables.views import view


def report(*runs: Path | str) -> RunReport:
    """Read one or several run folders as one report; those that can be compared share their tables.

    Raises UserError where one is no run folder, and where no record fits.
    """
    if not runs:
        raise UserError('a report is of runs: name their folders, as in report("results/mine")')
    return RunReport(run_folder.load_runs([Path(run) for run in runs]))


class RunReport:
    """The report of one or several runs, see `report`. In Jupyter it is its main tables.

    merged  the records of the runs with their samples, see bench.records.run_folder.load_runs
    """

    def __init__(self, merged: Merged) -> None:
        self._merged = merged

    @cached_property
    def _drawn(self) -> dict[str, Figure]:
        merged = self._merged
        found = figures.figures(merged.records, merged.samples, served=merged.served, needs=needs())
        return {figure.name: figure for figure in found}

    @property
    def figures(self) -> dict[str, str]:
        """Return the title of each figure for which there is data, by its name."""
        return {name: figure.title for name, figure in self._drawn.items()}

    def table(self, name: str = "main", reference: str | None = None) -> ShownTables:
        """Return the tables of a view, as `python -m bench report --view` names them.

        reference  the label of a method: what differs from it is marked, by paired tests on the samples

        Raises UserError for an unknown view, and for a reference that no record has.
        """
        merged = self._merged
        return ShownTables(view(name, merged.records, reference, merged.samples, needs(), served=merged.served))

    def figure(self, name: str) -> ShownFigure:
        """Return the figure of that name, or the first whose name starts so. Raises UserError where there is none."""
        found = [figure for own, figure in self._drawn.items() if own.startswith(name)]
        found.sort(key=lambda figure: figure.name != name)
        if not found:
            known = ", ".join(self._drawn) or "none of these cells"
            raise UserError(f"no figure is called {name!r}; there are {known}")
        return ShownFigure(found[0])

    def __str__(self) -> str:
        return "".join(f"{note}\n" for note in self._merged.notes) + str(self.table())

    def __repr__(self) -> str:
        return f"<report of {len(self._merged.records)} cells>"

    def _repr_html_(self) -> str:
        return html.bullets(self._merged.notes) + self.table()._repr_html_()


@dataclass(frozen=True)
class ShownTables:
    """Tables of a view, which Jupyter shows as such. `tables` are the tables as data (reports.tables.table)."""

    tables: list[Table]

    def __str__(self) -> str:
        return terminal.render(self.tables)

    def __repr__(self) -> str:
        return f"<tables {', '.join(table.name for table in self.tables)}>"

    def _repr_html_(self) -> str:
        return html.render(self.tables)


@dataclass(frozen=True)
class ShownFigure:
    """A figure, which Jupyter draws. `figure` is the figure as data (reports.figures.figure)."""

    figure: Figure

    @cached_property
    def svg(self) -> str:
        """The drawing as an SVG file, with its title and a description for those who cannot see it."""
        return svg(self.figure)

    def save(self, path: Path | str) -> None:
        """Write the drawing as an SVG file. Raises UserError where the disk does not take it."""
        write_atomically(Path(path), self.svg)

    def __repr__(self) -> str:
        return f"<figure {self.figure.name}: {self.figure.title}>"

    def _repr_svg_(self) -> str:
        return self.svg
