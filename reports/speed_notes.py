"""How speed was measured, and what is in doubt about it, in words: what stands under a table."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from bench.records.columns import STAGES, timed
from bench.records.record import Record, label
from reports.metrics import METRICS

COMPLAINTS = {  # flags of what was timed, see bench.records.record
    "noisy": "single calls vary much",
    "not_warm": "the calls before the first that counts had not become steady",
    "clocks_disagree": "the clocks disagree",
}
MACHINE = {
    "busy": "timed while other work took {other_cores:.1f} cores and {stolen_cores:.1f} were withheld.",
    "shared_gpu": "timed while {other_gpu_processes} other processes used the GPU.",
    "slowed": "timed while the machine slowed itself down, for heat or power.",
}


def protocol(record: Record) -> Iterator[str]:
    """Yield by which protocol the speed of the main table was measured."""
    asked = record.cell["protocol"]
    for stage, size in STAGES.items():
        point = timed(record, stage)
        if point:
            what = "a prompt of" if stage == "prefill" else "one token behind a context of"
            compiled = ", compiled" if asked["compile"] else ""
            yield (
                f"{stage}: times as fast as dense, both in turns for {asked['speed_rounds']} rounds; {what} "
                f"{point[size]:,} tokens, batch {point['batch']}, {asked['cache']} cache{compiled}; "
                "± or [low, high] is the 95 % interval."
            )


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
    for flag, complaint in COMPLAINTS.items():
        flagged = [_point(point, flag) for point in points if flag in point.get("flags", ())]
        if flagged:
            yield f"{name}: {complaint}: {', '.join(flagged)}."
    machine = found.get("machine", {})
    for flag in machine.get("flags", ()):
        yield f"{name}: {MACHINE[flag].format(**machine)}"


def _point(point: dict[str, Any], flag: str) -> str:
    """Say 'decode at batch 8', and where a timing is noisy by how much the less steady model varies."""
    spread = max((value for name, value in point.items() if name.endswith("_cv")), default=0.0)
    beside = f" (± {METRICS['kept'].show(spread)})" if flag == "noisy" else ""
    return f"{point['kind']} at batch {point['batch']}{beside}"
