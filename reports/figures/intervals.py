"""Panels of rows with a value and its interval each, as for pairs that are compared with one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.figures.style import BLACK, GREY, look_of, make_axes, name_in_font, set_log_ticks, to_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

ROW = 0.24  # inches from one row to the next
BESIDE = 4  # points between a mark and its figure


@dataclass(frozen=True)
class IntervalRow:
    """One row of a panel.

    label, method  the name beside the axis, and the method whose look it has
    value          where its point is
    low, high      the ends of its interval; both equal to the value where there is none
    expected       where a short line stands, for what was expected of it; None for no line
    """

    label: str
    method: str
    value: float
    low: float
    high: float
    expected: float | None = None


@dataclass(frozen=True)
class IntervalPanel:
    """Rows below a title, the first at the top; equal labels stand in one line over all panels."""

    title: str
    rows: tuple[IntervalRow, ...]


def draw_intervals(
    panels: Sequence[IntervalPanel], x: str, ends: tuple[float, float], *, equal: float | None, logarithmic: bool
) -> Drawing:
    """Draw panels side by side over one axis.

    x            the heading of the axis; it says which way is better
    ends         the ends of the axis; the figure of a row beyond them stands at its edge
    equal        where a line says that there is no difference; None for no line
    logarithmic  whether the axis is
    """
    rows = [row for panel in panels for row in panel.rows]
    labels = list(dict.fromkeys(row.label for row in rows))
    height = 0.9 + ROW * len(labels)
    drawing, axes = make_axes(max(6.4, 2.2 + 2.3 * len(panels)), height, columns=len(panels), share_y=True)
    for axis, panel in zip(axes, panels, strict=True):
        if logarithmic:
            axis.set_xscale("log")
            set_log_ticks(axis.xaxis, ends, 6)
        axis.set(xlim=ends, ylim=(len(labels) - 0.5, -0.5))
        axis.set_title(panel.title)
        axis.grid(visible=False, axis="y")
        if equal is not None:
            axis.axvline(equal, color=BLACK, linestyle=":", linewidth=1.2)
        for row in panel.rows:
            _draw_row(axis, row, labels.index(row.label), ends)
    axes[0].set_yticks(range(len(labels)), [name_in_font(label) for label in labels])
    drawing.supxlabel(x, fontsize="medium")
    return drawing


def _draw_row(axis: Axes, row: IntervalRow, place: int, ends: tuple[float, float]) -> None:
    look: dict[str, Any] = look_of(row.method, row.method, line=False)
    if row.expected is not None:
        axis.plot([row.expected] * 2, [place - 0.32, place + 0.32], color=GREY, linewidth=2.2)
    if row.value > ends[1]:
        text = f"{to_plain(row.value) if row.value >= 1 else f'{row.value:.2f}'} \N{RIGHTWARDS ARROW}"
        axis.annotate(text, (ends[1], place), color=look["color"], fontsize=7.5, ha="right", va="center")
        return
    if row.low < row.high:
        axis.plot([row.low, min(row.high, ends[1])], [place] * 2, color=look["color"], linewidth=1.4)
    axis.plot([row.value], [place], **look)
