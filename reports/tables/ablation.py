"""The ablation view: of the cells of one method, one factor against another.

records -> studies (one per method and setup) -> [Table]

A factor is what differs among the cells of a study: a parameter of the method, the calibration text, how much of it is
looked at, the seed, the ratio. Elsewhere other text or another seed makes a setup of its own; here such setups are
joined, since what is evaluated is the same, and a note says so. One factor is a list, two are a grid for each measure,
more are a grid of the first two for each combination of the others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records import columns as column_data
from bench.records.columns import texts
from bench.records.comparability import study_setup
from bench.records.drawn_cells import draws, is_draw
from bench.records.record import Record, display_name, label, ratio_of, requested_ratio
from reports import healing_notes, notes
from reports.blocks import pooled
from reports.tables.pivots import pivot
from reports.tables.rows import ReportData, row_of, starred
from reports.tables.table import Column, Row, Table, TableCell, column, figure

LOOK = {  # fields of the protocol in which cells of one study may differ, as a reader calls them
    "calibration": "calibration",
    "calibration_sequences": "calibration sequences",
    "calibration_length": "calibration length",
}
OUTER = (*LOOK.values(), "seed", "ratio")  # factors that are no parameter of the method
KINDS = ("perplexity", "kl", "tasks")
SHOWN = ("perplexity_", "kl", "task_", "answer_bpb")  # how columns begin whose figures have a footnote


@dataclass(frozen=True)
class Setting:
    """One cell of a study, or several draws of a random method, and its row of the frame."""

    record: Record
    row: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """The measured and the failed cells of one method that were asked for alike but for some factors.

    name      of the method, with what was done before and after it: 'laco, healed'
    factors   what differs: the parameters in the order they were given, then OUTER
    fixed     what does not
    points    by the values of the factors
    dense     rows of the frame
    records   all, with the dense ones
    again     how many cells have the values of the factors that another one has, and are left out
    footnotes how to read the figures and how they were measured
    """

    method: str
    name: str
    factors: tuple[str, ...]
    fixed: dict[str, Any]
    points: dict[tuple[Any, ...], Setting]
    dense: list[dict[str, Any]]
    records: list[Record]
    footnotes: tuple[str, ...]
    again: int = 0

    def axis(self, factor: str) -> list[Any]:
        """Return the values of a factor: numbers rising, words in the order of the cells."""
        at = self.factors.index(factor)
        values = list(dict.fromkeys(key[at] for key in self.points))
        if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
            return sorted(values, key=lambda value: (value is not None, value or 0))
        return values

    def measures(self) -> list[str]:
        """Return the columns of the frame that any cell has a figure in."""
        names = [*(f"perplexity_{name}" for name in texts(self.records)), "kl", "average", "answer_bpb"]
        names += ["ratio", "layers", "prune_seconds"]
        return [name for name in names if any(point.row.get(name) is not None for point in self.points.values())]

    def same(self, name: str) -> bool:
        """Return whether a measure is the same in every cell, so that one sentence says it."""
        return len({point.row.get(name) for point in self.points.values()}) == 1

    def others(self) -> list[tuple[Any, ...]]:
        """Return the combinations of the factors behind the first two that occur."""
        held = {key[2:] for key in self.points}
        return [key for key in itertools.product(*map(self.axis, self.factors[2:])) if key in held]


def studies(records: Sequence[Record]) -> list[Study]:
    """Return a study for each method and setup in which anything but the ratio differs.

    What was done before, how cells were healed, and what their ratio is of are never factors: they make other studies.
    """
    rows, groups = column_data.rows(records), dict[str, list[int]]()
    for number, record in enumerate(records):
        groups.setdefault(study_setup(record), []).append(number)
    found = []
    for numbers in groups.values():
        dense = [n for n in numbers if records[n].cell["method"] == "dense"]
        alike: dict[str, list[int]] = {}
        for number in numbers:
            if number not in dense:
                alike.setdefault(_done(records[number]), []).append(number)
        for mine in alike.values():
            plain = {**records[mine[0]].cell, "given": ()}  # what was given are the factors
            name = label(plain) + healing_notes.apart(plain, [records[n].cell for n in numbers])
            points = []
            for places in draws([records[n] for n in mine], seeds=False):
                several = [rows[mine[place]] for place in places]
                row = pooled(several) if len(several) > 1 else several[0]
                points.append(Setting(records[mine[places[0]]], row))
            measured = [rows[n] for n in dense if records[n].status == "ok"]
            study = _study(name, points, measured, [records[n] for n in (*dense, *mine)])
            if set(study.factors) - {"ratio"}:
                found.append(study)
    return found


def _done(record: Record) -> str:
    """Return the method, what its ratio is of, how it was healed and what was done before, as one text."""
    cell = record.cell
    return json.dumps([cell["method"], ratio_of(cell), cell.get("healing"), cell.get("earlier")], sort_keys=True)


def _study(name: str, points: Sequence[Setting], dense: list[dict[str, Any]], records: list[Record]) -> Study:
    settings = [_settings(point.record) for point in points]
    given = dict.fromkeys(name for point in points for name in point.record.cell.get("given", ()))
    names = dict.fromkeys([*(name for name in given if name not in OUTER), *itertools.chain(*settings)])
    ordered = [*(name for name in names if name not in OUTER), *OUTER]
    apart = {name: len({json.dumps(one.get(name)) for one in settings}) > 1 for name in ordered}
    factors = tuple(name for name in ordered if apart[name])
    fixed = {name: settings[0].get(name) for name in ordered if not apart[name]}
    first = points[0].record.cell
    if ratio_of(first) != "all":
        fixed["ratio of"] = ratio_of(first)
    keyed: dict[tuple[Any, ...], Setting] = {}
    for one, point in zip(settings, points, strict=True):
        keyed.setdefault(tuple(one.get(name) for name in factors), point)
    looks = {*LOOK.values(), "seed"} & set(factors)
    rows = [*(point.row for point in keyed.values()), *dense]
    shown = [{name: value for name, value in row.items() if name.startswith(SHOWN)} for row in rows]
    footnotes = notes.protocol(records, shown, KINDS, calibration=not looks, seeds=False)
    again = len(points) - len(keyed)
    return Study(first["method"], name, factors, fixed, keyed, dense, records, tuple(footnotes), again)


def _settings(record: Record) -> dict[str, Any]:
    """Return everything that may be a factor, but the seed of a random method's draw, since draws share a row."""
    cell = record.cell
    parameters = dict(cell["parameters"])
    if is_draw(cell):
        parameters.pop("seed", None)
    found = {f"{cell['method']}.{name}" if name in OUTER else name: value for name, value in parameters.items()}
    found |= {shown: cell["protocol"][name] for name, shown in LOOK.items() if name in cell["protocol"]}
    found |= {"seed": cell["seed"], "ratio": requested_ratio(record)}
    return {name: _frozen(value) for name, value in found.items()}


def _frozen(value: Any) -> Any:
    """Return a value of a factor as one that can be a key: a list as a tuple, a dictionary as its JSON."""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def tables(data: ReportData) -> list[Table]:
    """Return the tables of every study."""
    return [table for study in studies(data.records) for table in _tables(study)]


def _tables(study: Study) -> Iterator[Table]:
    measures = study.measures()
    if len(study.factors) == 1:
        yield _list(study, measures)
        return
    varying = [name for name in measures if not study.same(name)]
    for name in varying or measures[:1]:
        for others in study.others():
            yield _grid(study, name, others)


def _list(study: Study, measures: Sequence[str]) -> Table:
    """Return a row for each value of the only factor, a column for each measure."""
    (factor,) = study.factors
    rows = []
    for value in study.axis(factor):
        point = study.points[value,]
        cells = [starred(figure(point.row, name), point.row) for name in measures]
        rows.append(row_of(point.record, said(value), cells))
    return _table(
        study, "list", f"{study.name} by {factor}", [column(name) for name in measures], rows, measures=measures
    )


def _grid(study: Study, name: str, others: tuple[Any, ...]) -> Table:
    """Return a row for each value of the first factor, a column for each of the second."""
    first, second, measure = *study.factors[:2], column(name)
    cells = []
    for value in study.axis(first):
        points = {other: study.points.get((value, other, *others)) for other in study.axis(second)}
        ratios = {requested_ratio(point.record) for point in points.values() if point}
        of = ratio_of(study.records[-1].cell)  # of which a study has one
        row = Row(said(value), study.method, ratios.pop() if len(ratios) == 1 else None, ratio_of=of)
        for other, point in points.items():
            at = f"{second}={said(other)}"
            cells.append((row, Column(f"{name}, {at}", at), _cell(point, name)))
    held = [f", {factor} {said(value)}" for factor, value in zip(study.factors[2:], others, strict=True)]
    title = f"{study.name}: {measure.head} by {first} and {second}{''.join(held)}"
    return _table(study, name, title, *pivot(cells), measures=[name])


def _cell(point: Setting | None, name: str) -> TableCell:
    if point is None:
        return TableCell()
    failed = point.record.status != "ok"
    return TableCell(notes.status(point.record)) if failed else starred(figure(point.row, name), point.row)


def _table(
    study: Study, name: str, title: str, columns: Sequence[Column], rows: Sequence[Row], *, measures: Sequence[str]
) -> Table:
    return Table(
        name=f"ablation-{study.method}-{name}",
        view="ablation",
        model=display_name(study.records[0]),
        title=title,
        conditions=tuple(notes.conditions(study.records)),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(_notes(study, measures)),
        footnotes=study.footnotes,
        head=study.factors[0],
    )


def _notes(study: Study, measures: Sequence[str]) -> Iterator[str]:
    """Yield what the dense model has, what is the same in every cell, what is fixed, and what is odd about cells."""
    dense = [_sentence(name, text) for name in measures if (text := _dense(study, name))]
    if dense:
        yield f"dense: {', '.join(dense)}."
    if len(study.factors) > 1:
        first = next(iter(study.points.values())).row
        same = [_sentence(name, figure(first, name).text) for name in study.measures() if study.same(name)]
        if same:
            yield f"in every cell: {', '.join(same)}."
    fixed = [f"{name} {said(value)}" for name, value in study.fixed.items() if (name, value) != ("ratio", None)]
    if fixed:
        yield f"fixed: {', '.join(fixed)}."
    if study.again:
        yield f"left out, since another cell has the same settings: {study.again}."
    looks = [factor for factor in study.factors if factor in (*LOOK.values(), "seed")]
    if looks:
        yield f"cells of setups that differ in {', '.join(looks)} stand in one table; what is evaluated is the same."
    if "seed" in looks and "average" in study.measures():
        yield "each seed draws its own documents of the tasks."
    for key, point in study.points.items():
        where = [f"{name} {said(value)}" for name, value in zip(study.factors, key, strict=True) if name in OUTER]
        for sentence in notes.exceptions([point.record]):
            yield f"at {', '.join(where)}: {sentence}" if where else sentence


def _dense(study: Study, name: str) -> str:
    """Return the dense model's figure of a measure of quality, or the ends of several."""
    found = {row[name]: figure(row, name) for row in study.dense if row.get(name) is not None}
    if not found or name in ("ratio", "layers", "prune_seconds", "kl"):
        return ""
    ends = [found[value].short for value in (min(found), max(found))]
    return found[min(found)].text if len(found) == 1 else " to ".join(ends)


def _sentence(name: str, text: str) -> str:
    """Return a figure with its name and unit: 'average 30.0 ± 2.1 %'."""
    found = column(name)
    return f"{found.label} {text}{f' {found.unit}' if found.unit else ''}"


def said(value: Any) -> str:
    """Return a value of a factor as a reader writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(said, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
