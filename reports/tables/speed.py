"""Tables of time: of latencies, of models in inference engines, and of everything that was timed.

The table of latencies shows the milliseconds of a generated token that a part of each size takes.

The view served shows models in an inference engine: quality, size and speed, with a row for each type of weights. A
second table has every size and batch if several of a kind were timed. Models under load have a table of their own.

The view speed shows everything that was timed, with one row per cell, size and batch. A second table explains the first
by sizes: bytes of weights and of cache, the peak of memory, and whether the widths of the matrices suit the kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from bench.plan.cell import words_of_ratio
from bench.plan.kinds import value_from_plain
from bench.plan.protocol import LLAMA_CPP
from bench.records.comparability import find_dense_peer
from bench.records.frame import tokens_of_point
from bench.records.quantities import quantity_of_column
from bench.records.quantity import MISSING, format_bytes, format_perplexity, format_significant, shorten_name
from bench.records.record import Record, name_of_model
from bench.records.samples import pair_whole
from bench.records.served import ServedRecord, group_alike
from bench.records.speed_results import MatrixWidths, MemoryAlone, PointMemory, PointTiming, SizedPoint
from bench.regression.pairs import Windows, compare_perplexities
from reports import legend, protocol
from reports.groups import name_with_ratio, suffixes_of_draws
from reports.legend import FAILED, NOT_TIMED, OF_POINTS, FlaggedCell, flags_of_cell, flags_of_speed
from reports.tables import rows as order
from reports.tables import under_load
from reports.tables.rows import ReportData, ratio_cell, records_of, row_of, sort_rows
from reports.tables.table import Column, Row, Table, TableCell, cell_of_text, column_of_words

COLUMNS = (Column("parameters", "parameters"), Column("ms", "ms"), Column("share", "of a token"))
ABOUT = (
    "ms: of one layer's part, by the difference to the model in which that part is gone from every layer; in between, "
    "straight lines.",
)


def table_of_latencies(table: dict[str, Any]) -> Table:
    """Return the table of a table of latencies: a row for each size of each part, for the rest, and for the model."""
    about, rows = table["about"], list[Row]()
    whole = about["dense_ms"]
    for part, points in table["parts"].items():
        rows += [_latency_row(part, size, ms, whole) for size, ms in points[1:]]
    rows.append(_latency_row("all but the layers", None, table["rest"], whole))
    rows.append(_latency_row("the model", None, whole, whole))
    return Table(
        name="latency-table",
        view="latency-table",
        model=about["model"],
        title=f"milliseconds of a token behind {about['depth']} tokens",
        conditions=(
            f"{about['device']}, {about['dtype']}, {about['threads']} threads",
            f"{about['rounds']} rounds{' of captured steps' if about.get('mode') == 'graph' else ''}",
        ),
        columns=COLUMNS,
        rows=tuple(rows),
        footnotes=(*ABOUT, *_how_well_known(about)),
        head="part",
    )


def _how_well_known(about: dict[str, Any]) -> Iterator[str]:
    """Yield how wide the intervals of the copies are, and the doubts about the table."""
    widest = max(abs(copy[end] / copy["times_dense"] - 1) for copy in about["copies"] for end in ("low", "high"))
    yield (
        f"What a step of a copy takes, as a share of the model's, has a 95 % interval, which of {len(about['copies'])} "
        f"copies reaches {quantity_of_column('ratio').show(widest)} of it to a side at most."
    )
    yield from legend.describe_flags(legend.flags_of_latencies(about, "the model"))


def _latency_row(part: str, size: float | None, ms: float, whole: float) -> Row:
    sized = TableCell(quantity_of_column("parameters").show(size), value=size) if size is not None else TableCell()
    share = TableCell(quantity_of_column("ratio").show(ms / whole), value=ms / whole)
    return Row(part, part, None, (sized, TableCell(f"{ms:.3f}", value=ms), share))


FIGURES = (
    Column("ratio", "removed"),
    Column("bytes", "weights"),
    Column("perplexity", "ppl {}", better="lower", brief=True),
    Column("times", "times dense"),
    Column("prefill_rate", "prompt tokens/s"),
    Column("prefill", "times as fast"),
    Column("decode_rate", "tokens/s"),
    Column("decode", "times as fast"),
    Column("predicted", "by bytes"),
    Column("memory", "memory"),
)
QUALITY = 4  # of these columns say what a model is and how well it predicts
POINTS = (
    Column("timed", "timed", words=True, key=True),
    Column("batch", "batch", key=True),
    Column("ms", "ms"),
    Column("rate", "tokens/s"),
    Column("speedup", "times as fast"),
    Column("predicted", "by work"),
    Column("memory", "memory"),
)
ABOUT_QUALITY = (
    "ppl: by the engine; ± or [ ]: the 95 % interval over windows. times dense: the ratio of perplexities on the same "
    "windows, paired, with its 95 % interval."
)
ABOUT_SPEED = (
    "times as fast: the dense model in {base} over this one, both in one process and in turns, with the 95 % interval; "
    "by bytes: what the bytes of weights and cache that a step reads would bring alone, by work: multiply-accumulates "
    "(a prompt), bytes (a step)."
)
ABOUT_LLAMA_CPP = (  # what the sizes count
    "weights: of the file, with the vocabulary. memory: what the engine's process takes with this model alone, above "
    "what it had before it was read."
)
ABOUT_VLLM = "weights: of the safetensors files. Memory is not measured, since the engine fills it with its cache."
KINDS = {"prefill": "prompts of", "decode": "tokens behind"}  # the words of a footnote in front of their sizes


def tables_of_served(records: Sequence[ServedRecord]) -> list[Table]:
    """Return the tables of each group of models that were served alike, see `_of`; of those under load one table."""
    tables = list[Table]()
    for several in group_alike(records):
        tables += [_table_of_load(several)] if "load" in several[0].protocol else _of(several)
    return tables


def _table_of_load(records: Sequence[ServedRecord]) -> Table:
    """Return the table of models that were served alike under load, a row for each level."""
    first, base = records[0], next((record for record in records if record.is_base), None)
    protocol, load, rows = first.protocol, first.protocol["load"], list[Row]()
    text = shorten_name(protocol["text"])
    for record, name in zip(records, _names(records), strict=True):
        for cells in under_load.cells_of_levels(record):
            rows.append(_served_row(record, name, [*_quality(record, base), *cells]))
    quality = [replace(column, label=column.label.format(text)) for column in FIGURES[:QUALITY]]
    flags = chain.from_iterable(map(_served_flags, records, _names(records)))
    requests = f"{under_load.describe_load(load)}; {_rounds(protocol)}"
    windows = f"{protocol['windows']} windows of {protocol['window']} tokens of {text}"
    about = (f"{windows}; {requests}.", ABOUT_QUALITY, under_load.ABOUT, under_load.ABOUT_TIMES.format(base=first.base))
    return Table(
        name="served-load",
        view="served",
        model=first.model["name"],
        title=f"served under load by {protocol['engine']}, beside dense@{first.base}",
        conditions=(_engine(first), *_machine(first, f"{protocol['threads']} threads")),
        columns=(*quality, *under_load.COLUMNS),
        rows=tuple(rows),
        notes=tuple(legend.describe_flags(flags)),
        footnotes=tuple(filter(None, (*about, under_load.describe_limits(load)))),
    )


def _of(records: Sequence[ServedRecord]) -> Iterator[Table]:
    """Yield the table of models that were served alike; and one of all points if several of a kind were timed."""
    first, base = records[0], next((record for record in records if record.is_base), None)
    name, protocol = first.model["name"], first.protocol
    own = protocol["engine"] == LLAMA_CPP
    conditions = (_engine(first), *_machine(first, f"{protocol['threads']} threads" if own else ""))
    points = [_served_points(record) for record in records]
    keys: dict[str, Any] = {}
    for point in chain(*points):
        keys.setdefault(point.kind, _key(point))
    key_by_kind = {kind: keys.get(kind) for kind in KINDS}
    columns = [
        Column(c.name, c.label.format(shorten_name(protocol["text"])), better=c.better, brief=c.brief) for c in FIGURES
    ]
    names = dict(zip(map(id, records), _names(records), strict=True))
    rows = [_served_row(record, names[id(record)], _figures(record, base, key_by_kind)) for record in records]
    sizes = [f"{KINDS[kind]} {key[1]:,}, batch {key[2]}" for kind, key in key_by_kind.items() if key]
    footnote = (
        f"{protocol['windows']} windows of {protocol['window']} tokens of {shorten_name(protocol['text'])}; "
        f"{'; '.join(sizes)}; {_rounds(protocol)}, {protocol['steps']} tokens a pass."
    )
    sizes_of = ABOUT_LLAMA_CPP if own else ABOUT_VLLM
    about = (ABOUT_SPEED.format(base=first.base),)
    flags = chain.from_iterable(_served_flags(record, names[id(record)]) for record in records)
    notes = tuple(legend.describe_flags(flags))
    title = f"served by {protocol['engine']}, beside dense@{first.base}"
    yield Table(
        "served",
        "served",
        name,
        title,
        conditions,
        tuple(columns),
        tuple(rows),
        notes,
        (footnote, ABOUT_QUALITY, sizes_of, *about),
    )
    timed = {(at, point.kind, _key(point)) for at, served in enumerate(points) for point in served}
    if max(Counter((at, kind) for at, kind, _ in timed).values(), default=0) > 1:
        lines = [
            _served_row(record, names[id(record)], _cells_of_served_point(record, point))
            for record in records
            for point in _served_points(record)
        ]
        yield Table(
            "served-points", "served", name, f"{title}: all that was timed", conditions, POINTS, tuple(lines), (), about
        )


def _rounds(protocol: Mapping[str, Any]) -> str:
    """Return in words in how many rounds and processes models were timed."""
    processes = protocol.get("processes", 1)
    return f"up to {protocol['rounds']} rounds" + (f" in each of {processes} processes" if processes > 1 else "")


def _engine(record: ServedRecord) -> str:
    engine = record.measured.get("engine", {})
    commit = f" ({engine['commit']})" if engine.get("commit") else ""
    return f"{record.protocol['engine']} {record.protocol['version']}{commit}"


def _machine(record: ServedRecord, threads: str) -> tuple[str, ...]:
    """Return the processor, its threads, and the dtype of the cells, as far as a record has them."""
    environment, dtype = record.environment, record.model.get("dtype")
    gpus = environment.get("gpus", 1)
    processor = f"{gpus} x {environment['gpu']}" if gpus > 1 else environment.get("gpu", environment.get("cpu", ""))
    return tuple(filter(None, (processor, threads, f"cells in {dtype}" if dtype else "")))


def _served_points(record: ServedRecord) -> list[PointTiming]:
    return [value_from_plain(PointTiming, point) for point in record.measured.get("points", [])]


def _key(point: SizedPoint) -> tuple[str, int, int]:
    """Return the key of a point: kind, tokens, batch."""
    return point.kind, point.tokens, point.batch or 0


def _names(records: Sequence[ServedRecord]) -> list[str]:
    """Return the names of models with types, and with ratios and seeds if there are several: 'flap at 0.2@q8_0'."""
    ratios = [words_of_ratio(record.model["requested_ratio"], record.model["ratio_of"]) for record in records]
    several, seeds = len({at for at in ratios if at}) > 1, suffixes_of_seeds(records)
    return [
        f"{record.model['label']}{f' at {at}' if several and at else ''}{seeds[id(record)]}@{record.type}"
        for record, at in zip(records, ratios, strict=True)
    ]


def suffixes_of_seeds(records: Sequence[ServedRecord]) -> dict[int, str]:
    """Return {id of a record: ', seed 1'}, or '' if all records of its method and ratio have one seed."""
    seeds_by_name: dict[tuple[Any, ...], set[int]] = {}
    names = [itemgetter("label", "requested_ratio", "ratio_of")(record.model) for record in records]
    for record, name in zip(records, names, strict=True):
        seeds_by_name.setdefault(name, set()).update({record.model["seed"]} if "seed" in record.model else ())
    suffixes = dict.fromkeys(map(id, records), "")
    for record, name in zip(records, names, strict=True):
        if len(seeds_by_name[name]) > 1 and "seed" in record.model:
            suffixes[id(record)] = f", seed {record.model['seed']}"
    return suffixes


def _served_row(record: ServedRecord, name: str, cells: Sequence[TableCell]) -> Row:
    failure = None if record.status == "ok" else record.status.replace("_", " ")
    of = record.model["ratio_of"]
    return Row(name, record.model["method"], record.model["requested_ratio"], tuple(cells), failure, of)


def _quality(record: ServedRecord, base: ServedRecord | None) -> list[TableCell]:
    """Return the cells of the first QUALITY columns."""
    ratio, measured = record.model["ratio"], record.measured
    return [
        TableCell() if ratio is None else TableCell(quantity_of_column("ratio").show(ratio), value=ratio),
        _size(measured.get("bytes")),
        _perplexity(measured.get("perplexity")),
        _times(measured.get("perplexity"), base.measured.get("perplexity") if base else None),
    ]


def _figures(record: ServedRecord, base: ServedRecord | None, key_by_kind: dict[str, Any]) -> list[TableCell]:
    cells = _quality(record, base)
    point_by_key = {_key(point): point for point in _served_points(record)}
    for kind in KINDS:
        point = point_by_key.get(key_by_kind[kind])
        cells += [_rate(point), _speedup(point)]
    cells.append(_cell_of_prediction(point_by_key.get(key_by_kind["decode"]), "speedup_by_bytes"))
    return [*cells, _size(max((size for _, size in _memory(record)), default=None))]


def _cells_of_served_point(record: ServedRecord, point: PointTiming) -> list[TableCell]:
    kind, tokens, batch = _key(point)
    ms, by = point.pruned_ms, "speedup_by_macs" if kind == "prefill" else "speedup_by_bytes"
    return [
        cell_of_text(f"{kind} {tokens:,}"),
        TableCell(str(batch), value=batch),
        TableCell() if ms is None else TableCell(format_significant(ms), value=ms),
        _rate(point),
        _speedup(point),
        _cell_of_prediction(point, by),
        _size(dict(_memory(record)).get((kind, tokens, batch))),
    ]


def rate_of(point: PointTiming) -> float | None:
    """Return the tokens per second of a point, over all its sequences; None if it was not timed."""
    if point.pruned_ms is None:
        return None
    kind, tokens, batch = _key(point)
    return 1000 * batch * (tokens if kind == "prefill" else 1) / float(point.pruned_ms)


def first_speedup_of(record: ServedRecord) -> float | None:
    """Return how many times as fast as the dense model one generates, at the first batch and depth; None if not timed.

    Both were timed in turns, so that models that were timed hours apart can stand in one picture.
    """
    timed = [point for point in _served_points(record) if point.kind == "decode"]
    return timed[0].speedup if timed else None


def _rate(point: PointTiming | None) -> TableCell:
    rate = rate_of(point) if point else None
    return TableCell() if rate is None else TableCell(format_significant(rate), value=rate)


def _speedup(point: PointTiming | None) -> TableCell:
    if not point or point.interval is None:
        return TableCell("failed" if point and point.failed is not None else MISSING)
    value, low, high = point.interval
    doubtful = bool(point.flags)
    words = quantity_of_column("decode_speed").show_interval(value, low, high) + "!" * doubtful
    return TableCell(words, value=value, low=low, high=high, marks=("doubtful",) if doubtful else ())


def _cell_of_prediction(point: PointTiming | None, by: str) -> TableCell:
    value = getattr(point, by, None)
    return TableCell() if value is None else TableCell(quantity_of_column("decode_speed").show(value), value=value)


def _size(size: int | None) -> TableCell:
    return TableCell() if size is None else TableCell(format_bytes(size), value=size)


def _memory(record: ServedRecord) -> Iterator[tuple[tuple[str, int, int], int]]:
    """Yield the key of each point with the bytes that the engine's process took for the model."""
    memory = value_from_plain(MemoryAlone, record.measured.get("memory", {}))
    for point in memory.points or ():
        if point.resident_bytes is not None:
            yield _key(point), point.resident_bytes - (memory.resident_before_bytes or 0)


def _perplexity(quality: dict[str, Any] | None) -> TableCell:
    if not quality:
        return TableCell()
    quantity, value = quantity_of_column("perplexity_"), quality["perplexity"]
    if "perplexity_low" not in quality:
        return TableCell(quantity.show(value), value=value)
    low, high = quality["perplexity_low"], quality["perplexity_high"]
    return TableCell(quantity.show_interval(value, low, high), quantity.show(value), value, low, high)


def _windows(quality: dict[str, Any]) -> Windows:
    """Return the windows of a text that an inference engine scored; their first tokens have no score."""
    nll = np.array(quality["nll"])
    source = (quality["sha256"], quality["window"], quality.get("stride"))
    units = tuple(enumerate([quality["window"] - 1] * len(nll)))
    return Windows(units, nll, source, in_a_row=not quality["drawn"])


def _times(quality: dict[str, Any] | None, base: dict[str, Any] | None) -> TableCell:
    """Return the cell of the ratio of perplexities to the base; empty if their windows differ."""
    both = pair_whole(*map(_windows, (base, quality))) if base and quality else None
    if both is None:
        return TableCell()
    (contrast,) = compare_perplexities([both])
    words = (
        quantity_of_column("decode_speed")
        .show_interval(contrast.estimate, contrast.low, contrast.high)
        .replace("x", "")
    )
    return TableCell(
        words, format_perplexity(contrast.estimate, contrast.estimate), contrast.estimate, contrast.low, contrast.high
    )


def _served_flags(record: ServedRecord, name: str) -> Iterator[FlaggedCell]:
    """Yield why a model has no figures, and which of its timings failed or are in doubt."""
    if record.error:
        yield FlaggedCell(FAILED, name, {"status": record.status.replace("_", " "), "reason": record.error})
    for level in under_load.levels_of(record):
        for word in level.flags:
            apart = _apart(word, (level.by_process or {}).get("tokens_per_second"))
            yield FlaggedCell(OF_POINTS[word], name, {"points": level.name + apart})
    for point in _served_points(record):
        kind, tokens, batch = _key(point)
        where = f"{kind} {tokens:,} at batch {batch}"
        if point.failed is not None:
            yield FlaggedCell(NOT_TIMED, name, {"failure": f"{where}: {point.failed}"})
        for word in () if point.failed is not None else point.flags or ():
            yield FlaggedCell(OF_POINTS[word], name, {"points": where + _apart(word, point.by_process)})


def _apart(word: str, ratios: Sequence[tuple[float, float, float]] | None) -> str:
    """Return the ratios of processes in words behind the place of a flag that says that they disagree."""
    if word != "processes_disagree" or not ratios:
        return ""
    return ": " + ", ".join(f"{ratio:.2f}x" for ratio, _, _ in ratios)


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
    column_of_words("widths divide by"),
)
ABOUT_TIMES = (
    "ms: the median of one prefill, or of one step of decoding, which gives each sequence one token; "
    "ms/token for one sequence, tokens/s over all of them.",
    "times as fast: dense over pruned, both in turns, with the 95 % interval; by work: what the removed "
    "multiply-accumulates alone would bring, and for decode the bytes of weights and cache that a step reads.",
)
ABOUT_REACHED = (
    "graph: each step captured once and replayed; eager: launched kernel by kernel. bandwidth, matrix rate: what the "
    "bytes that a step must read, and its multiply-accumulates, take of what a copy and a product of matrices reach on "
    "the same GPU.",
)
THROUGHPUT = (
    Column("context", "tokens behind", key=True),
    Column("memory", "in memory", key=True),
    Column("dense_rate", "dense tokens/s"),
    Column("dense_batch", "at batch"),
    Column("pruned_rate", "tokens/s"),
    Column("pruned_batch", "at batch"),
)
ABOUT_THROUGHPUT = (
    "The most tokens per second of a decode step over the measured batches. With a memory, over the batches that fit "
    "into what the dense model takes at its fastest batch.",
)
ABOUT_SIZES = (
    "peak: of the pruned model alone at the largest size it was measured at: allocated on a GPU, else of the process "
    "with everything that it has loaded. widths divide by: the largest of 128, 64, 8 and 1 that does so for all.",
)


def tables_of_speed(data: ReportData) -> list[Table]:
    """Return for each setup the table of what was timed and the table of sizes; a table without rows is left out."""
    tables = []
    for groups in data.setups:
        measures = [data.sorting_quantity(group, "decode_speed", "prefill_speed") for group in groups]
        fastest = [sort_rows(*pair) for pair in zip(groups, measures, strict=True)]
        peers = records_of(fastest)
        how = [order.sorting_note(*pair, where="rows of a ratio") for pair in zip(groups, measures, strict=True)]
        sorting = dict.fromkeys(chain(*how))
        names = {
            id(record): name_with_ratio(record, peers) + which
            for record, which in zip(peers, suffixes_of_draws(peers), strict=True)
        }
        reached = any(p.pruned_matrix_rate is not None for record in peers for p in record.measured.timed_points)
        timed = [
            row_of(
                record,
                names[id(record)],
                [ratio_cell(record), *_cells_of_point(point), *(_cells_of_reached(point) if reached else ())],
            )
            for record in peers
            for point in record.measured.timed_points
        ]
        sizes = [
            row_of(record, names[id(record)], [ratio_cell(record), *_sizes(record)])
            for record in peers
            if record.measured.weight_bytes is not None
        ]
        about = (
            *ABOUT_TIMES,
            *(ABOUT_REACHED if reached else ()),
            *sorting,
        )
        flags = chain.from_iterable(_flags(record, names[id(record)]) for record in peers)
        doubts = tuple(legend.describe_flags(flags))
        where = (*protocol.conditions_of(peers), *groups[0].apart)
        most = [row for record in peers for row in _throughputs(record, peers, names[id(record)])]
        measured = tuple(protocol.protocol_of_records(peers, ("speed",), calibration=False))
        for name, title, columns, rows, footnotes in (
            ("speed", "speed", (*TIMED, *(REACHED if reached else ())), timed, about),
            ("speed-throughput", "most tokens per second", THROUGHPUT, most, ABOUT_THROUGHPUT),
            ("speed-sizes", "sizes", SIZES, sizes, (*ABOUT_SIZES, *sorting)),
        ):
            if rows:
                notes = doubts if rows is timed or not timed else ()
                model, facts = name_of_model(peers[0]), measured if rows is timed else ()
                table = Table(
                    name, "speed", model, title, where, columns, tuple(rows), notes, footnotes, protocol=facts
                )
                tables.append(table)
    return tables


def _flags(record: Record, name: str) -> Iterator[FlaggedCell]:
    """Return the flags of the speed of a cell; of a cell without figures, why it has none."""
    return flags_of_speed(record, name) if record.status == "ok" else flags_of_cell(record, name)


def _cells_of_point(point: PointTiming) -> list[TableCell]:
    """Return the cells of one size and batch; one that ran out of memory or failed has that in place of its value."""
    mode = f" {point.mode}" if point.mode is not None and point.kind == "decode" else ""
    cells = [cell_of_text(f"{point.kind} {point.tokens:,}{mode}"), TableCell(str(point.batch), value=point.batch)]
    without = point.out_of_memory or ()
    lost = f"no memory: {without[0] if len(without) == 1 else 'both'}" if without else MISSING
    if point.pruned_ms is None:
        return [*cells, *[TableCell()] * 3, TableCell("failed" if point.failed is not None else lost), TableCell()]
    ms, each = point.pruned_ms, tokens_of_point(point)
    figures = (ms, ms * point.batch / each, 1000 * each / ms)
    return [
        *cells,
        *(TableCell(format_significant(value), value=value) for value in figures),
        *_cells_of_speedup(point, lost),
    ]


def _throughputs(record: Record, peers: Sequence[Record], name: str) -> Iterator[Row]:
    """Yield a row for the most tokens per second at any batch, and one for those in the memory of the dense model.

    A context has rows if a GPU decoded several batches behind it. Only measured batches count. The memory is what the
    dense model takes at its fastest batch.
    """
    points = [point for point in record.measured.timed_points if point.mode == "graph"]
    dense = find_dense_peer(record, peers)
    for context in dict.fromkeys(point.tokens for point in points):
        swept = [point for point in points if point.tokens == context]
        if len({point.batch for point in swept}) > 1:
            names = ("dense", "pruned")[: 1 if record.cell.method == "dense" else 2]
            fastest = [_fastest(swept, model) for model in names]
            yield _throughput_row(record, name, context, None, fastest)
            if dense is not None and dense is not record:
                yield from _row_in_equal_memory(record, dense, name, swept)


def _row_in_equal_memory(record: Record, dense: Record, name: str, swept: Sequence[PointTiming]) -> Iterator[Row]:
    """Yield the row of the fastest batches in the memory that the dense model takes; none if that is not known."""
    context, reserved, takes = swept[0].tokens, _reserved(record), _reserved(dense)
    best = _fastest([point for point in swept if (context, point.batch) in takes], "dense")
    if best is None:
        return
    room = takes[context, best.batch]
    fitting = [point for point in swept if reserved.get((context, point.batch), room + 1) <= room]
    if most := _fastest(fitting, "pruned"):
        yield _throughput_row(record, name, context, room, [best, most])


def _fastest(points: Sequence[PointTiming], model: str) -> PointTiming | None:
    """Return the point with the most tokens per second of a model; None if it was not timed."""
    timed = [point for point in points if model in point.ms_by_model()]
    return max(timed, key=lambda point: _rate_of_model(point, model), default=None)


def _rate_of_model(point: PointTiming, model: str) -> float:
    """Return the tokens per second of a decode step, over all sequences."""
    return 1000 * point.batch / point.ms_by_model()[model]


def _reserved(record: Record) -> dict[tuple[int, int], int]:
    """Return {(context, batch): bytes that a model alone reserved for captured steps}."""
    sizes = [(p, p.peak_reserved_bytes) for p in _memory_alone(record) if p.mode == "graph"]
    return {(p.tokens, p.batch or 0): size for p, size in sizes if size is not None}


def _memory_alone(record: Record) -> tuple[PointMemory, ...]:
    """Return the sizes at which the memory of a cell's model alone was measured; none where it was not."""
    speed = record.measured.speed
    return (speed.memory.points or ()) if speed and speed.memory else ()


def _throughput_row(
    record: Record, name: str, context: int, memory: int | None, fastest: Sequence[PointTiming | None]
) -> Row:
    cells = [TableCell(f"{context:,}", value=context), _size(memory)]
    for model, point in zip(("dense", "pruned"), [*fastest, None][:2], strict=True):
        if point is None:
            cells += [TableCell(), TableCell()]
        else:
            rate = _rate_of_model(point, model)
            cells += [TableCell(f"{rate:,.0f}", value=rate), TableCell(str(point.batch), value=point.batch)]
    return row_of(record, name, cells)


def _cells_of_reached(point: PointTiming) -> Iterator[TableCell]:
    """Yield the cells of the 99th percentile of the calls, and of the shares of the GPU's rates."""
    for column in REACHED:
        value = getattr(point, column.name)
        show = format_significant if column.name.endswith("p99") else quantity_of_column("kept").show
        yield TableCell() if value is None else TableCell(show(value), value=value)


def _cells_of_speedup(point: PointTiming, lost: str) -> list[TableCell]:
    """Return the cells of the speed-up over the dense model, and of the speed-up that the removed work would bring.

    lost  the text in place of a missing speed-up
    """
    show = quantity_of_column("prefill_speed")
    work = [value for value in (point.speedup_by_macs, point.speedup_by_bytes) if value is not None]
    expected = TableCell(" / ".join(map(show.show, work)) or MISSING, value=work[0] if work else None)
    if point.interval is None:
        return [TableCell(lost), expected]
    figure, low, high = point.interval
    spread = show.show_interval(figure, low, high) + "!" * bool(point.flags)
    marks = ("doubtful",) if point.flags else ()
    return [TableCell(spread, value=figure, low=low, high=high, marks=marks), expected]


def _sizes(record: Record) -> list[TableCell]:
    """Return the cells of sizes: bytes of weights, of a token's cache, at the peak; and the divisor of the widths."""
    measured, points = record.measured, _memory_alone(record)
    peaks = [peak for point in points for peak in (point.peak_allocated_bytes, point.peak_resident_bytes)]
    highest = max((peak for peak in peaks if peak is not None), default=None)
    sizes = (measured.weight_bytes, measured.kv_bytes_per_token, highest)
    return [
        *(TableCell() if size is None else TableCell(format_bytes(size), value=size) for size in sizes),
        _widths((measured.speed and measured.speed.widths) or {}),
    ]


def _widths(widths: Mapping[str, MatrixWidths]) -> TableCell:
    """Return the cell of what widths divide by: '64', or '64; qkv 8' if the widths of a role differ from most."""
    tiles = {role: width.multiple_of for role, width in widths.items()}
    if not tiles:
        return cell_of_text(None)
    usual = max(tiles.values(), key=list(tiles.values()).count)
    return cell_of_text("; ".join([str(usual), *(f"{role} {tile}" for role, tile in tiles.items() if tile != usual)]))
