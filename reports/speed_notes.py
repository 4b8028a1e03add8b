"""How speed was measured, in words: what stands under a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bench.records.columns import STAGES, timed
from bench.records.record import Record
from reports.metrics import binary

CAPTURED = ", each step captured once and replayed"


def protocol(record: Record) -> Iterator[str]:
    """Yield by which protocol the speed of the main table was measured."""
    asked = record.cell["protocol"]
    for stage, size in STAGES.items():
        point = timed(record, stage)
        if point:
            what = "a prompt of" if stage == "prefill" else "one token behind a context of"
            how = ", compiled" if asked["compile"] else CAPTURED if point.get("mode") == "graph" else ""
            rounds, turns = asked["speed_rounds"], "times as fast as dense, both in turns for up to"
            interval = "; ± or [low, high] is the 95 % interval" if "speedup" in point else ""
            yield (
                f"{stage}: {turns if interval else 'timed alone for'} {rounds} rounds; {what} "
                f"{point[size]:,} tokens, batch {point['batch']}, {asked['cache']} cache{how}{interval}."
            )


def throughput(record: Record, called: str) -> Iterator[str]:
    """Yield the most tokens per second that decoding reached over the batches of a GPU, by each model."""
    steps = [point for point in record.measured.get("speed", {}).get("points", ()) if point.get("mode") == "graph"]
    for context in dict.fromkeys(point["context"] for point in steps):
        swept = [point for point in steps if point["context"] == context]
        if len({point["batch"] for point in swept}) > 1:
            found = [
                f"{name} {_rate(best, name):,.0f} at batch {best['batch']}"
                for name in ("dense", "pruned")[: 1 if record.cell["method"] == "dense" else 2]
                if (best := max(_timed(swept, name), key=partial(_rate, name=name), default=None))
            ]
            yield f"{called}: most tokens/s behind {context:,} tokens: {', '.join(found)}."


def equal_memory(record: Record, dense: Record, called: str) -> Iterator[str]:
    """Yield how many tokens per second both models reach in the memory that the dense one takes where it is fastest.

    dense  the cell of the dense model, which has measured what that takes alone; only measured batches are named
    """
    steps = [point for point in record.measured.get("speed", {}).get("points", ()) if point.get("mode") == "graph"]
    taken, takes = _reserved(record), _reserved(dense)
    for context in dict.fromkeys(point["context"] for point in steps):
        swept = [point for point in steps if point["context"] == context]
        if len({point["batch"] for point in swept}) < 2:
            continue
        known = [point for point in _timed(swept, "dense") if (context, point["batch"]) in takes]
        if not (best := max(known, key=lambda point: _rate(point, "dense"), default=None)):
            continue
        room = takes[context, best["batch"]]
        fitting = [p for p in _timed(swept, "pruned") if taken.get((context, p["batch"]), room + 1) <= room]
        if most := max(fitting, key=lambda point: _rate(point, "pruned"), default=None):
            yield (
                f"{called}: tokens/s behind {context:,} tokens in {binary(room)}: dense "
                f"{_rate(best, 'dense'):,.0f} at batch {best['batch']}, pruned {_rate(most, 'pruned'):,.0f} at batch "
                f"{most['batch']}."
            )


def _reserved(record: Record) -> dict[tuple[int, int], int]:
    """Return the bytes that a model alone reserved for captured steps, by context and batch."""
    points = record.measured.get("speed", {}).get("memory", {}).get("points", ())
    held = "peak_reserved_bytes"
    return {(p["context"], p["batch"]): p[held] for p in points if p.get("mode") == "graph" and held in p}


def _rate(point: dict[str, Any], name: str) -> float:
    """Return the tokens per second of a decode step, over all sequences."""
    rate: float = 1000 * point["batch"] / point[f"{name}_ms"]
    return rate


def _timed(points: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [point for point in points if f"{name}_ms" in point]
