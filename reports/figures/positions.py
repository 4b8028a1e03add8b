"""Figures of quality by position: the perplexity at each range of positions, and its multiple of the dense model's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.plan.cell import words_of_amount
from bench.plan.protocol import split_range
from bench.records.quantity import format_significant, is_finite, shorten_name
from bench.records.record import name_of_model
from bench.records.samples import Samples
from reports.figures.curves import write_names
from reports.figures.figure import Figure
from reports.figures.style import BLACK, look_of, make_axes, name_in_font, set_log_ticks
from reports.groups import TableGroup
from reports.tables.positions import column_of_range, contrasts_with_dense, ranges_by_text
from reports.tables.rows import GroupTests

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


SPREAD = 0.4  # of the way from range to range, over which the methods stand side by side
Values = tuple[tuple[float, float, float], ...]  # (value, low, high) of each range


@dataclass(frozen=True)
class PositionLine:
    """The values of one model over the ranges of positions; of the dense model no multiples, and of unpaired rows."""

    label: str
    method: str
    perplexities: Values
    multiples: Values


def figures_of_positions(groups: Sequence[TableGroup], samples: Samples) -> list[Figure]:
    """Return a figure for each ratio and text with perplexity by position."""
    figures = []
    for group in groups:
        for text, names in ranges_by_text(group).items():
            lines = _lines(group, names, samples)
            pruned = [line for line in lines if line.method != "dense"]
            if not pruned:
                continue
            amount = words_of_amount(group.ratio, group.ratio_of) or "ratio of its own"
            title = (
                f"perplexity on {shorten_name(text)} of {name_of_model(group.records[0])} by position in long windows, "
                f"{amount}, and its multiple of the dense model's; bars are 95 % intervals over windows"
            )
            ranges = [split_range(name)[1] for name in names]
            words = f"{amount}: {' '.join(map(_words_of_line, lines))}"
            name = f"positions-{shorten_name(text)}-{group.ratio}"
            figures.append(Figure(name, title, words, partial(_draw, ranges, lines)))
    return figures


def _lines(group: TableGroup, names: Sequence[str], samples: Samples) -> list[PositionLine]:
    """Return a line for each row with a finite perplexity at every range."""
    contrasts, lines = contrasts_with_dense(GroupTests(group, samples), names), []
    for place, (record, row) in enumerate(zip(group.records, group.rows, strict=True)):
        columns = [column for column in map(column_of_range, names) if is_finite(row.get(column))]
        values = [_value_with_ends(row, column) for column in columns]
        if len(values) == len(names):
            multiples = [(each.estimate, each.low, each.high) for each in contrasts.get(place, ())[: len(names)]]
            lines.append(PositionLine(group.label(place), record.cell.method, tuple(values), tuple(multiples)))
    return lines


def _value_with_ends(row: Mapping[str, Any], column: str) -> tuple[float, float, float]:
    """Return (value, low, high) of a column; without an interval its ends are the value."""
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    assert value is not None
    return float(value), float(value if low is None else low), float(value if high is None else high)


def _words_of_line(line: PositionLine) -> str:
    values = ", ".join(format_significant(value) for value, _, _ in line.perplexities)
    times = ", ".join(format_significant(value) for value, _, _ in line.multiples)
    return f"{line.label} {values}{f' (times dense {times})' if times else ''}."


def _draw(ranges: Sequence[str], lines: Sequence[PositionLine]) -> Drawing:
    """Draw the perplexities, and beside them the multiples if samples pair any row with the dense model's."""
    paired = [line for line in lines if line.multiples]
    drawing, panels = make_axes(5.6 + 3.4 * bool(paired), 3.8, columns=1 + bool(paired))
    _panel(panels[0], ranges, [(line, line.perplexities) for line in lines], "perplexity, lower is better")
    for axis in panels[1:]:
        _panel(axis, ranges, [(line, line.multiples) for line in paired], "times the dense model's")
        axis.axhline(1.0, color=BLACK, linestyle=":", linewidth=1.2)
    write_names(panels)
    return drawing


def _panel(axis: Axes, ranges: Sequence[str], lines: Sequence[tuple[PositionLine, Values]], heading: str) -> None:
    """Draw the values of each line with their intervals, the methods of a range side by side."""
    for number, (line, values) in enumerate(lines):
        shift = SPREAD * ((number + 0.5) / len(lines) - 0.5)
        places = [place + shift for place in range(len(ranges))]
        look = look_of(line.method, line.label)
        axis.vlines(places, [low for _, low, _ in values], [high for _, _, high in values], colors=look["color"])
        axis.plot(places, [value for value, _, _ in values], label=name_in_font(line.label), **look)
    every = [value for _, values in lines for each in values for value in each]
    axis.set_yscale("log")
    set_log_ticks(axis.yaxis, [min(every), max(*every, min(every) * math.e)], 8)
    axis.set_xticks(range(len(ranges)), list(ranges))
    axis.set(xlabel="position of the token in its window", ylabel=heading)
