"""Figures of quality against what it costs: size and measured speed, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bench.records.record import share
from reports.blocks import TableGroup
from reports.figures.curves import Chart, Point, draw
from reports.figures.figure import Figure
from reports.figures.quality import PlottedPoint, called, chart, in_colour, points_of, qualities, scaled, subject
from reports.metrics import finite, metric

COSTS = {  # what is paid or gained for the quality: the heading, and which way is better
    "parameters": ("parameters in millions", "lower"),
    "prefill_speed": ("prefill, times as fast as dense", "higher"),
    "decode_speed": ("decode, times as fast as dense", "higher"),
}


def figures(blocks: Sequence[TableGroup], reference: str = "") -> list[Figure]:
    """Return for each quality a chart for each cost that several cells have; `reference` is in colour."""
    found, points = [], points_of(blocks)
    for column in qualities(blocks):
        measured = [point for point in points if finite(point.row.get(column))]
        against = [cost for cost in COSTS if sum(finite(point.row.get(cost)) for point in measured) > 1]
        if not against or all(point.method == "dense" for point in measured):
            continue
        charts = {cost: _chart(column, cost, measured, reference) for cost in against}
        timed = tuple(one for cost, one in charts.items() if cost != "parameters")  # which the ratio tells too
        every = tuple(charts.values())
        title = (
            f"{subject(column, blocks)} against size and speed; the steps are the front of the cells that no "
            "other one beats in both"
        )
        said = " ".join(_said(column, cost, measured) for cost in against)
        name = f"{column.replace('_', '-', 1)}-by-cost"
        found.append(Figure(name, title, said, partial(draw, every), timed or every))
    return found


def _chart(column: str, cost: str, points: Sequence[PlottedPoint], reference: str) -> Chart:
    """Return the chart of a quality over one cost; what is paid buys the nearest cell in reach, hence the steps."""
    front = [(scaled(cost) * one.row[cost], scaled(column) * one.row[column]) for one in front_of(column, cost, points)]
    heading = f"{COSTS[cost][0]}, {COSTS[cost][1]} is better"
    found = chart(column, points, cost, heading, in_colour(column, points, reference))
    width = found.width[::-1] if COSTS[cost][1] == "lower" else found.width  # so that more was removed on the right
    return replace(found, width=width, front=steps(front, COSTS[cost][1]), names_all=False)


def front_of(column: str, cost: str, points: Sequence[PlottedPoint]) -> list[PlottedPoint]:
    """Return the cells that no other one beats in one of the two and equals or beats in the other, by rising cost."""
    known = [point for point in points if finite(point.row.get(cost))]
    places = [(point.row[cost], point.row[column]) for point in known]
    return [known[number] for number in unbeaten(places, COSTS[cost][1], metric(column).better or "lower")]


def unbeaten(places: Sequence[Point], *better: str) -> list[int]:
    """Return the numbers of the points that no other one beats in x or y and equals or beats in both, by rising x.

    better  of x and of y, whether "lower" or "higher" is better
    """
    signs = [1 if one == "higher" else -1 for one in better]
    gains = [(x * signs[0], y * signs[1]) for x, y in places]
    kept = [
        number
        for number, own in enumerate(gains)
        if not any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in gains)
    ]
    return sorted(kept, key=lambda number: places[number][0])


def steps(front: Sequence[Point], better: str) -> tuple[Point, ...]:
    """Return the corners of the line through a front, by rising x, of which "lower" or "higher" is better."""
    corners: list[Point] = []
    for x, y in front:
        if corners:
            before = corners[-1]
            corners.append((x, before[1]) if better == "lower" else (before[0], y))
        corners.append((x, y))
    return tuple(corners)


def _said(column: str, cost: str, points: Sequence[PlottedPoint]) -> str:
    """Say which cells are on the front."""
    names = [
        f"{point.label}{'' if point.ratio is None else f' at {share(point.ratio, point.of)}'} "
        f"({metric(column).show(point.row[column])}, {metric(cost).show(point.row[cost])})"
        for point in front_of(column, cost, points)
    ]
    return f"Not beaten in {called(column)} and {COSTS[cost][0]}: {', '.join(names)}."
