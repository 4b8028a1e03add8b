"""Figures of a report, drawn by matplotlib: which there are, what they say in words, and how they are written down.

A figure is made from records alone. Equal records give equal bytes: dates are left out and the names inside an SVG
follow from its content.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.record import Record, write_atomically
from reports.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

FORMATS = ("svg", "pdf", "png")


@dataclass(frozen=True)
class Figure:
    """One figure.

    name         of its file, without the ending
    title        what it shows, as in a caption
    description  what a reader would see in it, made from the numbers, for those who cannot see it
    draw         makes the drawing
    """

    name: str
    title: str
    description: str
    draw: Callable[[], Drawing]


def figures(records: Sequence[Record]) -> list[Figure]:
    """Those for which there is data, in the order of a report."""
    from reports import ablation_charts, charts, fronts, gains, maps, traces

    parts = (charts, gains, fronts, maps, traces, ablation_charts)
    found = [figure for part in parts for figure in part.figures(records)]
    return [replace(one, title=printable(one.title), description=printable(one.description)) for one in found]


def svg(figure: Figure) -> str:
    """The figure as an <svg> element, to be put into a page: titled, described, with ids of its own."""
    text = _written(figure, "svg").decode()
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{figure.name}-", body)
    opening, _, rest = body.partition(">")
    said = f"<title>{escape(figure.title)}</title><desc>{escape(figure.description)}</desc>"
    return f'{opening} role="img">{said}{rest}'


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the path's ending: .svg, .pdf or .png. Raises ValueError for another one,
    Unwritable where the disk does not take it.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"a figure is written as .{', .'.join(FORMATS)}; got {path.name}")
    declared = f'<?xml version="1.0" encoding="utf-8"?>\n{svg(figure)}' if kind == "svg" else _written(figure, kind)
    write_atomically(path, declared)


def _written(figure: Figure, kind: str) -> bytes:
    """The bytes of a file without date and author, the same for equal figures."""
    import matplotlib

    from reports.style import SETTINGS

    nothing: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    settings: Any = SETTINGS | {"svg.hashsalt": figure.name}
    with matplotlib.rc_context(settings):
        buffer = io.BytesIO()
        figure.draw().savefig(buffer, format=kind, metadata=nothing[kind])
    return buffer.getvalue()
