"""The charts of the page: curves as an SVG whose text keeps its size in every window.

A chart is as wide as there is room: places across are shares of the width, places up are pixels. The script
of the page brings one curve out of the others; without it some are in colour, and names stand at the curves' ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from reports.figures.curves import Chart, Curve
from reports.figures.style import plain, style, ticks
from reports.page.svg import PAINT
from reports.text import shortened

LINE = 17  # pixels from one name to the next
LEAST, MOST = 320, 560  # pixels of a chart's height
LABEL = 24  # characters of a name


def chart(found: Chart) -> dict[str, Any]:
    """Return what the template draws, in shares of the width and in pixels from the top."""
    named = [curve for curve in found.curves if found.names_all or curve.emphasised]
    height = min(MOST, max(LEAST, round(1.35 * LINE * len(named))))
    places = found.places(LINE / height)
    low, high = found.height
    return {
        "x": found.x,
        "y": found.y,
        "names_all": found.names_all,
        "height": height,
        "rows": [
            {"y": _down(found.up(y), height), "text": plain(y) if found.logarithmic else f"{y:g}"}
            for y in ticks(low, high, 12 if found.logarithmic else 8, logarithmic=found.logarithmic)
        ],
        "columns": [
            {"x": _right(found.across(x)), "text": f"{x:g}"}
            for x in ticks(min(found.width), max(found.width), 5, logarithmic=False)
        ],
        "dense": _dense(found, height),
        "front": [line for part in found.inside(found.front) for line in _lines(part, height)],
        "curves": [
            _curve(found, curve, places.get(curve.label), height)
            for curve in sorted(found.curves, key=lambda curve: (curve.emphasised, -places.get(curve.label, 0)))
        ],
    }


def _dense(found: Chart, height: int) -> dict[str, Any] | None:
    if found.dense is None:
        return None
    up = found.up(found.dense.points[0][1])
    text = f"{found.dense.label} {found.dense.figures[0]}"
    return {"y": _down(up, height), "text": text, "beside": _down(up, height) + (13 if up < 0.5 else -5)}


def _curve(found: Chart, curve: Curve, place: float | None, height: int) -> dict[str, Any]:
    """Return a curve: its lines and dots, its figures beside the dots, its name and the line that leads there."""
    x, y = found.end(curve)
    above = found.up(curve.points[-1][1]) > 1
    look = style(curve.method, curve.label)
    points = [
        {
            "x": _right(found.across(x)),
            "y": _down(min(1.0, found.up(y)), height),
            "figure": figure,
            "above": found.up(y) > 1,
        }
        for (x, y), figure in zip(curve.points, curve.figures, strict=True)
    ]
    return {
        "label": curve.label,
        "name": shortened(curve.label, LABEL),
        "last": curve.figures[-1] + (" \N{UPWARDS ARROW}" if above else ""),
        "said": f"{curve.label}: {', '.join(_said(found, curve))}",
        "emphasised": curve.emphasised,
        "named": place is not None,
        "colour": PAINT.get(look.colour, look.colour),
        "dashes": "" if look.line == "solid" else " ".join(f"{1.8 * n:g}" for n in look.line[1]),
        "lines": [line for part in found.parts(curve) for line in _lines(part, height)],
        "points": points,
        "end": {"x": _right(x), "y": _down(y, height)},
        "place": _down(min(1.0, found.up(curve.points[-1][1])) if place is None else place, height),
    }


def _said(found: Chart, curve: Curve) -> Iterator[str]:
    of_x, of_y = found.units
    for (x, _), figure in zip(curve.points, curve.figures, strict=True):
        yield f"{figure}{of_y} at {x:.3g}{of_x}"


def _lines(places: Sequence[tuple[float, float]], height: int) -> Iterator[dict[str, Any]]:
    for (x1, y1), (x2, y2) in pairwise(places):
        yield {"x1": _right(x1), "y1": _down(y1, height), "x2": _right(x2), "y2": _down(y2, height)}


def _right(share: float) -> str:
    return f"{100 * share:.2f}%"


def _down(share: float, height: int) -> float:
    return round((1 - share) * height, 1)
