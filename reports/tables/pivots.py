"""Tables whose columns are values of something: methods by ratios, and methods by compensations.

The view by-ratio has a table per measure. The view grid has one for each ratio and measure, and one of what each
compensation changes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from bench.records.columns import STAGES, texts
from bench.records.record import label
from bench.records.samples import Samples
from bench.stats.contrasts import LEVEL, Contrast
from methods.errors import UserError
from reports import notes
from reports.blocks import TableGroup
from reports.metrics import MISSING, finite, significant
from reports.tables import order, significance
from reports.tables.rows import ReportData, compared, kind, of_group, ratio_word, starred
from reports.tables.table import ARROWS, Column, Row, Table, TableCell, column

SUMMARY = ("average", "kept", "answer_bpb", "prefill_speed", "decode_speed", "prune_seconds")
NONE = "none"  # the column of methods without a compensation
MEASURES = ("average", "answer_bpb", "kl", "prune_seconds", "parameters")  # of a grid, beside the perplexities
QUALITIES = ("perplexity", "tasks")  # kinds of measures in which a method is tested against itself alone
MORE = {"average": "points more than alone", "answer_bpb": "more than alone"}  # differences; the rest are ratios
NOT_ASKED = "-: not asked for."

Entry = tuple[Row, Column, TableCell]  # a cell with the row, without cells, and the column in which it stands


def pivot(entries: Iterable[Entry], columns: Sequence[Column] = ()) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
    """Return the columns and the filled rows of a grid; a place without an entry holds '-'.

    Both stand in the order in which they first occur, behind those of `columns`. Raises UserError where two entries
    have one place.
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
    """Return rows sorted by the column in which most of them have a figure, and the sentence that says so.

    names  of the columns;  how  the sentence begins, such as "the figures at"
    last   whether of several such columns the last is taken, or the first
    """
    counts = [sum(_number(row, place) is not None for row in rows) for place in range(len(names))]
    by = max(range(len(names)), key=lambda place: (counts[place], place if last else -place))

    def key(row: Row) -> order.Key:
        failed = row.failure is not None or (_number(row, by) is None and row.cells[by].text != MISSING)
        return order.row_key(row.label, row.method, _number(row, by), better, failed)

    return tuple(sorted(rows, key=key)), order.sorting_note(rows, f"{how} {names[by]}", better)


def _number(row: Row, place: int) -> float | None:
    value = row.cells[place].value
    return float(value) if isinstance(value, int | float) else None


def _figures(group: TableGroup, measure: Column, data: ReportData) -> tuple[list[tuple[Row, TableCell]], list[str]]:
    """Return each row of a group with its figure of one measure, or why it has none; and the notes of the tests."""
    rows, tests = compared(group, [measure], data)
    cells = [row.cells[0] if row.failure is None else TableCell(row.failure) for row in rows]
    marked = [starred(cell, figures) for cell, figures in zip(cells, group.rows, strict=True)]
    return list(zip(rows, marked, strict=True)), tests


# --- methods by ratios


def by_ratio(data: ReportData) -> list[Table]:
    """Return for each setup a table per measure; the dense model's figure is repeated in each column."""
    tables = []
    for groups in data.setups:
        records = list(chain.from_iterable(chain.from_iterable(group.drawn) for group in groups))
        rows = list(chain.from_iterable(chain.from_iterable(group.each) for group in groups))
        for name in [*(f"perplexity_{text}" for text in texts(records)), "kl", *SUMMARY]:
            if any(row.get(name) is not None for group in groups for row in group.rows):
                footnotes = notes.protocol(records, rows, (kind(name),))
                conditions = (*notes.conditions(records), *groups[0].apart)
                table = _by_ratio(column(name), groups, data, footnotes)
                tables.append(replace(table, conditions=conditions))
    return tables


def _by_ratio(measure: Column, groups: Sequence[TableGroup], data: ReportData, footnotes: Sequence[str]) -> Table:
    """Return methods by ratios. A cell that missed its ratio has a star, and one without figures says why."""
    entries, sentences = list[Entry](), dict[str, None]()
    for group in groups:
        is_dense = all(record.cell["method"] == "dense" for record in group.records)
        name, ratio = "dense" if is_dense else ratio_word(group), (group.ratio, group.ratio_of)
        head = replace(measure, label=name, unit="", better=None, asked=ratio)
        figures, tests = _figures(group, measure, data)
        entries += [(Row(row.label, row.method, None), head, cell) for row, cell in figures]
        sentences |= dict.fromkeys([*_exceptions(group, measure), *tests])
    columns, rows = pivot(entries)
    rows, sorting = sort_rows(rows, [head.label for head in columns], measure.better, "the figures at", last=True)
    name, title = f"by-ratio-{measure.name}", f"{measure.head}, by ratio"
    notes_ = [*footnotes, *sorting]
    return of_group("by-ratio", groups[0], columns, rows, notes_, name=name, title=title, said=list(sentences))


def _exceptions(group: TableGroup, measure: Column) -> Iterator[str]:
    """Yield what must be said of a ratio's cells in a table of one measure, with the ratio."""
    stages = [stage for stage in STAGES if measure.name == f"{stage}_speed"]
    for sentence in notes.exceptions(group.spoken_of(), stages, group.beside):
        yield sentence if group.ratio is None else f"at {ratio_word(group)}: {sentence}"


# --- methods by compensations


@dataclass(frozen=True)
class CompensationPair:
    """Where a cell stands: the row and the column as they are headed, and the row's method without parameters."""

    row: str
    column: str
    method: str


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


def compensation_grids(data: ReportData) -> list[Table]:
    """Return the tables of each setup and ratio at which some method is compensated, of the measures with a figure."""
    tables = []
    for group in data.groups:
        if all(pair.column == NONE for pair in pairs(group)):
            continue
        for name in (*(f"perplexity_{text}" for text in texts(group.records)), *MEASURES):
            if any(row.get(name) is not None for row in group.rows):
                tables.append(_compensation_grid(column(name), group, data))
            if kind(name) in QUALITIES:
                tables += _grid_of_gains(column(name), group, data.samples)
    return tables


def pairs(group: TableGroup) -> list[CompensationPair]:
    """Return where each row of the group stands."""
    return [_pair(record.cell, group.label(place)) for place, record in enumerate(group.records)]


def _pair(cell: Mapping[str, Any], name: str) -> CompensationPair:
    """Return where a cell stands. A parameter stands with what it belongs to, so that
    shortgpt+ghost:token=last,ghost.ridge=0.1 is the row shortgpt:token=last and the column ghost:ridge=0.1.

    What was done before is in front of the row, and a healed cell has its own row.

    name  the cell's label, with whatever sets it apart in its group behind it
    """
    method, _, compensation = str(cell["method"]).partition("+")
    of_method, of_compensation = dict[str, Any](), dict[str, Any]()
    for parameter in cell.get("given", ()):
        is_own = not (compensation and parameter.startswith(f"{compensation}."))
        given = of_method if is_own else of_compensation
        given[parameter if is_own else parameter.removeprefix(f"{compensation}.")] = cell["parameters"][parameter]
    alone, healed = label({**cell, "earlier": (), "healing": None}), ", healed" if cell.get("healing") else ""
    front, behind = label(cell).removesuffix(alone + healed), healed + name.removeprefix(label(cell))
    row = f"{front}{_with_parameters(method, of_method)}{behind}"
    return CompensationPair(row, _with_parameters(compensation or NONE, of_compensation), method)


def _with_parameters(name: str, given: Mapping[str, Any]) -> str:
    values = ",".join(f"{parameter}={value}" for parameter, value in given.items())
    return f"{name}:{values}" if values else name


def _heads(group: TableGroup, measure: Column) -> dict[str, Column]:
    """Return the columns of the compensations by their names, in the order in which the run has them, `none` first."""
    in_order = sorted(zip(group.numbers, pairs(group), strict=True), key=operator.itemgetter(0))
    names = dict.fromkeys([NONE, *(pair.column for _, pair in in_order)])
    return {name: replace(measure, label=name, unit="", better=None) for name in names}


def _compensation_grid(measure: Column, group: TableGroup, data: ReportData) -> Table:
    """Return one measure. Marks are those of the methods at this ratio; a cell without figures says why."""
    figures, tests = _figures(group, measure, data)
    entries, heads = list[Entry](), _heads(group, measure)
    for pair, (row, cell) in zip(pairs(group), figures, strict=True):
        if pair.method != "dense" or cell.value is not None:
            ratio = None if pair.method == "dense" else group.ratio
            line = Row(pair.row, pair.method, ratio, ratio_of=group.ratio_of)
            entries.append((line, heads[pair.column], replace(cell, of=(row.label, row.method))))
    columns, rows = pivot(entries, list(heads.values()))
    rows, sorting = sort_rows(rows, list(heads), measure.better, "the figures under", last=False)
    is_sparse = any(cell.of is None for row in rows if row.method != "dense" for cell in row.cells)
    protocol = notes.protocol(list(chain(*group.drawn)), list(chain(*group.each)), (kind(measure.name),))
    sentences = [*notes.exceptions(group.spoken_of(), beside=group.beside), *tests, *[NOT_ASKED] * is_sparse]
    name, title = f"grid-{measure.name}-{ratio_word(group)}", f"{measure.head}, {notes.ratio(group.records)}"
    return of_group("grid", group, columns, rows, [*protocol, *sorting], name=name, title=title, said=sentences)


def gains(name: str, group: TableGroup, samples: Samples) -> list[Gain]:
    """Return what compensations change of a perplexity, the average or bits per byte, in the group's order."""
    where, rows = pairs(group), group.rows
    places = [place for place in range(len(rows)) if finite(rows[place].get(name))]
    alone = {where[place].row: place for place in places if where[place].column == NONE}
    changed = [place for place in places if where[place].column != NONE and where[place].row in alone]
    both = [(alone[where[place].row], place) for place in changed]
    single = [pair for pair in both if all(len(group.models(place)) == 1 for place in pair)]
    contrasts = significance.in_pairs(group, single, name, samples, bounds=True)
    change = operator.sub if name in MORE else operator.truediv
    return [Gain(where[b], b, a, change(rows[b][name], rows[a][name]), contrasts.get((a, b))) for a, b in both]


def _grid_of_gains(measure: Column, group: TableGroup, samples: Samples) -> list[Table]:
    """Return a table of what samples pair, if there is any."""
    all_gains = gains(measure.name, group, samples)
    tested = [(gain, gain.contrast) for gain in all_gains if gain.contrast]
    if not tested:
        return []
    entries, heads = list[Entry](), _heads(group, replace(measure, name=f"gain_{measure.name}"))
    for gain, contrast in tested:
        cell = _change(measure, contrast, is_tied=group.tied(gain.alone, gain.place, measure.name))
        cell = starred(cell, group.rows[gain.place], group.rows[gain.alone])
        of = (group.label(gain.place), str(group.records[gain.place].cell["method"]))
        row = Row(gain.where.row, gain.where.method, group.ratio, ratio_of=group.ratio_of)
        entries.append((row, heads[gain.where.column], replace(cell, of=of)))
    present = {gain.where.column for gain, _ in tested}
    columns, rows = pivot(entries, [head for name, head in heads.items() if name in present])
    rows, sorting = sort_rows(rows, [head.label for head in columns], measure.better, "what is changed by", last=False)
    how = MORE.get(measure.name, "times that of the method alone")
    tests = dict.fromkeys(significance.TESTS[contrast.test] for _, contrast in tested)
    meaning = (
        f"{how}: what a compensation changes, with its 95 % interval, in pairs on what both were measured on; "
        f"†: p < {LEVEL} ({', '.join(tests)}; adjusted by Holm for the cells of a table)."
    )
    named = dict.fromkeys(chain.from_iterable((gain.alone, gain.place) for gain in all_gains))
    sentences = list(notes.exceptions([group.records[place] for place in named], beside=group.beside))
    untested = ", ".join(group.label(gain.place) for gain in all_gains if not gain.contrast)
    sentences += [f"not tested: {untested} (draws, or no samples in common)."] * bool(untested)
    name = f"grid-gain-{measure.name}-{ratio_word(group)}"
    title = f"{measure.label}, {how}{ARROWS[measure.better]}, {notes.ratio(group.records)}"
    return [of_group("grid", group, columns, rows, [meaning, *sorting], name=name, title=title, said=sentences)]


def _change(measure: Column, contrast: Contrast, *, is_tied: bool) -> TableCell:
    """Return a change, marked where a test has shown it and every seed agrees which way it goes."""
    figures = (contrast.estimate, contrast.low, contrast.high)
    form, scale = {"average": ("+.1f", 100), "answer_bpb": ("+.3f", 1)}.get(measure.name, ("", 1))
    value, low, high = (format(scale * number, form) if form else significant(number) for number in figures)
    cell = TableCell(f"{value} [{low}, {high}]", value, *figures)
    return cell.marked("differs") if contrast.p < LEVEL and not is_tied else cell
