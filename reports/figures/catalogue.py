"""The list of all figures of a report, and the gallery that writes their files while other work goes on.

On Linux the gallery forks a process for each core. Each has the records without reading them again. On other systems,
and where threads run, figures are drawn one after the other, since a process with threads must not be forked. The bytes
are the same.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.records.record import Record, name_of_model
from bench.records.samples import Samples
from bench.records.served import ServedRecord
from reports.figures import calibration, factors, heatmaps, load, pareto, positions, quality, recovery, skills, traces
from reports.figures.figure import Figure, save_figure
from reports.figures.pareto import figures_of_served as of_served
from reports.groups import group_records
from reports.tables.rows import ReportData
from reports.text import names_of_files, to_printable

PATIENCE = 300.0  # seconds for the figures of one process; most take a second


class Gallery:
    """The files of figures in a folder: making a gallery begins to write them, `end` waits for them."""

    def __init__(self, figures: Sequence[Figure], folder: Path) -> None:
        self.folder = folder
        self._shares: list[tuple[BaseProcess, Sequence[Figure]]] = []
        count = min(_processes(), len(figures))
        shares = [figures[first::count] for first in range(count)] if count > 1 else []
        for share in shares:
            process = get_context("fork").Process(target=_save_all, args=(share, folder))
            process.start()
            self._shares.append((process, share))
        if not shares:
            self._draw(figures)

    def end(self) -> None:
        """Return once all figures are written. Raises Unwritable if the disk takes no file."""
        for process, share in self._shares:
            process.join(PATIENCE)
            if process.exitcode != 0:
                process.kill()
                self._draw(share)  # raises the error that the process had, unless it has gone

    def _draw(self, figures: Sequence[Figure]) -> None:
        for figure in figures:
            save_figure(figure, self.folder)


def _processes() -> int:
    """Return how many processes may be forked: one for each core, or one in all if threads run.

    Every thread that runs Python counts, also one that `threading` did not start.
    """
    if sys.platform != "linux" or len(sys._current_frames()) > 1:
        return 1
    return len(os.sched_getaffinity(0))


def _save_all(figures: Sequence[Figure], folder: Path) -> None:
    """Write the figures in a forked process. It ends so soon that it collects no garbage."""
    gc.disable()
    try:
        for figure in figures:
            save_figure(figure, folder)
    except BaseException:  # an interruption, or a full disk: the first process draws again and raises it
        sys.exit(1)


def figures_of_report(
    records: Sequence[Record],
    samples: Samples | None = None,
    reference: str = "",
    served: Sequence[ServedRecord] = (),
    *,
    needs: Mapping[str, str] | None = None,
    pair: Sequence[str] = (),
) -> list[Figure]:
    """Return the figures that the records have data for, in the order of a report.

    samples    those of the records
    reference  the label of a method that charts show in colour
    served     what inference engines made of the models
    needs      what each method looks at, by its name: "calibration, gradients"
    pair       the labels of the two methods whose skills are set side by side; none for the best of two families

    Raises UserError for a label of the pair that no row has.
    """
    setups, figures = group_records(records), list[Figure]()
    models = {name_of_model(record) for record in records}
    for number, setup in enumerate(setups):
        of_setup = [
            *quality.figures_of_quality(setup, setups, reference),
            *pareto.figures_of_fronts(setup, reference),
            *factors.figures_of_compensations(setup, samples or Samples()),
            *positions.figures_of_positions(setup, samples or Samples()),
            *heatmaps.figures_of_depth(setup),
            *heatmaps.figures_of_needles(setup, samples or Samples()),
            *traces.figures_of_traces(setup),
            *recovery.figures_of_recovery(setup),
        ]
        ending = f"-{name_of_model(setup[0].records[0])}" if len(models) > 1 else f"-{number + 1}" if number else ""
        figures += [replace(figure, name=f"{figure.name}{ending}") for figure in of_setup]
    figures += [
        *factors.figures_of_studies(setups),
        *calibration.figures_of_curves(ReportData(records, needs=needs or {})),
        *factors.figures_of_calibrations(records, needs),
        *skills.figures_of_skills(ReportData(records, samples=samples or Samples(), has_answers=True), pair),
        *of_served([record for record in served if "load" not in record.protocol]),
        *load.figures_of_load(served),
    ]
    names = names_of_files(figure.name for figure in figures)
    return [
        replace(figure, name=name, title=_sentence(figure.title), description=_sentence(figure.description))
        for name, figure in zip(names, figures, strict=True)
    ]


def _sentence(text: str) -> str:
    return to_printable(text[:1].upper() + text[1:])
