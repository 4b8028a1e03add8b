"""Says what is in doubt about a cell: a fit that does not hold, a search that ended early, a table of latency."""

from __future__ import annotations

from collections.abc import Iterator

from bench.records.columns import MISS
from bench.records.fits import SMALL, misfits
from bench.records.record import Record
from reports import speed_notes
from reports.metrics import METRICS


def of_cell(record: Record, name: str) -> Iterator[str]:
    """Yield a sentence for each doubt about a cell, which is called `name`."""
    yield from _misfits(record, name)
    yield from _ended_early(record, name)
    yield from _timed_otherwise(record, name)


def _ended_early(record: Record, name: str) -> Iterator[str]:
    """Yield how much of a search was done where its minutes were over before its end."""
    done, asked = (record.decisions.get(key) for key in ("generations", "of_generations"))
    if done is not None and asked is not None and done < asked:
        minutes = record.cell["parameters"].get("minutes")
        after = f", after {minutes:g} min" if minutes else ""
        yield f"{name}: its search ended with {done} of {asked} generations{after}; another machine may get further."


def _timed_otherwise(record: Record, name: str) -> Iterator[str]:
    """Yield what is in doubt about the table of a budget of latency, and a timing that says something else than it."""
    asked, speed = record.measured.get("budget"), record.measured.get("speed", {})
    if not asked or asked["of"] != "latency":
        return
    about = record.cell["latency"]["about"]
    for doubt in speed_notes.of_latencies(about):
        yield f"{name}: its table of latencies is in doubt: {doubt[0].lower()}{doubt[1:]}"
    depth = about["depth"]
    for point in speed.get("points", []):
        if point["kind"] == "decode" and (point["context"], point["batch"]) == (depth, 1) and "speedup" in point:
            low, high = 1 / point["speedup_high"], 1 / point["speedup_low"]
            if not low - MISS <= asked["stays"] <= high + MISS:
                show = METRICS["ratio"].show
                took = f"{show(1 / point['speedup'])}, 95 % interval {show(low)} to {show(high)}"
                yield f"{name}: {show(asked['stays'])} of the milliseconds per token by the table, timed {took}."


def _misfits(record: Record, name: str) -> Iterator[str]:
    """Yield a sentence where fits of the cell do not hold on calibration sequences that they have not seen."""
    found = list(misfits(record))
    if found:
        where, tokens, fitted, held_out = max(found, key=lambda one: one[3] / max(one[2], SMALL))
        others = f", and {len(found) - 1} more" if len(found) > 1 else ""
        yield (
            f"{name}: a fit does not hold on calibration sequences that it has not seen: {where} it "
            f"misses {held_out:.2g} of the squared states of {tokens} there, and {fitted:.2g} where it was fitted"
            f"{others}."
        )
