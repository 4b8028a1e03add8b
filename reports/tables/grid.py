"""The view grid: methods by compensations, a table for each ratio and measure, and what each compensation changes.

A method that is mended is called METHOD+COMPENSATION (methods/compensation/base.py). Rows are methods, columns are
compensations, `none` first; a parameter stands with what it belongs to, so that
shortgpt+ghost:token=last,ghost.ridge=0.1 is the row shortgpt:token=last and the column ghost:ridge=0.1.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from bench.records.columns import texts
from bench.records.record import Record, display_name, label
from bench.records.samples import Samples
from bench.stats.contrasts import LEVEL, Contrast
from reports import notes
from reports.blocks import TableGroup
from reports.metrics import finite, significant
from reports.tables import significance
from reports.tables.rows import RowSamples, compared, conditions, kind, missed, starred
from reports.tables.table import ARROWS, Column, Entry, Row, Table, column

NONE = "none"
MEASURES = ("average", "kl", "prune_seconds", "parameters")  # beside the perplexities
QUALITIES = ("perplexity", "tasks")  # kinds of measures in which a method is tested against itself alone
NOT_ASKED = "-: not asked for."


@dataclass(frozen=True)
class CompensationPair:
    """Where a cell stands: the row and the column as they are headed, and the row's method without parameters."""

    row: str
    column: str
    method: str


def tables(_records: Sequence[Record], setups: Sequence[Sequence[TableGroup]], evidence: RowSamples) -> list[Table]:
    """Of each setup and ratio at which some method is mended; a measure without a figure has no table."""
    found = []
    for block in chain(*setups):
        if all(pair.column == NONE for pair in pairs(block)):
            continue
        for name in (*(f"perplexity_{text}" for text in texts(block.records)), *MEASURES):
            if any(row.get(name) is not None for row in block.rows):
                found.append(_of_measure(column(name), block, evidence))
            if kind(name) in QUALITIES:
                found += _of_gains(column(name), block, evidence.samples)
    return found


@dataclass(frozen=True)
class Gain:
    """What a compensation changes, of one mended method that was measured alone as well.

    where     it stands; place, alone  in the block, of it and of the method alone
    estimate  a perplexity, times that of the method alone; of an average, how much more it is
    contrast  the two cells in pairs, where samples pair them
    """

    where: CompensationPair
    place: int
    alone: int
    estimate: float
    contrast: Contrast | None


def gains(name: str, block: TableGroup, samples: Samples) -> list[Gain]:
    """Of the column `name`, a perplexity or the average, in the block's order."""
    where, rows = pairs(block), block.rows
    alone = {pair.row: at for at, pair in enumerate(where) if pair.column == NONE and finite(rows[at].get(name))}
    mended = [at for at, pair in enumerate(where) if pair.column != NONE and finite(rows[at].get(name))]
    places = [(alone[where[at].row], at) for at in mended if where[at].row in alone]
    single = [pair for pair in places if all(len(block.numbers[at]) == 1 for at in pair)]
    tested = significance.in_pairs(block, single, name, samples, bounds=True)
    change = operator.sub if name == "average" else operator.truediv
    return [Gain(where[b], b, a, change(rows[b][name], rows[a][name]), tested.get((a, b))) for a, b in places]


def _of_gains(measure: Column, block: TableGroup, samples: Samples) -> list[Table]:
    """A table of what samples pair, if there is any."""
    found = gains(measure.name, block, samples)
    tested = [(gain, gain.contrast) for gain in found if gain.contrast]
    if not tested:
        return []
    lines: dict[str, dict[str, Entry]] = {}
    for gain, contrast in tested:
        of = (block.label(gain.place), str(block.records[gain.place].cell["method"]))
        cell = replace(_change(measure, contrast), of=of)
        off = any(missed(block.rows[place]) for place in (gain.place, gain.alone))
        lines.setdefault(gain.where.row, {})[gain.where.column] = starred(cell) if off else cell
    tests = dict.fromkeys(significance.TESTS[contrast.test] for _, contrast in tested)
    methods = {gain.where.row: gain.where.method for gain in found}
    untested = ", ".join(block.label(gain.place) for gain in found if not gain.contrast)
    names = list(dict.fromkeys(name for cells in lines.values() for name in cells))
    how = "points more than alone" if measure.name == "average" else "times that of the method alone"
    return [
        Table(
            name=f"grid-gain-{measure.name}-{'fixed' if block.ratio is None else f'{block.ratio:g}'}",
            view="grid",
            model=display_name(block.records[0]),
            title=f"{measure.label}, {how}{ARROWS[measure.better]}, {notes.ratio(block.records)}",
            conditions=conditions(block),
            columns=tuple(
                replace(measure, name=f"gain_{measure.name}", label=name, unit="", better=None) for name in names
            ),
            rows=tuple(
                Row(row, methods[row], block.ratio, tuple(cells.get(name, Entry()) for name in names))
                for row, cells in lines.items()
            ),
            notes=(
                *notes.exceptions([block.records[place] for gain in found for place in (gain.alone, gain.place)]),
                *[f"not tested: {untested} (draws, or no samples in common)."] * bool(untested),
            ),
            protocol=(
                f"{how}: what a compensation changes, with its 95 % interval, in pairs on what both were measured on; "
                f"†: p < {LEVEL} ({', '.join(tests)}; adjusted by Holm for the cells of a table).",
            ),
        )
    ]


def _change(measure: Column, contrast: Contrast) -> Entry:
    figures = (contrast.estimate, contrast.low, contrast.high)
    words = [f"{100 * one:+.1f}" if measure.name == "average" else significant(one) for one in figures]
    cell = Entry(f"{words[0]} [{words[1]}, {words[2]}]", words[0], *figures)
    return cell.marked("differs") if contrast.p < LEVEL else cell


def pairs(block: TableGroup) -> list[CompensationPair]:
    """Of each row of the block."""
    return [_pair(record.cell, block.label(place)) for place, record in enumerate(block.records)]


def _pair(cell: Mapping[str, Any], shown: str) -> CompensationPair:
    """What was done before stands in front of the row, and a healed cell has one of its own.

    shown  the cell's label, with whatever sets it apart in its block behind it
    """
    method, _, mending = str(cell["method"]).partition("+")
    given = {name: cell["parameters"][name] for name in cell.get("given", ())}
    prefix = f"{mending}."
    theirs = {name: value for name, value in given.items() if not (mending and name.startswith(prefix))}
    ours = {name.removeprefix(prefix): value for name, value in given.items() if name not in theirs}
    own, healed = label({**cell, "earlier": (), "healing": None}), ", healed" if cell.get("healing") else ""
    front, behind = label(cell).removesuffix(own + healed), healed + shown.removeprefix(label(cell))
    return CompensationPair(front + _named(method, theirs) + behind, _named(mending or NONE, ours), method)


def _named(name: str, given: Mapping[str, Any]) -> str:
    said = ",".join(f"{parameter}={value}" for parameter, value in given.items())
    return f"{name}:{said}" if said else name


def _of_measure(measure: Column, block: TableGroup, evidence: RowSamples) -> Table:
    """Marks are those of the methods at this ratio, as in every view; a cell without figures says why."""
    rows, tests = compared(block, [measure], evidence)
    where = pairs(block)
    lines: dict[str, dict[str, Entry]] = {}
    for pair, row, figures in zip(where, rows, block.rows, strict=True):
        cell = row.cells[0] if row.failure is None else Entry(row.failure)
        cell = starred(cell) if missed(figures) else cell
        if pair.method != "dense" or cell.value is not None:
            lines.setdefault(pair.row, {})[pair.column] = replace(cell, of=(row.label, row.method))
    columns = list(dict.fromkeys([NONE, *(pair.column for pair in where)]))
    methods = {pair.row: pair.method for pair in where}
    absent = any(name not in cells for row, cells in lines.items() if row != "dense" for name in columns)
    return Table(
        name=f"grid-{measure.name}-{'fixed' if block.ratio is None else f'{block.ratio:g}'}",
        view="grid",
        model=display_name(block.records[0]),
        title=f"{measure.head}, {notes.ratio(block.records)}",
        conditions=conditions(block),
        columns=tuple(replace(measure, label=name, unit="", better=None) for name in columns),
        rows=tuple(
            Row(
                row,
                methods[row],
                None if row == "dense" else block.ratio,
                tuple(cells.get(c, Entry()) for c in columns),
            )
            for row, cells in lines.items()
        ),
        notes=(*notes.exceptions(block.records), *tests, *[NOT_ASKED] * absent),
        protocol=tuple(notes.protocol(list(chain(*block.drawn)), list(chain(*block.each)), (kind(measure.name),))),
    )
