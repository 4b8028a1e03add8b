"""A figure, which is a drawing by matplotlib with a title and a description, and the writing of its files.

Equal records give equal bytes: files have no date, and the ids inside an SVG follow from its content.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.files import write_atomically
from reports.text import to_printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from matplotlib.transforms import Bbox

    from reports.figures.curves import Chart


FORMATS = ("svg", "pdf", "png")
PADDING = 0.1  # inches around a drawing


@dataclass(frozen=True)
class Figure:
    """One figure.

    name         the name of its file, without the ending
    title        what it shows, as in a caption
    description  what a reader sees in it, for those who cannot see it; made from the numbers
    draw         makes the drawing
    charts       the charts of which it is drawn; empty for a drawing of another kind
    """

    name: str
    title: str
    description: str
    draw: Callable[[], Drawing]
    charts: tuple[Chart, ...] = ()


def render_figure(figure: Figure, kinds: Sequence[str] = FORMATS) -> dict[str, bytes]:
    """Return {format: content of the figure's file}, without date and author, all from one drawing."""
    import matplotlib

    from reports.figures.style import SETTINGS

    settings: Any = SETTINGS | {"svg.hashsalt": figure.name}
    with matplotlib.rc_context(settings):
        drawing = figure.draw()
        box = _laid_out(drawing)
        contents = {kind: _file(drawing, kind, box) for kind in kinds}
    return (
        contents | {"svg": _with_description(figure, contents["svg"].decode()).encode()}
        if "svg" in contents
        else contents
    )


def to_svg(figure: Figure) -> str:
    """Return the figure as SVG with title and description. Its ids are its own, so that several can share a page."""
    return render_figure(figure, ("svg",))["svg"].decode()


def save_figure(figure: Figure, folder: Path) -> None:
    """Write the figure in every format, as FOLDER/NAME.FORMAT. Raises Unwritable if the disk does not take it."""
    for kind, content in render_figure(figure).items():
        write_atomically(folder / f"{figure.name}.{kind}", content)


def _laid_out(drawing: Drawing) -> Bbox:
    """Lay the drawing out once for all formats, and return the box that it takes up, in inches.

    Without this, savefig draws it once more and lays it out for each file, and takes twice the time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer: Any = FigureCanvasAgg(drawing).get_renderer()  # type: ignore[no-untyped-call]
    for text in drawing.findobj(Text):
        text.set_text("\n".join(map(to_printable, text.get_text().split("\n"))))  # XML and the font lack the rest
        if hasattr(text, "set_fontfeatures"):  # matplotlib 3.11, the first that joins letters
            text.set_fontfeatures(("-liga",))  # with ligatures a PDF holds a second font for the fi of finercut alone
    for axes in drawing.axes:
        axes.spines[:].set_in_layout(False)  # they lie on the edge of the axes, which the layout measures anyway
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)  # spares the search for the place of an empty label
    engine = drawing.get_layout_engine()
    if engine is not None:
        engine.execute(drawing)
    drawing.set_layout_engine(None)
    return drawing.get_tightbbox(renderer).padded(PADDING)


def _file(drawing: Drawing, kind: str, box: Bbox) -> bytes:
    nothing: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    buffer = io.BytesIO()
    drawing.savefig(buffer, format=kind, metadata=nothing[kind], bbox_inches=box)
    return buffer.getvalue()


def _with_description(figure: Figure, text: str) -> str:
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{figure.name}-", body)
    opening, _, rest = body.partition(">")
    title, description = (escape(to_printable(words)) for words in (figure.title, figure.description))
    caption = f"<title>{title}</title><desc>{description}</desc>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n{opening} role="img">{caption}{rest}'
