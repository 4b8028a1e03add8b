"""Figures of quality against what it costs: size and measured speed, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.records.record import display_name
from reports.blocks import TableGroup
from reports.figures.figure import Figure
from reports.figures.quality import PlottedPoint, points_of, qualities, scaled, vertical
from reports.figures.style import GREY, LEGEND_ROWS, axes, legend, look, name
from reports.metrics import finite, metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COSTS = {  # what is paid or gained for the quality: the heading, and which way is better
    "parameters": ("parameters in millions", "lower"),
    "prefill_speed": ("prefill, times as fast as dense", "higher"),
    "decode_speed": ("decode, times as fast as dense", "higher"),
}


def figures(setups: Sequence[Sequence[TableGroup]]) -> list[Figure]:
    """For each quality a panel for each cost that several cells have."""
    found = []
    for number, blocks in enumerate(setups):
        points = points_of(blocks)
        for column in qualities(blocks):
            measured = [point for point in points if finite(point.row.get(column))]
            against = [cost for cost in COSTS if sum(finite(point.row.get(cost)) for point in measured) > 1]
            if against and any(point.method != "dense" for point in measured):
                found.append(
                    Figure(
                        f"{column.replace('_', '-', 1)}-by-cost{f'-{number + 1}' if number else ''}",
                        f"{metric(column).label} of {display_name(blocks[0].records[0])} by size and speed; the line "
                        "is the front of the cells that no other one beats in both"
                        + ("" if _few(measured) else ", and only they are named"),
                        " ".join(_said(column, cost, measured) for cost in against),
                        partial(_draw, column, against, measured),
                    )
                )
    return found


def _draw(column: str, against: Sequence[str], points: Sequence[PlottedPoint]) -> Drawing:
    """A panel for each cost; every method has its look, and the front is a line.

    More methods than a column of the legend holds share looks, so that only those on the front are named.
    """
    drawing, panels = axes(2.4 + 3.2 * len(against), 4.2, columns=len(against))
    for axis, cost in zip(panels, against, strict=True):
        scale = 1e-6 if cost == "parameters" else 1.0
        known = [point for point in points if finite(point.row.get(cost))]
        front = front_of(column, cost, points)
        told = {point.label for point in (known if _few(points) else front)}
        for label, method in {point.label: point.method for point in known}.items():
            mine = [point.row for point in known if point.label == label]
            x, y = [scale * row[cost] for row in mine], [scaled(column) * row[column] for row in mine]
            axis.plot(x, y, label=name(label) if label in told else "_nolegend_", **look(method, label, line=False))
        x, y = [scale * point.row[cost] for point in front], [scaled(column) * point.row[column] for point in front]
        steps = (
            "steps-post" if COSTS[cost][1] == "lower" else "steps-pre"
        )  # what is paid buys the nearest cell in reach
        axis.plot(x, y, color=GREY, linewidth=1, drawstyle=steps, zorder=1)
        axis.set_xlabel(f"{COSTS[cost][0]}, {COSTS[cost][1]} is better")
    vertical(drawing, panels, column, points)
    for axis in panels[1:]:
        axis.set_ylabel("")
    legend(drawing, panels)
    return drawing


def _few(points: Sequence[PlottedPoint]) -> bool:
    """Whether one column of a legend names every method."""
    return len({point.label for point in points}) <= LEGEND_ROWS


def front_of(column: str, cost: str, points: Sequence[PlottedPoint]) -> list[PlottedPoint]:
    """The cells that no other one beats in one of the two and equals or beats in the other, by rising cost."""
    known = [point for point in points if finite(point.row.get(cost))]
    better = metric(column).better, COSTS[cost][1]

    def gains(point: PlottedPoint) -> tuple[float, float]:
        return (
            point.row[column] * (1 if better[0] == "higher" else -1),
            point.row[cost] * (1 if better[1] == "higher" else -1),
        )

    def beaten(point: PlottedPoint) -> bool:
        own = gains(point)
        return any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in map(gains, known))

    return sorted((point for point in known if not beaten(point)), key=lambda point: point.row[cost])


def _said(column: str, cost: str, points: Sequence[PlottedPoint]) -> str:
    """Who is on the front, in words."""
    names = [
        f"{point.label}{'' if point.ratio is None else f' at {point.ratio:g}'} "
        f"({metric(column).show(point.row[column])}, {metric(cost).show(point.row[cost])})"
        for point in front_of(column, cost, points)
    ]
    return f"Not beaten in {metric(column).label} and {COSTS[cost][0]}: {', '.join(names)}."
