"""Figures of what a compensation gives: the perplexity of a mended method over that of the method alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from reports.blocks import Block
from reports.figures import Figure
from reports.frame import display_name, texts
from reports.grid import NONE, pairs
from reports.metrics import finite, metric
from reports.style import BLACK, axes, legend, logarithmic, look, name

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Gain:
    """method, mending  as the view grid heads its row and its column
    ratio            that was asked for
    times            the perplexity, times that of the method alone
    """

    method: str
    mending: str
    ratio: float | None
    times: float


def figures(setups: Sequence[Sequence[Block]]) -> list[Figure]:
    """One for each text on which a method was measured alone and mended, at one ratio."""
    found = []
    for number, blocks in enumerate(setups):
        for text in texts([record for block in blocks for record in block.records]):
            column = f"perplexity_{text}"
            gains = [gain for block in blocks for gain in gains_of(column, block)]
            if gains:
                found.append(
                    Figure(
                        f"{column.replace('_', '-', 1)}-mended{f'-{number + 1}' if number else ''}",
                        f"{metric(column).label} of {display_name(blocks[0].records[0])} with a compensation, times "
                        "that of the method without; left of the line the compensation helps",
                        _said(column, gains),
                        partial(_draw, column, gains),
                    )
                )
    return found


def gains_of(column: str, block: Block) -> list[Gain]:
    """Of each mended method that was measured alone as well."""
    rows = {(pair.row, pair.column): row for pair, row in zip(pairs(block), block.rows, strict=True)}
    figures = {place: row[column] for place, row in rows.items() if finite(row.get(column))}
    return [
        Gain(method, mending, block.ratio, figure / figures[method, NONE])
        for (method, mending), figure in figures.items()
        if mending != NONE and (method, NONE) in figures
    ]


def _draw(column: str, gains: Sequence[Gain]) -> Drawing:
    """A panel for each ratio, a line for each method, a marker for each compensation."""
    ratios = list(dict.fromkeys(gain.ratio for gain in gains))
    methods = list(dict.fromkeys(gain.method for gain in gains))
    shown = [1.0, *(gain.times for gain in gains)]
    drawing, panels = axes(3.2 + 2.1 * len(ratios), 1.0 + 0.26 * len(methods), columns=len(ratios), share_y=True)
    for axis, ratio in zip(panels, ratios, strict=True):
        for gain in (gain for gain in gains if gain.ratio == ratio):
            style = look(gain.mending.partition(":")[0], gain.mending, line=False)
            axis.plot([gain.times], [len(methods) - 1 - methods.index(gain.method)], label=name(gain.mending), **style)
        axis.axvline(1.0, color=BLACK, linestyle=":", linewidth=1.2)
        axis.set_yticks(range(len(methods)), [name(method) for method in reversed(methods)])
        axis.set_title("ratio of their own" if ratio is None else f"ratio {ratio:g}")
        axis.set_ylim(-0.6, len(methods) - 0.4)
        axis.set_xscale("log")
        axis.set_xlim(0.9 * min(shown), 1.1 * max(shown))
        logarithmic(axis.xaxis, shown, 6)
    drawing.supxlabel(f"{metric(column).label}, times that of the method without, lower is better", fontsize=9)
    legend(drawing, panels)
    return drawing


def _said(column: str, gains: Sequence[Gain]) -> str:
    """Every figure, in words."""
    parts = [f"{metric(column).label} with a compensation, times that without."]
    for ratio in dict.fromkeys(gain.ratio for gain in gains):
        parts.append("With a ratio of their own:" if ratio is None else f"At ratio {ratio:g}:")
        for method in dict.fromkeys(gain.method for gain in gains if gain.ratio == ratio):
            here = [gain for gain in gains if (gain.ratio, gain.method) == (ratio, method)]
            parts.append(f"{method} {', '.join(f'{gain.mending} {gain.times:.3g}' for gain in here)};")
        parts[-1] = parts[-1].removesuffix(";") + "."
    return " ".join(parts)
