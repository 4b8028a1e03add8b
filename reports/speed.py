"""Everything that was timed, not only what the main table has room for: one row per cell, size and batch.

A second table holds what explains the first: bytes of weights and of cache, the peak of memory, and whether the widths
of the matrices suit the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from bench.record import Record
from reports import notes
from reports.frame import label, requested_ratio, timed, tokens
from reports.metrics import METRICS, MISSING, binary, significant
from reports.text import markdown_escaped, printable, wrap

LINE = 100
TIMED = ("method", "removed", "timed", "batch", "ms", "ms/token", "tokens/s", "times as fast", "by work")
SIZES = ("method", "removed", "weights", "KV/token", "peak", "widths divide by")


def terminal(records: Sequence[Record]) -> str:
    """Both tables, and what is to be known about them."""
    tables = [
        tabulate(rows, headers=heads, tablefmt="plain", disable_numparse=True, colalign=_sides(heads))
        for heads, rows in ((TIMED, _timed(records)), (SIZES, _sizes(records)))
        if rows
    ]
    bullets = [line for sentence in sentences(records) for line in wrap(printable(sentence), LINE, indent="  ")]
    return "\n\n".join([*tables, "\n".join(bullets)]) + "\n"


def markdown(records: Sequence[Record]) -> list[str]:
    """The section of a report; empty where the main table already has all that was timed."""
    points = [point for record in records for point in record.measured.get("speed", {}).get("points", ())]
    in_main = [timed(record, stage) for record in records for stage in ("prefill", "decode")]
    if len(points) <= sum(point is not None for point in in_main):
        return []
    tables = [
        tabulate(
            [[markdown_escaped(cell) for cell in row] for row in rows],
            headers=heads,
            tablefmt="pipe",
            disable_numparse=True,
            colalign=_sides(heads),
        )
        for heads, rows in ((TIMED, _timed(records)), (SIZES, _sizes(records)))
    ]
    return ["## Speed", *tables, "\n".join(f"- {markdown_escaped(sentence)}" for sentence in LEGEND)]


LEGEND = (
    "ms: the median of one prefill, or of one step of decoding, which gives each sequence one token; "
    "ms/token for one sequence, tokens/s over all of them.",
    "times as fast: dense over pruned, both in turns, with the 95 % interval; by work: what the removed "
    "multiply-accumulates alone would bring, and for decode the bytes of weights and cache that a step reads.",
    "peak: of the pruned model alone at the largest size it was measured at: allocated on a GPU, else of the process "
    "with everything that it has loaded. widths divide by: the largest of 128, 64, 8 and 1 that does so for all.",
)


def sentences(records: Sequence[Record]) -> Iterator[str]:
    """What the columns mean, by which protocol, and what is in doubt."""
    yield from dict.fromkeys(sentence for record in records for sentence in notes.speed(record))
    yield from LEGEND
    for record in records:
        if record.status == "ok":
            yield from notes.doubts(record)
        else:
            yield f"{label(record.cell)}: {notes.status(record)}: {notes.reason(record.error or '')}"


def _sides(heads: Sequence[str]) -> tuple[str, ...]:
    return tuple("left" if head in ("method", "timed", "widths divide by") else "right" for head in heads)


def _name(record: Record) -> list[str]:
    ratio = record.measured.get("ratio")
    requested = requested_ratio(record)
    name = label(record.cell) + ("" if requested is None else f" at {requested:g}")
    return [printable(name), MISSING if ratio is None else METRICS["ratio"].show(ratio)]


def _timed(records: Sequence[Record]) -> list[list[str]]:
    return [
        [*_name(record), *_row(point)]
        for record in records
        for point in record.measured.get("speed", {}).get("points", ())
    ]


def _row(point: dict[str, Any]) -> list[str]:
    """One size and batch; what ran out of memory or failed says so where its figure would be."""
    size = point["length"] if point["kind"] == "prefill" else point["context"]
    row = [f"{point['kind']} {size:,}", str(point["batch"])]
    lost = f"out of memory: {', '.join(point['out_of_memory'])}" if "out_of_memory" in point else MISSING
    if "pruned_ms" not in point:
        return [*row, MISSING, MISSING, MISSING, "failed" if "failed" in point else lost, MISSING]
    ms, each = point["pruned_ms"], tokens(point)
    row += [significant(ms), significant(ms * point["batch"] / each), significant(1000 * each / ms)]
    if "speedup" not in point:
        return [*row, lost, MISSING]
    low, high = point["speedup_low"], point["speedup_high"]
    work = [point[name] for name in ("speedup_by_macs", "speedup_by_bytes") if name in point]
    expected = " / ".join(METRICS["prefill_speed"].show(figure) for figure in work)
    star = "!" * bool(point["flags"])
    return [*row, METRICS["prefill_speed"].show_interval(point["speedup"], low, high) + star, expected]


def _sizes(records: Sequence[Record]) -> list[list[str]]:
    rows = []
    for record in records:
        measured, speed = record.measured, record.measured.get("speed", {})
        if "weight_bytes" in measured:
            figures = [binary(measured[name]) for name in ("weight_bytes", "kv_bytes_per_token")]
            rows.append([*_name(record), *figures, _peak(speed), _widths(speed)])
    return rows


def _peak(speed: dict[str, Any]) -> str:
    peaks = [
        point[name]
        for point in speed.get("memory", {}).get("points", ())
        for name in ("peak_allocated_bytes", "peak_resident_bytes")
        if name in point
    ]
    return binary(max(peaks)) if peaks else MISSING


def _widths(speed: dict[str, Any]) -> str:
    """'64', or '64; qkv 8' where a role's widths divide by less than most others'."""
    tiles = {role: found["multiple_of"] for role, found in speed.get("widths", {}).items()}
    if not tiles:
        return MISSING
    usual = max(tiles.values(), key=list(tiles.values()).count)
    return "; ".join([str(usual), *(f"{role} {tile}" for role, tile in tiles.items() if tile != usual)])
