"""The look of a method in every figure: its colour, line and marker; and the look of figures themselves.

A colour stands for a family of methods, by what they remove (`reports.families`, which pages have too); line and marker
tell its members apart, also in grey. Compensations, settings and methods of one's own have the colours of M. Okabe,
K. Ito, "Color universal design", 2008, which differ for colour-blind readers too; their yellow is left out, since it is
hardly visible on white. A compensation behind a method changes line and marker, as parameters do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from methods.cards import cards_of_compensations, cards_of_methods
from reports.families import COLOURS_BY_FAMILY, find_family
from reports.text import shorten, to_printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import Locator


BLACK, GREY, LIGHT = "#000000", "#767676", "#B4B8BD"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
SOLID, DASHED, DOTTED, MIXED = "solid", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5))
LONG = (0, (10, 2))
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
    "axes.titley": 1.0,  # fixed, since no ticks stand above a panel
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
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and edited
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Style:
    """A colour, a line (a pattern of dashes) and a marker for matplotlib; `hollow` markers tell parameters apart."""

    colour: str
    line: Any
    marker: str
    hollow: bool = False


COLOUR_BY_NAME = {  # names that compensations use in their `look`; of lines, below, methods too
    **{"black": BLACK, "grey": GREY, "orange": ORANGE, "sky": SKY},
    **{"green": GREEN, "blue": BLUE, "vermillion": VERMILLION, "purple": PURPLE},
}
LINE_BY_NAME = {"solid": SOLID, "dashed": DASHED, "dotted": DOTTED, "mixed": MIXED, "long": LONG}
COLOURS = (VERMILLION, SKY, ORANGE, BLUE, GREEN, PURPLE)
LINES = (MIXED, SOLID, DASHED, DOTTED)
MARKERS = ("p", "h", "<", ">", "d", "P", "X", "v")


@cache
def looks_by_name() -> dict[str, Style]:
    """Return {name: look} of the methods and compensations that declare one; a method has its family's colour."""
    looks = dict[str, Style]()
    for card in (*cards_of_methods(), *cards_of_compensations()):
        if card.look is not None:
            named = COLOUR_BY_NAME.get(card.look.colour)
            colour = named or COLOURS_BY_FAMILY[find_family(card)][0]
            looks[card.name] = Style(colour, LINE_BY_NAME[card.look.line], card.look.marker)
    return looks


def style_of(method: str, label: str = "") -> Style:
    """Return the look of a method. Labels with other parameters have its colour and hollow markers."""
    label, method = label or method, method.partition("+")[0]
    declared = looks_by_name().get(method)
    if declared is None:
        number = _number(method)
        line, marker = LINES[number // 7 % len(LINES)], MARKERS[number // 31 % len(MARKERS)]
        declared = Style(COLOURS[number % len(COLOURS)], line, marker)
    if label == method:
        return declared
    number = _number(label)
    return Style(declared.colour, LINES[number % len(LINES)], MARKERS[number // 7 % len(MARKERS)], hollow=True)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()[:6], "big")


def look_of(method: str, label: str, *, line: bool = True) -> dict[str, Any]:
    """Return the keyword arguments that give a method's look to Axes.plot."""
    style = style_of(method, label)
    return {
        "color": style.colour,
        "linestyle": style.line if line else "none",
        "marker": style.marker,
        "markerfacecolor": "white" if style.hollow else style.colour,
        "markeredgecolor": style.colour,
    }


def name_in_font(label: str) -> str:
    """Return a method's name in one line, short enough for a legend, in characters that the drawing font has."""
    text = "".join(c if ord(c) in _characters() else c.encode("unicode_escape").decode() for c in to_printable(label))
    return shorten(text, LABEL)


@cache
def _characters() -> frozenset[int]:
    """Return the characters that the drawing font can show."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def make_axes(
    width_inches: float, height: float, *, columns: int = 1, share_y: bool = False
) -> tuple[Drawing, list[Axes]]:
    """Return a new drawing without a window, and its axes from left to right."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width_inches, height), layout="constrained")
    return drawing, list(drawing.subplots(1, columns, squeeze=False, sharey=share_y)[0])


def add_legend(drawing: Drawing, panels: Iterable[Axes]) -> None:
    """Add a legend on the right of all panels. A label that several panels share is named once."""
    named: dict[str, Any] = {}
    for axis in panels:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    columns = max(1, math.ceil(len(named) / LEGEND_ROWS))
    drawing.legend(list(named.values()), list(named), loc="outside right center", ncols=columns, handlelength=3.2)


def set_log_ticks(axis: Any, figures: Iterable[float], most: int) -> None:
    """Give a logarithmic axis at most `most` ticks, as plain numbers: 20, 50, 100, 1,000, 1e6."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    values = list(figures)
    axis.set_major_locator(_log_locator(min(values), max(values), most))
    axis.set_major_formatter(FuncFormatter(lambda figure, _: to_plain(figure)))
    axis.set_minor_locator(NullLocator())


def find_ticks(low: float, high: float, most: int, *, logarithmic: bool) -> list[float]:
    """Return round numbers between two values, at most about `most`."""
    from matplotlib.ticker import MaxNLocator

    locator = _log_locator(low, high, most) if logarithmic else MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])
    return [float(value) for value in locator.tick_values(low, high) if low <= value <= high]


def _log_locator(low: float, high: float, most: int) -> Locator:
    from matplotlib.ticker import LogLocator

    decades = math.log10(high / low)
    steps = (1.0, 2.0, 5.0) if 3 * decades < most - 2 else (1.0, 3.0) if 2 * decades < most - 2 else (1.0,)
    return LogLocator(subs=steps, numticks=most)


def to_plain(figure: float) -> str:
    """Return a number as short text: '30,517' or '4e10'."""
    if figure >= 1e6:
        return f"{figure:.0e}".replace("e+0", "e").replace("e+", "e")
    return f"{figure:,.0f}" if figure >= 1 else f"{figure:g}"
