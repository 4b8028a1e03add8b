"""Charts of a quality against the ratio or a cost, with a curve for each method, readable at twenty methods too.

A few curves are in colour, all others are grey, and a curve's name stands at its end. In colour are the `BEST` methods
at the highest ratio, LaCo, and the method that `--reference` names; all curves if they are few. matplotlib draws a
`Chart` for papers (`draw_charts`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.figures.style import BLACK, GREY, LIGHT, look_of, make_axes, name_in_font, set_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D


Point = tuple[float, float]
GREYED: dict[str, Any] = {"color": LIGHT, "linestyle": "solid", "linewidth": 0.8, "marker": "o", "markersize": 2.5}
BEST = 5  # methods in colour for their quality at the highest ratio
FEW = 8  # curves that are all in colour
MOST = 26  # methods with a name in one chart
GAP = 0.125  # inches from one name to the next


@dataclass(frozen=True)
class Curve:
    """The cells of one method.

    label, method  the label that is shown, and the method's name
    points         (x, y) in the units of the axes, the lowest ratio first
    figures        the quality at each point as text, such as '92.8 ± 15.6'
    joined         whether a line goes through the points
    emphasised     whether the curve is in colour
    """

    label: str
    method: str
    points: tuple[Point, ...]
    figures: tuple[str, ...]
    joined: bool = True
    emphasised: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over one axis.

    x, y         the headings of the axes; they say which way is better
    curves       the curves of the pruned models
    dense        the dense model as a curve of one point; None if it is unknown
    width        the ends of the horizontal axis
    height       the ends of the vertical axis; a curve that leaves it is named at the top
    logarithmic  whether the vertical axis is logarithmic
    front        corners of the line through the cells that no other cell beats in both x and y
    names_all    whether grey curves are named too
    units        the text behind a value of x and behind a value of y in a description
    ringed       the point with a ring around it; one above the axis has it at the top
    """

    x: str
    y: str
    curves: tuple[Curve, ...]
    dense: Curve | None
    width: Point
    height: Point
    logarithmic: bool
    front: tuple[Point, ...] = ()
    names_all: bool = True
    units: tuple[str, str] = ("", "")
    ringed: Point | None = None

    def across(self, x: float) -> float:
        """Return the place of `x` on the horizontal axis, 0 at the left and 1 at the right."""
        return (x - self.width[0]) / (self.width[1] - self.width[0])

    def up(self, y: float) -> float:
        """Return the place of `y` on the vertical axis, 0 at the bottom, 1 at the top, and more than 1 above it."""
        low, high, at = map(math.log, (*self.height, y)) if self.logarithmic else (*self.height, y)
        return (at - low) / (high - low)

    def parts(self, curve: Curve) -> list[list[Point]]:
        """Return the lines of a curve inside the chart, as places across and up.

        A joined curve starts at the dense model; otherwise each point is a line of its own.
        """
        if not curve.joined:
            return [part for point in curve.points for part in self.inside((point,))]
        return self.inside(((*self.dense.points, *curve.points)) if self.dense else curve.points)

    def inside(self, points: Sequence[Point]) -> list[list[Point]]:
        """Return the parts of the line through the points that are inside the chart; it may leave it at the top."""
        places = [(self.across(x), self.up(y)) for x, y in points]
        parts: list[list[Point]] = [[]]
        for place, after in zip(places, [*places[1:], *places[-1:]], strict=True):
            if place[1] <= 1:
                parts[-1].append(place)
            if (place[1] <= 1) != (after[1] <= 1):
                share = (1 - place[1]) / (after[1] - place[1])
                parts[-1].append((place[0] + share * (after[0] - place[0]), 1.0))
                parts += [[]] * (after[1] > 1)
        return [part for part in parts if part]

    def end(self, curve: Curve) -> Point:
        """Return the place, across and up, at which the line from a curve to its name begins."""
        parts = self.parts(curve)
        return parts[-1][-1] if parts else (self.across(curve.points[-1][0]), 1.0)

    def places(self, gap: float) -> dict[str, float]:
        """Return {label: how far up the name stands} for every named curve, each at least `gap` from the next."""
        named = sorted(
            (curve for curve in self.curves if self.names_all or curve.emphasised),
            key=lambda curve: (self.up(curve.points[-1][1]), curve.label),
        )
        ends = [min(1.0, self.up(curve.points[-1][1])) for curve in named]
        return {curve.label: place for curve, place in zip(named, move_apart(ends, gap), strict=True)}


def move_apart(places: Sequence[float], gap: float) -> list[float]:
    """Return the places between 0 and 1 that are nearest to the wanted ones and at least `gap` apart.

    The wanted places rise. If there is no room for the gap, the places are as far apart as possible.
    """
    if len(places) > 1:
        gap = min(gap, 1 / (len(places) - 1))
    groups: list[list[float]] = []  # neighbours that push each other aside: the start of the group that each wants
    for number, place in enumerate(places):
        groups.append([place - number * gap])
        while len(groups) > 1 and fmean(groups[-2]) >= fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    starts = [fmean(group) for group in groups for _ in group]
    last = 1 - (len(places) - 1) * gap
    return [min(max(start, 0.0), last) + number * gap for number, start in enumerate(starts)]


def write_names(panels: Sequence[Axes]) -> None:
    """Write the name of each labelled line beside the last panel that has it, with a thin line to its right end.

    Names stand as far apart as they are high. Call it once scales and limits are set.
    """
    named: dict[str, tuple[Axes, Line2D]] = {}
    for axis in panels:
        axis.autoscale_view()
        for line in axis.get_lines():
            if not str(line.get_label()).startswith("_"):
                named[str(line.get_label())] = (axis, line)
    for axis in panels:
        lines = [line for panel, line in named.values() if panel is axis]
        ends = {id(line): _right_end(axis, line) for line in lines}
        lines.sort(key=lambda line: ends[id(line)][1])
        gap = GAP * axis.figure.dpi / axis.bbox.height
        heights = move_apart([min(1.0, max(0.0, ends[id(line)][1])) for line in lines], gap)
        for line, height in zip(lines, heights, strict=True):
            _name_beside(axis, str(line.get_label()), ends[id(line)], height, line.get_color())


def _right_end(axis: Axes, line: Line2D) -> Point:
    """Return the point of a line that is furthest to the right, across and up, as shares of the panel."""
    points = np.column_stack(line.get_data()).astype(float)
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        return 1.0, 0.5
    x, y = points[points[:, 0].argmax()].tolist()
    if line.get_transform() != axis.transData:  # a horizontal line, from one end of the panel to the other
        x = axis.get_xlim()[1]
    across, up = axis.transAxes.inverted().transform(axis.transData.transform((x, y)))
    return float(across), float(up)


def _count_names(chart: Chart) -> int:
    """Return how many curves have their name beside them."""
    return sum(chart.names_all or curve.emphasised for curve in chart.curves)


def draw_charts(charts: Sequence[Chart]) -> Drawing:
    """Draw a panel for each chart, side by side."""
    height = max(4.2, 0.6 + GAP * max(map(_count_names, charts)))
    wide = 7.2 if len(charts) == 1 else 4.0 * len(charts)
    drawing, panels = make_axes(wide, height, columns=len(charts))
    for axis, chart in zip(panels, charts, strict=True):
        _panel(axis, chart, GAP / (height - 0.6))
    for axis in panels[1:]:
        axis.set_ylabel("")
    return drawing


def _panel(axis: Axes, chart: Chart, gap: float) -> None:
    """Draw one chart: the dense model as a dotted line, the front as steps, the grey curves below those in colour."""
    if chart.logarithmic:
        axis.set_yscale("log")
        set_log_ticks(axis.yaxis, chart.height, 12)
    axis.set(xlim=chart.width, ylim=chart.height, xlabel=chart.x, ylabel=chart.y)
    if chart.dense:
        (_, y), figure = chart.dense.points[0], chart.dense.figures[0]
        axis.axhline(y, color=BLACK, linestyle=":", linewidth=1.2)
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "horizontalalignment": "right"}
        style |= {"xytext": (-3, -8.5 if chart.up(y) < 0.5 else 3)}
        axis.annotate(f"{name_in_font(chart.dense.label)} {figure}", (chart.width[1], y), **style)
    if chart.front:
        axis.plot(*zip(*chart.front, strict=True), color=GREY, linewidth=0.8, zorder=1)
    places = chart.places(gap)
    for curve in sorted(chart.curves, key=lambda curve: curve.emphasised):
        own: dict[str, Any] = GREYED if not curve.emphasised else look_of(curve.method, curve.label)
        transform: Any = axis.transAxes
        for part in chart.parts(curve) if curve.joined else ():
            axis.plot(
                *zip(*part, strict=True), transform=transform, **own | {"marker": "none"}, zorder=2 + curve.emphasised
            )
        inside = [point for point in curve.points if chart.up(point[1]) <= 1]
        axis.plot(
            [x for x, _ in inside],
            [y for _, y in inside],
            label=name_in_font(curve.label),
            **own | {"linestyle": "none"},
            zorder=2.1 + curve.emphasised,
        )
        if curve.label in places:
            _name(axis, chart, curve, places[curve.label], own["color"])
    if chart.ringed:
        ring = (chart.across(chart.ringed[0]), min(1.0, chart.up(chart.ringed[1])))
        look: dict[str, Any] = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": BLACK, "zorder": 4}
        axis.plot(*ring, "o", transform=axis.transAxes, clip_on=False, markeredgewidth=1.4, **look)


def _name(axis: Axes, chart: Chart, curve: Curve, place: float, colour: str) -> None:
    """Write a curve's name beside the chart, with a thin line to its end; its value too if it ends above the axis."""
    above = f" {curve.figures[-1]} \N{UPWARDS ARROW}" if chart.up(curve.points[-1][1]) > 1 else ""
    name = name_in_font(curve.label) + above
    _name_beside(axis, name, chart.end(curve), place, colour, emphasised=curve.emphasised)


def _name_beside(axis: Axes, name: str, end: Point, place: float, colour: Any, *, emphasised: bool = True) -> None:
    line = {
        "arrowstyle": "-",
        "color": colour,
        "linewidth": 0.6,
        "linestyle": ":",
        "shrinkA": 1,
        "shrinkB": 2,
        "relpos": (0, 0.5),
    }
    axis.annotate(
        name,
        end,
        (1.04, place),
        xycoords="axes fraction",
        textcoords="axes fraction",
        arrowprops=line,
        color=BLACK if emphasised else GREY,
        fontsize=8 if emphasised else 7,
        verticalalignment="center",
        annotation_clip=False,
    )
