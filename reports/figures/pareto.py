"""Figures of quality against its cost, which is size and measured speed, with the Pareto front.

The figure of models in an inference engine shows perplexity against the bytes of the file and the speed of generation
beside the dense model's. Its curves lead from the dense model to a pruned model, and on to the same pruned model in
smaller types of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bench.plan.cell import words_of_ratio
from bench.records.quantities import format_value, quantity_of_column
from bench.records.quantity import format_significant, is_finite, shorten_name
from bench.records.record import Record
from bench.records.served import ServedRecord, group_alike
from reports.figures.curves import FEW, Chart, Curve, Point, draw_charts
from reports.figures.figure import Figure
from reports.figures.quality import (
    PlottedPoint,
    axis_scale,
    chart_of_quality,
    curves_in_colour,
    points_of,
    qualities_of,
    subject_of,
    title_of_quantity,
)
from reports.groups import TableGroup, group_records
from reports.tables.speed import first_speedup_of, suffixes_of_seeds

COSTS = {"parameters": "lower", "prefill_speed": "higher", "decode_speed": "higher"}  # and which way is better


def figures_of_fronts(groups: Sequence[TableGroup], reference: str = "") -> list[Figure]:
    """Return a figure for each quality, with a chart for each cost that several cells have.

    reference  the label of a method that is in colour
    """
    figures, points = [], points_of(groups)
    for column in qualities_of(groups):
        measured = _points_with_value(points, column)
        against = [cost for cost in COSTS if len(_points_with_value(measured, cost)) > 1]
        if not against or all(point.method == "dense" for point in measured):
            continue
        every = tuple(_chart(column, cost, measured, reference) for cost in against)
        costs = " and ".join(dict.fromkeys("size" if cost == "parameters" else "speed" for cost in against))
        title = (
            f"{subject_of(column, groups)} against {costs}; the steps are the front of the cells that no other one "
            "beats in both"
        )
        words = " ".join(_words_of_front(column, cost, measured) for cost in against)
        name = f"{column.replace('_', '-', 1)}-by-cost"
        figures.append(Figure(name, title, words, partial(draw_charts, every), every))
    return figures


def figure_of_model(records: Sequence[Record], record: Record) -> Figure | None:
    """Return the figure of a run's first quality against size, with a ring around one of its cells.

    record  the cell, which stands among the records with all that is compared with it

    None where fewer than two cells of its setup, or not the cell itself, have a size and a quality, and where all are
    dense.
    """
    for groups in group_records(records):
        for group in groups:
            for place, several in enumerate(group.drawn):
                own = [row for row, each in zip(group.each[place], several, strict=True) if each.cell == record.cell]
                if own and record.status == "ok":
                    return _figure_with_ring(groups, own[0], group.label(place), record)
    return None


def _figure_with_ring(
    groups: Sequence[TableGroup], row: Mapping[str, Any], label: str, record: Record
) -> Figure | None:
    points = _points_with_value(points_of(groups), "parameters")
    for column in qualities_of(groups):
        measured = _points_with_value(points, column)
        is_compared = len(measured) > 1 and any(point.method != "dense" for point in measured)
        if not is_compared or not is_finite(row.get(column)):
            continue
        place = (axis_scale("parameters") * row["parameters"], axis_scale(column) * row[column])
        chart = replace(_chart(column, "parameters", measured, label), ringed=place)
        ratio = words_of_ratio(record.cell.ratio, record.cell.ratio_of)
        values = format_value(row, column, spread=False), quantity_of_column("parameters").show(row["parameters"])
        subject = f"{subject_of(column, groups)} against size, {len(measured)} cells of one run"
        title = f"{subject}; the ring is {label}{f' at {ratio}' if ratio else ''} ({', '.join(values)})"
        words = _words_of_front(column, "parameters", measured)
        return Figure("quality-by-size", title, words, partial(draw_charts, (chart,)), (chart,))
    return None


def _chart(column: str, cost: str, points: Sequence[PlottedPoint], reference: str) -> Chart:
    """Return the chart of a quality over one cost. The front has steps, since a cost buys the best cell up to it."""
    front = [
        (axis_scale(cost) * point.row[cost], axis_scale(column) * point.row[column])
        for point in front_of(column, cost, points)
    ]
    heading = f"{title_of_quantity(cost)}, {COSTS[cost]} is better"
    chart = chart_of_quality(column, points, cost, heading, curves_in_colour(column, points, reference))
    width = chart.width[::-1] if COSTS[cost] == "lower" else chart.width  # the smaller models on the right
    return replace(chart, width=width, front=corners_of_front(front, COSTS[cost]), names_all=False)


def front_of(column: str, cost: str, points: Sequence[PlottedPoint]) -> list[PlottedPoint]:
    """Return the cells on the front of a quality and a cost, by rising cost, see `find_unbeaten`."""
    with_cost = [point for point in points if is_finite(point.row.get(cost))]
    places = [(point.row[cost], point.row[column]) for point in with_cost]
    return [
        with_cost[number] for number in find_unbeaten(places, COSTS[cost], quantity_of_column(column).better or "lower")
    ]


def _points_with_value(points: Sequence[PlottedPoint], column: str) -> list[PlottedPoint]:
    return [point for point in points if is_finite(point.row.get(column))]


def find_unbeaten(places: Sequence[Point], *better: str) -> list[int]:
    """Return the numbers of the points on the front, by rising x.

    A point is on the front if no other point is at least as good in both x and y and better in one of them.

    better  whether "lower" or "higher" is better, for x and for y
    """
    signs = [1 if direction == "higher" else -1 for direction in better]
    gains = [(x * signs[0], y * signs[1]) for x, y in places]

    def is_beaten(own: Point) -> bool:
        return any(gain != own and gain[0] >= own[0] and gain[1] >= own[1] for gain in gains)

    kept = [number for number, own in enumerate(gains) if not is_beaten(own)]
    return sorted(kept, key=lambda number: places[number][0])


def corners_of_front(front: Sequence[Point], better: str) -> tuple[Point, ...]:
    """Return the corners of the line through a front, by rising x; `better` says whether a "lower" or "higher" x is."""
    corners: list[Point] = []
    for x, y in front:
        if corners:
            before = corners[-1]
            corners.append((x, before[1]) if better == "lower" else (before[0], y))
        corners.append((x, y))
    return tuple(corners)


def _words_of_front(column: str, cost: str, points: Sequence[PlottedPoint]) -> str:
    """Return a sentence on the cells on the front."""
    quality, price = quantity_of_column(column), quantity_of_column(cost)
    names = []
    for point in front_of(column, cost, points):
        at = "" if point.ratio is None else f" at {words_of_ratio(point.ratio, point.of)}"
        names.append(f"{point.label}{at} ({quality.show(point.row[column])}, {price.show(point.row[cost])})")
    return f"Not beaten in {title_of_quantity(column)} and {title_of_quantity(cost)}: {', '.join(names)}."


MOST = 4.0  # the axis ends at this many times the dense model's perplexity
ROOM = 0.04  # of an axis, beside its first and last point
SERVED_COSTS: dict[str, tuple[str, Callable[[ServedRecord], float | None]]] = {
    "lower": ("MB of weights, lower is better", lambda record: record.measured["bytes"] / 1e6),
    "higher": ("times as fast as the dense model in generating, higher is better", first_speedup_of),
}


def figures_of_served(records: Sequence[ServedRecord]) -> list[Figure]:
    """Return a figure for each group of models that were served alike.

    A group without a perplexity of the dense model and of another one has none.
    """
    scored = [record for record in records if record.status == "ok" and "perplexity" in record.measured]
    groups = [several for several in group_alike(scored) if _base(several) and len(several) > 1]
    return [_figure(several, f"-{number}" if number else "") for number, several in enumerate(groups)]


def _figure(records: Sequence[ServedRecord], ending: str) -> Figure:
    first, charts = records[0], tuple(_charts(records))
    title = (
        f"perplexity of {first.model['name']} on {shorten_name(first.protocol['text'])} in "
        f"{first.protocol['engine']} against size and speed{_shared_ratio(records)}: "
        f"a line leads from dense@{first.base} to a pruned model and on to its types "
        f"{', '.join(_types(records))}; the steps are the front of what no other one beats in both"
    )
    words = " ".join(
        _words_of_served_front(records, better) for better in SERVED_COSTS if _points_of_models(records, better)
    )
    return Figure(f"served{ending}", title, words, partial(draw_charts, charts), charts)


def _base(records: Sequence[ServedRecord]) -> ServedRecord | None:
    return next((record for record in records if record.is_base), None)


def _types(records: Sequence[ServedRecord]) -> list[str]:
    return list(dict.fromkeys(record.type for record in records))


def _perplexity(record: ServedRecord) -> float:
    return float(record.measured["perplexity"]["perplexity"])


def _points_of_models(records: Sequence[ServedRecord], better: str) -> list[tuple[ServedRecord, Point]]:
    """Return the models that have a cost, each with its point of cost and perplexity."""
    costs = [(record, SERVED_COSTS[better][1](record)) for record in records]
    return [(record, (x, _perplexity(record))) for record, x in costs if x is not None]


def _charts(records: Sequence[ServedRecord]) -> Iterator[Chart]:
    """Yield a chart for each cost that at least two models have."""
    base, names = _base(records), _names_of_models(records)
    for better, (heading, _) in SERVED_COSTS.items():
        models_and_points = _points_of_models(records, better)
        places = [place for _, place in models_and_points]
        if base is None or len(models_and_points) < 2:
            continue
        xs, ys = [x for x, _ in places], [y for _, y in places]
        room, top = ROOM * (max(xs) - min(xs) or 1.0), min(max(ys), MOST * _perplexity(base))
        width = (min(xs) - room, max(xs) + room)
        curves: dict[str, list[tuple[ServedRecord, Point]]] = {}
        for record, place in models_and_points:
            if record is not base:
                curves.setdefault(names[id(record)], []).append((record, place))
        start = next((place for record, place in models_and_points if record is base), None)
        yield Chart(
            x=heading,
            y=f"perplexity on {shorten_name(base.protocol['text'])}, lower is better",
            curves=tuple(_curve(label, points, len(curves) <= FEW) for label, points in curves.items()),
            dense=_curve(base.name, [(base, start)], emphasised=True) if start else None,
            width=width[::-1] if better == "lower" else width,
            height=(min(ys) * (1 - 3 * ROOM), top * (1 + ROOM)),
            logarithmic=True,
            front=corners_of_front([places[number] for number in find_unbeaten(places, better, "lower")], better),
            units=(" MB" if better == "lower" else " times as fast", ""),
        )


def _shared_ratio(records: Sequence[ServedRecord]) -> str:
    """Return the ratio of all pruned models as " at 0.2"; empty where they differ."""
    ratios = {words_of_ratio(record.model["requested_ratio"], record.model["ratio_of"]) for record in records} - {""}
    return f" at {ratios.pop()}" if len(ratios) == 1 else ""


def _names_of_models(records: Sequence[ServedRecord]) -> dict[int, str]:
    """Return the name of each model without its type, by the id of its record; a shared ratio is left out."""
    seeds, shared = suffixes_of_seeds(records), _shared_ratio(records)
    names = {}
    for record in records:
        ratio = words_of_ratio(record.model["requested_ratio"], record.model["ratio_of"])
        names[id(record)] = (
            f"{record.model['label']}{f' at {ratio}' if ratio and not shared else ''}{seeds[id(record)]}"
        )
    return names


def _curve(label: str, points: Sequence[tuple[ServedRecord, Point]], emphasised: bool) -> Curve:
    texts = tuple(quantity_of_column("perplexity_").show(y) for _, (_, y) in points)
    places, method = tuple(place for _, place in points), str(points[0][0].model["method"])
    return Curve(label, method, places, texts, emphasised=emphasised)


def _words_of_served_front(records: Sequence[ServedRecord], better: str) -> str:
    """Return a sentence on the models on the front."""
    models_and_points, model_names = _points_of_models(records, better), _names_of_models(records)
    front = find_unbeaten([place for _, place in models_and_points], better, "lower")
    perplexity = quantity_of_column("perplexity_")
    names = []
    for at in front:
        model, (x, y) = models_and_points[at]
        figures = f"{perplexity.show(y)}, {format_significant(x)}"
        names.append(f"{model_names[id(model)]} in {model.type} ({figures})")
    return f"Not beaten in perplexity and {SERVED_COSTS[better][0]}: {', '.join(names)}."
