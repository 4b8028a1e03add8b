"""Draws the picture of each study from its records, with the study's message above it.

    python docs/studies/figures.py [NAME ...]

Without a name it draws all. A file beside this one is written for each, as NAME.svg, and `images/served.svg`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.records import run_folder, served
from bench.records.run_folder import Merged
from bench.records.selection import EVERY, Selection
from bench.regression.contrasts import contrast_of_averages, contrast_of_perplexities
from methods.files import write_atomically
from reports.figures import catalogue, curves, intervals, pareto
from reports.figures.curves import Chart, Curve
from reports.figures.figure import Figure, to_svg
from reports.figures.intervals import IntervalPanel, IntervalRow
from reports.tables import views

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


def of_report(run: str, *, name: str, message: str, selection: Selection = EVERY) -> Figure:
    """Return a figure that the report of a run has, by its name, of what is selected."""
    merged = run_folder.load_runs([RESULTS / run], selection)
    every = catalogue.figures_of_report(merged.records, merged.samples)
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


def experts() -> Figure:
    merged, charts = load("experts"), []
    names = ("reap", "expert-norm", "expert-frequency", "expert-random")
    for text in ("wiki", "c4"):
        found = dict[tuple[str, int], list[float]]()
        dense = {one.cell.model: perplexity(one, text) for one in merged.records if one.cell.method == "dense"}
        for one in (one for one in merged.records if one.cell.method != "dense"):
            gone = 16 - one.decisions["experts"][0]
            times = perplexity(one, text) / dense[one.cell.model]
            found.setdefault((one.cell.method, gone), []).append(math.log(times))
        lines = []
        for method in names:
            points = [(0.0, 1.0), *((float(gone), mean(found[method, gone])) for gone in (4, 8, 12))]
            lines.append(Curve(method, method, tuple(points), tuple(f"{y:.2f}" for _, y in points), emphasised=True))
        y = f"times the dense perplexity on {text}"
        charts.append(Chart("experts of 16 that are gone", y, tuple(lines), None, (0, 12), (0.9, 4.0), False))
    words = [f"{chart.y}: {curve.label} {', '.join(curve.figures)}" for chart in charts for curve in chart.curves]
    title = "Perplexity over the experts that are gone, as means over three models"
    figure = Figure("experts", title, ". ".join(words), partial(curves.draw_charts, charts), tuple(charts))
    return with_message(figure, "Which rule is best depends on the text")


def perplexity(record: Any, text: str) -> float:
    return float(record.measured.text_scores[text].perplexity)


def mean(nats: Sequence[float]) -> float:
    return math.exp(sum(nats) / len(nats))


def tasks() -> Figure:
    merged, rows = load("task-signal"), []
    for table in views.build_view("signal", merged.records, samples=merged.samples):
        at = [column.name for column in table.columns].index("agreement")
        tau = {row.label: float(row.cells[at].value) for row in table.rows}
        rows += [IntervalRow(table.model, "dense", tau["average"], tau["average"], tau["average"], tau["bpb"])]
    panel = IntervalPanel("", tuple(rows))
    x = "Kendall's τ of two orders of five methods (points: average accuracy; grey: bits per byte)"
    return of_intervals("tasks", "Bits order methods the same way twice, accuracies do not", [panel], x, (0.0, 1.02))


def departures() -> Figure:
    merged, rows = load("departures"), []
    at = places(merged, "smollm2-135m", 0.2)
    for label, base in PAIRS.items():
        pair = at[base], at[label]
        found = contrast_of_perplexities(merged.records, [pair], merged.samples, "wiki")[pair]
        rows.append(IntervalRow(label, label.partition(":")[0], found.estimate, found.low, found.high))
    message = "Where the authors' code departs from a paper, following it rarely helps"
    x = "times the perplexity of the default on wiki at 0.2, lower is better for the code"
    return of_intervals(
        "departures", message, [IntervalPanel("", tuple(rows))], x, (0.8, 3.2), equal=1.0, logarithmic=True
    )


def laco_puzzle() -> Figure:
    merged, panels = load("grid"), []
    for model, name in NAMES.items():
        at, rows = places(merged, model, 0.2), []
        for label in (label for label in BESIDE_LACO_PUZZLE if label in at):
            pair = at["laco-puzzle"], at[label]
            tasks = list(merged.records[pair[0]].measured.task_scores)
            found = contrast_of_averages(
                merged.records, [pair], merged.samples, tasks, "answer_bpb", bounds=True
            )[pair]  # fmt: skip
            rows.append(IntervalRow(label, label, found.estimate, found.low, found.high))
        panels.append(IntervalPanel(name, tuple(rows)))
    message = "At 0.2 no method is shown to have fewer bits than laco-puzzle"
    x = "bits per byte of the right answers, more than laco-puzzle has"
    return of_intervals("laco-puzzle", message, panels, x, (-0.05, 0.3), equal=0.0)


def all_methods() -> Figure:
    """Return how many bits more than laco-puzzle the other methods have at 0.2, but for those that have far more."""
    merged, rows = load("grid"), list[IntervalRow]()
    at = places(merged, "smollm2-135m", 0.2)
    best = at["laco-puzzle"]
    scores = list(merged.records[best].measured.task_scores)
    for label, place in at.items():
        pair = best, place
        found = contrast_of_averages(merged.records, [pair], merged.samples, scores, "answer_bpb", bounds=True)[pair]
        if place != best and found.estimate < MOST_BITS:
            rows.append(IntervalRow(label, merged.records[place].cell.method, found.estimate, found.low, found.high))
    rows.sort(key=lambda row: row.value)
    message = "At 0.2 every other method has more bits than laco-puzzle"
    x = "bits per byte of the right answers, more than laco-puzzle has"
    return of_intervals("all-methods", message, [IntervalPanel("", tuple(rows))], x, (-0.02, 0.26), equal=0.0)


MOST_BITS = 0.23  # more than laco-puzzle has, of a method that is drawn
BESIDE_LACO_PUZZLE = (
    *("laco-ls", "puzzle+refit", "2ssp+refit", "llm-pruner+refit", "flap+refit"),
    *("llm-streamline", "2ssp", "obs", "sleb", "shortgpt"),
)
LAYERS = (
    *("laco-ls", "llm-streamline", "angular", "sleb", "shortened-llama", "magnitude", "shortgpt"),
    *("laco", "laco-published"),
)
PAIRS = {
    "flap:variance=released": "flap",
    "slicegpt:centre_embeddings=True": "slicegpt",
    "finercut:keep_first=13": "finercut",
    "llm-pruner:gqa=released": "llm-pruner",
    "shortgpt:token=last": "shortgpt",
}


def served_models() -> Figure:
    in_llama, _ = pareto.figures_of_served(served.load(RESULTS / "served"))
    return with_message(
        in_llama, "The whole model in 8 bits loses less than each one in 16 pruned to 0.2 of the decoder"
    )


FIGURES: dict[str, Callable[[], Figure]] = {
    "all-methods": all_methods,
    "calibration": partial(
        of_report, "calibration", name="calibration-perplexity-wiki-0.2-of-the-decoder",
        message="16,384 calibration tokens are enough for most methods"),
    "compensation-mended": partial(
        of_report, "compensation", name="perplexity-wiki-mended",
        message="A fitted map takes off most where the cut has done most harm"),
    "departures": departures,
    "experts": experts,
    "healing-lora": partial(
        of_report, "smollm2-135m-healed", name="healing-0.2",
        message="LoRA gives back most of what the pruned model lost"),
    "laco-ls": partial(
        of_report, "grid", name="perplexity-wiki-by-method", selection=Selection(LAYERS, models=["smollm2-135m"]),
        message="Of nine methods that remove layers laco-ls is first or second at each ratio"),
    "laco-puzzle": laco_puzzle,
    "ratio-curves": partial(
        of_report, "ratio-curves", name="perplexity-wiki-by-ratio",
        message="Which method is second depends on the ratio"),
    "seeds": partial(
        of_report, "seeds", name="perplexity-by-draw-0.2",
        message="Ten draws of the calibration text, and no order of neighbours"),
    "settings-range": partial(
        of_report, "laco-range", name="ablation-laco-perplexity-wiki",
        message="LaCo loses less where it spares the rear layers"),
    "skills": partial(
        of_report, "skills", name="skills-0.2-of-the-decoder",
        message="Code goes first, and with whole layers goes what is read from the prompt"),
    "speed": speed,
    "tasks": tasks,
    "../images/served": served_models,
}  # fmt: skip


def main(names: Sequence[str]) -> None:
    for name in names or FIGURES:
        write_atomically(FOLDER / f"{name}.svg", to_svg(FIGURES[name]()).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
