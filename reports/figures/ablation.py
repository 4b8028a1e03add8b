"""Figures of the ablation view: a quality over one factor, a line for each value of a second one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from bench.records.record import display_name
from reports.blocks import TableGroup
from reports.figures.figure import Figure
from reports.figures.quality import called, scaled
from reports.figures.style import BLACK, COLOURS, LINES, MARKERS, axes, legend, logarithmic, name
from reports.metrics import finite, metric, shown
from reports.tables.ablation import Study, said, studies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PANELS = 6  # the most beside each other: combinations of a third factor and those behind it
QUALITIES = ("perplexity_", "kl", "average")


def figures(setups: Sequence[Sequence[TableGroup]]) -> list[Figure]:
    """Return a figure for each study and quality."""
    records = {id(record): record for block in chain(*setups) for record in chain(*block.drawn)}
    found = []
    for study in studies(list(records.values())):
        for column in (one for one in study.measures() if one.startswith(QUALITIES)):
            figure = f"ablation-{study.method}-{column.replace('_', '-', 1)}"
            by = " and ".join(study.factors[:3])
            title = f"{called(column)} of {display_name(study.records[0])} under {study.name} by {by}"
            found.append(Figure(figure, title, _said(study, column), partial(_draw, study, column)))
    return found


def _draw(study: Study, column: str) -> Drawing:
    """Draw a panel for each of the first combinations of the factors behind the second."""
    others = study.others()[:PANELS]
    drawing, panels = axes(3.0 + 2.6 * len(others), 3.8, columns=len(others), share_y=True)
    every = [point.row[column] for point in study.points.values() if finite(point.row.get(column))]
    for axis, other in zip(panels, others, strict=True):
        for number, (label, line) in enumerate(_lines(study, column, other).items()):
            axis.plot(
                list(line),
                list(line.values()),
                label=name(label),
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[(number + 1) % len(LINES)],
                marker=MARKERS[number % len(MARKERS)],
            )
        _ticks(axis, study)
        if column.startswith("perplexity") and every:
            axis.set_yscale("log")
            logarithmic(axis.yaxis, every, 12)
        dense = sorted({scaled(column) * row[column] for row in study.dense if finite(row.get(column))})
        label = "dense, the lowest and the highest" if len(dense) > 1 else "dense"  # each seed has its own documents
        for figure in dict.fromkeys([*dense[:1], *dense[-1:]]):
            axis.axhline(figure, color=BLACK, linestyle=":", linewidth=1.2, label=label)
        axis.set_title(", ".join(f"{factor} {said(one)}" for factor, one in zip(study.factors[2:], other, strict=True)))
    panels[0].set_ylabel(name(_with_unit(column)))
    legend(drawing, panels)
    return drawing


def _with_unit(column: str) -> str:
    """Return what a quality is called, with the unit that its figures have."""
    unit = metric(column).unit
    return f"{called(column)} ({unit})" if unit else called(column)


def _lines(study: Study, column: str, others: tuple[Any, ...]) -> dict[str, dict[float, float]]:
    """Return a line over the first factor for each value of the second one, as {label: {x: y}}."""
    first, *rest = study.factors
    places, found = _places(study), dict[str, dict[float, float]]()
    seconds: list[tuple[Any, ...]] = [(value,) for value in study.axis(rest[0])] if rest else [()]
    for second in seconds:
        points = {x: study.points.get((x, *second, *others)) for x in study.axis(first)}
        rows = {places[x]: point.row for x, point in points.items() if point and finite(point.row.get(column))}
        label = f"{rest[0]} {said(second[0])}" if rest else study.name
        found[label] = {x: scaled(column) * row[column] for x, row in rows.items()}
    return {label: line for label, line in found.items() if line}


def _places(study: Study) -> dict[Any, float]:
    """Return the place of each value of the first factor on the axis: of a number its own, of words 0, 1, 2."""
    values = study.axis(study.factors[0])
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return {value: float(value) if numeric else float(at) for at, value in enumerate(values)}


def _ticks(axis: Axes, study: Study) -> None:
    places = _places(study)
    axis.set_xticks(list(places.values()), [name(said(value)) for value in places])
    axis.set_xlabel(name(study.factors[0]))


def _said(study: Study, column: str) -> str:
    """Say which cells are the best and the worst."""
    points = {key: point for key, point in study.points.items() if finite(point.row.get(column))}
    if not points:
        return f"No cell has a {called(column)}."
    order = sorted(points, key=lambda key: points[key].row[column], reverse=metric(column).better == "higher")
    told = [
        f"{word} is {shown(points[key].row, column)} at "
        + ", ".join(f"{factor} {said(value)}" for factor, value in zip(study.factors, key, strict=True))
        for word, key in (("the best", order[0]), ("the worst", order[-1]))
    ]
    more = f" The panels are the first {PANELS} of {len(study.others())}." if len(study.others()) > PANELS else ""
    return f"{_with_unit(column)}, {len(points)} cells: {'; '.join(told)}.{more}"
