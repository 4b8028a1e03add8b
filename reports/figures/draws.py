"""A figure of what the draw of the calibration does: the perplexity of each method at every text and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from bench.records.record import Record, display_name, ratio_of, share
from reports import notes
from reports.figures.figure import Figure
from reports.figures.style import BLUE, COLOURS, GREY, axes, legend, logarithmic, name
from reports.metrics import metric, perplexity, short
from reports.tables.rows import ReportData
from reports.tables.seeds import CalibrationDraws, calibration_draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DOTS = (BLUE, *(colour for colour in COLOURS if colour != BLUE))  # a colour for each text that was calibrated on


def figures(records: Sequence[Record], needs: Mapping[str, str] | None = None) -> list[Figure]:
    """Return a figure for all that is compared at one ratio with several seeds, a panel for each text.

    needs  what each method looks at, by its name; one that needs nothing has no calibration, and no dots
    """
    alike: dict[tuple[int, ...], list[CalibrationDraws]] = {}
    for found in calibration_draws(ReportData(records, needs=needs or {})):
        alike.setdefault(tuple(found.records), []).append(found)
    return [
        Figure(_name_of_file(panels[0]), _title(panels[0]), _said(panels), partial(_draw, panels))
        for panels in alike.values()
    ]


def _name_of_file(found: CalibrationDraws) -> str:
    asked = share(found.ratio, ratio_of(next(iter(found.records.values())).cell))
    return f"perplexity-by-draw-{asked}" if asked else "perplexity-by-draw"


def _title(found: CalibrationDraws) -> str:
    """Return the title of a figure, with the model and the conditions, in which others of one ratio may differ."""
    peers = list(found.records.values())
    asked = "" if found.ratio is None else f" at {found.asked}"
    protocol = peers[0].cell["protocol"]
    look = f"calibration of {protocol['calibration_sequences']} sequences of {protocol['calibration_length']} tokens"
    return (
        f"perplexity of {display_name(peers[0])}{asked} by the draw of the calibration: a dot is one text and seed, a "
        f"bar the mean; {', '.join((*notes.conditions(peers), look))}"
    )


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
