"""Maps: how much accuracy each method keeps of each task, and how much it leaves of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain, product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.data.needle import DEPTHS
from bench.plan.cell import words_of_amount
from bench.records.frame import columns_of_tasks, keep_shown_tasks
from bench.records.quantities import quantity_of_column
from bench.records.record import name_of_model
from bench.records.samples import Samples
from methods.ranges import write_ranges
from reports.figures.figure import Figure
from reports.figures.style import BLUE, GREY, make_axes, name_in_font
from reports.groups import TableGroup
from reports.removed import Remaining, remaining_of
from reports.tables.needle import DepthScore, scores_by_depth, tasks_with_needle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.image import AxesImage


ROW = 0.21  # inches of a method's row
Shares = dict[str, list[float]]  # method: share for each task


def figures_of_depth(groups: Sequence[TableGroup]) -> list[Figure]:
    """Return the map of the accuracy kept of each task and the map of the shares left of each layer.

    Each has a panel for each ratio; a map without data is left out.
    """
    figures, model = [], name_of_model(groups[0].records[0])
    every_kept = {_ratio(group): _kept(group) for group in groups}
    kept = {ratio: (tasks, shares) for ratio, (tasks, shares) in every_kept.items() if shares}
    if kept:
        title = f"Accuracy of {model} by task as a share of the dense model's"
        words = " ".join(_words_of_kept(ratio, *tasks_and_shares) for ratio, tasks_and_shares in kept.items())
        figures.append(Figure("tasks-kept", title, words, partial(_draw_kept, kept)))
    every_remaining = {_ratio(group): _remaining_by_method(group) for group in groups}
    over_depth = {ratio: by_method for ratio, by_method in every_remaining.items() if by_method}
    if over_depth:
        title = "What is left of the attention (upper half of a row) and of the MLP (lower half) of each layer of"
        words = " ".join(_words_of_depth(ratio, remaining) for ratio, remaining in over_depth.items())
        draw = partial(_draw_depth, over_depth)
        figures.append(Figure("depth", f"{title} {model}; of several draws the mean", words, draw))
    return figures


def _ratio(group: TableGroup) -> str:
    return words_of_amount(group.ratio, group.ratio_of) or "ratio fixed"


def _kept(group: TableGroup) -> tuple[list[str], Shares]:
    """Return the tasks with an accuracy, and {label: shares of the dense model's accuracy that the method keeps}.

    Tasks by skill, where they are many, have figures of their own (reports.figures.skills).
    """
    every = columns_of_tasks(group.records, keep_shown_tasks(group.records))
    columns = [column for column in every if column.startswith("task_")]
    rows = list(zip(group.records, group.rows, strict=True))
    dense = next((row for record, row in rows if record.cell.method == "dense" and record.status == "ok"), None)
    if dense is None:
        return columns, {}
    shares = {}
    for place, (record, row) in enumerate(rows):
        if record.cell.method != "dense" and any(row.get(column) is not None for column in columns):
            shares[group.label(place)] = [_share(row, dense, column) for column in columns]
    return columns, shares


def _share(row: dict[str, Any], dense: dict[str, Any], column: str) -> float:
    """Return the share of the dense model's accuracy; NaN if it was not measured on the documents of this row."""
    value, base = row.get(column), dense.get(column)
    same = all(row.get(f"{column}_{name}") == dense.get(f"{column}_{name}") for name in ("metric", "documents"))
    if not same or value is None or not base:
        return math.nan
    return float(value) / float(base)


def _words_of_kept(ratio: str, tasks: Sequence[str], shares: Shares) -> str:
    """Return a sentence with the mean that each method keeps, and the task that it keeps least of."""
    words = []
    for label, kept in shares.items():
        shares_of_tasks = [
            (share, quantity_of_column(task).heading)
            for share, task in zip(kept, tasks, strict=True)
            if not math.isnan(share)
        ]
        if shares_of_tasks:
            least = min(shares_of_tasks)
            mean = 100 * fmean(share for share, _ in shares_of_tasks)
            words.append(f"{label} {mean:.0f} % (least: {least[1]}, {100 * least[0]:.0f} %)")
    return f"{ratio.capitalize()}: {', '.join(words)}."


def _draw_kept(kept: dict[str, tuple[list[str], Shares]]) -> Drawing:
    """Draw a panel for each ratio: methods by tasks, with the share in per cent in each field, white for 100 %."""
    labels = list(dict.fromkeys(label for _, shares in kept.values() for label in shares))
    columns = max(len(tasks) for tasks, _ in kept.values())
    wide = 2.8 + len(kept) * max(1.2, 0.36 * columns)
    drawing, panels = make_axes(wide, 1.6 + ROW * len(labels), columns=len(kept), share_y=True)
    image = None
    for axis, (ratio, (tasks, shares)) in zip(panels, kept.items(), strict=True):
        grid = [shares.get(label, [math.nan] * len(tasks)) for label in labels]
        image = axis.imshow(grid, cmap="PuOr", vmin=0.3, vmax=1.7, aspect="auto")
        for y, x in product(range(len(labels)), range(len(tasks))):
            if not math.isnan(share := grid[y][x]):
                colour = "white" if abs(share - 1) > 0.45 else "black"
                axis.text(
                    x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=colour, in_layout=False
                )
        tilted: dict[str, Any] = {"rotation": 55, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(len(tasks)), [name_in_font(quantity_of_column(task).heading) for task in tasks], **tilted)
        write_names(axis, labels, ratio)
    if image is not None:
        draw_colour_bar(drawing, panels, image, "of the dense model's accuracy", extend="both")
    return drawing


def write_names(axis: Axes, labels: Sequence[str], ratio: str) -> None:
    """Write the methods' names and the title, and remove the lines of the axes."""
    axis.set_yticks(range(len(labels)), [name_in_font(label) for label in labels])
    axis.set_title(ratio)
    axis.grid(visible=False)
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set_visible(False)


def draw_colour_bar(
    drawing: Drawing, panels: Sequence[Axes], image: AxesImage, label: str, extend: str = "neither"
) -> None:
    """Draw the scale of a map's colours, in per cent."""
    bar = drawing.colorbar(image, ax=list(panels), pad=0.02, aspect=25, extend=extend)
    bar.set_label(label)
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    bar.outline.set_linewidth(0.5)


def figures_of_needles(groups: Sequence[TableGroup], samples: Samples) -> list[Figure]:
    """Return for each ratio the map of the codes that each method finds, by context and depth."""
    figures = []
    for group in groups:
        by_context = {}
        for task in tasks_with_needle(group):
            scores = {
                group.label(at): scores_by_depth(samples, group.numbers[at], task) for at in range(len(group.rows))
            }
            if filled := {label: of_label for label, of_label in scores.items() if of_label}:
                by_context[task.removeprefix("needle_")] = filled
        if by_context and any(record.cell.method != "dense" for record in group.records):
            model = name_of_model(group.records[0])
            title = f"Codes that {model} finds in a haystack by context and depth, {_ratio(group)}; guesses find 10 %"
            words = " ".join(_words_of_needles(context, filled) for context, filled in by_context.items())
            figures.append(Figure(f"needle-{group.ratio}", title, words, partial(_draw_needles, by_context)))
    return figures


def _words_of_needles(context: str, scores: dict[str, dict[int, DepthScore]]) -> str:
    """Return a sentence with the share of codes that each method finds at each depth."""
    words = []
    for label, by_depth in scores.items():
        words.append(f"{label} {', '.join(f'{100 * score.accuracy:.0f}' for score in by_depth.values())} %")
    return f"Context {context}, by depth: {'; '.join(words)}."


def _draw_needles(by_context: dict[str, dict[str, dict[int, DepthScore]]]) -> Drawing:
    """Draw a panel for each context: methods by depths, with the share in per cent in each field."""
    labels = list(dict.fromkeys(chain.from_iterable(by_context.values())))
    drawing, panels = make_axes(
        2.8 + 1.9 * len(by_context), 1.4 + ROW * len(labels), columns=len(by_context), share_y=True
    )
    image = None
    for axis, (context, scores) in zip(panels, by_context.items(), strict=True):
        grid = [_accuracies(scores.get(label, {})) for label in labels]
        image = axis.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for y, x in product(range(len(labels)), range(len(DEPTHS))):
            if not math.isnan(share := grid[y][x]):
                colour = "white" if share > 0.6 else "black"
                axis.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        axis.set_xticks(range(len(DEPTHS)), [f"{depth} %" for depth in DEPTHS])
        write_names(axis, labels, f"context {context}")
        axis.set_xlabel("depth")
    if image is not None:
        draw_colour_bar(drawing, panels, image, "codes that are found")
    return drawing


def _accuracies(scores: dict[int, DepthScore]) -> list[float]:
    """Return the accuracy at each depth; NaN where none was measured."""
    return [scores[depth].accuracy if depth in scores else math.nan for depth in DEPTHS]


def _remaining_by_method(group: TableGroup) -> dict[str, Remaining]:
    """Return {label: shares left of each layer}; the mean of several draws."""
    remaining = {}
    for place, drawn in enumerate(group.drawn):
        several = [draw for draw in map(remaining_of, drawn) if draw is not None]
        cell = group.records[place].cell
        if several and cell.method != "dense" and not cell.healing:  # healing removes nothing
            remaining[group.label(place)] = Remaining(
                _mean_by_layer([draw.attention for draw in several]),
                _mean_by_layer([draw.mlp for draw in several]),
                several[0].how,
            )
    return remaining


def _words_of_depth(ratio: str, remaining_by_label: dict[str, Remaining]) -> str:
    return (
        f"{ratio.capitalize()}: "
        f"{'; '.join(f'{label}: {_words_of_remaining(remaining)}' for label, remaining in remaining_by_label.items())}."
    )


def _mean_by_layer(several: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean share left of each layer over several draws."""
    return tuple(map(fmean, zip(*several, strict=True)))


def _words_of_remaining(remaining: Remaining) -> str:
    """Return the layers that are gone, as in 'layers 10-20 gone', and how much is left of the rest."""
    removed = {}
    for part, shares in (("attention", remaining.attention), ("MLP", remaining.mlp)):
        removed[part] = [number for number, share in enumerate(shares) if share == 0]
    both = [number for number in removed["attention"] if number in removed["MLP"]]
    words = [f"layers {write_ranges(both, ', ')} gone"] if both else []
    for part, numbers in removed.items():
        alone = [number for number in numbers if number not in both]
        words += [f"{part} of {write_ranges(alone, ', ')} gone"] if alone else []
    for part, shares in (("attention", remaining.attention), ("MLP", remaining.mlp)):
        partly = [share for share in shares if 0 < share < 1]
        lowest, highest = min(partly, default=0), max(partly, default=0)
        ends = list(dict.fromkeys([f"{100 * lowest:.0f}", f"{100 * highest:.0f}"]))
        words += [f"{' to '.join(ends)} % of the {part} left in {len(partly)} layers"] if partly else []
    return ", ".join(words) or "nothing gone"


def _draw_depth(over_depth: dict[str, dict[str, Remaining]]) -> Drawing:
    """Draw a panel for each ratio: methods by layers; each row has the attentions above the MLPs."""
    from matplotlib.colors import LinearSegmentedColormap

    labels = list(dict.fromkeys(label for by_label in over_depth.values() for label in by_label))
    layers = max(len(remaining.attention) for by_label in over_depth.values() for remaining in by_label.values())
    wide = 2.9 + len(over_depth) * min(4.0, max(1.6, 0.08 * layers))
    drawing, panels = make_axes(wide, 1.3 + 1.15 * ROW * len(labels), columns=len(over_depth), share_y=True)
    colours = LinearSegmentedColormap.from_list("left", ["#FFFFFF", "#CFE3F1", BLUE])
    image = None
    for axis, (ratio, by_label) in zip(panels, over_depth.items(), strict=True):
        grid = [
            [*shares, *[math.nan] * (layers - len(shares))]
            for label in labels
            for shares in ((by_label[label].attention, by_label[label].mlp) if label in by_label else ((), ()))
        ]
        extent = (-0.5, layers - 0.5, len(labels) - 0.5, -0.5)
        image = axis.imshow(grid, cmap=colours, vmin=0, vmax=1, aspect="auto", extent=extent, interpolation="nearest")
        edges = [number - 0.5 for number in range(len(labels) + 1)]
        for colour, width in (("white", 2.5), (GREY, 0.4)):
            axis.hlines(edges, extent[0], extent[1], colors=colour, linewidth=width)
        axis.set(xlim=extent[:2], ylim=extent[2:])
        for place in (place for place, label in enumerate(labels) if label not in by_label):
            axis.text(layers / 2 - 0.5, place, "not measured", ha="center", va="center", fontsize=6.5, color=GREY)
        write_names(axis, labels, ratio)
        axis.set_xlabel("layer of the dense model\nabove: attention, below: MLP")
    if image is not None:
        draw_colour_bar(drawing, panels, image, "share left")
    return drawing
