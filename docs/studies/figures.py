"""Draws the picture of each study from its records, with the study's message above it.

    python docs/studies/figures.py [NAME ...]

Without a name it draws all. A file beside this one is written for each, as NAME.svg, and `images/served.svg`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.records import run_folder, served
from bench.records.run_folder import Merged
from methods.files import write_atomically
from reports.figures import catalogue, intervals, pareto
from reports.figures.figure import Figure, to_svg
from reports.figures.intervals import IntervalPanel, IntervalRow

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results"
NAMES = {
    "smollm2-135m": "SmolLM2-135M",
    "gemma3-270m": "Gemma-3-270M",
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B",
}


@cache
def load(*runs: str) -> Merged:
    return run_folder.load_runs([RESULTS / name for name in runs])


def with_message(figure: Figure, message: str) -> Figure:
    """Return the figure with a message above it, and what it was called at the start of its description."""

    def draw() -> Any:
        drawing = figure.draw()
        drawing.suptitle(message, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        return drawing

    return replace(figure, title=message, description=f"{figure.title}. {figure.description}", draw=draw)


def of_report(*runs: str, name: str, message: str, labels: Sequence[str] = ()) -> Figure:
    """Return a figure that the report of some runs has, by its name; of some methods only, where they are named."""
    merged = load(*runs)
    records = [one for one in merged.records if not labels or one.cell.label in ("dense", *labels)]
    every = catalogue.figures_of_report(records, merged.samples)
    (figure,) = (one for one in every if one.name == name)
    return with_message(figure, message)


def of_intervals(
    name: str,
    message: str,
    panels: Sequence[IntervalPanel],
    x: str,
    ends: tuple[float, float],
    *,
    equal: float | None = None,
    logarithmic: bool = False,
) -> Figure:
    words = [
        f"{panel.title}: "
        + ", ".join(f"{row.label} {row.value:.3g} [{row.low:.3g}, {row.high:.3g}]" for row in panel.rows)
        for panel in panels
    ]
    draw = partial(intervals.draw_intervals, panels, x, ends, equal=equal, logarithmic=logarithmic)
    return with_message(Figure(name, x, ". ".join(words), draw), message)


def places(merged: Merged, model: str, ratio: float, seed: int = 0) -> dict[str, int]:
    """Return which records are of a model at a ratio, by their label."""
    cells = ((n, one.cell) for n, one in enumerate(merged.records))
    return {cell.label: n for n, cell in cells if (cell.model, cell.ratio, cell.seed) == (model, ratio, seed)}


def speed() -> Figure:
    panels = dict[str, list[IntervalRow]]()
    for record in load("speed").records:
        points = [] if record.cell.method == "dense" else record.measured.timed_points
        for point in (point for point in points if point.batch == 1):
            row = IntervalRow(record.cell.label, record.cell.method, point.speedup, point.speedup_low,
                              point.speedup_high, point.speedup_by_macs)  # fmt: skip
            panels.setdefault(f"{point.kind}, batch 1", []).append(row)
    return of_intervals(
        "speed",
        "Only dropped layers bring the speed that is predicted",
        [IntervalPanel(title, tuple(rows)) for title, rows in panels.items()],
        "times as fast as the dense model (grey: as the removed work predicts)",
        (1.0, 2.0),
    )


def served_models() -> Figure:
    (figure,) = pareto.figures_of_served(served.load(RESULTS / "smollm2-135m"))
    return with_message(figure, "The whole model in 8 bits loses less than each pruned one in 16")


FIGURES: dict[str, Callable[[], Figure]] = {
    "calibration": partial(
        of_report, "calibration", name="calibration-perplexity-wiki-0.2-of-the-decoder",
        message="16,384 calibration tokens are enough for most methods"),
    "healing-lora": partial(
        of_report, "smollm2-135m-healed", name="healing-0.2",
        message="LoRA gives back most of what the pruned model lost"),
    "ratio-curves": partial(
        of_report, "ratio-curves", name="perplexity-wiki-by-ratio",
        message="Which method is second depends on the ratio"),
    "seeds": partial(
        of_report, "seeds", name="perplexity-by-draw-0.2",
        message="Ten draws of the calibration text, and no order of neighbours"),
    "settings-range": partial(
        of_report, "laco-range", name="ablation-laco-perplexity-wiki",
        message="LaCo loses less where it spares the rear layers"),
    "speed": speed,
    "../images/served": served_models,
}  # fmt: skip


def main(names: Sequence[str]) -> None:
    for name in names or FIGURES:
        write_atomically(FOLDER / f"{name}.svg", to_svg(FIGURES[name]()).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
