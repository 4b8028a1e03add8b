"""A figure of what the draw of the calibration does: the perplexity of each method at every text and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from bench.records.record import Record
from reports.figures.figure import Figure
from reports.figures.style import BLUE, COLOURS, GREY, axes, legend, logarithmic, name
from reports.metrics import metric, perplexity, short
from reports.tables.rows import ReportData
from reports.tables.seeds import CalibrationDraws, calibration_draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DOTS = (BLUE, *(colour for colour in COLOURS if colour != BLUE))  # a colour for each text that was calibrated on


def figures(records: Sequence[Record]) -> list[Figure]:
    """Return a figure for each ratio at which two methods were measured with several seeds, a panel for each text."""
    at: dict[float | None, list[CalibrationDraws]] = {}
    for found in calibration_draws(ReportData(records)):
        if found.text not in [one.text for one in at.setdefault(found.ratio, [])]:
            at[found.ratio].append(found)
    return [
        Figure(
            f"perplexity-by-draw{'' if ratio is None else f'-{ratio:g}'}",
            f"perplexity{'' if ratio is None else f' at {panels[0].asked}'} by the draw of the calibration: a dot is "
            f"one text and seed, a bar the mean",
            _said(panels),
            partial(_draw, panels),
        )
        for ratio, panels in at.items()
    ]


def _draw(panels: Sequence[CalibrationDraws]) -> Drawing:
    """Draw a panel for each text that was measured on, a row for each method in the order of the first, best on top."""
    rows = list(dict.fromkeys(method for found in panels for method in found.cells))
    sources = list(dict.fromkeys(text for found in panels for draws in found.cells.values() for text, _ in draws))
    drawing, charts = axes(2.2 + 2.6 * len(panels), 0.9 + 0.26 * len(rows), columns=len(panels), share_y=True)
    for chart, found in zip(charts, panels, strict=True):
        every: list[float] = []
        for method, draws in found.cells.items():
            y = len(rows) - 1 - rows.index(method)
            logs = {draw: found.log(place) for draw, place in draws.items()}
            every += map(math.exp, logs.values())
            chart.plot([math.exp(fmean(logs.values()))], [y], marker="|", markersize=13, color=GREY, linestyle="none")
            for number, source in enumerate(sources):
                here = [math.exp(log) for (text, _), log in logs.items() if text == source]
                shift = 0.12 * (len(sources) - 1 - 2 * number) if len(sources) > 1 else 0
                dot = chart.plot(here, [y + shift] * len(here), "o", color=DOTS[number % len(DOTS)], markersize=3.6)[0]
                dot.set(alpha=0.75, label=f"calibrated on {name(short(source))}")
        chart.set_xscale("log")
        logarithmic(chart.xaxis, every, 6)
        chart.set_title(metric(f"perplexity_{found.text}").label)
        chart.set_yticks(range(len(rows)), [name(row) for row in reversed(rows)])
    drawing.supxlabel("perplexity, lower is better", fontsize=9)
    legend(drawing, charts)
    return drawing


def _said(panels: Sequence[CalibrationDraws]) -> str:
    """Say the mean and the range of every method."""
    parts = []
    for found in panels:
        told = []
        for method, draws in found.cells.items():
            logs = [found.log(place) for place in draws.values()]
            mean, low, high = (perplexity(math.exp(one), math.exp(one)) for one in (fmean(logs), min(logs), max(logs)))
            told.append(f"{method} {mean} ({low} to {high}, {len(logs)} draws)")
        parts.append(f"{metric(f'perplexity_{found.text}').label}: {'; '.join(told)}.")
    return " ".join(parts)
