"""Figures of models under load: tokens per second of a server against the time that its requests wait."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.plan.cell import words_of_ratio
from bench.records.load_results import LevelTiming
from bench.records.quantity import format_significant
from bench.records.served import ServedRecord, group_alike
from reports.figures.curves import FEW, Chart, Curve, draw_charts
from reports.figures.figure import Figure
from reports.tables.speed import suffixes_of_seeds
from reports.tables.under_load import levels_of

ROOM = 0.06  # of an axis, beside its first and last point
HEIGHT = 1.15  # times the highest point at which an axis ends, and below the lowest
WAITS = {"ttft": "to the first token", "tpot": "per token behind the first"}


def figures_of_load(records: Sequence[ServedRecord]) -> list[Figure]:
    """Return a figure for each group of models that were served alike under load, and each time that requests wait."""
    timed, figures = [record for record in records if levels_of(record)], list[Figure]()
    for number, several in enumerate(group_alike(timed)):
        for wait in WAITS:
            if curves := _curves(several, wait):
                figures.append(_figure(several, wait, curves, f"-{number}" if number else ""))
    return figures


def _figure(records: Sequence[ServedRecord], wait: str, curves: Sequence[Curve], ending: str) -> Figure:
    first, chart = records[0], _chart(WAITS[wait], curves)
    levels = ", ".join(level.name for level in levels_of(first))
    title = (
        f"{first.model['name']} under load in {first.protocol['engine']}: tokens per second against the milliseconds "
        f"{WAITS[wait]}; a line leads through the levels {levels}"
    )
    words = " ".join(_words_of_curve(curve) for curve in curves)
    return Figure(f"load-{wait}{ending}", title, words, partial(draw_charts, (chart,)), (chart,))


def _levels_by_name(records: Sequence[ServedRecord]) -> dict[str, list[LevelTiming]]:
    seeds = suffixes_of_seeds(records)
    return {_name(record) + seeds[id(record)]: levels_of(record) for record in records}


def _name(record: ServedRecord) -> str:
    ratio = words_of_ratio(record.model["requested_ratio"], record.model["ratio_of"])
    return f"{record.model['label']}{f' at {ratio}' if ratio else ''}@{record.type}"


def _curves(records: Sequence[ServedRecord], wait: str) -> list[Curve]:
    """Return a curve for each model that has the time that requests wait."""
    methods = dict(zip(_levels_by_name(records), (str(record.model["method"]) for record in records), strict=True))
    curves = list[Curve]()
    for name, levels in _levels_by_name(records).items():
        timed = [level for level in levels if getattr(level.pruned, f"{wait}_ms")]
        ys = [getattr(level.pruned, f"{wait}_ms")[0] for level in timed]
        points = tuple((level.pruned.tokens_per_second, y) for level, y in zip(timed, ys, strict=True))
        texts = tuple(f"{format_significant(y)} ms, {level.name}" for level, y in zip(timed, ys, strict=True))
        if points:
            curves.append(Curve(name, methods[name], points, texts, emphasised=len(records) <= FEW))
    return curves


def _chart(words: str, curves: Sequence[Curve]) -> Chart:
    """Return a chart of curves of tokens per second and milliseconds."""
    places = [place for curve in curves for place in curve.points]
    xs, ys = [x for x, _ in places], [y for _, y in places]
    room = ROOM * (max(xs) - min(xs) or 1.0)
    return Chart(
        x="tokens generated per second, higher is better",
        y=f"milliseconds {words}, median, lower is better",
        curves=tuple(curves),
        dense=None,
        width=(min(xs) - room, max(xs) + room),
        height=(min(ys) / HEIGHT, max(ys) * HEIGHT),
        logarithmic=True,
        units=(" tokens per second", ""),
    )


def _words_of_curve(curve: Curve) -> str:
    """Return a sentence on a model's levels."""
    rates = [f"{format_significant(x)} tokens/s" for x, _ in curve.points]
    parts = [f"{rate} and {text}" for rate, text in zip(rates, curve.figures, strict=True)]
    return f"{curve.label}: {'; '.join(parts)}."
