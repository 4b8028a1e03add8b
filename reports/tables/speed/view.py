"""Everything that was timed, not only what the main table has room for: one row per cell, size and batch.

A second table holds what explains the first: bytes of weights and of cache, the peak of memory, and whether the widths
of the matrices suit the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from bench.records.columns import tokens
from bench.records.comparability import dense_peer
from bench.records.record import Record, display_name
from reports import notes, speed_notes
from reports.blocks import draws_apart, named_beside
from reports.doubts import doubts_of_speed
from reports.metrics import METRICS, MISSING, binary, significant
from reports.tables import order
from reports.tables.rows import ReportData, removed, row_of
from reports.tables.table import Column, Table, TableCell, text, words

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
REACHED = (  # of a GPU
    Column("pruned_p99", "p99 ms", detail=True),
    Column("pruned_bandwidth", "bandwidth"),
    Column("pruned_matrix_rate", "matrix rate"),
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
ABOUT_REACHED = (
    "graph: each step captured once and replayed; eager: launched kernel by kernel. bandwidth, matrix rate: what the "
    "bytes that a step must read, and its multiply-accumulates, take of what a copy and a product of matrices reach on "
    "the same GPU.",
)
ABOUT_SIZES = (
    "peak: of the pruned model alone at the largest size it was measured at: allocated on a GPU, else of the process "
    "with everything that it has loaded. widths divide by: the largest of 128, 64, 8 and 1 that does so for all.",
)


def tables(data: ReportData) -> list[Table]:
    """Return for each setup what was timed, where there is any, and the sizes."""
    found = []
    for groups in data.setups:
        measures = [order.measure(group, "decode_speed", "prefill_speed") for group in groups]
        fastest = [order.ordered(*one) for one in zip(groups, measures, strict=True)]
        peers = order.records(fastest)
        how = [order.said(*one, where="rows of a ratio") for one in zip(groups, measures, strict=True)]
        sorting = dict.fromkeys(chain(*how))
        names = {
            id(one): named_beside(one, peers) + which for one, which in zip(peers, draws_apart(peers), strict=True)
        }
        reached = any("pruned_matrix_rate" in point for one in peers for point in _points(one))
        timed = [
            row_of(one, names[id(one)], [removed(one), *_timed(point), *(_reached(point) if reached else ())])
            for one in peers
            for point in _points(one)
        ]
        sizes = [
            row_of(one, names[id(one)], [removed(one), *_sizes(one)]) for one in peers if "weight_bytes" in one.measured
        ]
        about = (
            *dict.fromkeys(sentence for one in peers for sentence in speed_notes.protocol(one)),
            *ABOUT_TIMES,
            *(ABOUT_REACHED if reached else ()),
            *(sentence for one in peers for sentence in _reached_at_most(one, peers, names[id(one)])),
            *sorting,
        )
        doubts = tuple(sentence for one in peers for sentence in _exceptions(one, names[id(one)]))
        where = (*notes.conditions(peers), *groups[0].apart)
        for name, title, columns, rows, footnotes in (
            ("speed", "speed", (*TIMED, *(REACHED if reached else ())), timed, about),
            ("speed-sizes", "sizes", SIZES, sizes, (*ABOUT_SIZES, *sorting)),
        ):
            if rows:
                said = doubts if rows is timed or not timed else ()
                model = display_name(peers[0])
                found.append(Table(name, "speed", model, title, where, columns, tuple(rows), said, footnotes))
    return found


def _exceptions(record: Record, name: str) -> Iterator[str]:
    """Yield what is in doubt, and why there are no figures."""
    if record.status == "ok":
        for doubt in doubts_of_speed(record, name):
            yield doubt.sentence
    else:
        yield f"{name}: {notes.status(record)}: {notes.reason(record.error or '')}"


def _points(record: Record) -> list[dict[str, Any]]:
    return record.measured.get("speed", {}).get("points", [])


def _timed(point: dict[str, Any]) -> list[TableCell]:
    """Return one size and batch; what ran out of memory or failed says so where its figure would be."""
    size = point["length"] if point["kind"] == "prefill" else point["context"]
    mode = f" {point['mode']}" if "mode" in point and point["kind"] == "decode" else ""
    cells = [text(f"{point['kind']} {size:,}{mode}"), TableCell(str(point["batch"]), value=point["batch"])]
    without = point.get("out_of_memory", [])
    lost = f"no memory: {without[0] if len(without) == 1 else 'both'}" if without else MISSING
    if "pruned_ms" not in point:
        return [*cells, *[TableCell()] * 3, TableCell("failed" if "failed" in point else lost), TableCell()]
    ms, each = point["pruned_ms"], tokens(point)
    figures = (ms, ms * point["batch"] / each, 1000 * each / ms)
    return [*cells, *(TableCell(significant(value), value=value) for value in figures), *_compared(point, lost)]


def _reached_at_most(record: Record, peers: Sequence[Record], name: str) -> Iterator[str]:
    """Yield what is said of tokens per second over batches: on the whole card, and in the dense model's memory."""
    yield from speed_notes.throughput(record, name)
    dense = dense_peer(record, peers)
    if dense is not None and dense is not record:
        yield from speed_notes.equal_memory(record, dense, name)


def _reached(point: dict[str, Any]) -> Iterator[TableCell]:
    """Yield the 99th percentile of the calls, and the shares of what the GPU reaches."""
    for column in REACHED:
        value = point.get(column.name)
        show = significant if column.name.endswith("p99") else METRICS["kept"].show
        yield TableCell() if value is None else TableCell(show(value), value=value)


def _compared(point: dict[str, Any], lost: str) -> list[TableCell]:
    """Return how many times as fast as the dense model, and how many the removed work alone would bring."""
    show = METRICS["prefill_speed"]
    work = [point[name] for name in ("speedup_by_macs", "speedup_by_bytes") if name in point]
    expected = TableCell(" / ".join(map(show.show, work)) or MISSING, value=work[0] if work else None)
    if "speedup" not in point:
        return [TableCell(lost), expected]
    figure, low, high = (point[f"speedup{end}"] for end in ("", "_low", "_high"))
    spread = show.show_interval(figure, low, high) + "!" * bool(point.get("flags"))
    marks = ("doubtful",) if point.get("flags") else ()
    return [TableCell(spread, value=figure, low=low, high=high, marks=marks), expected]


def _sizes(record: Record) -> list[TableCell]:
    """Return the bytes of weights, of a token's cache and at the peak, and by what the widths can be divided."""
    measured, speed = record.measured, record.measured.get("speed", {})
    peaks = [
        point[name]
        for point in speed.get("memory", {}).get("points", ())
        for name in ("peak_allocated_bytes", "peak_resident_bytes")
        if name in point
    ]
    sizes = (measured.get("weight_bytes"), measured.get("kv_bytes_per_token"), max(peaks, default=None))
    return [*(TableCell() if size is None else TableCell(binary(size), value=size) for size in sizes), _widths(speed)]


def _widths(speed: dict[str, Any]) -> TableCell:
    """Return '64', or '64; qkv 8' where a role's widths divide by less than most others'."""
    tiles = {role: found["multiple_of"] for role, found in speed.get("widths", {}).items()}
    if not tiles:
        return text(None)
    usual = max(tiles.values(), key=list(tiles.values()).count)
    return text("; ".join([str(usual), *(f"{role} {tile}" for role, tile in tiles.items() if tile != usual)]))
