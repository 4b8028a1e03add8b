"""The figure of models in an inference engine: perplexity against the bytes of the file and the tokens it generates.

A curve leads from the dense model to a pruned one, and on to that one in smaller types of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.records.record import share
from bench.records.served import ServedRecord, alike
from reports.figures.curves import FEW, Chart, Curve, Point, draw
from reports.figures.figure import Figure
from reports.figures.pareto import steps, unbeaten
from reports.metrics import METRICS, short, significant
from reports.tables.speed.served import first_rate, seeds_of

MOST = 4.0  # times the dense model's perplexity, above which the axis ends
ROOM = 0.04  # of an axis, beside its first and last point
COSTS: dict[str, tuple[str, Callable[[ServedRecord], float | None]]] = {
    "lower": ("MB of weights, lower is better", lambda one: one.measured["bytes"] / 1e6),
    "higher": ("tokens generated per second, higher is better", first_rate),
}


def figures(records: Sequence[ServedRecord]) -> list[Figure]:
    """Return a figure for all that was served alike and has a perplexity, where the dense model and another have."""
    scored = [one for one in records if one.status == "ok" and "perplexity" in one.measured]
    groups = [several for several in alike(scored) if _base(several) and len(several) > 1]
    return [_figure(several, f"-{number}" if number else "") for number, several in enumerate(groups)]


def _figure(records: Sequence[ServedRecord], ending: str) -> Figure:
    first, charts = records[0], tuple(_charts(records))
    title = (
        f"perplexity of {first.model['name']} on {short(first.protocol['text'])} in {first.protocol['engine']} against "
        f"size and speed: a line leads from dense@{first.base} to a pruned model and on to its types "
        f"{', '.join(_types(records))}; the steps are the front of what no other one beats in both"
    )
    said = " ".join(_said(records, better) for better in COSTS if _known(records, better))
    return Figure(f"served{ending}", title, said, partial(draw, charts), charts)


def _base(records: Sequence[ServedRecord]) -> ServedRecord | None:
    return next((one for one in records if one.is_base), None)


def _types(records: Sequence[ServedRecord]) -> list[str]:
    return list(dict.fromkeys(one.type for one in records))


def _perplexity(record: ServedRecord) -> float:
    return float(record.measured["perplexity"]["perplexity"])


def _known(records: Sequence[ServedRecord], better: str) -> list[tuple[ServedRecord, Point]]:
    """Return the models that have the figure, each as its place."""
    found = [(one, COSTS[better][1](one)) for one in records]
    return [(one, (x, _perplexity(one))) for one, x in found if x is not None]


def _charts(records: Sequence[ServedRecord]) -> Iterator[Chart]:
    """Yield a chart for each cost that is known."""
    base, seeds = _base(records), seeds_of(records)
    for better, (heading, _) in COSTS.items():
        known = _known(records, better)
        places = [place for _, place in known]
        if base is None or len(known) < 2:
            continue
        xs, ys = [x for x, _ in places], [y for _, y in places]
        room, top = ROOM * (max(xs) - min(xs) or 1.0), min(max(ys), MOST * _perplexity(base))
        width = (min(xs) - room, max(xs) + room)
        curves: dict[str, list[tuple[ServedRecord, Point]]] = {}
        for one, place in known:
            if one is not base:
                curves.setdefault(_name(one) + seeds[id(one)], []).append((one, place))
        start = next((place for one, place in known if one is base), None)
        yield Chart(
            x=heading,
            y=f"perplexity on {short(base.protocol['text'])}, lower is better",
            curves=tuple(_curve(label, points, len(curves) <= FEW) for label, points in curves.items()),
            dense=_curve(base.name, [(base, start)], emphasised=True) if start else None,
            width=width[::-1] if better == "lower" else width,
            height=(min(ys) * (1 - 3 * ROOM), top * (1 + ROOM)),
            logarithmic=True,
            front=steps([places[number] for number in unbeaten(places, better, "lower")], better),
            units=(" MB" if better == "lower" else " tokens per second", ""),
        )


def _name(record: ServedRecord) -> str:
    """Return what a curve is called: the model without its types."""
    asked = share(record.model["requested_ratio"], record.model["ratio_of"])
    return f"{record.model['label']} at {asked}" if asked else str(record.model["label"])


def _curve(label: str, points: Sequence[tuple[ServedRecord, Point]], emphasised: bool) -> Curve:
    shown = tuple(METRICS["perplexity_"].show(y) for _, (_, y) in points)
    places, method = tuple(place for _, place in points), str(points[0][0].model["method"])
    return Curve(label, method, places, shown, emphasised=emphasised)


def _said(records: Sequence[ServedRecord], better: str) -> str:
    """Say which models are on the front."""
    known, seeds = _known(records, better), seeds_of(records)
    front = unbeaten([place for _, place in known], better, "lower")
    names = [
        f"{_name(one)}{seeds[id(one)]} in {one.type} ({METRICS['perplexity_'].show(y)}, {significant(x)})"
        for one, (x, y) in (known[at] for at in front)
    ]
    return f"Not beaten in perplexity and {COSTS[better][0]}: {', '.join(names)}."
