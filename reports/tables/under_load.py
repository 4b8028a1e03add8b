"""Columns of models under load: how many tokens a server generates, and how long its requests wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.plan.kinds import value_from_plain
from bench.records.load_results import LevelTiming
from bench.records.quantities import quantity_of_column
from bench.records.quantity import format_significant
from bench.records.served import ServedRecord
from reports.tables.table import Column, TableCell, cell_of_text

PERCENTILES = ("p50", "p95", "p99")
TIMES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "latency_ms": "latency"}
COMPARED = {"ttft_ms": "ttft", "tpot_ms": "tpot"}  # with their names in `times_as_fast`


def _columns() -> Iterator[Column]:
    """Yield the columns of a level; a terminal has the medians, and the ratios to the dense model."""
    yield Column("load", "load", words=True, key=True)
    yield Column("rate", "tokens/s", better="higher")
    yield Column("rate_times", "times as fast")
    for name, label in TIMES.items():
        for percentile in PERCENTILES:
            detail = percentile != "p50" or name not in COMPARED
            yield Column(f"{name}_{percentile}", f"{label} {percentile}", "ms", better="lower", detail=detail)
        if name in COMPARED:
            yield Column(f"{name}_times", "times as fast")
    yield Column("requests", "requests/s", detail=True)
    yield Column("goodput", "goodput")


COLUMNS = tuple(_columns())
ABOUT = (
    "tokens/s: generated, of all requests. TTFT: from sending a request to its first token; TPOT: per token behind "
    "that; ITL: between two pieces of an answer; p50, p95 and p99 over all requests."
)
ABOUT_TIMES = (
    "times as fast: dense@{base} over this one, each behind a server of its own, in turns, with the 95 % interval."
)
ABOUT_GOODPUT = "goodput: requests per second within {limits}."


def cells_of_levels(record: ServedRecord) -> list[list[TableCell]]:
    """Return the cells of each level of a record; one list of empty cells where nothing was timed."""
    rows = [_cells_of_level(level) for level in levels_of(record)]
    return rows or [[TableCell() for _ in COLUMNS]]


def levels_of(record: ServedRecord) -> list[LevelTiming]:
    """Return the levels of load that a record has."""
    return [value_from_plain(LevelTiming, level) for level in record.measured.get("load", [])]


def _cells_of_level(level: LevelTiming) -> list[TableCell]:
    model, doubtful = level.pruned, bool(level.flags)
    cells = [cell_of_text(level.name), _number(model.tokens_per_second)]
    cells.append(_ratio(level.times_as_fast.get("tokens_per_second"), doubtful))
    for name in TIMES:
        cells += [_number(each) for each in getattr(model, name) or (None, None, None)]
        if name in COMPARED:
            cells.append(_ratio(level.times_as_fast.get(COMPARED[name]), doubtful))
    return [*cells, _number(model.requests_per_second), _number(model.goodput)]


def _number(value: float | None) -> TableCell:
    return TableCell() if value is None else TableCell(format_significant(value), value=value)


def _ratio(interval: tuple[float, float, float] | None, doubtful: bool) -> TableCell:
    """Return the cell of a ratio with its interval; a mark says that its turns differ much."""
    if interval is None:
        return TableCell()
    value, low, high = interval
    words = quantity_of_column("decode_speed").show_interval(value, low, high) + "!" * doubtful
    return TableCell(words, value=value, low=low, high=high, marks=("doubtful",) if doubtful else ())


def describe_load(load: Mapping[str, Any]) -> str:
    """Return the requests of a load in words, for a footnote."""
    lengths = f"prompts of {load.get('prompt_tokens')} and answers of {load.get('output_tokens')} tokens"
    what = "of a file" if "requests_sha256" in load else lengths
    return f"a turn has {load['requests_per_turn']} requests, {what}, seed {load['load_seed']}"


def describe_limits(load: Mapping[str, Any]) -> str:
    """Return the limits of a load in words, for a footnote; empty without limits."""
    limits = ", ".join(f"{name} {ms:,g} ms" for name, ms in load["limits"].items())
    return ABOUT_GOODPUT.format(limits=limits) if limits else ""
