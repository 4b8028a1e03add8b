"""The view grid: methods by compensations, a table for each ratio and measure, and what each compensation changes.

A compensated method is called METHOD+COMPENSATION (methods/compensation/base.py). Rows are methods, columns are
compensations, `none` first; a parameter stands with what it belongs to, so that
shortgpt+ghost:token=last,ghost.ridge=0.1 is the row shortgpt:token=last and the column ghost:ridge=0.1.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from bench.records.columns import texts
from bench.records.record import label
from bench.records.samples import Samples
from bench.stats.contrasts import LEVEL, Contrast
from reports import notes
from reports.blocks import TableGroup
from reports.metrics import finite, significant
from reports.tables import order, significance
from reports.tables.rows import ReportData, compared, kind, of_group, ratio_word, starred
from reports.tables.table import ARROWS, Column, Row, Table, TableCell, column, pivot

NONE = "none"
MEASURES = ("average", "answer_bpb", "kl", "prune_seconds", "parameters")  # beside the perplexities
QUALITIES = ("perplexity", "tasks")  # kinds of measures in which a method is tested against itself alone
MORE = {"average": "points more than alone", "answer_bpb": "more than alone"}  # what is not a ratio, in words
NOT_ASKED = "-: not asked for."


@dataclass(frozen=True)
class CompensationPair:
    """Where a cell stands: the row and the column as they are headed, and the row's method without parameters."""

    row: str
    column: str
    method: str


def tables(data: ReportData) -> list[Table]:
    """Return the tables of each setup and ratio at which some method is compensated, of the measures with a figure."""
    found = []
    for group in data.groups:
        if all(pair.column == NONE for pair in pairs(group)):
            continue
        for name in (*(f"perplexity_{text}" for text in texts(group.records)), *MEASURES):
            if any(row.get(name) is not None for row in group.rows):
                found.append(_of_measure(column(name), group, data))
            if kind(name) in QUALITIES:
                found += _of_gains(column(name), group, data.samples)
    return found


@dataclass(frozen=True)
class Gain:
    """What a compensation changes, of one compensated method that was measured alone as well.

    where     it stands; place, alone  in the group, of it and of the method alone
    estimate  a perplexity, times that of the method alone; of an average and bits per byte, how much more it is
    contrast  the two cells in pairs, where samples pair them
    """

    where: CompensationPair
    place: int
    alone: int
    estimate: float
    contrast: Contrast | None


def gains(name: str, group: TableGroup, samples: Samples) -> list[Gain]:
    """Return what compensations change of a perplexity, the average or bits per byte, in the group's order."""
    where, rows = pairs(group), group.rows
    alone = {pair.row: at for at, pair in enumerate(where) if pair.column == NONE and finite(rows[at].get(name))}
    mended = [at for at, pair in enumerate(where) if pair.column != NONE and finite(rows[at].get(name))]
    places = [(alone[where[at].row], at) for at in mended if where[at].row in alone]
    single = [pair for pair in places if all(len(group.models(at)) == 1 for at in pair)]
    tested = significance.in_pairs(group, single, name, samples, bounds=True)
    change = operator.sub if name in MORE else operator.truediv
    return [Gain(where[b], b, a, change(rows[b][name], rows[a][name]), tested.get((a, b))) for a, b in places]


def _of_gains(measure: Column, group: TableGroup, samples: Samples) -> list[Table]:
    """Return a table of what samples pair, if there is any."""
    found = gains(measure.name, group, samples)
    tested = [(gain, gain.contrast) for gain in found if gain.contrast]
    if not tested:
        return []
    cells, heads = [], _heads(group, replace(measure, name=f"gain_{measure.name}"))
    for gain, contrast in tested:
        of = (group.label(gain.place), str(group.records[gain.place].cell["method"]))
        both = group.rows[gain.place], group.rows[gain.alone]
        tied = group.tied(gain.alone, gain.place, measure.name)
        cell = replace(starred(_change(measure, contrast, tied=tied), *both), of=of)
        line = Row(gain.where.row, gain.where.method, group.ratio, ratio_of=group.ratio_of)
        cells.append((line, heads[gain.where.column], cell))
    tests = dict.fromkeys(significance.TESTS[contrast.test] for _, contrast in tested)
    untested = ", ".join(group.label(gain.place) for gain in found if not gain.contrast)
    how = MORE.get(measure.name, "times that of the method alone")
    there = {gain.where.column for gain, _ in tested}
    spoken_of = dict.fromkeys(place for gain in found for place in (gain.alone, gain.place))
    columns, lines = pivot(cells, [head for name, head in heads.items() if name in there])
    lines, sorting = order.by_column(
        lines, [one.label for one in columns], measure.better, "what is changed by", last=False
    )
    return [
        of_group(
            "grid",
            group,
            columns,
            lines,
            footnotes=(
                f"{how}: what a compensation changes, with its 95 % interval, in pairs on what both were measured on; "
                f"†: p < {LEVEL} ({', '.join(tests)}; adjusted by Holm for the cells of a table).",
                *sorting,
            ),
            name=f"grid-gain-{measure.name}-{ratio_word(group)}",
            title=f"{measure.label}, {how}{ARROWS[measure.better]}, {notes.ratio(group.records)}",
            said=(
                *notes.exceptions([group.records[place] for place in spoken_of], beside=group.beside),
                *[f"not tested: {untested} (draws, or no samples in common)."] * bool(untested),
            ),
        )
    ]


def _change(measure: Column, contrast: Contrast, *, tied: bool) -> TableCell:
    """Return a change, marked where a test has shown it and every seed agrees which way it goes."""
    figures = (contrast.estimate, contrast.low, contrast.high)
    form, scale = {"average": ("+.1f", 100), "answer_bpb": ("+.3f", 1)}.get(measure.name, ("", 1))
    words = [format(scale * one, form) if form else significant(one) for one in figures]
    cell = TableCell(f"{words[0]} [{words[1]}, {words[2]}]", words[0], *figures)
    return cell.marked("differs") if contrast.p < LEVEL and not tied else cell


def pairs(group: TableGroup) -> list[CompensationPair]:
    """Return where each row of the group stands."""
    return [_pair(record.cell, group.label(place)) for place, record in enumerate(group.records)]


def _heads(group: TableGroup, measure: Column) -> dict[str, Column]:
    """Return the columns of the compensations by their names, in the order in which the run has them, `none` first."""
    asked = sorted(zip(group.numbers, pairs(group), strict=True), key=operator.itemgetter(0))
    names = dict.fromkeys([NONE, *(pair.column for _, pair in asked)])
    return {name: replace(measure, label=name, unit="", better=None) for name in names}


def _pair(cell: Mapping[str, Any], shown: str) -> CompensationPair:
    """Return where a cell stands: what was done before is in front of its row, and a healed cell has its own row.

    shown  the cell's label, with whatever sets it apart in its group behind it
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


def _of_measure(measure: Column, group: TableGroup, data: ReportData) -> Table:
    """Return one measure. Marks are those of the methods at this ratio; a cell without figures says why."""
    rows, tests = compared(group, [measure], data)
    cells, heads = [], _heads(group, measure)
    for pair, row, figures in zip(pairs(group), rows, group.rows, strict=True):
        cell = row.cells[0] if row.failure is None else TableCell(row.failure)
        if pair.method != "dense" or cell.value is not None:
            ratio = None if pair.method == "dense" else group.ratio
            line = Row(pair.row, pair.method, ratio, ratio_of=group.ratio_of)
            cells.append((line, heads[pair.column], replace(starred(cell, figures), of=(row.label, row.method))))
    columns, lines = pivot(cells, list(heads.values()))
    lines, sorting = order.by_column(lines, list(heads), measure.better, "the figures under", last=False)
    absent = any(cell.of is None for line in lines if line.method != "dense" for cell in line.cells)
    return of_group(
        "grid",
        group,
        columns,
        lines,
        [
            *notes.protocol(list(chain(*group.drawn)), list(chain(*group.each)), (kind(measure.name),)),
            *sorting,
        ],
        name=f"grid-{measure.name}-{ratio_word(group)}",
        title=f"{measure.head}, {notes.ratio(group.records)}",
        said=(*notes.exceptions(group.spoken_of(), beside=group.beside), *tests, *[NOT_ASKED] * absent),
    )
