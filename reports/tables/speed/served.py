"""The view served: models in an inference engine, their quality, size and speed there, a row for each type of weights.

A second table has every size and batch that was timed, where there are more than one of a kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.plan.served import LLAMA_CPP
from bench.records.record import share
from bench.records.served import ServedRecord, alike
from bench.stats.clusters import paired_perplexity
from reports.metrics import METRICS, MISSING, binary, perplexity, short, significant
from reports.tables.table import Column, Row, Table, TableCell, text

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
    "times as fast: the dense model in {base} over this one, both {turns}, with the 95 % interval; {predicted}."
)
DOUBTFUL = "!: a doubtful timing, see the notes."
ABOUT_LLAMA_CPP = (  # turns, what is predicted, and what sizes are of
    "in one process and in turns",
    "by bytes: what the bytes of weights and cache that a step reads would bring alone, by work: multiply-accumulates "
    "(a prompt), bytes (a step)",
    "weights: of the file, with the vocabulary. memory: what the engine's process takes with this model alone, above "
    "what it had before it was read.",
)
ABOUT_OTHERS = (
    "in turns, of which each is a process of its own",
    "by work: multiply-accumulates of a prompt",
    "weights: of the safetensors files. Memory is not measured, since the engine fills a GPU with its cache.",
)
KINDS = {"prefill": "prompts of", "decode": "tokens behind"}  # and what a footnote calls their sizes
DOUBTS = {
    "noisy": "the calls of one model vary by more than 10 %",
    "not_warm": "a model did not become stable before the rounds",
    "clocks_disagree": "the clocks disagree",
}


def tables(records: Sequence[ServedRecord]) -> list[Table]:
    """Return a table of all that was served alike, and one of everything that was timed."""
    return [table for several in alike(records) for table in _of(several)]


def _of(records: Sequence[ServedRecord]) -> Iterator[Table]:
    """Yield the tables of models that were served alike, the dense one's types first."""
    first, base = records[0], next((one for one in records if one.is_base), None)
    name, asked = first.model["name"], first.protocol
    own = asked["engine"] == LLAMA_CPP
    conditions = (_engine(first), *_machine(first, f"{asked['threads']} threads" if own else ""))
    points = [_points(one) for one in records]
    shown = {kind: next((_key(p) for ps in points for p in ps if p["kind"] == kind), None) for kind in KINDS}
    columns = [Column(c.name, c.label.format(short(asked["text"])), better=c.better, brief=c.brief) for c in FIGURES]
    names = dict(zip(map(id, records), _names(records), strict=True))
    rows = [_row(one, names[id(one)], _figures(one, base, shown)) for one in records]
    sizes = [f"{KINDS[kind]} {key[1]:,}, batch {key[2]}" for kind, key in shown.items() if key]
    protocol = (
        f"{asked['windows']} windows of {asked['window']} tokens of {short(asked['text'])}; {'; '.join(sizes)}; up to "
        f"{asked['rounds']} rounds, {asked['steps']} tokens a pass."
    )
    turns, predicted, sizes_of = ABOUT_LLAMA_CPP if own else ABOUT_OTHERS
    about = (ABOUT_SPEED.format(base=first.base, turns=turns, predicted=predicted), DOUBTFUL)
    notes = tuple(sentence for one in records for sentence in _notes(one, names[id(one)]))
    title = f"served by {asked['engine']}, beside dense@{first.base}"
    yield Table(
        "served",
        "served",
        name,
        title,
        conditions,
        tuple(columns),
        tuple(rows),
        notes,
        (protocol, ABOUT_QUALITY, sizes_of, *about),
    )
    if max((len({_key(p) for p in ps if p["kind"] == kind}) for ps in points for kind in KINDS), default=0) > 1:
        lines = [_row(one, names[id(one)], _timed(one, point)) for one in records for point in _points(one)]
        yield Table(
            "served-points", "served", name, f"{title}: all that was timed", conditions, POINTS, tuple(lines), (), about
        )


def _engine(record: ServedRecord) -> str:
    found = record.measured.get("engine", {})
    commit = f" ({found['commit']})" if found.get("commit") else ""
    return f"{record.protocol['engine']} {record.protocol['version']}{commit}"


def _machine(record: ServedRecord, threads: str) -> tuple[str, ...]:
    """Return what computed, and of which dtype the cells are, as far as a record says."""
    found, dtype = record.environment, record.model.get("dtype")
    gpus = found.get("gpus", 1)
    processor = f"{gpus} x {found['gpu']}" if gpus > 1 else found.get("gpu", found.get("cpu", ""))
    return tuple(filter(None, (processor, threads, f"cells in {dtype}" if dtype else "")))


def _points(record: ServedRecord) -> list[dict[str, Any]]:
    return list(record.measured.get("points", []))


def _key(point: dict[str, Any]) -> tuple[str, int, int]:
    """Return what tells a point apart: kind, tokens, batch."""
    return point["kind"], point["length" if point["kind"] == "prefill" else "context"], point["batch"]


def _names(records: Sequence[ServedRecord]) -> list[str]:
    """Name models with their types, and with ratios and seeds where there are several: 'flap at 0.2, seed 1@q8_0'."""
    asked = [share(one.model["requested_ratio"], one.model["ratio_of"]) for one in records]
    several, seeds = len({at for at in asked if at}) > 1, seeds_of(records)
    return [
        f"{one.model['label']}{f' at {at}' if several and at else ''}{seeds[id(one)]}@{one.type}"
        for one, at in zip(records, asked, strict=True)
    ]


def seeds_of(records: Sequence[ServedRecord]) -> dict[int, str]:
    """Return ', seed 1' for each record, by its id, whose method and ratio are there with other seeds too; else ''."""
    found: dict[tuple[Any, ...], set[int]] = {}
    names = [tuple(one.model[name] for name in ("label", "requested_ratio", "ratio_of")) for one in records]
    for one, name in zip(records, names, strict=True):
        found.setdefault(name, set()).update({one.model["seed"]} if "seed" in one.model else ())
    return {
        id(one): f", seed {one.model['seed']}" if len(found[name]) > 1 and "seed" in one.model else ""
        for one, name in zip(records, names, strict=True)
    }


def _row(record: ServedRecord, name: str, cells: Sequence[TableCell]) -> Row:
    failure = None if record.status == "ok" else record.status.replace("_", " ")
    of = record.model["ratio_of"]
    return Row(name, record.model["method"], record.model["requested_ratio"], tuple(cells), failure, of)


def _figures(record: ServedRecord, base: ServedRecord | None, shown: dict[str, Any]) -> list[TableCell]:
    ratio, measured = record.model["ratio"], record.measured
    cells = [
        TableCell() if ratio is None else TableCell(METRICS["ratio"].show(ratio), value=ratio),
        _size(measured.get("bytes")),
        _perplexity(measured.get("perplexity")),
        _times(measured.get("perplexity"), base.measured.get("perplexity") if base else None),
    ]
    found = {_key(point): point for point in _points(record)}
    for kind in KINDS:
        point = found.get(shown[kind])
        cells += [_rate(point), _speedup(point)]
    cells.append(_predicted(found.get(shown["decode"]), "speedup_by_bytes"))
    return [*cells, _size(max((taken for _, taken in _memory(record)), default=None))]


def _timed(record: ServedRecord, point: dict[str, Any]) -> list[TableCell]:
    kind, tokens, batch = _key(point)
    ms, by = point.get("pruned_ms"), "speedup_by_macs" if kind == "prefill" else "speedup_by_bytes"
    return [
        text(f"{kind} {tokens:,}"),
        TableCell(str(batch), value=batch),
        TableCell() if ms is None else TableCell(significant(ms), value=ms),
        _rate(point),
        _speedup(point),
        _predicted(point, by),
        _size(dict(_memory(record)).get((kind, tokens, batch))),
    ]


def rate(point: dict[str, Any]) -> float | None:
    """Return the tokens per second of a point, over all its sequences; None where it was not timed."""
    if "pruned_ms" not in point:
        return None
    kind, tokens, batch = _key(point)
    return 1000 * batch * (tokens if kind == "prefill" else 1) / float(point["pruned_ms"])


def first_rate(record: ServedRecord) -> float | None:
    """Return the tokens per second that a model generates at the first batch and depth; None where it was not timed."""
    timed = [point for point in _points(record) if point["kind"] == "decode"]
    return rate(timed[0]) if timed else None


def _rate(point: dict[str, Any] | None) -> TableCell:
    found = rate(point) if point else None
    return TableCell() if found is None else TableCell(significant(found), value=found)


def _speedup(point: dict[str, Any] | None) -> TableCell:
    if not point or "speedup" not in point:
        return TableCell("failed" if point and "failed" in point else MISSING)
    value, low, high = (point[f"speedup{end}"] for end in ("", "_low", "_high"))
    doubtful = bool(point.get("flags"))
    words = METRICS["decode_speed"].show_interval(value, low, high) + "!" * doubtful
    return TableCell(words, value=value, low=low, high=high, marks=("doubtful",) if doubtful else ())


def _predicted(point: dict[str, Any] | None, by: str) -> TableCell:
    value = (point or {}).get(by)
    return TableCell() if value is None else TableCell(METRICS["decode_speed"].show(value), value=value)


def _size(size: int | None) -> TableCell:
    return TableCell() if size is None else TableCell(binary(size), value=size)


def _memory(record: ServedRecord) -> Iterator[tuple[tuple[str, int, int], int]]:
    """Yield what the engine's process has taken for a model at each point."""
    memory = record.measured.get("memory", {})
    for point in memory.get("points", ()):
        if "resident_bytes" in point:
            yield _key(point), point["resident_bytes"] - memory["resident_before_bytes"]


def _perplexity(found: dict[str, Any] | None) -> TableCell:
    if not found:
        return TableCell()
    shown, value = METRICS["perplexity_"], found["perplexity"]
    if "perplexity_low" not in found:
        return TableCell(shown.show(value), value=value)
    low, high = found["perplexity_low"], found["perplexity_high"]
    return TableCell(shown.show_interval(value, low, high), shown.show(value), value, low, high)


def _times(found: dict[str, Any] | None, base: dict[str, Any] | None) -> TableCell:
    """Return how many times the base's perplexity a model has, over the same windows."""
    if not found or not base or found["sha256"] != base["sha256"]:
        return TableCell()
    tokens = [found["window"] - 1] * len(found["nll"])
    one = paired_perplexity(base["nll"], found["nll"], tokens, in_a_row=not found["drawn"])
    words = METRICS["decode_speed"].show_interval(one.estimate, one.low, one.high).replace("x", "")
    return TableCell(words, perplexity(one.estimate, one.estimate), one.estimate, one.low, one.high)


def _notes(record: ServedRecord, name: str) -> Iterator[str]:
    """Yield why a model has no figures, and which of its timings are in doubt."""
    if record.error:
        yield f"{name}: {record.status.replace('_', ' ')}: {record.error}"
    for point in _points(record):
        kind, tokens, batch = _key(point)
        where = f"{name}, {kind} {tokens:,}, batch {batch}"
        if "failed" in point:
            yield f"{where}: {point['failed']}"
        elif point.get("flags"):
            yield f"{where}: {', '.join(DOUBTS.get(flag, flag) for flag in point['flags'])}"
