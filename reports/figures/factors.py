"""Figures of factors: of ablations, of compensations, and of the draw of the calibration.

An ablation is a quality over one factor, with a line for each value of a second factor. A compensation is a method with
it beside the method alone, in perplexity and in accuracy. A draw is the perplexity of each method at one calibration
text and seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.plan.cell import words_of_amount, words_of_ratio
from bench.records.quantities import format_value, quantity_of_column
from bench.records.quantity import format_perplexity, is_finite, shorten_name
from bench.records.record import Record, name_of_model
from bench.records.samples import Samples
from reports.figures.curves import write_names
from reports.figures.figure import Figure
from reports.figures.quality import axis_scale, qualities_of, subject_of, title_of_quantity
from reports.figures.style import (
    BLACK,
    BLUE,
    COLOURS,
    GREY,
    LINES,
    MARKERS,
    add_legend,
    look_of,
    make_axes,
    name_in_font,
    set_log_ticks,
)
from reports.groups import TableGroup
from reports.protocol import conditions_of
from reports.tables import pivots
from reports.tables.ablation import Study, format_factor, studies_of
from reports.tables.pivots import Gain
from reports.tables.rows import ReportData
from reports.tables.seeds import CalibrationDraws, draws_of_calibrations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


PANELS = 6  # the most side by side, one for each combination of the third and further factors
QUALITIES = ("perplexity_", "kl", "average")


def figures_of_studies(setups: Sequence[Sequence[TableGroup]]) -> list[Figure]:
    """Return a figure for each study and quality."""
    records = {id(record): record for group in chain(*setups) for record in chain(*group.drawn)}
    figures = []
    for study in studies_of(list(records.values())):
        for column in (measure for measure in study.measures() if measure.startswith(QUALITIES)):
            figure = f"ablation-{study.method}-{column.replace('_', '-', 1)}"
            by = " and ".join(study.factors[:3])
            title = f"{title_of_quantity(column)} of {name_of_model(study.records[0])} under {study.name} by {by}"
            figures.append(Figure(figure, title, _words_of_study(study, column), partial(_draw_study, study, column)))
    return figures


def _draw_study(study: Study, column: str) -> Drawing:
    """Draw a panel for each of the first combinations of the factors behind the second."""
    combinations = study.combinations()[:PANELS]
    drawing, panels = make_axes(3.0 + 2.6 * len(combinations), 3.8, columns=len(combinations), share_y=True)
    every = [point.row[column] for point in study.points.values() if is_finite(point.row.get(column))]
    for axis, combination in zip(panels, combinations, strict=True):
        for number, (label, line) in enumerate(_lines(study, column, combination).items()):
            axis.plot(
                list(line),
                list(line.values()),
                label=name_in_font(label),
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[(number + 1) % len(LINES)],
                marker=MARKERS[number % len(MARKERS)],
            )
        _ticks(axis, study)
        if quantity_of_column(column).is_logarithmic and every:
            axis.set_yscale("log")
            set_log_ticks(axis.yaxis, every, 12)
        dense = sorted({axis_scale(column) * row[column] for row in study.dense if is_finite(row.get(column))})
        label = "dense, the lowest and the highest" if len(dense) > 1 else "dense"  # each seed has its own documents
        for figure in dict.fromkeys([*dense[:1], *dense[-1:]]):
            axis.axhline(figure, color=BLACK, linestyle=":", linewidth=1.2, label=label)
        axis.set_title(
            ", ".join(
                f"{factor} {format_factor(value)}" for factor, value in zip(study.factors[2:], combination, strict=True)
            )
        )
    panels[0].set_ylabel(name_in_font(_with_unit(column)))
    write_names(panels)
    return drawing


def _with_unit(column: str) -> str:
    """Return the title of a quality with its unit."""
    unit = quantity_of_column(column).unit
    return f"{title_of_quantity(column)} ({unit})" if unit else title_of_quantity(column)


def _lines(study: Study, column: str, values: tuple[Any, ...]) -> dict[str, dict[float, float]]:
    """Return a line over the first factor for each value of the second one, as {label: {x: y}}."""
    first, *rest = study.factors
    places, lines = _places(study), dict[str, dict[float, float]]()
    seconds: list[tuple[Any, ...]] = [(value,) for value in study.axis(rest[0])] if rest else [()]
    for second in seconds:
        points = {x: study.points.get((x, *second, *values)) for x in study.axis(first)}
        rows = {places[x]: point.row for x, point in points.items() if point and is_finite(point.row.get(column))}
        label = f"{rest[0]} {format_factor(second[0])}" if rest else study.name
        lines[label] = {x: axis_scale(column) * row[column] for x, row in rows.items()}
    return {label: line for label, line in lines.items() if line}


def _places(study: Study) -> dict[Any, float]:
    """Return the place of each value of the first factor on the axis: a number itself, words as 0, 1, 2."""
    values = study.axis(study.factors[0])
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return {value: float(value) if numeric else float(at) for at, value in enumerate(values)}


def _ticks(axis: Axes, study: Study) -> None:
    places = _places(study)
    axis.set_xticks(list(places.values()), [name_in_font(format_factor(value)) for value in places])
    axis.set_xlabel(name_in_font(study.factors[0]))


def _words_of_study(study: Study, column: str) -> str:
    """Return a sentence on the best and the worst cell."""
    points = {key: point for key, point in study.points.items() if is_finite(point.row.get(column))}
    if not points:
        return f"No cell has a {title_of_quantity(column)}."
    order = sorted(
        points, key=lambda key: points[key].row[column], reverse=quantity_of_column(column).better == "higher"
    )
    extremes = []
    for word, key in (("the best", order[0]), ("the worst", order[-1])):
        at = ", ".join(f"{factor} {format_factor(value)}" for factor, value in zip(study.factors, key, strict=True))
        extremes.append(f"{word} is {format_value(points[key].row, column)} at {at}")
    more = (
        f" The panels are the first {PANELS} of {len(study.combinations())}."
        if len(study.combinations()) > PANELS
        else ""
    )
    return f"{_with_unit(column)}, {len(points)} cells: {'; '.join(extremes)}.{more}"


RatioAndGain = tuple[str, Gain]  # the ratio or budget in words; empty where the method's parameters decide
NEAR = (0.3, 2.0)  # times the perplexity of the method alone; a value farther off is written as a number


def figures_of_compensations(groups: Sequence[TableGroup], samples: Samples) -> list[Figure]:
    """Return a figure for each quality that a method has at one ratio both alone and with a compensation."""
    figures = []
    for column in qualities_of(groups):
        gains = [
            (words_of_amount(group.ratio, group.ratio_of), gain)
            for group in groups
            for gain in pivots.gains_of_compensations(column, group, samples)
        ]
        title = (
            f"{subject_of(column, groups)} with a compensation, {_beside(column)}; "
            f"{'right' if _is_share(column) else 'left'} of the line the compensation helps"
            f"{'; bars are 95 % intervals, in pairs' * any(gain.contrast for _, gain in gains)}"
        )
        if gains:
            name_of_file = f"{column.replace('_', '-', 1)}-mended"
            figures.append(
                Figure(name_of_file, title, _words_of_gains(column, gains), partial(_draw_gains, column, gains))
            )
    return figures


def _draw_gains(column: str, gains: Sequence[RatioAndGain]) -> Drawing:
    """Draw a panel for each ratio, a row for each method, a line for each compensation; a far value is a number."""
    ratios = list(dict.fromkeys(ratio for ratio, _ in gains))
    lines = list(dict.fromkeys((gain.where.row, gain.where.column) for _, gain in gains))
    rows = list(dict.fromkeys(row for row, _ in lines))
    beside: dict[str, list[str]] = {}
    for method, compensation in lines:
        beside.setdefault(method, []).append(compensation)
    scale, neutral = (100.0, 0.0) if _is_share(column) else (1.0, 1.0)
    ends = [scale * end for _, gain in gains if not _is_far(column, gain) for end in _ends(gain)]
    in_sight = [neutral, *filter(math.isfinite, ends)]
    wide = max(in_sight) - min(in_sight) or scale
    height = 0.14 + 0.12 * max(map(len, beside.values()))
    drawing, panels = make_axes(3.2 + 2.1 * len(ratios), 1.0 + height * len(rows), columns=len(ratios), share_y=True)
    for axis, ratio in zip(panels, ratios, strict=True):
        for gain in (gain for ratio_of_gain, gain in gains if ratio_of_gain == ratio):
            row, compensation = gain.where.row, gain.where.column
            shift = (beside[row].index(compensation) + 0.5) / len(beside[row]) - 0.5
            y = len(rows) - 1 - rows.index(row) - 0.75 * shift
            style = look_of(compensation.partition(":")[0], compensation, line=False)
            far = _is_far(column, gain)
            axis.plot(
                [] if far else [scale * gain.estimate], [] if far else [y], label=name_in_font(compensation), **style
            )
            if far:
                figure, less = f"{gain.estimate:.2g}", gain.estimate < neutral
                words = f"\N{LEFTWARDS ARROW} {figure}" if less else f"{figure} \N{RIGHTWARDS ARROW}"
                place: Any = {"transform": axis.get_yaxis_transform(), "ha": "left" if less else "right"}
                axis.text(0.02 if less else 0.98, y, words, color=style["color"], fontsize=7, va="center", **place)
            else:
                axis.plot([scale * end for end in _ends(gain)], [y, y], color=style["color"], linewidth=1)
        axis.axvline(neutral, color=BLACK, linestyle=":", linewidth=1.2)
        axis.set_yticks(range(len(rows)), [name_in_font(row) for row in reversed(rows)])
        axis.set_title(ratio or "ratio of their own")
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_xlim(min(in_sight) - 0.05 * wide, max(in_sight) + 0.05 * wide)
    better = f"{quantity_of_column(column).better} is better"
    drawing.supxlabel(f"{title_of_quantity(column)}, {_beside(column)}, {better}", fontsize=9)
    add_legend(drawing, panels)
    return drawing


def _is_far(column: str, gain: Gain) -> bool:
    """Say whether a perplexity fell or rose so far that an axis with it would leave no room between the others."""
    return not _is_share(column) and not NEAR[0] <= gain.estimate <= NEAR[1]


def _ends(gain: Gain) -> tuple[float, float]:
    """Return the ends of the interval; without an interval the estimate itself, twice."""
    return (gain.contrast.low, gain.contrast.high) if gain.contrast else (gain.estimate, gain.estimate)


def _is_share(column: str) -> bool:
    return not quantity_of_column(column).is_logarithmic


def _beside(column: str) -> str:
    return "points more than without" if _is_share(column) else "times that of the method without"


def _words_of_gains(column: str, gains: Sequence[RatioAndGain]) -> str:
    """Return sentences with every gain."""
    parts = [f"{title_of_quantity(column)} with a compensation, {_beside(column)}."]
    for ratio in dict.fromkeys(ratio for ratio, _ in gains):
        parts.append(f"At {ratio}:" if ratio else "With a ratio of their own:")
        gains_at_ratio = [gain for ratio_of_gain, gain in gains if ratio_of_gain == ratio]
        for method in dict.fromkeys(gain.where.row for gain in gains_at_ratio):
            words = [f"{g.where.column} {_figure(column, g.estimate)}" for g in gains_at_ratio if g.where.row == method]
            parts.append(f"{method} {', '.join(words)};")
        parts[-1] = parts[-1].removesuffix(";") + "."
    return " ".join(parts)


def _figure(column: str, estimate: float) -> str:
    return f"{100 * estimate:+.1f}" if _is_share(column) else f"{estimate:.3g}"


DOTS = (BLUE, *(colour for colour in COLOURS if colour != BLUE))  # a colour for each calibration text


def figures_of_calibrations(records: Sequence[Record], needs: Mapping[str, str] | None = None) -> list[Figure]:
    """Return a figure for each ratio that was measured with several seeds, with a panel for each evaluation text.

    needs  what each method looks at, by its name; a method that needs nothing has no calibration, and no dots
    """
    alike: dict[tuple[int, ...], list[CalibrationDraws]] = {}
    for study in draws_of_calibrations(ReportData(records, needs=needs or {})):
        alike.setdefault(tuple(study.records), []).append(study)
    return [
        Figure(
            _name_of_file(panels[0]),
            _title(panels[0]),
            _words_of_calibrations(panels),
            partial(_draw_calibrations, panels),
        )
        for panels in alike.values()
    ]


def _name_of_file(study: CalibrationDraws) -> str:
    ratio = words_of_ratio(study.ratio, next(iter(study.records.values())).cell.ratio_of)
    return f"perplexity-by-draw-{ratio}" if ratio else "perplexity-by-draw"


def _title(study: CalibrationDraws) -> str:
    """Return the title of a figure, with the model and the conditions that tell it from figures at the same ratio."""
    peers = list(study.records.values())
    amount = "" if study.ratio is None else f" at {study.amount}"
    protocol = peers[0].cell.protocol
    look = f"calibration of {protocol.calibration_sequences} sequences of {protocol.calibration_length} tokens"
    return (
        f"perplexity of {name_of_model(peers[0])}{amount} by the draw of the calibration: a dot is one text and seed, "
        f"a bar the mean; {', '.join((*conditions_of(peers), look))}"
    )


def _draw_calibrations(panels: Sequence[CalibrationDraws]) -> Drawing:
    """Draw a panel for each evaluation text, with a row for each method; the first panel has the best on top."""
    rows = list(dict.fromkeys(method for study in panels for method in study.cells))
    sources = list(dict.fromkeys(text for study in panels for draws in study.cells.values() for text, _ in draws))
    drawing, charts = make_axes(2.2 + 2.6 * len(panels), 0.9 + 0.26 * len(rows), columns=len(panels), share_y=True)
    for chart, study in zip(charts, panels, strict=True):
        every: list[float] = []
        for method, draws in study.cells.items():
            y = len(rows) - 1 - rows.index(method)
            logs = {draw: study.log(place) for draw, place in draws.items()}
            every += map(math.exp, logs.values())
            chart.plot([math.exp(fmean(logs.values()))], [y], marker="|", markersize=13, color=GREY, linestyle="none")
            for number, source in enumerate(sources):
                perplexities = [math.exp(log) for (text, _), log in logs.items() if text == source]
                shift = 0.12 * (len(sources) - 1 - 2 * number) if len(sources) > 1 else 0
                dot = chart.plot(
                    perplexities, [y + shift] * len(perplexities), "o", color=DOTS[number % len(DOTS)], markersize=3.6
                )[0]
                dot.set(alpha=0.75, label=f"calibrated on {name_in_font(shorten_name(source))}")
        chart.set_xscale("log")
        set_log_ticks(chart.xaxis, every, 6)
        chart.set_title(quantity_of_column(f"perplexity_{study.text}").heading)
        chart.set_yticks(range(len(rows)), [name_in_font(row) for row in reversed(rows)])
    drawing.supxlabel("perplexity, lower is better", fontsize=9)
    add_legend(drawing, charts)
    return drawing


def _words_of_calibrations(panels: Sequence[CalibrationDraws]) -> str:
    """Return sentences with the mean and the range of every method."""
    parts = []
    for study in panels:
        words = []
        for method, draws in study.cells.items():
            logs = [study.log(place) for place in draws.values()]
            mean, low, high = (
                format_perplexity(math.exp(log), math.exp(log)) for log in (fmean(logs), min(logs), max(logs))
            )
            words.append(f"{method} {mean} ({low} to {high}, {len(logs)} draws)")
        parts.append(f"{quantity_of_column(f'perplexity_{study.text}').heading}: {'; '.join(words)}.")
    return " ".join(parts)
