"""Figures of quality against the number of calibration tokens, and against the seconds that pruning took with them.

A figure has a curve for each method. Its left panel has the tokens on the horizontal axis, its right one the seconds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bench.plan.cell import words_of_amount, words_of_ratio
from bench.records.quantities import format_value, quantity_of_column
from bench.records.quantity import is_finite
from bench.records.record import name_of_model
from reports.figures.curves import write_names
from reports.figures.figure import Figure
from reports.figures.quality import axis_scale, title_of_quantity
from reports.figures.style import BLACK, look_of, make_axes, name_in_font, set_log_ticks
from reports.protocol import conditions_of
from reports.tables.calibration import CalibrationCurves, curves_of_records
from reports.tables.rows import ReportData

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

QUALITIES = ("perplexity_", "answer_bpb", "average")
TOKENS, SECONDS = "calibration tokens", "prune_seconds"


def figures_of_curves(data: ReportData) -> list[Figure]:
    """Return a figure for each curve and measure of quality."""
    figures = []
    for curves in curves_of_records(data):
        cell = curves.first.cell
        for column in (name for name in curves.measures() if name.startswith(QUALITIES)):
            name = f"calibration-{column.replace('_', '-', 1)}-{words_of_ratio(cell.ratio, cell.ratio_of)}"
            title = (
                f"{title_of_quantity(column)} of {name_of_model(curves.first)} at "
                f"{words_of_amount(cell.ratio, cell.ratio_of)} by tokens of {cell.protocol.calibration} and by the "
                f"seconds of pruning; {', '.join(conditions_of(curves.every))}"
            )
            figures.append(Figure(name, title, _words(curves, column), partial(_draw, curves, column)))
    return figures


def _draw(curves: CalibrationCurves, column: str) -> Drawing:
    drawing, panels = make_axes(8.4, 0.8 + max(3.2, 0.2 * len(curves.places)), columns=2, share_y=True)
    scale, quality, every, times = axis_scale(column), quantity_of_column(column), list[float](), list[float]()
    for label, curve in curves.places.items():
        points = [(tokens, curves.point(label, tokens)) for tokens in curve]
        points = [(tokens, row) for tokens, row in points if is_finite(row.get(column))]
        values = [scale * row[column] for _, row in points]
        seconds = [row.get(SECONDS) or float("nan") for _, row in points]
        style = look_of(curves.method(label), label)
        panels[0].plot([tokens for tokens, _ in points], values, label=name_in_font(label), **style)
        panels[1].plot(seconds, values, label=name_in_font(label), **style)
        every, times = every + values, times + list(filter(is_finite, seconds))
    for place in curves.dense[:1]:
        for panel in panels:
            panel.axhline(scale * curves.rows[place][column], color=BLACK, linestyle=":", linewidth=1.2, label="dense")
    panels[0].set_xscale("log")
    panels[0].set_xticks(curves.tokens, [f"{tokens:,}" for tokens in curves.tokens])
    panels[0].minorticks_off()
    panels[1].set_xscale("log")
    if times:
        set_log_ticks(panels[1].xaxis, times, 6)
    if quality.is_logarithmic and every:
        panels[0].set_yscale("log")
        set_log_ticks(panels[0].yaxis, every, 12)
    panels[0].set(xlabel=TOKENS, ylabel=f"{title_of_quantity(column)}, {quality.better} is better")
    panels[1].set_xlabel("seconds of pruning")
    write_names(panels[:1])
    return drawing


def _words(curves: CalibrationCurves, column: str) -> str:
    """Return a sentence on each method with its quality at the fewest and at the most tokens."""
    parts = []
    for label, curve in curves.places.items():
        ends = [f"{format_value(curves.point(label, end), column)} at {end:,}" for end in (min(curve), max(curve))]
        parts.append(f"{label} has {' and '.join(ends)}")
    return f"{title_of_quantity(column)} by calibration tokens: {'; '.join(parts)}."
