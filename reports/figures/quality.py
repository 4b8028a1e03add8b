"""Figures of quality: over the ratio, and method by method with intervals. The axis of a perplexity is logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from bench.plan.cell import words_of_amount
from bench.records.comparability import setup_of_perplexity, setup_of_record
from bench.records.frame import MISS, columns_of_quantity
from bench.records.quantities import format_value, list_quantities, quantity_of_column
from bench.records.quantity import is_finite
from bench.records.record import name_of_model
from bench.stats.intervals import NORMAL_95
from methods.counted import QUANTITIES
from reports.figures.curves import BEST, FEW, MOST, Chart, Curve, draw_charts
from reports.figures.figure import Figure
from reports.figures.style import BLACK, look_of, make_axes, name_in_font, set_log_ticks, to_plain
from reports.groups import TableGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


BY_METHOD = (
    "by method, the best at the highest ratio on top; bars are 95 % intervals; several draws are points behind their "
    "mean; the dotted line is the dense model"
)
COLOURED = f"; in colour the {BEST} best at the highest ratio"
ALONE = "; methods with a compensation have figures of their own"
JOINED = " Points of {} setups that agree in all that decides it."
FAR = 1000  # the axis of a perplexity ends at this many times the dense model's


RatioAndBase = tuple[float | None, str]


@dataclass(frozen=True)
class PlottedPoint:
    """One cell, or several draws that share a row.

    label, method  the label of the row, and the method's name
    ratio, of      the requested ratio, and what it is a share of
    row            the values of the cell, or the means over its draws
    each           the values of every draw
    """

    label: str
    method: str
    ratio: float | None
    row: dict[str, Any]
    each: list[dict[str, Any]]
    of: str = "all"

    @property
    def ratio_and_base(self) -> RatioAndBase:
        """Return the ratio with what it is a share of: 0.3 of the decoder is not 0.3 of all."""
        return self.ratio, self.of

    @property
    def curve(self) -> tuple[str, str]:
        """Return the label of the curve that the point is on, and what the ratios of the curve are a share of."""
        return self.label, self.of


def figures_of_quality(
    groups: Sequence[TableGroup], setups: Sequence[Sequence[TableGroup]], reference: str = ""
) -> list[Figure]:
    """Return for each quality a chart of the methods over several ratios, and a figure by method with intervals.

    The chart joins all setups that agree in everything that decides the quality, so that it also has cells at which
    perplexity alone was measured. It is among the figures of the first of those setups.

    groups     the groups of one setup
    setups     the groups of every setup
    reference  the label of a method that is in colour
    """
    figures = []
    for column in qualities_of(groups):
        what = subject_of(column, groups)
        slug, axis = column.replace("_", "-", 1), _axis_of(column, groups)
        alike = [setup for setup in setups if column in qualities_of(setup) and _axis_of(column, setup) == axis]
        every = _measured(column, chain(*alike))
        line = _without_compensated(every)
        if alike[0] is groups and len(_ratios(line)) > len({of for _, of in _ratios(line)}):
            coloured = curves_in_colour(column, line, reference)
            title = f"{what} by the share of parameters removed{ALONE if len(line) < len(every) else ''}"
            if len(coloured) < len({point.curve for point in line if point.method != "dense"}):
                title += " and ".join([COLOURED, *sorted({label for label, _ in coloured} & {"laco", reference})])
            words = f"{_words_of_quality(column, line)}{JOINED.format(len(alike)) * (len(alike) > 1)}"
            charts = (chart_of_quality(column, line, "ratio", "parameters removed (%)", coloured),)
            figures.append(Figure(f"{slug}-by-ratio", title, words, partial(draw_charts, charts), charts))
        measured = _measured(column, groups)
        if _ratios(measured):
            title, words = f"{what} {BY_METHOD}", _words_of_quality(column, measured)
            figures.append(Figure(f"{slug}-by-method", title, words, partial(_by_method, column, measured)))
    return figures


def _without_compensated(points: list[PlottedPoint]) -> list[PlottedPoint]:
    """Return the points; without those of compensated methods if there are more curves than a chart can name."""
    if len({point.curve for point in points}) <= MOST:
        return points
    alone = {point.method for point in points}
    return [point for point in points if "+" not in point.method or point.method.partition("+")[0] not in alone]


def _measured(column: str, groups: Iterable[TableGroup]) -> list[PlottedPoint]:
    return [point for point in points_of(groups) if is_finite(point.row.get(column))]


def _ratios(points: Iterable[PlottedPoint]) -> list[RatioAndBase]:
    """Return the ratios of the pruned models in the order of tables; None, of methods with a fixed ratio, is last."""
    ratios = {point.ratio_and_base for point in points if point.method != "dense"}
    return sorted(ratios, key=lambda ratio: (ratio[0] is None, ratio[1] != "all", ratio[1], ratio[0] or 0))


def _axis_of(column: str, groups: Sequence[TableGroup]) -> str:
    """Return the conditions under which a quality was measured, as text. Only cells with equal texts share an axis."""
    record, text = groups[0].records[0], column.removeprefix("perplexity_")
    return f"{column} {setup_of_record(record) if text == column else setup_of_perplexity(record, text)}"


def points_of(groups: Iterable[TableGroup]) -> list[PlottedPoint]:
    """Return every measured row once. The dense model, which is in each group, has one point."""
    points: dict[tuple[str, str, float | None], PlottedPoint] = {}
    for group in groups:
        for place, (record, row) in enumerate(zip(group.records, group.rows, strict=True)):
            if record.status == "ok":
                ratio = None if record.cell.method == "dense" else group.ratio
                of, name = "all" if ratio is None else group.ratio_of, group.label(place)
                point = PlottedPoint(name, record.cell.method, ratio, row, group.each[place], of)
                points.setdefault((*point.curve, ratio), point)
    return list(points.values())


def qualities_of(groups: Sequence[TableGroup]) -> list[str]:
    """Return the columns that have figures of their own: the perplexities, then the average accuracy."""
    records = [record for group in groups for record in group.records]
    drawn = [quantity for quantity in list_quantities() if quantity.is_drawn]
    return list(chain.from_iterable(columns_of_quantity(quantity, records) for quantity in drawn))


def title_of_quantity(column: str) -> str:
    """Return the name of a quantity in a title: 'perplexity on wiki'."""
    quantity = quantity_of_column(column)
    return quantity.title or quantity.heading


def subject_of(column: str, groups: Sequence[TableGroup]) -> str:
    """Return the subject of figures of a quality: 'perplexity on wiki of SmolLM2-135M'."""
    return f"{title_of_quantity(column)} of {name_of_model(groups[0].records[0])}"


def axis_scale(column: str) -> float:
    """Return the factor from a value of the frame to the unit of its axis, such as per cent."""
    return quantity_of_column(column).axis_scale


def chart_of_quality(
    column: str,
    points: Sequence[PlottedPoint],
    cost: str,
    heading: str,
    coloured: AbstractSet[tuple[str, str]],
) -> Chart:
    """Return the chart of a quality over another column of the frame.

    heading   of the horizontal axis
    coloured  the curves that are in colour
    """
    lines: dict[tuple[str, str], list[PlottedPoint]] = {}
    for point in sorted(points, key=lambda point: point.ratio or 0):
        if is_finite(point.row.get(cost)):
            lines.setdefault(point.curve, []).append(point)
    several = len({of for ratio, of in _ratios(points) if ratio is not None}) > 1
    x_scale, y_scale, curves = axis_scale(cost), axis_scale(column), list[Curve]()
    for curve, line in lines.items():
        name = curve[0] + (_apart(line[0].of) if several else "")
        points_of_line = tuple((x_scale * point.row[cost], y_scale * point.row[column]) for point in line)
        texts = tuple(format_value(point.row, column, spread=False) for point in line)
        is_joined, is_coloured = line[0].ratio is not None, curve in coloured
        curves.append(Curve(name, line[0].method, points_of_line, texts, joined=is_joined, emphasised=is_coloured))
    places = [x for curve in curves for x, _ in curve.points]
    room = 0.03 * (max(places) - min(places) or 1)
    dense, quality = [curve for curve in curves if curve.method == "dense"], quantity_of_column(column)
    pruned = tuple(curve for curve in curves if curve.method != "dense")
    limits, units = (
        (min(places) - room, max(places) + room),
        (quantity_of_column(cost).words_of_unit, quality.words_of_unit),
    )
    ends, is_logarithmic = _ends(column, points), quality.is_logarithmic
    baseline = dense[0] if dense else None
    return Chart(heading, _axis_label(column), pruned, baseline, limits, ends, is_logarithmic, units=units)


def _apart(of: str) -> str:
    """Return the words behind a method's name in a chart whose ratios are shares of different things."""
    return "" if of == "all" else f", {of}" if of in QUANTITIES else f", of the {of}"


def curves_in_colour(column: str, points: Sequence[PlottedPoint], reference: str = "") -> set[tuple[str, str]]:
    """Return the curves that a chart shows in colour.

    A few curves are all in colour. Of many, LaCo is, the reference, and the best at the highest ratio among the methods
    that removed enough. The best are taken apart for each thing that ratios are a share of.
    """
    pruned = [point for point in points if point.method != "dense"]
    curves = {point.curve for point in pruned}
    if len(curves) <= FEW:
        return curves
    chosen = {curve for curve in curves if curve[0] in ("laco", reference)}
    for of in {of for _, of in curves}:
        mine = [point for point in pruned if point.of == of]
        highest = max((point.ratio for point in mine if point.ratio is not None), default=None)
        best = _order(column, [point for point in mine if point.ratio == highest and _removed_enough(point)])[:BEST]
        chosen |= {(label, of) for label in best}
    return chosen


def _removed_enough(point: PlottedPoint) -> bool:
    return (point.row.get("miss") or 0) >= -MISS


def _ends(column: str, points: Sequence[PlottedPoint]) -> tuple[float, float]:
    """Return the ends of the axis of a quality, around the values that are not too far from the dense model's."""
    beyond = _beyond(column, points)
    figures = [axis_scale(column) * point.row[column] for point in points if point not in beyond]
    low, high = min(figures), max(figures)
    if quantity_of_column(column).is_logarithmic:
        return 0.75 * low, _far(column, points) if beyond else 1.15 * high
    room = 0.06 * (high - low or 1)
    return low - room, high + room


def _far(column: str, points: Sequence[PlottedPoint]) -> float:
    """Return the end of the axis of a perplexity; infinite without a dense model."""
    return FAR * max((float(point.row[column]) for point in points if point.method == "dense"), default=math.inf)


def _beyond(column: str, points: Sequence[PlottedPoint]) -> list[PlottedPoint]:
    """Return the points whose perplexity is so high that an axis with them would leave no room between the others."""
    is_logarithmic = quantity_of_column(column).is_logarithmic
    return [point for point in points if is_logarithmic and point.row[column] > _far(column, points)]


def _axis_label(column: str) -> str:
    quantity = quantity_of_column(column)
    unit = f" ({quantity.unit})" if quantity.unit else ""
    better = f", {quantity.better} is better" if quantity.better else ""
    return f"{name_in_font(title_of_quantity(column))}{unit}{better}"


def _by_method(column: str, points: Sequence[PlottedPoint]) -> Drawing:
    """Draw a panel for each ratio, with the methods in the same order in each. Values beyond the axis are numbers."""
    dense = [point for point in points if point.method == "dense"]
    pruned = [point for point in points if point.method != "dense"]
    ratios, labels, beyond = _ratios(pruned), _order(column, pruned), _beyond(column, points)
    drawing, panels = make_axes(2.2 + 2.1 * len(ratios), 1.0 + 0.21 * len(labels), columns=len(ratios), share_y=True)
    for axis, ratio in zip(panels, ratios, strict=True):
        point_by_height = {
            len(labels) - 1 - labels.index(point.label): point for point in pruned if point.ratio_and_base == ratio
        }
        rows = {y: point for y, point in point_by_height.items() if point not in beyond}
        _bars(axis, column, {y: point for y, point in rows.items() if len(point.each) == 1 or _of_seeds(point)})
        for y, point in rows.items():
            _with_draws(axis, column, point, y)
        for y, point in point_by_height.items():
            if beyond and any(row[column] > _far(column, points) for row in point.each):
                figure = to_plain(point.row[column]) if point in beyond else ""  # else only a draw is beyond
                place: Any = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 7}
                axis.text(0.995, y, f"{figure} \N{RIGHTWARDS ARROW}".strip(), **place)
        for point in dense:
            axis.axvline(axis_scale(column) * point.row[column], color=BLACK, linestyle=":", linewidth=1.2)
        axis.set_yticks(range(len(labels)), [name_in_font(label) for label in reversed(labels)])
        axis.set_ylim(-0.6, len(labels) - 0.4)
        axis.set_title(words_of_amount(*ratio) or "ratio of their own")
        if quantity_of_column(column).is_logarithmic:
            axis.set_xscale("log")
            set_log_ticks(axis.xaxis, [point.row[column] for point in points if point not in beyond], 4)
        if beyond:
            axis.set_xlim(_ends(column, points))
    drawing.supxlabel(_axis_label(column), fontsize=9)
    return drawing


def _of_seeds(point: PlottedPoint) -> bool:
    """Say whether a point is the mean of several seeds, whose spread is an interval."""
    return len({row["seed"] for row in point.each}) > 1


def _bars(axis: Axes, column: str, points: Mapping[int, PlottedPoint]) -> None:
    """Draw the intervals of a panel, by height. Two artists hold all of them; Axes.errorbar makes three for each."""
    if not points:
        return
    colours = [look_of(point.method, point.label)["color"] for point in points.values()]
    low, high = zip(*(_interval(point.row, column) for point in points.values()), strict=True)
    axis.hlines(list(points), low, high, colors=colours, linewidth=1)
    axis.scatter([*low, *high], [*points] * 2, s=4**2, marker="|", c=colours * 2, linewidths=1)


def _interval(row: dict[str, Any], column: str) -> tuple[float, float]:
    """Return the 95 % interval of a value in the unit of its axis; without an interval the value itself, twice."""
    value, low, high, stderr = (row.get(f"{column}{end}") for end in ("", "_low", "_high", "_stderr"))
    if not (is_finite(low) and is_finite(high)):
        margin = NORMAL_95 * float(stderr or 0) if is_finite(stderr) else 0.0
        low, high = float(value or 0) - margin, float(value or 0) + margin
    return axis_scale(column) * float(low or 0), axis_scale(column) * float(high or 0)


def _with_draws(axis: Axes, column: str, point: PlottedPoint, y: int) -> None:
    """Draw a cell. Each of several draws is a small point behind their mean."""
    scale, style = axis_scale(column), look_of(point.method, point.label, line=False)
    if len(point.each) > 1:
        draws = [scale * row[column] for row in point.each]
        axis.plot(draws, [y] * len(draws), marker=".", markersize=4, linestyle="none", color=style["color"])
        style |= {"markerfacecolor": "white"}
    axis.plot([scale * point.row[column]], [y], **style)


def _order(column: str, points: Sequence[PlottedPoint]) -> list[str]:
    """Return the methods' labels, sorted by the quality at the highest ratio that each has, the best first.

    Ratios of all parameters come before ratios of the decoder.
    """
    last = {point.label: point for point in sorted(points, key=lambda point: (point.of == "all", point.ratio or 0))}
    sign = -1 if quantity_of_column(column).better == "higher" else 1

    def place(label: str) -> tuple[bool, str, float, float, str]:
        point = last[label]
        return point.of != "all", point.of, -(point.ratio or 0), sign * point.row[column], label

    return sorted(last, key=place)


def _words_of_quality(column: str, points: Sequence[PlottedPoint]) -> str:
    """Return sentences with the best and the worst at each ratio."""
    metric = quantity_of_column(column)
    parts = [f"{point.label} {format_value(point.row, column)}." for point in points if point.method == "dense"]
    for ratio in _ratios(points):
        candidates = [point for point in points if point.ratio_and_base == ratio and point.method != "dense"]
        candidates = [
            point for point in candidates if _removed_enough(point)
        ] or candidates  # what removed too little is flattered
        order = sorted(candidates, key=lambda point: point.row[column], reverse=metric.better == "higher")
        where = f"At {words_of_amount(*ratio)}" if words_of_amount(*ratio) else "With a ratio of their own"
        worst = f"; the worst of {len(candidates)} is {order[-1].label} with {format_value(order[-1].row, column)}" * (
            len(candidates) > 1
        )
        parts.append(f"{where} the best is {order[0].label} with {format_value(order[0].row, column)}{worst}.")
    return " ".join([f"{title_of_quantity(column)}:", *parts])
