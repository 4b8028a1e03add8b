"""Figures of single cells: LaCo's similarity as its pointer moves, how healing went, and the latency of every call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.plan.cell import words_of_amount, words_of_ratio
from bench.records.frame import STAGES, main_timing
from bench.records.measured import LearningPoint
from bench.records.quantity import format_significant
from bench.records.record import Record, name_of_model
from reports.figures.curves import write_names
from reports.figures.figure import Figure
from reports.figures.style import BLACK, GREY, add_legend, look_of, make_axes, name_in_font, style_of
from reports.groups import TableGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


HALF = 0.13  # of a box's height, in rows
PANELS = 4  # of the similarity in one figure, side by side


@dataclass(frozen=True)
class Calls:
    """The milliseconds of every call of one cell: of the pruned model, and of the dense model in turns with it."""

    label: str
    method: str
    pruned: list[float]
    dense: list[float]


def figures_of_traces(groups: Sequence[TableGroup]) -> list[Figure]:
    """Return the figures of the similarity of each method that merges layers, then of learning and latency by ratio."""
    model = name_of_model(groups[0].records[0])
    figures = _similarities([record for group in groups for record in group.records], model)
    for group in groups:
        ratio = words_of_ratio(group.ratio, group.ratio_of) or "fixed"
        where = f"{model} at {words_of_amount(group.ratio, group.ratio_of) or 'ratio fixed'}"
        figures += [*_learning(group, ratio, where), *_latencies(group.records, ratio, where)]
    return figures


def _similarities(records: Sequence[Record], model: str) -> list[Figure]:
    """Return a figure for each method with a trace; it has a panel for each ratio."""
    methods: dict[str, list[Record]] = {}
    for record in records:
        healed = record.cell.healing  # the pruned cell beside it has the same trace
        if record.status == "ok" and record.decisions.get("trace") and not healed:
            methods.setdefault(record.cell.label, []).append(record)
    return [
        Figure(
            f"similarity-{place}",
            f"Similarity of {model} under {method} to the dense model, as the pointer moves from the rear to the front",
            " ".join(map(_words_of_trace, traced[:PANELS])),
            partial(_draw_traces, traced[:PANELS]),
        )
        for place, (method, traced) in enumerate(methods.items(), start=1)
    ]


def _words_of_trace(record: Record) -> str:
    trace = record.decisions["trace"]
    merged = [f"at layer {step['pointer']} ({step['similarity']:.3f})" for step in trace if step["accepted"]]
    amount = words_of_amount(record.cell.ratio, record.cell.ratio_of)
    where = f"{amount.capitalize()}: " if amount else ""
    threshold = record.decisions.get("threshold")
    above = "" if threshold is None else f" above {threshold:.3f}"
    return f"{where}{len(trace)} windows tried, {len(merged)} merged{above}: {', '.join(merged) or 'none'}."


def _draw_traces(records: Sequence[Record]) -> Drawing:
    drawing, panels = make_axes(2.0 + 2.6 * len(records), 3.0, columns=len(records), share_y=True)
    for axis, record in zip(panels, records, strict=True):
        steps = [step for step in record.decisions["trace"] if step["similarity"] is not None]
        colour = style_of(record.cell.method).colour
        axis.plot(
            [s["pointer"] for s in steps], [s["similarity"] for s in steps], color=colour, linewidth=0.8, zorder=1
        )
        for accepted, text in ((True, "merged"), (False, "rejected")):
            chosen = [step for step in steps if step["accepted"] == accepted]
            look: dict[str, Any] = {"color": colour, "markerfacecolor": colour if accepted else "white", "marker": "o"}
            x, y = [step["pointer"] for step in chosen], [step["similarity"] for step in chosen]
            axis.plot(x, y, linestyle="none", label=text, **look)
        threshold = record.decisions.get("threshold")
        if threshold is not None and math.isfinite(threshold):
            axis.axhline(threshold, color=BLACK, linestyle=":", linewidth=1, label="threshold")
        axis.set_title(words_of_amount(record.cell.ratio, record.cell.ratio_of))
        axis.set_xlabel("layer that the others merge into")
        axis.invert_xaxis()
    panels[0].set_ylabel("similarity (cosine)")
    add_legend(drawing, panels)
    return drawing


def _learning(group: TableGroup, ratio: str, where: str) -> list[Figure]:
    """Return the figure of the learning curves of healed cells, with the first of several draws; empty without one."""
    curves = {
        group.label(place): (record.cell.method, record.measured.healing.curve)
        for place, record in enumerate(group.records)
        if record.status == "ok" and record.measured.healing is not None
    }
    if not curves:
        return []
    return [
        Figure(
            f"healing-{ratio}",
            f"Healing of {where}: loss on held-out sequences of the text that is trained on, with its "
            "95 % interval; of several draws the first",
            f"In nats per token: {'; '.join(_words_of_learning(name, curve) for name, (_, curve) in curves.items())}.",
            partial(_draw_learning, curves),
        )
    ]


def _words_of_learning(name: str, curve: Sequence[LearningPoint]) -> str:
    first, last = curve[0], curve[-1]
    return f"{name} from {first.heldout_loss:.2f} to {last.heldout_loss:.2f} after {last.tokens:,} tokens"


def _draw_learning(curves: Mapping[str, tuple[str, Sequence[LearningPoint]]]) -> Drawing:
    drawing, (axis,) = make_axes(5.6, 3.4)
    for label, (method, curve) in curves.items():
        tokens = [point.tokens for point in curve]
        own = look_of(method, label)
        axis.plot(tokens, [point.heldout_loss for point in curve], label=name_in_font(label), **own)
        low, high = [point.heldout_loss_low for point in curve], [point.heldout_loss_high for point in curve]
        axis.fill_between(tokens, low, high, color=own["color"], alpha=0.12, linewidth=0)
    axis.set_xlabel("tokens trained on")
    axis.set_ylabel("held-out loss (nats per token)")
    axis.locator_params(axis="x", nbins=5)  # more numbers of this length would run into each other
    axis.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    write_names([axis])
    return drawing


def _latencies(records: Sequence[Record], ratio: str, where: str) -> list[Figure]:
    """Return the figure of the calls at the first batch and size, with panels for prefill and decode; empty without."""
    stages: dict[str, list[Calls]] = {}
    for stage in STAGES:
        every = [_calls(record, stage) for record in records]
        measured = [calls for calls in every if calls is not None]
        if any(calls.method != "dense" for calls in measured):
            stages[stage] = measured
    if not stages:
        return []
    return [
        Figure(
            f"latency-{ratio}",
            f"Latency of {where}, each method beside the dense model that was timed in turns with it; "
            "of several draws the first",
            " ".join(_words_of_latency(stage, calls) for stage, calls in stages.items()),
            partial(_draw_latencies, stages),
        )
    ]


def _calls(record: Record, stage: str) -> Calls | None:
    point = main_timing(record, stage)
    rounds = point.rounds if point else None
    if not (rounds and rounds.pruned and rounds.dense):
        return None
    pruned, dense = chain(*rounds.pruned), chain(*rounds.dense)
    return Calls(record.cell.label, record.cell.method, list(pruned), list(dense))


def _words_of_latency(stage: str, calls: Sequence[Calls]) -> str:
    words = [
        f"{c.label} {format_significant(median(c.pruned))} (dense {format_significant(median(c.dense))})" for c in calls
    ]
    return f"Medians of {stage} in ms: {', '.join(words)}."


def _draw_latencies(stages: dict[str, list[Calls]]) -> Drawing:
    """Draw boxes from quartile to quartile, whiskers to the 5th and 95th percentile, and farther calls as points."""
    most = max(map(len, stages.values()))
    drawing, panels = make_axes(2.6 + 2.9 * len(stages), 1.2 + 0.36 * most, columns=len(stages))
    for axis, (stage, calls) in zip(panels, stages.items(), strict=True):
        colours = [style_of(cell_calls.method).colour for cell_calls in calls]
        _boxes(axis, -0.17, [cell_calls.pruned for cell_calls in calls], colours, filled=True)
        _boxes(axis, 0.17, [cell_calls.dense for cell_calls in calls], [GREY] * len(calls), filled=False)
        axis.set_yticks(range(len(calls)), [name_in_font(cell_calls.label) for cell_calls in calls])
        axis.set_ylim(len(calls) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(f"{stage}, ms a call")
        axis.set_title("filled: pruned, white: dense")
    for axis in panels[1:]:
        axis.tick_params(labelleft=False)
    return drawing


def _boxes(axis: Axes, shift: float, calls: Sequence[Sequence[float]], colours: Sequence[str], *, filled: bool) -> None:
    """Draw a box for each row, `shift` below it. One artist for each kind of line takes half of Axes.boxplot's time."""
    from matplotlib.cbook import boxplot_stats
    from matplotlib.collections import PolyCollection

    boxes = boxplot_stats(list(calls), whis=(5, 95))
    ends = map(itemgetter("whislo", "q1", "med", "q3", "whishi"), boxes)
    low, q1, middle, q3, high = zip(*ends, strict=True)
    level = [place + shift for place in range(len(boxes))]
    above, below = [place - HALF for place in level], [place + HALF for place in level]
    corners = [[(a, y0), (b, y0), (b, y1), (a, y1)] for a, b, y0, y1 in zip(q1, q3, above, below, strict=True)]
    faces = colours if filled else "white"
    axis.add_collection(PolyCollection(corners, facecolors=faces, edgecolors=colours, linewidths=1, joinstyle="miter"))
    lines: dict[str, Any] = {"colors": [*colours, *colours], "linewidth": 1, "capstyle": "projecting"}
    axis.hlines(level * 2, [*low, *q3], [*q1, *high], **lines)
    axis.vlines([*low, *high], [y - HALF / 2 for y in level] * 2, [y + HALF / 2 for y in level] * 2, **lines)
    axis.vlines(middle, above, below, colors="white" if filled else colours, linewidth=1.4, zorder=2.1)
    beyond = [(x, y, colour) for box, y, colour in zip(boxes, level, colours, strict=True) for x in box["fliers"]]
    if beyond:
        x, y, c = zip(*beyond, strict=True)
        axis.scatter(x, y, s=2.5**2, marker=".", facecolors="none", edgecolors=c, linewidths=1)
