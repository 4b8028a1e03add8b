"""Figures of what a compensation gives: a method with it beside the method alone, in perplexity and in accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.records.record import amount
from bench.records.samples import Samples
from reports.blocks import TableGroup
from reports.figures.figure import Figure
from reports.figures.quality import called, qualities, subject
from reports.figures.style import BLACK, axes, legend, look, name
from reports.metrics import metric
from reports.tables import pivots
from reports.tables.pivots import Gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Found = tuple[str, Gain]  # at which ratio or budget; empty where parameters decide
NEAR = (0.3, 2.0)  # times the perplexity of the method alone: what is farther off is told in figures


def figures(blocks: Sequence[TableGroup], samples: Samples) -> list[Figure]:
    """Return a figure for each quality in which a method was measured alone and with a compensation at one ratio."""
    found = []
    for column in qualities(blocks):
        gains = [
            (amount(block.ratio, block.ratio_of), gain)
            for block in blocks
            for gain in pivots.gains(column, block, samples)
        ]
        title = (
            f"{subject(column, blocks)} with a compensation, {_beside(column)}; "
            f"{'right' if _is_share(column) else 'left'} of the line the compensation helps"
            f"{'; bars are 95 % intervals, in pairs' * any(gain.contrast for _, gain in gains)}"
        )
        if gains:
            name_of_file = f"{column.replace('_', '-', 1)}-mended"
            found.append(Figure(name_of_file, title, _said(column, gains), partial(_draw, column, gains)))
    return found


def _draw(column: str, gains: Sequence[Found]) -> Drawing:
    """Draw a panel for each ratio, a row for each method, a line for each compensation; what is far is a number."""
    ratios = list(dict.fromkeys(ratio for ratio, _ in gains))
    lines = list(dict.fromkeys((gain.where.row, gain.where.column) for _, gain in gains))
    rows = list(dict.fromkeys(row for row, _ in lines))
    beside = {row: [mending for other, mending in lines if other == row] for row in rows}
    scale, neutral = (100.0, 0.0) if _is_share(column) else (1.0, 1.0)
    ends = [scale * end for _, gain in gains if not _is_far(column, gain) for end in _ends(gain)]
    shown = [neutral, *filter(math.isfinite, ends)]
    wide = max(shown) - min(shown) or scale
    height = 0.14 + 0.12 * max(map(len, beside.values()))
    drawing, panels = axes(3.2 + 2.1 * len(ratios), 1.0 + height * len(rows), columns=len(ratios), share_y=True)
    for axis, ratio in zip(panels, ratios, strict=True):
        for gain in (gain for other, gain in gains if other == ratio):
            row, mending = gain.where.row, gain.where.column
            shift = (beside[row].index(mending) + 0.5) / len(beside[row]) - 0.5
            y = len(rows) - 1 - rows.index(row) - 0.75 * shift
            style = look(mending.partition(":")[0], mending, line=False)
            far = _is_far(column, gain)
            axis.plot([] if far else [scale * gain.estimate], [] if far else [y], label=name(mending), **style)
            if far:
                figure, less = f"{gain.estimate:.2g}", gain.estimate < neutral
                words = f"\N{LEFTWARDS ARROW} {figure}" if less else f"{figure} \N{RIGHTWARDS ARROW}"
                place: Any = {"transform": axis.get_yaxis_transform(), "ha": "left" if less else "right"}
                axis.text(0.02 if less else 0.98, y, words, color=style["color"], fontsize=7, va="center", **place)
            else:
                axis.plot([scale * end for end in _ends(gain)], [y, y], color=style["color"], linewidth=1)
        axis.axvline(neutral, color=BLACK, linestyle=":", linewidth=1.2)
        axis.set_yticks(range(len(rows)), [name(row) for row in reversed(rows)])
        axis.set_title(ratio or "ratio of their own")
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_xlim(min(shown) - 0.05 * wide, max(shown) + 0.05 * wide)
    better = f"{metric(column).better} is better"
    drawing.supxlabel(f"{called(column)}, {_beside(column)}, {better}", fontsize=9)
    legend(drawing, panels)
    return drawing


def _is_far(column: str, gain: Gain) -> bool:
    """Return whether a perplexity fell or rose so far that an axis for it would lay all others on each other."""
    return not _is_share(column) and not NEAR[0] <= gain.estimate <= NEAR[1]


def _ends(gain: Gain) -> tuple[float, float]:
    """Return the ends of the interval; the estimate itself, twice, where samples give none."""
    return (gain.contrast.low, gain.contrast.high) if gain.contrast else (gain.estimate, gain.estimate)


def _is_share(column: str) -> bool:
    return not column.startswith("perplexity_")


def _beside(column: str) -> str:
    return "points more than without" if _is_share(column) else "times that of the method without"


def _said(column: str, gains: Sequence[Found]) -> str:
    """Say every gain."""
    parts = [f"{called(column)} with a compensation, {_beside(column)}."]
    for ratio in dict.fromkeys(ratio for ratio, _ in gains):
        parts.append(f"At {ratio}:" if ratio else "With a ratio of their own:")
        here = [gain for other, gain in gains if other == ratio]
        for method in dict.fromkeys(gain.where.row for gain in here):
            told = [f"{g.where.column} {_figure(column, g.estimate)}" for g in here if g.where.row == method]
            parts.append(f"{method} {', '.join(told)};")
        parts[-1] = parts[-1].removesuffix(";") + "."
    return " ".join(parts)


def _figure(column: str, estimate: float) -> str:
    return f"{100 * estimate:+.1f}" if _is_share(column) else f"{estimate:.3g}"
