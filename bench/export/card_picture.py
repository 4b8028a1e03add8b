"""Puts a picture of a run into the card of a model taken out of it: quality against size, a ring around the model.

It is a PNG, which the hub shows beside the card wherever the folder goes. Its line in README.md leads to the file in
the same folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.records import run_folder
from bench.records.record import Record
from methods.checkpoint import model_card
from methods.files import write_atomically
from reports.figures.figure import render_figure
from reports.figures.pareto import figure_of_model
from reports.text import escape_markdown

FILE = "quality-by-size.png"


def add_picture(folder: Path, manifest: Mapping[str, Any], record: Record, run: Path) -> None:
    """Write the picture into a written folder, and the card anew with it. Of a run of one cell there is none.

    folder    of the model, in Hugging Face's layout
    manifest  of that folder
    run       the run of the record
    """
    records = run_folder.read_records(run, run_folder.ignore_warning)
    figure = figure_of_model(list(records.values()), record)
    if figure is None:
        return
    write_atomically(folder / FILE, render_figure(figure, ("png",))["png"])
    alternative = escape_markdown(figure.title[:1].upper() + figure.title[1:])
    line = f"![{alternative}]({FILE})"
    write_atomically(folder / "README.md", model_card.render(manifest, line))
