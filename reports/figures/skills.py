"""Figures of skills: a map of what every method loses of each, and a slope chart of two methods.

The chart has the best two methods of two families, or those that a reader names. A line is in the colour of the method
that loses less of a skill, where the difference is shown: by the tests of bench.records.skill_losses from the one to
the other, with p values adjusted for all lines of a chart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.plan.cell import words_of_amount, words_of_ratio
from bench.records.comparability import find_dense_peer
from bench.records.record import name_of_model
from bench.records.skill_losses import LossFinder, SkillColumn, tasks_by_skill
from bench.regression.contrasts import LEVEL
from bench.stats.draws import mean_difference
from bench.stats.intervals import Contrast, holm
from methods.errors import UserError
from reports.figures.curves import move_apart
from reports.figures.figure import Figure
from reports.figures.heatmaps import ROW, draw_colour_bar, write_names
from reports.figures.style import BLACK, GREY, LIGHT, make_axes, name_in_font, style_of
from reports.groups import TableGroup
from reports.tables.rows import ReportData
from reports.tables.skills import SkillLosses
from reports.tables.table import TableCell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PANELS = {"loss": "accuracy lost, in % of what is above guesses", "bits": "bits per byte added, in % of dense"}
LEAST, MOST = -0.5, 1.5  # ends of the vertical axis of a slope chart
PALE = 0.3  # opacity of what is not shown to differ from the dense model
GAP = 0.13  # inches from one skill's name to the next


def figures_of_skills(data: ReportData, pair: Sequence[str] = ()) -> list[Figure]:
    """Return the map of each ratio at which methods have losses of skills, and the slope chart of two of them.

    pair  the labels of the two methods; none for the best of two families. Raises UserError if a label has no row.
    """
    groups = data.groups if tasks_by_skill(data.records) else []
    labels = dict.fromkeys(group.label(place) for group in groups for place in range(len(group.records)))
    if unknown := [label for label in pair if groups and label not in labels]:
        raise UserError(f"no method {unknown[0]!r} for the chart of skills; there are {', '.join(labels)}")
    figures = []
    for group in groups:
        every = [SkillLosses(group, (kind,)) for kind in PANELS]
        panels = [losses for losses in every if losses.columns and losses.pruned]
        if panels:
            amount = words_of_amount(group.ratio, group.ratio_of) or "ratio fixed"
            where = f"{name_of_model(group.records[0])}, {amount}"
            ratio = words_of_ratio(group.ratio, group.ratio_of) or "fixed"
            title = f"What methods lose of each skill of {where}; pale: not shown to differ from the dense model"
            figures.append(Figure(f"skills-{ratio}", title, _words_of_map(panels), partial(_draw_map, panels)))
            figures += _figures_of_pair(data, panels, pair, where, ratio)
    return figures


# --- the map


def _words_of_map(panels: Sequence[SkillLosses]) -> str:
    """Return for each panel a sentence with what each method loses at most, of what is shown."""
    sentences = []
    for losses in panels:
        words = []
        for place in losses.pruned:
            cells = [(losses.cell(place, column).value, column.skill) for column in losses.columns]
            values = [(value, skill) for value, skill in cells if isinstance(value, float)]
            if values:
                most = max(values)
                words.append(f"{losses.group.label(place)} at most {100 * most[0]:.0f} % ({most[1]})")
        sentences.append(f"{PANELS[losses.kinds[0]].capitalize()}: {', '.join(words) or 'nothing measured'}.")
    return " ".join(sentences)


def _draw_map(panels: Sequence[SkillLosses]) -> Drawing:
    """Draw a panel for each kind of loss: methods by skills, with the value in per cent in each field."""
    group, places = panels[0].group, panels[0].pruned
    labels = [group.label(place) for place in places]
    wide = 2.6 + sum(max(1.6, 0.4 * len(losses.columns)) for losses in panels)
    drawing, axes = make_axes(wide, 1.6 + ROW * len(labels), columns=len(panels), share_y=True)
    for axis, losses in zip(axes, panels, strict=True):
        _draw_panel(axis, losses)
        write_names(axis, labels, PANELS[losses.kinds[0]])
        axis.set_title(PANELS[losses.kinds[0]], fontsize=8.5)
    draw_colour_bar(drawing, axes, axes[0].images[0], "lost, or added", extend="both")
    return drawing


def _draw_panel(axis: Axes, losses: SkillLosses) -> None:
    values, opacity = [], []
    for place in losses.pruned:
        values.append([_value(losses.cell(place, column)) for column in losses.columns])
        opacity.append([1.0 if (place, column) in losses.differing else PALE for column in losses.columns])
    axis.imshow(values, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto", alpha=opacity)
    for y, x in product(range(len(values)), range(len(losses.columns))):
        value, is_pale = values[y][x], opacity[y][x] < 1
        text = "guess" if losses.is_guessed(losses.columns[x]) else "" if math.isnan(value) else str(round(100 * value))
        colour = GREY if text == "guess" else "white" if abs(value) > 0.7 and not is_pale else "black"
        axis.text(x, y, text, ha="center", va="center", fontsize=6.5, color=colour, in_layout=False)
    tilted: dict[str, Any] = {"rotation": 55, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(losses.columns)), [column.skill for column in losses.columns], **tilted)


def _value(cell: TableCell) -> float:
    return cell.value if isinstance(cell.value, float) else math.nan


# --- two methods


@dataclass(frozen=True)
class SkillSlope:
    """What two methods lose of a skill.

    is_shown  whether they are shown to differ
    """

    column: SkillColumn
    ends: tuple[TableCell, TableCell]
    is_shown: bool

    @property
    def better(self) -> int:
        """Return which of the two loses less, 0 or 1."""
        return int(_value(self.ends[1]) < _value(self.ends[0]))


def _figures_of_pair(
    data: ReportData, panels: Sequence[SkillLosses], pair: Sequence[str], where: str, ratio: str
) -> list[Figure]:
    """Return the slope chart of two methods; none if the ratio does not have both."""
    group = panels[0].group
    places = find_pair(group, panels[0].pruned, pair)
    if len(places) < 2:
        return []
    slopes = _compare_pair(data, panels, places)
    names = [group.label(place) for place in places]
    legend = f"in the colour of the better: shown to differ, p < {LEVEL}"
    title = f"What {names[0]} and {names[1]} lose of each skill of {where}; {legend}"
    draw = partial(_draw_slopes, group, places, slopes)
    return [Figure(f"skills-pair-{ratio}", title, _words_of_slopes(names, slopes), draw)]


def find_pair(group: TableGroup, places: Sequence[int], pair: Sequence[str]) -> list[int]:
    """Return the places of the named rows, or of the first row and the first of another family.

    A row without figures and a mean of random choices is not taken.
    """
    measured = [at for at in places if group.records[at].status == "ok" and not group.is_drawn(at)]
    if pair:
        by_label = {group.label(at): at for at in measured}
        return [by_label[label] for label in pair if label in by_label]
    colours = {at: style_of(group.records[at].cell.method).colour for at in measured}
    apart = [at for at in measured[1:] if colours[at] != colours[measured[0]]]
    return [*measured[:1], *(apart or measured[1:])[:1]]


def _compare_pair(data: ReportData, panels: Sequence[SkillLosses], places: Sequence[int]) -> list[list[SkillSlope]]:
    """Return for each panel the slopes of the skills that both methods have a loss of."""
    p_by_name = _p_values_of_pair(data, panels[0].group, places)
    slopes = []
    for losses in panels:
        of_panel = []
        for column in losses.columns:
            first, second = (losses.cell(place, column) for place in places)
            if not math.isnan(_value(first) + _value(second)):
                of_panel.append(SkillSlope(column, (first, second), p_by_name.get(column.name, 1.0) < LEVEL))
        slopes.append(of_panel)
    return slopes


def _p_values_of_pair(data: ReportData, group: TableGroup, places: Sequence[int]) -> dict[str, float]:
    """Return {column: p of no difference between two rows}, adjusted for all columns of PANELS."""
    records, finder = data.records, LossFinder(data.records, data.samples)
    place_by_id = {id(record): number for number, record in enumerate(records)}
    first, second = (group.models(place)[0] for place in places)
    peers = list(chain(*group.drawn))
    contrasts: dict[str, list[Contrast]] = {}
    for seed in (seed for seed in first if seed in second):
        dense = find_dense_peer(records[first[seed]], peers)
        if dense is not None:
            ends = place_by_id[id(dense)], first[seed], second[seed]
            for column, contrast in finder.find(tasks_by_skill(peers), *ends).items():
                contrasts.setdefault(column, []).append(contrast)
    panels = tuple(f"skill_{kind}_" for kind in PANELS)
    p_values = {column: _p_value(several) for column, several in contrasts.items() if column.startswith(panels)}
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def _p_value(contrasts: Sequence[Contrast]) -> float:
    """Return the p value of no difference, of several seeds with the draw of the calibration in it."""
    if len(contrasts) == 1:
        return contrasts[0].p
    stderr = fmean(contrast.stderr or 0.0 for contrast in contrasts)
    return mean_difference([contrast.estimate for contrast in contrasts], stderr)[3]


def _words_of_slopes(names: Sequence[str], slopes: Sequence[Sequence[SkillSlope]]) -> str:
    """Return for each panel a sentence with both losses of each skill."""
    sentences = []
    for panel in slopes:
        words = [f"{slope.column.skill} {slope.ends[0].short} and {slope.ends[1].short}" for slope in panel]
        if words:
            sentences.append(f"{PANELS[panel[0].column.kind].capitalize()}, {' and '.join(names)}: {', '.join(words)}.")
    return " ".join(sentences)


def _draw_slopes(group: TableGroup, places: Sequence[int], slopes: Sequence[Sequence[SkillSlope]]) -> Drawing:
    """Draw a panel for each kind of loss, with a line for each skill from the one method to the other."""
    panels = [panel for panel in slopes if panel]
    height = max(4.2, 1.2 + GAP * max(map(len, panels)))
    drawing, axes = make_axes(4.6 * len(panels), height, columns=len(panels))
    colours = [style_of(group.records[place].cell.method, group.label(place)).colour for place in places]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_lines(axis, panel, colours)
        low, high = axis.get_ylim()
        _write_names(axis, panel, (low, high), GAP / (height - 1.2))
        axis.axhline(0, color=BLACK, linestyle=":", linewidth=1.0)
        axis.set_title(PANELS[panel[0].column.kind], fontsize=8.5)
        axis.set_xticks([0, 1], [name_in_font(group.label(place)) for place in places])
        for tick, colour in zip(axis.get_xticklabels(), colours, strict=True):
            tick.set_color(colour)
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    return drawing


def _bounds(cell: TableCell) -> tuple[float, float]:
    """Return the ends of the interval of a loss; without one the loss itself."""
    value = _value(cell)
    return value if cell.low is None else cell.low, value if cell.high is None else cell.high


def _draw_lines(axis: Axes, panel: Sequence[SkillSlope], colours: Sequence[str]) -> None:
    """Draw the lines of a panel, side by side so that their intervals can be told apart."""
    every = [_bounds(end) for slope in panel for end in slope.ends]
    low, high = min(0.0, *(low for low, _ in every)), max(high for _, high in every)
    margin = 0.03 * (high - low)
    axis.set(xlim=(-0.15, 1.15), ylim=(max(LEAST, low - margin), min(MOST, high + margin)))
    for number, slope in enumerate(panel):
        aside = 0.16 * ((number + 0.5) / len(panel) - 0.5)
        colour = colours[slope.better] if slope.is_shown else LIGHT
        values = [_value(end) for end in slope.ends]
        bounds = [_bounds(end) for end in slope.ends]
        below = [value - low for value, (low, _) in zip(values, bounds, strict=True)]
        above = [high - value for value, (_, high) in zip(values, bounds, strict=True)]
        axis.errorbar(
            [aside, 1 + aside],
            values,
            yerr=[below, above],
            color=colour,
            marker="o",
            markersize=3.5,
            linewidth=1.8 if slope.is_shown else 0.9,
            elinewidth=0.7,
            zorder=2 + slope.is_shown,
        )


def _write_names(axis: Axes, panel: Sequence[SkillSlope], ends: tuple[float, float], gap: float) -> None:
    """Write the skills' names on the right, each at least `gap` of the axis from the next."""
    low, high = ends
    ordered = sorted(panel, key=lambda slope: _value(slope.ends[1]))
    heights = [min(1.0, max(0.0, (_value(slope.ends[1]) - low) / (high - low))) for slope in ordered]
    for slope, height, place in zip(ordered, heights, move_apart(heights, gap), strict=True):
        axis.annotate(
            slope.column.skill,
            (0.97, height),
            (1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "linestyle": ":", "relpos": (0, 0.5)},
            color=BLACK if slope.is_shown else GREY,
            fontsize=8,
            verticalalignment="center",
            annotation_clip=False,
        )
