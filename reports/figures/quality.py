"""Figures of quality: against the ratio, and method by method with intervals; a perplexity on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from bench.records.columns import MISS, texts
from bench.records.comparability import perplexity_setup, setup
from bench.records.record import display_name
from bench.stats.intervals import NORMAL_95
from reports.blocks import TableGroup
from reports.figures.figure import Figure
from reports.figures.style import BLACK, LEGEND_ROWS, axes, legend, logarithmic, look, name, plain
from reports.metrics import finite, metric, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

BY_METHOD = (
    "by method, the best at the highest ratio on top; bars are 95 % intervals; several draws are points behind their "
    "mean; the dotted line is the dense model"
)
ALONE = "; methods with a compensation have figures of their own"
JOINED = " Points of {} setups that agree in all that decides it."
FAR = 1000  # times the dense perplexity, where the axis of a figure over the ratio ends


@dataclass(frozen=True)
class PlottedPoint:
    """One cell, or several draws of a random method: its row of the frame, its draws' rows, and how it is called."""

    label: str
    method: str
    ratio: float | None
    row: dict[str, Any]
    each: list[dict[str, Any]]


def figures(setups: Sequence[Sequence[TableGroup]]) -> list[Figure]:
    """For each quality a panel for each ratio with the intervals, and a line for each method over several ratios.

    A line goes through all setups that agree in what decides the quality, so that a curve can have points at which
    perplexity alone was measured.
    """
    found = []
    joined: set[str] = set()
    for number, blocks in enumerate(setups):
        ending = f"-{number + 1}" if number else ""
        for column in qualities(blocks):
            measured = _measured(column, blocks)
            what = f"{metric(column).label} of {display_name(blocks[0].records[0])}"
            slug, here = column.replace("_", "-", 1), _axis_of(column, blocks)
            alike = [other for other in setups if column in qualities(other) and _axis_of(column, other) == here]
            every = _measured(column, chain(*alike))
            line = _that_a_legend_holds(every)
            if here not in joined and len(_ratios(line)) > 1:
                title = f"{what} by the share of parameters removed{ALONE if len(line) < len(every) else ''}"
                said = f"{_said(column, line)}{JOINED.format(len(alike)) * (len(alike) > 1)}"
                found.append(Figure(f"{slug}-by-ratio{ending}", title, said, partial(_by_ratio, column, line)))
            joined.add(here)
            if _ratios(measured):
                title, said = f"{what} {BY_METHOD}", _said(column, measured)
                found.append(Figure(f"{slug}-by-method{ending}", title, said, partial(_by_method, column, measured)))
    return found


def _that_a_legend_holds(points: list[PlottedPoint]) -> list[PlottedPoint]:
    """Where more than a column of the legend holds would share looks: without those that figures of gains have."""
    if len({point.label for point in points}) <= LEGEND_ROWS:
        return points
    alone = {point.method for point in points}
    return [point for point in points if "+" not in point.method or point.method.partition("+")[0] not in alone]


def _measured(column: str, blocks: Iterable[TableGroup]) -> list[PlottedPoint]:
    return [point for point in points_of(blocks) if finite(point.row.get(column))]


def _ratios(points: Iterable[PlottedPoint]) -> list[float | None]:
    """Of the pruned models, rising; None, for methods of a fixed ratio, last."""
    found = {point.ratio for point in points if point.method != "dense"}
    return sorted(found, key=lambda ratio: (ratio is None, ratio or 0))


def _axis_of(column: str, blocks: Sequence[TableGroup]) -> str:
    """What cells must agree in to share an axis of this quality."""
    record, text = blocks[0].records[0], column.removeprefix("perplexity_")
    return f"{column} {setup(record) if text == column else perplexity_setup(record, text)}"


def points_of(blocks: Iterable[TableGroup]) -> list[PlottedPoint]:
    """Every measured row once: the dense model stands on top of each block."""
    found: dict[tuple[str, float | None], PlottedPoint] = {}
    for block in blocks:
        for place, (record, row) in enumerate(zip(block.records, block.rows, strict=True)):
            if record.status == "ok":
                ratio = None if record.cell["method"] == "dense" else block.ratio
                point = PlottedPoint(block.label(place), record.cell["method"], ratio, row, block.each[place])
                found.setdefault((point.label, ratio), point)
    return list(found.values())


def qualities(blocks: Sequence[TableGroup]) -> list[str]:
    """The columns that tell how good a model is."""
    records = [record for block in blocks for record in block.records]
    return [*(f"perplexity_{text}" for text in texts(records)), "average"]


def _interval(row: dict[str, Any], column: str) -> tuple[float, float]:
    """The 95 % interval of a figure; without one the figure itself, twice."""
    value, low, high, stderr = (row.get(f"{column}{end}") for end in ("", "_low", "_high", "_stderr"))
    if finite(low) and finite(high):
        return float(low or 0), float(high or 0)
    margin = NORMAL_95 * float(stderr or 0) if finite(stderr) else 0.0
    return float(value or 0) - margin, float(value or 0) + margin


def scaled(column: str) -> float:
    """Shares are drawn in per cent."""
    return 100.0 if metric(column).unit == "%" else 1.0


def _by_ratio(column: str, points: Sequence[PlottedPoint]) -> Drawing:
    drawing, (axis,) = axes(7.2, 4.2)
    lines: dict[str, list[PlottedPoint]] = {}
    for point in points:
        lines.setdefault(point.label, []).append(point)
    for label, line in lines.items():
        if line[0].method == "dense":
            _dense_line(axis, column, line[0])
        else:
            _line(axis, column, label, sorted(line, key=lambda point: point.row["ratio"]))
    vertical(drawing, [axis], column, points)
    axis.set_xlim(left=0)
    axis.set_xlabel("parameters removed (%)")
    legend(drawing, [axis])
    return drawing


def _far(column: str, points: Sequence[PlottedPoint]) -> float:
    """Where the axis of a perplexity ends; infinite where there is no dense model."""
    return FAR * max((float(point.row[column]) for point in points if point.method == "dense"), default=math.inf)


def _beyond(column: str, points: Sequence[PlottedPoint]) -> list[PlottedPoint]:
    """Those of a perplexity so far from the dense one that an axis for them would lay all others on each other."""
    if not column.startswith("perplexity"):
        return []
    return [point for point in points if point.row[column] > _far(column, points)]


def _line(axis: Axes, column: str, label: str, line: Sequence[PlottedPoint]) -> None:
    x = [100 * point.row["ratio"] for point in line]
    y = [scaled(column) * point.row[column] for point in line]
    axis.plot(x, y, label=name(label), **look(line[0].method, label, line=line[0].ratio is not None))


def _dense_line(axis: Axes, column: str, dense: PlottedPoint) -> None:
    axis.axhline(scaled(column) * dense.row[column], color=BLACK, linestyle=":", linewidth=1.2, label=name(dense.label))


def vertical(drawing: Drawing, panels: Sequence[Axes], column: str, points: Sequence[PlottedPoint]) -> None:
    """A quality on the vertical axes: a perplexity logarithmic, and what is too far up for them named below."""
    beyond = _beyond(column, points)
    near = [point for point in points if point not in beyond]
    for axis in panels:
        _scale(axis, "y", column, near)
        axis.set_ylabel(_axis_label(column))
        if beyond:
            axis.set_ylim(0.8 * min(point.row[column] for point in near), _far(column, points))
    if beyond:
        labels = dict.fromkeys(name(point.label) for point in beyond)
        drawing.supxlabel(f"above the axis: {', '.join(labels)}", x=0.01, ha="left", fontsize=7, color=BLACK)


def _scale(axis: Axes, side: Literal["x", "y"], column: str, points: Sequence[PlottedPoint]) -> None:
    if column.startswith("perplexity"):
        (axis.set_xscale if side == "x" else axis.set_yscale)("log")
        ticks = 4 if side == "x" else 12
        logarithmic(axis.xaxis if side == "x" else axis.yaxis, [point.row[column] for point in points], ticks)


def _axis_label(column: str) -> str:
    found = metric(column)
    better = "" if found.better is None else f", {found.better} is better"
    return f"{name(found.label)}{' (%)' if scaled(column) == 100 else ''}{better}"


def _by_method(column: str, points: Sequence[PlottedPoint]) -> Drawing:
    """A panel for each ratio, the methods one below the other in the same order; beyond the axis as numbers."""
    dense = [point for point in points if point.method == "dense"]
    pruned = [point for point in points if point.method != "dense"]
    ratios = _ratios(pruned)
    labels = _order(column, pruned)
    beyond = _beyond(column, points)
    near = [point for point in points if point not in beyond]
    drawing, panels = axes(2.2 + 2.1 * len(ratios), 1.0 + 0.21 * len(labels), columns=len(ratios), share_y=True)
    for axis, ratio in zip(panels, ratios, strict=True):
        here = {len(labels) - 1 - labels.index(point.label): point for point in pruned if point.ratio == ratio}
        rows = {y: point for y, point in here.items() if point not in beyond}
        _bars(axis, column, {y: point for y, point in rows.items() if len(point.each) == 1})
        for y, point in rows.items():
            _with_draws(axis, column, point, y)
        for y, point in here.items():
            if beyond and any(row[column] > _far(column, points) for row in point.each):
                figure = plain(point.row[column]) if point in beyond else ""  # it is one of its draws that is
                place: Any = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 7}
                axis.text(0.995, y, f"{figure} \N{RIGHTWARDS ARROW}".strip(), **place)
        for one in dense:
            axis.axvline(scaled(column) * one.row[column], color=BLACK, linestyle=":", linewidth=1.2)
        axis.set_yticks(range(len(labels)), [name(label) for label in reversed(labels)])
        axis.set_ylim(-0.6, len(labels) - 0.4)
        axis.set_title("ratio of their own" if ratio is None else f"ratio {ratio:g}")
        _scale(axis, "x", column, near)
        if beyond:
            axis.set_xlim(0.8 * min(point.row[column] for point in near), _far(column, points))
    drawing.supxlabel(_axis_label(column), fontsize=9)
    return drawing


def _bars(axis: Axes, column: str, points: Mapping[int, PlottedPoint]) -> None:
    """The intervals of a panel, by height, in one artist, where Axes.errorbar has three for each."""
    if not points:
        return
    colours = [look(point.method, point.label)["color"] for point in points.values()]
    both = [[scaled(column) * end for end in _interval(point.row, column)] for point in points.values()]
    low, high = zip(*both, strict=True)
    axis.hlines(list(points), low, high, colors=colours, linewidth=1)
    axis.scatter([*low, *high], [*points] * 2, s=4**2, marker="|", c=colours * 2, linewidths=1)


def _with_draws(axis: Axes, column: str, point: PlottedPoint, y: int) -> None:
    """A cell; of several draws each as a small point behind their mean."""
    scale, style = scaled(column), look(point.method, point.label, line=False)
    if len(point.each) > 1:
        draws = [scale * row[column] for row in point.each]
        axis.plot(draws, [y] * len(draws), marker=".", markersize=4, linestyle="none", color=style["color"])
        style |= {"markerfacecolor": "white"}
    axis.plot([scale * point.row[column]], [y], **style)


def _order(column: str, points: Sequence[PlottedPoint]) -> list[str]:
    """The methods' labels, the best at the highest ratio that they have first."""
    last = {point.label: point for point in sorted(points, key=lambda point: point.ratio or 0)}
    sign = -1 if metric(column).better == "higher" else 1
    return sorted(last, key=lambda label: (-(last[label].ratio or 0), sign * last[label].row[column], label))


def _said(column: str, points: Sequence[PlottedPoint]) -> str:
    """The best and the worst at each ratio, in words."""
    found = metric(column)
    parts = [f"{point.label} {shown(point.row, column)}." for point in points if point.method == "dense"]
    for ratio in _ratios(points):
        here = [point for point in points if point.ratio == ratio and point.method != "dense"]
        here = [point for point in here if not (point.row.get("miss") or 0) < -MISS] or here  # too little flatters
        order = sorted(here, key=lambda point: point.row[column], reverse=found.better == "higher")
        where = "With a ratio of their own" if ratio is None else f"At ratio {ratio:g}"
        worst = f"; the worst of {len(here)} is {order[-1].label} with {shown(order[-1].row, column)}" * (len(here) > 1)
        parts.append(f"{where} the best is {order[0].label} with {shown(order[0].row, column)}{worst}.")
    return " ".join([f"{found.label}:", *parts])
