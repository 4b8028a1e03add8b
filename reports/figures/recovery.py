"""Figures of recovery: quality by the tokens of healing, and by the seconds of pruning and healing together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.plan.cell import words_of_amount
from bench.records.quantity import format_count, format_seconds, format_significant
from bench.records.record import name_of_model
from reports.figures.curves import write_names
from reports.figures.figure import Figure
from reports.figures.style import BLACK, look_of, make_axes, name_in_font, set_log_ticks
from reports.groups import TableGroup
from reports.tables.recovery import RecoveryCurve, RecoveryMeasure, curves_by_measure, find_dense_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


def figures_of_recovery(groups: Sequence[TableGroup]) -> list[Figure]:
    """Return a figure for each ratio and measure of models that were measured while models were trained."""
    figures = []
    for group in groups:
        for measure, curves in curves_by_measure(group).items():
            amount = words_of_amount(group.ratio, group.ratio_of) or "ratio of its own"
            title = (
                f"{measure.title} of {name_of_model(group.records[0])} while it is healed, "
                f"{amount}, by tokens and by seconds of pruning and healing; bands are 95 % intervals over "
                f"{measure.sampled}"
            )
            dense = find_dense_value(group, measure, curves)
            words = f"{amount}: {' '.join(map(_words_of_curve, curves))}"
            name = f"recovery-{measure.name}-{group.ratio}"
            figures.append(Figure(name, title, words, partial(_draw, measure, curves, dense)))
    return figures


def _words_of_curve(curve: RecoveryCurve) -> str:
    first, last = curve.points[0], curve.points[-1]
    tokens = f"{format_count(last.tokens + curve.tokens_before)} tokens"
    seconds = format_seconds(curve.seconds_before + last.seconds)
    start, end = format_significant(first.value), format_significant(last.value)
    return f"{curve.label} from {start} to {end} after {tokens} and {seconds} s."


def _draw(measure: RecoveryMeasure, curves: Sequence[RecoveryCurve], dense: float | None) -> Drawing:
    drawing, panels = make_axes(8.6, 3.6, columns=2)
    for curve in curves:
        _draw_curve(panels[0], curve, [curve.tokens_before + point.tokens for point in curve.points])
        _draw_curve(panels[1], curve, [curve.seconds_before + point.seconds for point in curve.points])
    for axis, heading in zip(panels, ("tokens of healing", "seconds of pruning and healing"), strict=True):
        if dense is not None:
            axis.axhline(dense, color=BLACK, linestyle=":", linewidth=1.2, label="dense")
        if not measure.is_bits:
            axis.set_yscale("log")
            set_log_ticks(axis.yaxis, _extent(curves, dense), 8)
        axis.set_xlabel(heading)
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter(lambda amount, _: f"{amount:,.0f}")
    panels[0].set_ylabel(f"{'bits per byte' if measure.is_bits else 'perplexity'}, lower is better")
    write_names(panels)
    return drawing


def _draw_curve(axis: Axes, curve: RecoveryCurve, places: Sequence[float]) -> None:
    look = look_of(curve.record.cell.method, curve.label)
    axis.plot(places, [point.value for point in curve.points], label=name_in_font(curve.label), **look)
    low = [point.value if point.low is None else point.low for point in curve.points]
    high = [point.value if point.high is None else point.high for point in curve.points]
    axis.fill_between(places, low, high, color=look["color"], alpha=0.12, linewidth=0)


def _extent(curves: Sequence[RecoveryCurve], dense: float | None) -> list[float]:
    """Return the lowest and the highest value, a little apart."""
    values = [point.value for curve in curves for point in curve.points]
    values += [] if dense is None else [dense]
    return [min(values), max(*values, 2 * min(values))]
