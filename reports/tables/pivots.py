"""Tables whose columns are values of a setting: the views by-ratio, grid and ablation.

The view by-ratio has a table of methods by ratios for each measure. The view grid has a table of methods by
compensations for each ratio and measure, and one of what each compensation changes.

The view ablation shows one factor against another among the cells of one method:

records -> studies (one per method and setup) -> [Table]

A factor is a setting that differs among the cells of a study: a parameter of the method, the calibration text, how much
of it is used, the seed, the ratio. In all other views another text or seed makes a setup of its own. A study joins such
setups, since the evaluation is the same, and a note says so. One factor makes a list, two make a grid for each measure.
More make a grid of the first two for each combination of the rest.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from bench.plan.cell import base_of_ratio, is_recorded_draw, label_of_cell
from bench.records import frame as column_data
from bench.records.comparability import group_draws, setup_of_study
from bench.records.frame import STAGES, columns_of_quantity, columns_with_values, texts_of_records
from bench.records.quantities import list_quantities, quantity_of_column
from bench.records.quantity import MISSING, format_significant, is_finite
from bench.records.record import Record, name_of_model, requested_ratio
from bench.records.samples import Samples
from bench.regression.contrasts import LEVEL, Contrast
from methods.errors import UserError
from reports import legend, protocol
from reports.groups import TableGroup, pool_draws, words_of_recipe_differences
from reports.legend import FlaggedCell
from reports.tables.rows import (
    TESTS,
    Key,
    ReportData,
    compare_rows,
    contrasts_in_pairs,
    key_of_row,
    mark_missed,
    row_of,
    sentence_on_order,
    table_of_group,
    word_of_ratio,
)
from reports.tables.table import ARROWS, Column, Row, Table, TableCell, cell_of, column_of

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
        shown = [quantity for quantity in list_quantities() if quantity.columns in ("quality", "summary")]
        for name in chain.from_iterable(columns_of_quantity(quantity, records) for quantity in shown):
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
        is_dense = all(record.cell["method"] == "dense" for record in group.records)
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


def _pair(cell: Mapping[str, Any], name: str) -> CompensationPair:
    """Return the place of a cell in a grid.

    shortgpt+ghost:token=last,ghost.ridge=0.1 is in the row shortgpt:token=last and the column ghost:ridge=0.1. Earlier
    stages stand in front of the row's label, and a healed cell has its own row.

    name  the cell's label, with everything behind it that sets it apart in its group
    """
    method, _, compensation = str(cell["method"]).partition("+")
    of_method, of_compensation = dict[str, Any](), dict[str, Any]()
    for parameter in cell.get("given", ()):
        is_own = not (compensation and parameter.startswith(f"{compensation}."))
        given = of_method if is_own else of_compensation
        given[parameter if is_own else parameter.removeprefix(f"{compensation}.")] = cell["parameters"][parameter]
    alone, healed = label_of_cell({**cell, "earlier": (), "healing": None}), ", healed" if cell.get("healing") else ""
    front, behind = label_of_cell(cell).removesuffix(alone + healed), healed + name.removeprefix(label_of_cell(cell))
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
    contrasts = contrasts_in_pairs(group, single, name, samples, bounds=True)
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
        cell = _change(measure, contrast, is_tied=group.order_depends_on_seed(gain.alone, gain.place, measure.name))
        cell = mark_missed(cell, group.rows[gain.place], group.rows[gain.alone])
        of = (group.label(gain.place), str(group.records[gain.place].cell["method"]))
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


def _change(measure: Column, contrast: Contrast, *, is_tied: bool) -> TableCell:
    """Return the cell of a change; it is marked if a test has shown it and all seeds agree on its direction."""
    figures = (contrast.estimate, contrast.low, contrast.high)
    form, scale = {"average": ("+.1f", 100), "answer_bpb": ("+.3f", 1)}.get(measure.name, ("", 1))
    value, low, high = (format(scale * number, form) if form else format_significant(number) for number in figures)
    cell = TableCell(f"{value} [{low}, {high}]", value, *figures)
    return cell.with_mark("differs") if contrast.p < LEVEL and not is_tied else cell


LOOK = {  # fields of the protocol that may be factors, and their names for readers
    "calibration": "calibration",
    "calibration_sequences": "calibration sequences",
    "calibration_length": "calibration length",
}
OUTER = (*LOOK.values(), "seed", "ratio")  # factors that are no parameter of the method
KINDS = ("perplexity", "kl", "tasks")
SHOWN = ("perplexity_", "kl", "task_", "answer_bpb")  # beginnings of the columns that have a footnote


@dataclass(frozen=True)
class Setting:
    """One cell of a study, or several draws of a random method, and its row of the frame."""

    record: Record
    row: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """The measured and the failed cells of one method that differ in factors alone.

    method    the name of the method
    name      the label of the method, with earlier stages and healing: 'laco, healed'
    factors   the settings that differ: the parameters in the order they were given, then OUTER
    fixed     the settings that all cells share
    points    the cells by the values of the factors
    dense     the rows of the dense model in the frame
    records   all records, with those of the dense model
    footnotes how to read the values
    protocol  how they were measured
    again     how many cells are left out, since an earlier one has the same values of the factors
    """

    method: str
    name: str
    factors: tuple[str, ...]
    fixed: dict[str, Any]
    points: dict[tuple[Any, ...], Setting]
    dense: list[dict[str, Any]]
    records: list[Record]
    footnotes: tuple[str, ...]
    protocol: tuple[protocol.ProtocolRow, ...]
    again: int = 0

    def axis(self, factor: str) -> list[Any]:
        """Return the values of a factor: numbers rising, words in the order of the cells."""
        at = self.factors.index(factor)
        values = list(dict.fromkeys(key[at] for key in self.points))
        if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
            return sorted(values, key=lambda value: (value is not None, value or 0))
        return values

    def measures(self) -> list[str]:
        """Return the columns of the frame in which any cell has a value."""
        names = [*(f"perplexity_{name}" for name in texts_of_records(self.records)), "kl", "average", "answer_bpb"]
        names += ["ratio", "layers", "prune_seconds"]
        return columns_with_values([point.row for point in self.points.values()], names)

    def same(self, name: str) -> bool:
        """Say whether a measure is the same in every cell, so that one sentence says it."""
        return len({point.row.get(name) for point in self.points.values()}) == 1

    def combinations(self) -> list[tuple[Any, ...]]:
        """Return the combinations of the factors behind the first two that occur."""
        held = {key[2:] for key in self.points}
        return [key for key in itertools.product(*map(self.axis, self.factors[2:])) if key in held]


def studies_of(records: Sequence[Record]) -> list[Study]:
    """Return a study for each method and setup in which anything but the ratio differs.

    Earlier stages, healing, and what the ratio is a share of are never factors: they make other studies.
    """
    rows, groups = column_data.rows_of_records(records), dict[str, list[int]]()
    for number, record in enumerate(records):
        groups.setdefault(setup_of_study(record), []).append(number)
    studies = []
    for numbers in groups.values():
        dense = [n for n in numbers if records[n].cell["method"] == "dense"]
        alike: dict[str, list[int]] = {}
        for number in numbers:
            if number not in dense:
                alike.setdefault(_history_of_cell(records[number]), []).append(number)
        for mine in alike.values():
            plain = {**records[mine[0]].cell, "given": ()}  # what was given are the factors
            name = label_of_cell(plain) + words_of_recipe_differences(plain, [records[n].cell for n in numbers])
            points = []
            for places in group_draws([records[n] for n in mine], seeds=False):
                several = [rows[mine[place]] for place in places]
                row = pool_draws(several) if len(several) > 1 else several[0]
                points.append(Setting(records[mine[places[0]]], row))
            measured = [rows[n] for n in dense if records[n].status == "ok"]
            study = _study(name, points, measured, [records[n] for n in (*dense, *mine)])
            if set(study.factors) - {"ratio"}:
                studies.append(study)
    return studies


def _history_of_cell(record: Record) -> str:
    """Return the method, what its ratio is a share of, its healing and its earlier stages, as one text."""
    cell = record.cell
    return json.dumps([cell["method"], base_of_ratio(cell), cell.get("healing"), cell.get("earlier")], sort_keys=True)


def _study(name: str, points: Sequence[Setting], dense: list[dict[str, Any]], records: list[Record]) -> Study:
    settings = [_settings(point.record) for point in points]
    given = dict.fromkeys(name for point in points for name in point.record.cell.get("given", ()))
    names = dict.fromkeys([*(name for name in given if name not in OUTER), *itertools.chain(*settings)])
    ordered = [*(name for name in names if name not in OUTER), *OUTER]

    def is_apart(name: str) -> bool:
        return len({json.dumps(setting.get(name)) for setting in settings}) > 1

    factors = tuple(filter(is_apart, ordered))
    fixed = {name: settings[0].get(name) for name in ordered if name not in factors}
    first = points[0].record.cell
    if base_of_ratio(first) != "all":
        fixed["ratio of"] = base_of_ratio(first)
    keyed: dict[tuple[Any, ...], Setting] = {}
    for setting, point in zip(settings, points, strict=True):
        keyed.setdefault(tuple(setting.get(name) for name in factors), point)
    looks = {*LOOK.values(), "seed"} & set(factors)
    rows = [*(point.row for point in keyed.values()), *dense]
    shown = []
    for row in rows:
        shown.append({name: value for name, value in row.items() if name.startswith(SHOWN)})
    footnotes = legend.describe_columns(records, shown, KINDS, seeds=False)
    measured = protocol.protocol_of_records(records, KINDS, calibration=not looks)
    again = len(points) - len(keyed)
    return Study(first["method"], name, factors, fixed, keyed, dense, records, tuple(footnotes), tuple(measured), again)


def _settings(record: Record) -> dict[str, Any]:
    """Return every setting that may be a factor. The seed of a random choice is left out, since draws share a row."""
    cell = record.cell
    parameters = dict(cell["parameters"])
    if is_recorded_draw(cell):
        parameters.pop("seed", None)
    settings = {f"{cell['method']}.{name}" if name in OUTER else name: value for name, value in parameters.items()}
    settings |= {shown: cell["protocol"][name] for name, shown in LOOK.items() if name in cell["protocol"]}
    settings |= {"seed": cell["seed"], "ratio": requested_ratio(record)}
    return {name: _freeze(value) for name, value in settings.items()}


def _freeze(value: Any) -> Any:
    """Return a value of a factor as a key: a list as a tuple, a dictionary as its JSON."""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def tables_of_studies(data: ReportData) -> list[Table]:
    """Return the tables of every study."""
    return [table for study in studies_of(data.records) for table in _tables_of_study(study)]


def _tables_of_study(study: Study) -> Iterator[Table]:
    measures = study.measures()
    if len(study.factors) == 1:
        yield _list(study, measures)
        return
    varying = [name for name in measures if not study.same(name)]
    for name in varying or measures[:1]:
        for values in study.combinations():
            yield _grid(study, name, values)


def _list(study: Study, measures: Sequence[str]) -> Table:
    """Return the table of a study with one factor: a row for each value, a column for each measure."""
    (factor,) = study.factors
    rows = []
    for value in study.axis(factor):
        point = study.points[value,]
        cells = [mark_missed(cell_of(point.row, name), point.row) for name in measures]
        rows.append(row_of(point.record, format_factor(value), cells))
    return _table(
        study, "list", f"{study.name} by {factor}", [column_of(name) for name in measures], rows, measures=measures
    )


def _grid(study: Study, name: str, values: tuple[Any, ...]) -> Table:
    """Return the table of one measure: a row for each value of the first factor, a column for each of the second.

    values  of the further factors, which all cells of the table share
    """
    first, second, measure = *study.factors[:2], column_of(name)
    cells = []
    for value in study.axis(first):
        points = {second_value: study.points.get((value, second_value, *values)) for second_value in study.axis(second)}
        ratios = {requested_ratio(point.record) for point in points.values() if point}
        of = base_of_ratio(study.records[-1].cell)  # of which a study has one
        row = Row(format_factor(value), study.method, ratios.pop() if len(ratios) == 1 else None, ratio_of=of)
        for second_value, point in points.items():
            at = f"{second}={format_factor(second_value)}"
            cells.append((row, Column(f"{name}, {at}", at), _cell(point, name)))
    held = [f", {factor} {format_factor(value)}" for factor, value in zip(study.factors[2:], values, strict=True)]
    title = f"{study.name}: {measure.head} by {first} and {second}{''.join(held)}"
    return _table(study, name, title, *pivot(cells), measures=[name])


def _cell(point: Setting | None, name: str) -> TableCell:
    if point is None:
        return TableCell()
    failed = point.record.status != "ok"
    return (
        TableCell(legend.words_of_status(point.record)) if failed else mark_missed(cell_of(point.row, name), point.row)
    )


def _table(
    study: Study, name: str, title: str, columns: Sequence[Column], rows: Sequence[Row], *, measures: Sequence[str]
) -> Table:
    return Table(
        name=f"ablation-{study.method}-{name}",
        view="ablation",
        model=name_of_model(study.records[0]),
        title=title,
        conditions=tuple(protocol.conditions_of(study.records)),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(_notes(study, measures)),
        footnotes=study.footnotes,
        protocol=study.protocol,
        head=study.factors[0],
    )


def _notes(study: Study, measures: Sequence[str]) -> Iterator[str]:
    """Yield the dense model's values, measures that are the same in every cell, fixed settings, and notes on cells."""
    dense_texts = {name: _dense(study, name) for name in measures}
    dense = [_sentence(name, text) for name, text in dense_texts.items() if text]
    if dense:
        yield f"dense: {', '.join(dense)}."
    if len(study.factors) > 1:
        first = next(iter(study.points.values())).row
        same = [_sentence(name, cell_of(first, name).text) for name in study.measures() if study.same(name)]
        if same:
            yield f"in every cell: {', '.join(same)}."
    fixed = [
        f"{name} {format_factor(value)}" for name, value in study.fixed.items() if (name, value) != ("ratio", None)
    ]
    if fixed:
        yield f"fixed: {', '.join(fixed)}."
    if study.again:
        yield f"left out, since another cell has the same settings: {study.again}."
    looks = [factor for factor in study.factors if factor in (*LOOK.values(), "seed")]
    if looks:
        yield f"cells of setups that differ in {', '.join(looks)} stand in one table; what is evaluated is the same."
    if "seed" in looks and "average" in study.measures():
        yield "each seed draws its own documents of the tasks."
    flags = list[FlaggedCell]()
    for key, point in study.points.items():
        outer = [(name, value) for name, value in zip(study.factors, key, strict=True) if name in OUTER]
        where = ", ".join(f"{name} {format_factor(value)}" for name, value in outer)
        flags += legend.flags_of_records([point.record], where=f" at {where}" if where else "")
    yield from legend.describe_flags(flags)


def _dense(study: Study, name: str) -> str:
    """Return the dense model's value of a measure of quality, or the lowest and highest of several; else nothing."""
    cell_by_value = {row[name]: cell_of(row, name) for row in study.dense if row.get(name) is not None}
    if not cell_by_value or name in ("ratio", "layers", "prune_seconds", "kl"):
        return ""
    ends = [cell_by_value[value].short for value in (min(cell_by_value), max(cell_by_value))]
    return cell_by_value[min(cell_by_value)].text if len(cell_by_value) == 1 else " to ".join(ends)


def _sentence(name: str, text: str) -> str:
    """Return a value with its name and unit: 'average 30.0 ± 2.1 %'."""
    column = column_of(name)
    return f"{column.label} {text}{f' {column.unit}' if column.unit else ''}"


def format_factor(value: Any) -> str:
    """Return a value of a factor as text for a reader."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(format_factor, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
