"""How speed was measured, and what is in doubt about it, in words: what stands under a table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from bench.records.columns import STAGES, timed
from bench.records.record import Record, label
from reports.metrics import METRICS, binary

COMPLAINTS = {  # flags of what was timed, see bench.records.schema.speed
    "noisy": "single calls vary much",
    "not_warm": "the calls before the first that counts had not become steady",
    "clocks_disagree": "the clocks disagree",
    "slowed": "heat or power held the GPU's clocks down",
    "launch_bound": "the host launches kernels more slowly than the GPU runs them, which captured steps show",
    "low_bandwidth": "less than 40 % of the GPU's bandwidth and of its matrix rate are used",
    "low_matrix_rate": "less than 40 % of the GPU's matrix rate are used: launches, or small matrices, take the time",
    "in_blocks": "both models do not fit together, so that one was timed after the other",
}
CAPTURED = ", each step captured once and replayed"
MACHINE = {
    "busy": "timed while other work took {other_cores:.1f} cores and {stolen_cores:.1f} were withheld.",
    "shared_gpu": "timed while {other_gpu_processes} other processes used the GPU.",
    "slowed": "timed while the machine was slowed down, for heat, power or a limit of processor time.",
}


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


def doubts(record: Record, stages: Collection[str] = tuple(STAGES), name: str = "") -> Iterator[str]:
    """Yield why the speed of a cell at some stages of generation is missing or should be taken with care.

    name  what the cell is called, by default its label
    """
    name, found = name or label(record.cell), record.measured.get("speed", {})
    if "failed" in found:
        yield f"{name}: speed: {found['failed']}"
    points = [point for point in found.get("points", []) if point["kind"] in stages]
    for failure in dict.fromkeys(point["failed"] for point in points if "failed" in point):
        yield f"{name}: speed: {failure}"
    if alone := [f"{point['kind']} at batch {point['batch']}" for point in points if _is_alone(point)]:
        yield (
            f"{name}: timed alone, since the dense model had no room, so that there is no speed-up; 'by work' is what "
            f"the removed work alone would bring: {', '.join(dict.fromkeys(alone))}."
        )
    for flag, complaint in COMPLAINTS.items():
        flagged = [_point(point, flag) for point in points if flag in point.get("flags", ())]
        if flagged:
            yield f"{name}: {complaint}: {', '.join(dict.fromkeys(flagged))}."
    machine = found.get("machine", {})
    for flag in machine.get("flags", ()):
        yield f"{name}: {MACHINE[flag].format(**machine)}"


def of_latencies(about: dict[str, Any]) -> Iterator[str]:
    """Yield why a table of latencies should be taken with care, by what it says of how it was measured."""
    copies = about.get("copies", ())
    flags = [flag for copy in copies for flag in copy.get("flags", ())]
    for flag in dict.fromkeys(flags):
        yield f"{flags.count(flag)} of {len(copies)} copies: {COMPLAINTS[flag]}."
    machine = about.get("machine", {})
    for flag in machine.get("flags", ()):
        yield f"The copies were {MACHINE[flag].format(**machine)}"


def _is_alone(point: dict[str, Any]) -> bool:
    return "dense" in point.get("out_of_memory", ()) and "pruned_ms" in point


def _point(point: dict[str, Any], flag: str) -> str:
    """Say 'decode at batch 8', and where a timing is noisy by how much the less steady model varies."""
    spread = max((value for name, value in point.items() if name.endswith("_cv")), default=0.0)
    beside = f" (± {METRICS['kept'].show(spread)})" if flag == "noisy" else ""
    mode = f", {point['mode']}" if "mode" in point and point["kind"] == "decode" else ""
    return f"{point['kind']} at batch {point['batch']}{mode}{beside}"
