"""Everything that was timed, not only what the main table has room for: one row per cell, size and batch.

A second table holds what explains the first: bytes of weights and of cache, the peak of memory, and whether the widths
of the matrices suit the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.records.columns import tokens
from bench.records.comparability import apart, by_setup
from bench.records.record import Record, display_name, label, named, requested_ratio
from reports import notes
from reports.metrics import METRICS, MISSING, binary, significant
from reports.tables.table import Column, Entry, Row, Table, text, words

TIMED = (
    Column("ratio", "removed"),
    Column("timed", "timed", words=True, key=True),
    Column("batch", "batch", key=True),
    Column("pruned_ms", "ms"),
    Column("ms_per_token", "ms/token"),
    Column("tokens_per_second", "tokens/s"),
    Column("speedup", "times as fast"),
    Column("predicted", "by work"),
)
SIZES = (
    Column("ratio", "removed"),
    Column("weight_bytes", "weights"),
    Column("kv_bytes_per_token", "KV/token"),
    Column("peak", "peak"),
    words("widths divide by"),
)
ABOUT_TIMES = (
    "ms: the median of one prefill, or of one step of decoding, which gives each sequence one token; "
    "ms/token for one sequence, tokens/s over all of them.",
    "times as fast: dense over pruned, both in turns, with the 95 % interval; by work: what the removed "
    "multiply-accumulates alone would bring, and for decode the bytes of weights and cache that a step reads.",
    "!: a doubtful timing, see the notes.",
)
ABOUT_SIZES = (
    "peak: of the pruned model alone at the largest size it was measured at: allocated on a GPU, else of the process "
    "with everything that it has loaded. widths divide by: the largest of 128, 64, 8 and 1 that does so for all.",
)


def tables(records: Sequence[Record], *_others: Any) -> list[Table]:
    """For each setup what was timed, where there is any, and the sizes."""
    found = []
    different = apart(records)
    for key, mixed in by_setup(records).items():
        peers = sorted(mixed, key=lambda record: record.cell["method"] != "dense")  # dense on top, as in every table
        timed_rows = tuple(row for record in peers for row in _timed(record))
        sizes = tuple(_sizes(record) for record in peers if "weight_bytes" in record.measured)
        said = dict.fromkeys(sentence for record in peers for sentence in notes.speed(record))
        about = (*said, *ABOUT_TIMES) if timed_rows else ()
        exceptions = tuple(sentence for record in peers for sentence in _exceptions(record))
        for name, columns, rows in (("speed", TIMED, timed_rows), ("sizes", SIZES, sizes)):
            if rows:
                found.append(
                    Table(
                        name="speed" if name == "speed" else "speed-sizes",
                        view="speed",
                        model=display_name(peers[0]),
                        title=name,
                        conditions=(*notes.conditions(peers), *different[key]),
                        columns=columns,
                        rows=rows,
                        notes=exceptions if name == "speed" or not timed_rows else (),
                        protocol=about if name == "speed" else ABOUT_SIZES,
                    )
                )
    return found


def _exceptions(record: Record) -> Iterator[str]:
    """What is in doubt, and why there are no figures."""
    if record.status == "ok":
        yield from notes.doubts(record)
    else:
        yield f"{label(record.cell)}: {notes.status(record)}: {notes.reason(record.error or '')}"


def _row(record: Record, cells: Sequence[Entry]) -> Row:
    ratio = record.measured.get("ratio")
    removed = Entry() if ratio is None else Entry(METRICS["ratio"].show(ratio), value=ratio)
    return Row(named(record), record.cell["method"], requested_ratio(record), (removed, *cells))


def _timed(record: Record) -> list[Row]:
    return [_row(record, _point(point)) for point in record.measured.get("speed", {}).get("points", ())]


def _point(point: dict[str, Any]) -> list[Entry]:
    """One size and batch; what ran out of memory or failed says so where its figure would be."""
    size = point["length"] if point["kind"] == "prefill" else point["context"]
    cells = [text(f"{point['kind']} {size:,}"), Entry(str(point["batch"]), value=point["batch"])]
    without = point.get("out_of_memory", [])
    lost = f"no memory: {without[0] if len(without) == 1 else 'both'}" if without else MISSING
    if "pruned_ms" not in point:
        return [*cells, Entry(), Entry(), Entry(), Entry("failed" if "failed" in point else lost), Entry()]
    ms, each = point["pruned_ms"], tokens(point)
    for value in (ms, ms * point["batch"] / each, 1000 * each / ms):
        cells.append(Entry(significant(value), value=value))
    return [*cells, *_compared(point, lost)]


def _compared(point: dict[str, Any], lost: str) -> list[Entry]:
    """How many times as fast as the dense model, and how many the removed work alone would bring."""
    if "speedup" not in point:
        return [Entry(lost), Entry()]
    figure, low, high = (point[f"speedup{end}"] for end in ("", "_low", "_high"))
    work = [point[name] for name in ("speedup_by_macs", "speedup_by_bytes") if name in point]
    show = METRICS["prefill_speed"]
    spread = show.show_interval(figure, low, high) + "!" * bool(point["flags"])
    marks = ("doubtful",) if point["flags"] else ()
    expected = Entry(" / ".join(show.show(one) for one in work) or MISSING, value=work[0] if work else None)
    return [Entry(spread, value=figure, low=low, high=high, marks=marks), expected]


def _sizes(record: Record) -> Row:
    measured, speed = record.measured, record.measured.get("speed", {})
    cells = [
        Entry(binary(measured[name]), value=measured[name]) if name in measured else Entry()
        for name in ("weight_bytes", "kv_bytes_per_token")
    ]
    peak = _peak(speed)
    shown = Entry() if peak is None else Entry(binary(peak), value=peak)
    return _row(record, [*cells, shown, text(_widths(speed))])


def _peak(speed: dict[str, Any]) -> float | None:
    peaks = [
        point[name]
        for point in speed.get("memory", {}).get("points", ())
        for name in ("peak_allocated_bytes", "peak_resident_bytes")
        if name in point
    ]
    return max(peaks, default=None)


def _widths(speed: dict[str, Any]) -> str | None:
    """'64', or '64; qkv 8' where a role's widths divide by less than most others'."""
    tiles = {role: found["multiple_of"] for role, found in speed.get("widths", {}).items()}
    if not tiles:
        return None
    usual = max(tiles.values(), key=list(tiles.values()).count)
    return "; ".join([str(usual), *(f"{role} {tile}" for role, tile in tiles.items() if tile != usual)])
