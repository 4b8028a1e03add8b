"""How a method looks in every figure: its colour, line and marker; and the look of figures as such.

The colours are those of M. Okabe, K. Ito, "Color universal design", 2008, which differ for colour-blind readers too;
their yellow is left out, since it is hardly seen on white. A colour stands for a family of methods, by what they remove
and how; line and marker tell its members apart, also in grey. A method of one's own gets its look from its name, and a
compensation behind a method changes line and marker as parameters do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from reports.text import printable, width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

BLACK, GREY = "#000000", "#767676"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
SOLID, DASHED, DOTTED, MIXED = "solid", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5))
LABEL = 34  # characters of a method's name in a legend
LEGEND_ROWS = 26  # names of a legend in one column

SETTINGS: dict[str, Any] = {
    "figure.dpi": 160,  # of the layout, and of a PNG
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # no ticks above a panel, which a title would have to look out for
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a dollar in a method's name is a dollar
    "svg.fonttype": "path",  # looks the same where the font is missing
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Style:
    """colour, line (a pattern of dashes) and marker, as matplotlib names them; hollow: of a method with parameters."""

    colour: str
    line: Any
    marker: str
    hollow: bool = False


BUILT_IN = {
    "dense": Style(BLACK, DOTTED, "*"),
    "laco": Style(VERMILLION, SOLID, "o"),
    "laco-published": Style(VERMILLION, DASHED, "s"),
    "laco-ls": Style(VERMILLION, MIXED, "D"),
    "slicegpt": Style(BLACK, SOLID, "D"),
    "llm-pruner": Style(SKY, SOLID, "o"),
    "flap": Style(SKY, DASHED, "s"),
    "wanda-sp": Style(SKY, DOTTED, "^"),
    "minitron-width": Style(SKY, MIXED, "D"),
    "2ssp": Style(ORANGE, SOLID, "P"),
    "shortgpt": Style(BLUE, SOLID, "o"),
    "angular": Style(BLUE, DASHED, "s"),
    "magnitude": Style(BLUE, DOTTED, "^"),
    "shortened-llama": Style(GREEN, SOLID, "o"),
    "shortened-llama-taylor": Style(GREEN, DASHED, "s"),
    "sleb": Style(GREEN, MIXED, "D"),
    "blockpruner": Style(PURPLE, SOLID, "o"),
    "finercut": Style(PURPLE, DASHED, "s"),
    "llm-drop": Style(PURPLE, DOTTED, "^"),
    "drop-tail": Style(GREY, SOLID, "v"),
    "drop-random": Style(GREY, DASHED, "X"),
    "drop": Style(GREY, DOTTED, "d"),
}
MENDED = {  # how a compensation looks where methods stand in a row each
    "scale": Style(SKY, SOLID, "v"),
    "linearpatch": Style(ORANGE, SOLID, "s"),
    "ghost": Style(BLUE, SOLID, "D"),
    "replaceme": Style(VERMILLION, SOLID, "o"),
    "refit": Style(GREEN, SOLID, "^"),
}
COLOURS = (VERMILLION, SKY, ORANGE, BLUE, GREEN, PURPLE)
LINES = (MIXED, SOLID, DASHED, DOTTED)
MARKERS = ("p", "h", "<", ">", "d", "P", "X", "v")


def style(method: str, label: str = "") -> Style:
    """The look of a method; the same for each of its labels but for the marker's filling and the line."""
    label, method = label or method, method.partition("+")[0]
    built_in = BUILT_IN.get(method) or MENDED.get(method)
    if built_in is None:
        number = _number(method)
        built_in = Style(
            COLOURS[number % len(COLOURS)], LINES[number // 7 % len(LINES)], MARKERS[number // 31 % len(MARKERS)]
        )
    if label == method:
        return built_in
    number = _number(label)
    return Style(built_in.colour, LINES[number % len(LINES)], MARKERS[number // 7 % len(MARKERS)], hollow=True)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()[:6], "big")


def look(method: str, label: str, *, line: bool = True) -> dict[str, Any]:
    """The keyword arguments that give a method's look to Axes.plot and Axes.errorbar."""
    found = style(method, label)
    return {
        "color": found.colour,
        "linestyle": found.line if line else "none",
        "marker": found.marker,
        "markerfacecolor": "white" if found.hollow else found.colour,
        "markeredgecolor": found.colour,
    }


def name(label: str) -> str:
    """A method's name in one line, in characters that the drawing font has, and not too long for a legend."""
    text = "".join(c if ord(c) in _characters() else c.encode("unicode_escape").decode() for c in printable(label))
    return text if width(text) <= LABEL else f"{text[: LABEL // 2]}…{text[-LABEL // 2 + 1 :]}"


@cache
def _characters() -> frozenset[int]:
    """What the drawing font can show."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def axes(width_inches: float, height: float, *, columns: int = 1, share_y: bool = False) -> tuple[Drawing, list[Axes]]:
    """A drawing that no window shows, and its axes from left to right."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width_inches, height), layout="constrained")
    return drawing, list(drawing.subplots(1, columns, squeeze=False, sharey=share_y)[0])


def legend(drawing: Drawing, panels: Iterable[Axes]) -> None:
    """A legend right of everything, where it covers nothing; what several panels share is named once."""
    named: dict[str, Any] = {}
    for axis in panels:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    columns = max(1, math.ceil(len(named) / LEGEND_ROWS))
    drawing.legend(list(named.values()), list(named), loc="outside right upper", ncols=columns, handlelength=3.2)


def logarithmic(axis: Any, figures: Iterable[float], ticks: int) -> None:
    """At most that many ticks of a logarithmic scale, as plain numbers: 20, 50, 100, 1,000, 1e6."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    found = list(figures)
    decades = math.log10(max(found) / min(found)) if found else 0
    steps = (1.0, 2.0, 5.0) if 3 * decades < ticks - 2 else (1.0, 3.0) if 2 * decades < ticks - 2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=ticks))
    axis.set_major_formatter(FuncFormatter(lambda figure, _: plain(figure)))
    axis.set_minor_locator(NullLocator())


def plain(figure: float) -> str:
    """A number without its spread, as short as it can be told: 30,517 or 4e10."""
    if figure >= 1e6:
        return f"{figure:.0e}".replace("e+0", "e").replace("e+", "e")
    return f"{figure:,.0f}" if figure >= 1 else f"{figure:g}"
