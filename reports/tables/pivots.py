"""Tables whose columns are values of a setting: the views by-ratio and grid.

The view by-ratio has a table of methods by ratios for each measure. The view grid has a table of methods by
compensations for each ratio and measure, and one of what each compensation changes.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from bench.plan.cell import Cell
from bench.records.frame import STAGES, columns_of_quantity, texts_of_records
from bench.records.quantities import list_quantities, quantity_of_column
from bench.records.quantity import MISSING, format_significant, is_finite
from bench.records.samples import Samples
from bench.regression.contrasts import LEVEL
from bench.stats.intervals import Contrast
from methods.errors import UserError
from reports import legend, protocol
from reports.groups import TableGroup
from reports.legend import FlaggedCell
from reports.tables.rows import (
    TESTS,
    GroupTests,
    Key,
    ReportData,
    compare_rows,
    key_of_row,
    mark_missed,
    sentence_on_order,
    table_of_group,
    word_of_ratio,
)
from reports.tables.table import ARROWS, Column, Row, Table, TableCell, column_of

NONE = "none"  # the column of methods without a compensation
MEASURES = ("average", "answer_bpb", "kl", "prune_seconds", "parameters")  # of a grid, beside the perplexities
QUALITIES = (
    "perplexity",
    "tasks",
)  # kinds of measures in which a compensated method is tested against the method alone
MORE = {"average": "points more than alone", "answer_bpb": "more than alone"}  # differences; the rest are ratios
NOT_ASKED = "-: not asked for."

Entry = tuple[Row, Column, TableCell]  # a cell with its row, which has no cells yet, and its column


def pivot(entries: Iterable[Entry], columns: Sequence[Column] = ()) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
    """Return the columns and the filled rows of a grid; a place without an entry holds '-'.

    Rows stand in the order in which they first occur, and so do columns, behind `columns`. Raises UserError if two
    entries have one place.
    """
    import pandas as pd

    frame = pd.DataFrame(list(entries), columns=["row", "column", "cell"], dtype=object)
    repeated = frame[frame.duplicated(["row", "column"])]
    if len(repeated):
        row, head = repeated.iloc[0]["row"], repeated.iloc[0]["column"]
        raise UserError(
            f"two cells are called {row.label!r} in the column {head.label!r}, of which a table would show one "
            "alone; report the runs that they are of apart"
        )
    heads = tuple(dict.fromkeys([*columns, *frame["column"]]))
    rows = list(dict.fromkeys(frame["row"]))
    grid = frame.pivot(index="row", columns="column", values="cell").reindex(index=rows, columns=list(heads))
    cells = grid.map(lambda cell: cell if isinstance(cell, TableCell) else TableCell())
    lines = cells.itertuples(index=False, name=None)
    return heads, tuple(replace(row, cells=line) for row, line in zip(rows, lines, strict=True))


def sort_rows(
    rows: Sequence[Row], names: Sequence[str], better: str | None, how: str, *, last: bool
) -> tuple[tuple[Row, ...], list[str]]:
    """Return rows sorted by the column in which most of them have a value, and the sentence that says so.

    names  the names of the columns
    how    the beginning of the sentence, such as "the figures at"
    last   whether the last of several such columns is taken, or the first
    """
    counts = Counter(place for row in rows for place in range(len(names)) if _number(row, place) is not None)
    by = max(range(len(names)), key=lambda place: (counts[place], place if last else -place))

    def key(row: Row) -> Key:
        failed = row.failure is not None or (_number(row, by) is None and row.cells[by].text != MISSING)
        return key_of_row(row.label, row.method, _number(row, by), better, failed)

    return tuple(sorted(rows, key=key)), sentence_on_order(rows, f"{how} {names[by]}", better)


def _number(row: Row, place: int) -> float | None:
    value = row.cells[place].value
    return float(value) if isinstance(value, int | float) else None


def _figures(
    group: TableGroup, measure: Column, data: ReportData
) -> tuple[list[tuple[Row, TableCell]], list[FlaggedCell]]:
    """Return each row of a group with its cell of one measure, or with its status; and the flags of the tests."""
    rows, tests = compare_rows(group, [measure], data)
    cells = [row.cells[0] if row.failure is None else TableCell(row.failure) for row in rows]
    marked = [mark_missed(cell, figures) for cell, figures in zip(cells, group.rows, strict=True)]
    return list(zip(rows, marked, strict=True)), tests


# --- methods by ratios


def tables_by_ratio(data: ReportData) -> list[Table]:
    """Return a table for each setup and measure; the dense model's value is repeated in each column."""
    tables = []
    for groups in data.setups:
        records = list(chain.from_iterable(chain.from_iterable(group.drawn) for group in groups))
        rows = list(chain.from_iterable(chain.from_iterable(group.each) for group in groups))
        quantities = [quantity for quantity in list_quantities() if quantity.columns in ("quality", "summary")]
        for name in chain.from_iterable(columns_of_quantity(quantity, records) for quantity in quantities):
            if any(row.get(name) is not None for group in groups for row in group.rows):
                footnotes = legend.describe_columns(records, rows, (quantity_of_column(name).kind,))
                conditions = (*protocol.conditions_of(records), *groups[0].apart)
                measured = tuple(protocol.protocol_of_records(records, (quantity_of_column(name).kind,)))
                table = _by_ratio(column_of(name), groups, data, footnotes)
                tables.append(replace(table, conditions=conditions, protocol=measured))
    return tables


def _by_ratio(measure: Column, groups: Sequence[TableGroup], data: ReportData, footnotes: Sequence[str]) -> Table:
    """Return the table of methods by ratios. A cell that missed its budget has a star; a failed cell has its status."""
    entries, flags = list[Entry](), list[FlaggedCell]()
    for group in groups:
        is_dense = all(record.cell.method == "dense" for record in group.records)
        name, ratio = "dense" if is_dense else word_of_ratio(group), (group.ratio, group.ratio_of)
        head = replace(measure, label=name, unit="", better=None, ratio_and_base=ratio)
        figures, tests = _figures(group, measure, data)
        entries += [(Row(row.label, row.method, None), head, cell) for row, cell in figures]
        flags += [*_flags(group, measure), *tests]
    columns, rows = pivot(entries)
    rows, sorting = sort_rows(rows, [head.label for head in columns], measure.better, "the figures at", last=True)
    name, title = f"by-ratio-{measure.name}", f"{measure.head}, by ratio"
    notes_ = [*footnotes, *sorting]
    remarks = legend.describe_flags(flags)
    return table_of_group("by-ratio", groups[0], columns, rows, notes_, name=name, title=title, remarks=remarks)


def _flags(group: TableGroup, measure: Column) -> Iterator[FlaggedCell]:
    """Yield the flags of the cells of a ratio in a table of one measure, with the ratio behind each name."""
    stages = [stage for stage in STAGES if measure.name == f"{stage}_speed"]
    where = "" if group.ratio is None else f" at {word_of_ratio(group)}"
    yield from legend.flags_of_records(group.records_with_notes(), stages, group.beside, where)


# --- methods by compensations


@dataclass(frozen=True)
class CompensationPair:
    """The place of a cell in a grid: the labels of its row and column, and the row's method without parameters."""

    row: str
    column: str
    method: str


@dataclass(frozen=True)
class Gain:
    """What a compensation changes in one method that was measured with and without it.

    where     the place in the grid
    place     the place in the group of the method with the compensation
    alone     the place in the group of the method alone
    estimate  the ratio of perplexities to the method alone; the difference for an average and bits per byte
    contrast  the paired test of the two cells; None if no samples pair them
    """

    where: CompensationPair
    place: int
    alone: int
    estimate: float
    contrast: Contrast | None


def grids_of_compensations(data: ReportData) -> list[Table]:
    """Return the tables of each setup and ratio at which a method has a compensation, for the measures with a value."""
    tables = []
    for group in data.groups:
        if all(pair.column == NONE for pair in pairs_of_group(group)):
            continue
        for name in (*(f"perplexity_{text}" for text in texts_of_records(group.records)), *MEASURES):
            if any(row.get(name) is not None for row in group.rows):
                tables.append(_compensation_grid(column_of(name), group, data))
            if quantity_of_column(name).kind in QUALITIES:
                tables += _grid_of_gains(column_of(name), group, data.samples)
    return tables


def pairs_of_group(group: TableGroup) -> list[CompensationPair]:
    """Return the place in the grid of each row of a group."""
    return [_pair(record.cell, group.label(place)) for place, record in enumerate(group.records)]


def _pair(cell: Cell, name: str) -> CompensationPair:
    """Return the place of a cell in a grid.

    shortgpt+ghost:token=last,ghost.ridge=0.1 is in the row shortgpt:token=last and the column ghost:ridge=0.1. Earlier
    stages stand in front of the row's label, and a healed cell has its own row.

    name  the cell's label, with everything behind it that sets it apart in its group
    """
    method, _, compensation = cell.method.partition("+")
    of_method, of_compensation = dict[str, Any](), dict[str, Any]()
    for parameter in cell.given:
        is_own = not (compensation and parameter.startswith(f"{compensation}."))
        given = of_method if is_own else of_compensation
        given[parameter if is_own else parameter.removeprefix(f"{compensation}.")] = cell.parameters[parameter]
    alone, healed = replace(cell.stage, healing=None).label, ", healed" if cell.healing else ""
    front, behind = cell.label.removesuffix(alone + healed), healed + name.removeprefix(cell.label)
    row = f"{front}{_with_parameters(method, of_method)}{behind}"
    return CompensationPair(row, _with_parameters(compensation or NONE, of_compensation), method)


def _with_parameters(name: str, given: Mapping[str, Any]) -> str:
    values = ",".join(f"{parameter}={value}" for parameter, value in given.items())
    return f"{name}:{values}" if values else name


def _heads(group: TableGroup, measure: Column) -> dict[str, Column]:
    """Return {name of a compensation: its column} in the order of the run, `none` first."""
    in_order = sorted(zip(group.numbers, pairs_of_group(group), strict=True), key=operator.itemgetter(0))
    names = dict.fromkeys([NONE, *(pair.column for _, pair in in_order)])
    return {name: replace(measure, label=name, unit="", better=None) for name in names}


def _compensation_grid(measure: Column, group: TableGroup, data: ReportData) -> Table:
    """Return the grid of one measure. Marks are those of the methods at this ratio; a failed cell has its status."""
    figures, tests = _figures(group, measure, data)
    entries, heads = list[Entry](), _heads(group, measure)
    for pair, (row, cell) in zip(pairs_of_group(group), figures, strict=True):
        if pair.method != "dense" or cell.value is not None:
            ratio = None if pair.method == "dense" else group.ratio
            line = Row(pair.row, pair.method, ratio, ratio_of=group.ratio_of)
            entries.append((line, heads[pair.column], replace(cell, of=(row.label, row.method))))
    columns, rows = pivot(entries, list(heads.values()))
    rows, sorting = sort_rows(rows, list(heads), measure.better, "the figures under", last=False)
    is_sparse = any(cell.of is None for row in rows if row.method != "dense" for cell in row.cells)
    records, about = list(chain(*group.drawn)), (quantity_of_column(measure.name).kind,)
    reading = legend.describe_columns(records, list(chain(*group.each)), about)
    flags = legend.flags_of_records(group.records_with_notes(), beside=group.beside)
    sentences = [
        *legend.describe_flags([*flags, *tests]),
        *[NOT_ASKED] * is_sparse,
    ]
    name, title = (
        f"grid-{measure.name}-{word_of_ratio(group)}",
        f"{measure.head}, {protocol.words_of_ratio(group.records)}",
    )
    return table_of_group(
        "grid",
        group,
        columns,
        rows,
        [*reading, *sorting],
        name=name,
        title=title,
        remarks=sentences,
        measured=protocol.protocol_of_records(records, about),
    )


def gains_of_compensations(name: str, group: TableGroup, samples: Samples) -> list[Gain]:
    """Return what compensations change of a column of quality, in the order of the group.

    name  of a perplexity, the average or bits per byte
    """
    where, rows = pairs_of_group(group), group.rows
    places = [place for place in range(len(rows)) if is_finite(rows[place].get(name))]
    alone = {where[place].row: place for place in places if where[place].column == NONE}
    changed = [place for place in places if where[place].column != NONE and where[place].row in alone]
    both = [(alone[where[place].row], place) for place in changed]
    single = [(a, b) for a, b in both if len(group.models(a)) == len(group.models(b)) == 1]
    contrasts = GroupTests(group, samples).test_pairs(single, name, bounds=True)
    change = operator.sub if name in MORE else operator.truediv
    gains = []
    for a, b in both:
        gains.append(Gain(where[b], b, a, change(rows[b][name], rows[a][name]), contrasts.get((a, b))))
    return gains


def _grid_of_gains(measure: Column, group: TableGroup, samples: Samples) -> list[Table]:
    """Return the table of the changes that samples pair; empty without any."""
    all_gains = gains_of_compensations(measure.name, group, samples)
    tested = [(gain, gain.contrast) for gain in all_gains if gain.contrast]
    if not tested:
        return []
    entries, heads = list[Entry](), _heads(group, replace(measure, name=f"gain_{measure.name}"))
    for gain, contrast in tested:
        cell = cell_of_change(
            contrast, measure.name, is_tied=group.order_depends_on_seed(gain.alone, gain.place, measure.name)
        )
        cell = mark_missed(cell, group.rows[gain.place], group.rows[gain.alone])
        of = (group.label(gain.place), group.records[gain.place].cell.method)
        row = Row(gain.where.row, gain.where.method, group.ratio, ratio_of=group.ratio_of)
        entries.append((row, heads[gain.where.column], replace(cell, of=of)))
    present = {gain.where.column for gain, _ in tested}
    columns, rows = pivot(entries, [head for name, head in heads.items() if name in present])
    rows, sorting = sort_rows(rows, [head.label for head in columns], measure.better, "what is changed by", last=False)
    how = MORE.get(measure.name, "times that of the method alone")
    tests = dict.fromkeys(TESTS[contrast.test] for _, contrast in tested)
    meaning = (
        f"{how}: what a compensation changes, with its 95 % interval, in pairs on what both were measured on; "
        f"†: p < {LEVEL} ({', '.join(tests)}; adjusted by Holm for the cells of a table)."
    )
    named = dict.fromkeys(chain.from_iterable((gain.alone, gain.place) for gain in all_gains))
    flags = list(legend.flags_of_records([group.records[place] for place in named], beside=group.beside))
    untested = [group.label(gain.place) for gain in all_gains if not gain.contrast]
    flags += [FlaggedCell(legend.UNTESTED, label, {"columns": measure.label}) for label in untested]
    sentences = legend.describe_flags(flags)
    name = f"grid-gain-{measure.name}-{word_of_ratio(group)}"
    title = f"{measure.label}, {how}{ARROWS[measure.better]}, {protocol.words_of_ratio(group.records)}"
    return [
        table_of_group("grid", group, columns, rows, [meaning, *sorting], name=name, title=title, remarks=sentences)
    ]


def cell_of_change(contrast: Contrast, name: str, *, is_tied: bool = False) -> TableCell:
    """Return the cell of a change of a column; it is marked if a test has shown it.

    is_tied  whether seeds disagree on its direction, so that it is not marked
    """
    figures = (contrast.estimate, contrast.low, contrast.high)
    form, scale = {"average": ("+.1f", 100), "answer_bpb": ("+.3f", 1)}.get(name, ("", 1))
    value, low, high = (format(scale * number, form) if form else format_significant(number) for number in figures)
    cell = TableCell(f"{value} [{low}, {high}]", value, *figures)
    return cell.with_mark("differs") if contrast.p < LEVEL and not is_tied else cell
