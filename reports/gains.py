"""Figures of what a compensation gives: the perplexity of a mended method over that of the method alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from reports import grid
from reports.blocks import Block
from reports.figures import Figure
from reports.frame import display_name, texts
from reports.grid import Gain
from reports.metrics import metric
from reports.samples import Samples
from reports.style import BLACK, axes, legend, logarithmic, look, name

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Found = tuple[float | None, Gain]  # at which ratio


def figures(setups: Sequence[Sequence[Block]], samples: Samples) -> list[Figure]:
    """One for each text on which a method was measured alone and mended, at one ratio."""
    found = []
    for number, blocks in enumerate(setups):
        for text in texts([record for block in blocks for record in block.records]):
            column = f"perplexity_{text}"
            gains = [(block.ratio, gain) for block in blocks for gain in grid.gains(column, block, samples)]
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


def _draw(column: str, gains: Sequence[Found]) -> Drawing:
    """A panel for each ratio, a line for each method, a marker for each compensation with its interval."""
    ratios = list(dict.fromkeys(ratio for ratio, _ in gains))
    methods = list(dict.fromkeys(gain.where.row for _, gain in gains))
    shown = [1.0, *(end for _, gain in gains for end in _ends(gain))]
    drawing, panels = axes(3.2 + 2.1 * len(ratios), 1.0 + 0.26 * len(methods), columns=len(ratios), share_y=True)
    for axis, ratio in zip(panels, ratios, strict=True):
        for gain in (gain for other, gain in gains if other == ratio):
            mending, y = gain.where.column, len(methods) - 1 - methods.index(gain.where.row)
            style = look(mending.partition(":")[0], mending, line=False)
            axis.plot([gain.estimate], [y], label=name(mending), **style)
            axis.plot(_ends(gain), [y, y], color=style["color"], linewidth=1)
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


def _ends(gain: Gain) -> tuple[float, float]:
    """Of the interval, where samples give one."""
    return (gain.contrast.low, gain.contrast.high) if gain.contrast else (gain.estimate, gain.estimate)


def _said(column: str, gains: Sequence[Found]) -> str:
    """Every figure, in words."""
    parts = [f"{metric(column).label} with a compensation, times that without."]
    for ratio in dict.fromkeys(ratio for ratio, _ in gains):
        parts.append("With a ratio of their own:" if ratio is None else f"At ratio {ratio:g}:")
        here = [gain for other, gain in gains if other == ratio]
        for method in dict.fromkeys(gain.where.row for gain in here):
            told = [f"{gain.where.column} {gain.estimate:.3g}" for gain in here if gain.where.row == method]
            parts.append(f"{method} {', '.join(told)};")
        parts[-1] = parts[-1].removesuffix(";") + "."
    return " ".join(parts)
