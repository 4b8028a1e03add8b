"""Charts and drawings as parts of the page.

A chart is curves as SVG whose text keeps its size in every window. It is as wide as the page allows: places across are
shares of the width, places up are pixels. The script of the page highlights one curve. Without the script some curves
are in colour, and names stand at the curves' ends.

A drawing is an SVG file of matplotlib, without anything that a strict policy refuses. Its `style` attributes become
presentation attributes; style elements and links to other files are removed. Black, white and the grey of grids become
the page's ink, paper and lines, so that a drawing suits a light and a dark page. A map holds a picture whose colours
mean values; it keeps black and white, and its class is "paper".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

from reports.figures.curves import Chart, Curve
from reports.figures.style import find_ticks, style_of, to_plain
from reports.text import shorten

LINE = 17  # pixels from one name to the next
LEAST, MOST = 320, 560  # pixels of a chart's height
LABEL = 24  # characters of a name


def shapes_of_chart(chart: Chart) -> dict[str, Any]:
    """Return the shapes of a chart for the template, in shares of the width and in pixels from the top."""
    named = [curve for curve in chart.curves if chart.names_all or curve.emphasised]
    height = min(MOST, max(LEAST, round(1.35 * LINE * len(named))))
    places = chart.places(LINE / height)
    low, high = chart.height
    return {
        "x": chart.x,
        "y": chart.y,
        "names_all": chart.names_all,
        "height": height,
        "rows": [
            {"y": _down(chart.up(y), height), "text": to_plain(y) if chart.logarithmic else f"{y:g}"}
            for y in find_ticks(low, high, 12 if chart.logarithmic else 8, logarithmic=chart.logarithmic)
        ],
        "columns": [
            {"x": _right(chart.across(x)), "text": f"{x:g}"}
            for x in find_ticks(min(chart.width), max(chart.width), 5, logarithmic=False)
        ],
        "dense": _dense(chart, height),
        "front": [line for part in chart.inside(chart.front) for line in _lines(part, height)],
        "curves": [
            _curve(chart, curve, places.get(curve.label), height)
            for curve in sorted(chart.curves, key=lambda curve: (curve.emphasised, -places.get(curve.label, 0)))
        ],
    }


def _dense(chart: Chart, height: int) -> dict[str, Any] | None:
    if chart.dense is None:
        return None
    up = chart.up(chart.dense.points[0][1])
    text = f"{chart.dense.label} {chart.dense.figures[0]}"
    return {"y": _down(up, height), "text": text, "beside": _down(up, height) + (13 if up < 0.5 else -5)}


def _curve(chart: Chart, curve: Curve, place: float | None, height: int) -> dict[str, Any]:
    """Return the shapes of a curve: lines, dots with their values, the name, and the line to the name."""
    x, y = chart.end(curve)
    above = chart.up(curve.points[-1][1]) > 1
    look = style_of(curve.method, curve.label)
    points = [
        {
            "x": _right(chart.across(x)),
            "y": _down(min(1.0, chart.up(y)), height),
            "figure": figure,
            "above": chart.up(y) > 1,
        }
        for (x, y), figure in zip(curve.points, curve.figures, strict=True)
    ]
    return {
        "label": curve.label,
        "name": shorten(curve.label, LABEL),
        "last": curve.figures[-1] + (" \N{UPWARDS ARROW}" if above else ""),
        "said": f"{curve.label}: {', '.join(_words_of_curve(chart, curve))}",
        "emphasised": curve.emphasised,
        "named": place is not None,
        "colour": PAINT.get(look.colour, look.colour),
        "dashes": "" if look.line == "solid" else " ".join(f"{1.8 * n:g}" for n in look.line[1]),
        "lines": [line for part in chart.parts(curve) for line in _lines(part, height)],
        "points": points,
        "end": {"x": _right(x), "y": _down(y, height)},
        "place": _down(min(1.0, chart.up(curve.points[-1][1])) if place is None else place, height),
    }


def _words_of_curve(chart: Chart, curve: Curve) -> Iterator[str]:
    of_x, of_y = chart.units
    for (x, _), figure in zip(curve.points, curve.figures, strict=True):
        yield f"{figure}{of_y} at {x:.3g}{of_x}"


def _lines(places: Sequence[tuple[float, float]], height: int) -> Iterator[dict[str, Any]]:
    for (x1, y1), (x2, y2) in pairwise(places):
        yield {"x1": _right(x1), "y1": _down(y1, height), "x2": _right(x2), "y2": _down(y2, height)}


def _right(share: float) -> str:
    return f"{100 * share:.2f}%"


def _down(share: float, height: int) -> float:
    return round((1 - share) * height, 1)


SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
DROPPED = ("metadata", "style", "script", "foreignObject")
PAINT = {
    **dict.fromkeys(("#000", "#000000", "black"), "currentColor"),
    **dict.fromkeys(("#fff", "#ffffff", "white"), "var(--paper)"),
    "#e4e4e4": "var(--line)",
}
ROUND = {"stroke-linejoin": "round", "stroke-linecap": "butt"}  # stands in the style element of a drawing
FONT = re.compile(r"(?:(?P<style>italic|oblique) )?(?:(?P<weight>bold|\d{3}) )?(?P<size>[\d.]+px) (?P<family>.+)")


def to_inline(drawing: str) -> str:
    """Return the <svg> element of a drawing for the page. Raises ElementTree.ParseError for text that is no XML."""
    root = ElementTree.fromstring(drawing)
    is_map = next(root.iter(f"{{{SVG}}}image"), None) is not None
    _clean(root, {} if is_map else PAINT)
    for attribute in ("height", "version"):
        root.attrib.pop(attribute, None)  # viewBox keeps the shape
    root.attrib |= ROUND | {"fill": "currentColor"}  # anything without a colour, such as text, is ink too
    root.attrib |= {"class": "paper"} if is_map else {}
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")  # HTML knows no prefixes
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, paint: Mapping[str, str]) -> None:
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag.rpartition("}")[2] in DROPPED:
            element.remove(child)
        else:
            _clean(child, paint)
    attributes: dict[str, str] = {}
    for attribute, value in element.attrib.items():
        if attribute == "style":
            attributes |= _declarations(value)
        elif attribute in ("href", f"{{{XLINK}}}href"):
            if value.startswith(("#", "data:image/")):
                attributes["href"] = value
        elif not attribute.startswith(("{", "on")):
            attributes[attribute] = value
    for attribute in {"fill", "stroke"} & set(attributes):
        attributes[attribute] = paint.get(attributes[attribute].lower(), attributes[attribute])
    element.attrib.clear()
    element.attrib.update(attributes)


def _declarations(style: str) -> dict[str, str]:
    """Return the declarations of a style attribute, such as 'fill: none; font: 10px sans', as attributes."""
    attributes: dict[str, str] = {}
    for declaration in filter(None, (part.strip() for part in style.split(";"))):
        attribute, _, value = (part.strip() for part in declaration.partition(":"))
        font = FONT.fullmatch(value) if attribute == "font" else None
        attributes |= (
            {f"font-{part}": setting for part, setting in font.groupdict().items() if setting}
            if font
            else {attribute: value}
        )
    return attributes
