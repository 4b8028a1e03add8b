"""The view ablation shows one factor against another among the cells of one method.

    records -> studies (one per method and setup) -> [Table]

A factor is a setting that differs among the cells of a study: a parameter of the method, the calibration text, how much
of it is used, the seed, the ratio. In all other views another text or seed makes a setup of its own. A study joins such
setups, since the evaluation is the same, and a note says so. One factor makes a list, two make a grid for each measure.
More make a grid of the first two for each combination of the rest.

The dense model is the first row of a list. Behind grids a table has the dense model's values, and those that are the
same in every cell. The last table of a study has the settings that all cells share.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.plan.kinds import to_plain
from bench.records import frame as column_data
from bench.records.comparability import group_draws, setup_of_study
from bench.records.frame import columns_with_values, texts_of_records
from bench.records.record import Record, name_of_model
from reports import legend, protocol
from reports.groups import pool_draws, words_of_recipe_differences
from reports.legend import FlaggedCell
from reports.tables.pivots import pivot
from reports.tables.rows import (
    ReportData,
    mark_missed,
    row_of,
)
from reports.tables.table import Column, Row, Table, TableCell, cell_of, cell_of_text, column_of, column_of_words

LOOK = {  # fields of the protocol that may be factors, and their names for readers
    "calibration": "calibration",
    "calibration_sequences": "calibration sequences",
    "calibration_length": "calibration length",
}
OUTER = (*LOOK.values(), "seed", "ratio")  # factors that are no parameter of the method
KINDS = ("perplexity", "kl", "tasks")
NOT_OF_DENSE = ("ratio", "layers", "prune_seconds", "kl")  # measures that the dense model has no value of
EXPLAINED = ("perplexity_", "kl", "task_", "answer_bpb")  # beginnings of the columns that have a footnote


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

    def is_same(self, name: str) -> bool:
        """Say whether a measure is the same in every cell."""
        return len({point.row.get(name) for point in self.points.values()}) == 1

    def combinations(self) -> list[tuple[Any, ...]]:
        """Return the combinations of the factors behind the first two that occur."""
        further_values = {key[2:] for key in self.points}
        return [key for key in itertools.product(*map(self.axis, self.factors[2:])) if key in further_values]


def studies_of(records: Sequence[Record]) -> list[Study]:
    """Return a study for each method and setup in which anything but the ratio differs.

    Earlier stages, healing, and what the ratio is a share of are never factors: they make other studies.
    """
    rows, groups = column_data.rows_of_records(records), dict[str, list[int]]()
    for number, record in enumerate(records):
        groups.setdefault(setup_of_study(record), []).append(number)
    studies = []
    for numbers in groups.values():
        dense = [n for n in numbers if records[n].cell.method == "dense"]
        alike: dict[str, list[int]] = {}
        for number in numbers:
            if number not in dense:
                alike.setdefault(_history_of_cell(records[number]), []).append(number)
        for mine in alike.values():
            plain = replace(records[mine[0]].cell, given=())  # what was given are the factors
            name = plain.label + words_of_recipe_differences(plain, [records[n].cell for n in numbers])
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
    return json.dumps(to_plain([cell.method, cell.ratio_of, cell.healing, cell.earlier]), sort_keys=True)


def _study(name: str, points: Sequence[Setting], dense: list[dict[str, Any]], records: list[Record]) -> Study:
    settings = [_settings(point.record) for point in points]
    given = dict.fromkeys(name for point in points for name in point.record.cell.given)
    names = dict.fromkeys([*(name for name in given if name not in OUTER), *itertools.chain(*settings)])
    ordered = [*(name for name in names if name not in OUTER), *OUTER]

    def is_apart(name: str) -> bool:
        return len({json.dumps(setting.get(name)) for setting in settings}) > 1

    factors = tuple(filter(is_apart, ordered))
    fixed = {name: settings[0].get(name) for name in ordered if name not in factors}
    first = points[0].record.cell
    if first.ratio_of != "all":
        fixed["ratio of"] = first.ratio_of
    keyed: dict[tuple[Any, ...], Setting] = {}
    for setting, point in zip(settings, points, strict=True):
        keyed.setdefault(tuple(setting.get(name) for name in factors), point)
    looks = {*LOOK.values(), "seed"} & set(factors)
    rows = [*(point.row for point in keyed.values()), *dense]
    explained = []
    for row in rows:
        explained.append({name: value for name, value in row.items() if name.startswith(EXPLAINED)})
    footnotes = legend.describe_columns(records, explained, KINDS, seeds=False)
    measured = protocol.protocol_of_records(records, KINDS, calibration=not looks)
    again = len(points) - len(keyed)
    return Study(first.method, name, factors, fixed, keyed, dense, records, tuple(footnotes), tuple(measured), again)


def _settings(record: Record) -> dict[str, Any]:
    """Return every setting that may be a factor. The seed of a random choice is left out, since draws share a row."""
    cell = record.cell
    parameters = dict(cell.parameters)
    if cell.is_draw:
        parameters.pop("seed", None)
    settings = {f"{cell.method}.{name}" if name in OUTER else name: value for name, value in parameters.items()}
    settings |= {heading: getattr(cell.protocol, name) for name, heading in LOOK.items()}
    settings |= {"seed": cell.seed, "ratio": cell.ratio}
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
    """Yield the list of a study, or its grids with the values that stand in none, and at the end its settings."""
    measures = study.measures()
    if len(study.factors) == 1:
        yield _list(study, measures)
    else:
        varying = [name for name in measures if not study.is_same(name)]
        for name in varying or measures[:1]:
            for values in study.combinations():
                yield _grid(study, name, values)
        yield from _shared_values(study, measures)
    yield _settings_of_all(study)


def _list(study: Study, measures: Sequence[str]) -> Table:
    """Return the table of a study with one factor: the dense model, a row for each value, a column for each measure."""
    (factor,) = study.factors
    rows = _rows_of_dense(study, measures)
    for value in study.axis(factor):
        point = study.points[value,]
        cells = [mark_missed(cell_of(point.row, name), point.row) for name in measures]
        rows.append(row_of(point.record, format_factor(value), cells))
    return _table(study, "list", f"{study.name} by {factor}", [column_of(name) for name in measures], rows)


def _rows_of_dense(study: Study, measures: Sequence[str]) -> list[Row]:
    """Return the dense model's row; none if it has no value of any of the measures."""
    cells = tuple(_dense_cell(study, name) for name in measures)
    return [Row("dense", "dense", None, cells)] if any(cell != TableCell() for cell in cells) else []


def _dense_cell(study: Study, name: str) -> TableCell:
    """Return the cell of the dense model's value of a measure, or of the lowest and the highest of several."""
    cell_by_value = {row[name]: cell_of(row, name) for row in study.dense if row.get(name) is not None}
    if not cell_by_value or name in NOT_OF_DENSE:
        return TableCell()
    lowest, highest = cell_by_value[min(cell_by_value)], cell_by_value[max(cell_by_value)]
    return lowest if len(cell_by_value) == 1 else TableCell(f"{lowest.short} to {highest.short}")


def _shared_values(study: Study, measures: Sequence[str]) -> Iterator[Table]:
    """Yield the table of the dense model's values and of those that are the same in every cell; none without any."""
    first = next(iter(study.points.values()))
    same = tuple(cell_of(first.row, name) if study.is_same(name) else TableCell() for name in measures)
    rows = _rows_of_dense(study, measures)
    if any(map(study.is_same, measures)):
        rows.append(Row("every cell", study.method, None, same))
    if rows:
        title = f"{study.name}: the dense model, and what is the same in every cell"
        columns_of_cells = enumerate(zip(*(row.cells for row in rows), strict=True))
        chosen = [at for at, cells in columns_of_cells if set(cells) != {TableCell()}]
        table = _table(study, "values", title, list(map(column_of, measures)), rows).only(chosen)
        yield replace(table, notes=(), head="model")


def _settings_of_all(study: Study) -> Table:
    """Return the table of the settings that all cells of a study share."""
    rows = []
    for name, value in study.fixed.items():
        if (name, value) != ("ratio", None):
            rows.append(Row(name, study.method, None, (cell_of_text(format_factor(value)),)))
    table = _table(study, "settings", f"{study.name}: settings of every cell", [column_of_words("value")], rows)
    return replace(table, notes=(), footnotes=(), protocol=(), head="setting")


def _grid(study: Study, name: str, values: tuple[Any, ...]) -> Table:
    """Return the table of one measure: a row for each value of the first factor, a column for each of the second.

    values  of the further factors, which all cells of the table share
    """
    first, second, measure = *study.factors[:2], column_of(name)
    cells = []
    for value in study.axis(first):
        points = {second_value: study.points.get((value, second_value, *values)) for second_value in study.axis(second)}
        ratios = {point.record.cell.ratio for point in points.values() if point}
        of = study.records[-1].cell.ratio_of  # of which a study has one
        row = Row(format_factor(value), study.method, ratios.pop() if len(ratios) == 1 else None, ratio_of=of)
        for second_value, point in points.items():
            at = f"{second}={format_factor(second_value)}"
            cells.append((row, Column(f"{name}, {at}", at), _cell(point, name)))
    further = [f", {factor} {format_factor(value)}" for factor, value in zip(study.factors[2:], values, strict=True)]
    title = f"{study.name}: {measure.head} by {first} and {second}{''.join(further)}"
    return _table(study, name, title, *pivot(cells))


def _cell(point: Setting | None, name: str) -> TableCell:
    if point is None:
        return TableCell()
    failed = point.record.status != "ok"
    return (
        TableCell(legend.words_of_status(point.record)) if failed else mark_missed(cell_of(point.row, name), point.row)
    )


def _table(study: Study, name: str, title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    return Table(
        name=f"ablation-{study.method}-{name}",
        view="ablation",
        model=name_of_model(study.records[0]),
        title=title,
        conditions=tuple(protocol.conditions_of(study.records)),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(_notes(study)),
        footnotes=study.footnotes,
        protocol=study.protocol,
        head=study.factors[0],
    )


def _notes(study: Study) -> Iterator[str]:
    """Yield which setups a study joins, how many cells it leaves out, and the flags of its cells."""
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


def format_factor(value: Any) -> str:
    """Return a value of a factor as text for a reader."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(format_factor, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
