"""The view calibration shows quality against the number of calibration tokens.

    records -> curves (one for each model, calibration text and ratio) -> [Table]

A curve has cells that differ in the method, the number of calibration sequences, and the seed alone. It gives a table
for each measure, with a row for each method and a column for each number of tokens. Where the measure can be tested, a
last column says which number suffices: the smallest behind which no larger one is shown to be better.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

from bench.plan.cell import words_of_amount, words_of_ratio
from bench.records.comparability import setup_of_study
from bench.records.frame import (
    columns_with_values,
    keep_standard_tasks,
    rows_of_records,
    tasks_with_accuracies,
    tasks_with_answers,
    texts_of_records,
)
from bench.records.quantities import quantity_of_column
from bench.records.record import Record, name_of_model
from bench.regression.contrasts import (
    LEVEL,
    Contrasts,
    contrast_of_averages,
    contrast_of_perplexities,
)
from reports import legend, protocol
from reports.groups import label_with_differences, pool_draws
from reports.tables.pivots import Entry, pivot, sort_rows
from reports.tables.rows import ReportData, mark_missed
from reports.tables.seeds import is_calibrated
from reports.tables.table import Column, Row, Table, TableCell, cell_of, column_of

SUFFICES = "suffices"
SUFFICING = (
    f"suffices: the smallest number of tokens behind which no larger one is shown to be better (p < {LEVEL:g}, paired, "
    "adjusted for the pairs of its method); the largest number where it is shown to be better than all others."
)
DENSE = "dense"
BY = "the figures at"  # begins the sentence on the order of the rows
KINDS = ("perplexity", "kl", "tasks")
EXPLAINED = ("perplexity_", "kl", "task_", "answer_bpb")  # beginnings of the columns that have a footnote

SeedPlaces = Mapping[int, int]  # {seed: place of its record}


@dataclass(frozen=True)
class CalibrationCurves:
    """Holds the cells of one model, calibration text and ratio that differ in method, tokens and seed alone.

    places   {label of the method: {calibration tokens, rising: its seeds}}
    dense    the places of the dense model
    records  all records of the report, to which places refer
    rows     their rows of the frame
    """

    places: Mapping[str, Mapping[int, SeedPlaces]]
    dense: Sequence[int]
    records: Sequence[Record]
    rows: Sequence[dict[str, Any]]

    @property
    def every(self) -> list[Record]:
        """Return the records of all curves, without the dense model's."""
        numbers = chain.from_iterable(seeds.values() for curve in self.places.values() for seeds in curve.values())
        return [self.records[number] for number in numbers]

    @property
    def first(self) -> Record:
        """Return the first record, which has the ratio, the text and the length of all."""
        return self.every[0]

    @property
    def tokens(self) -> list[int]:
        """Return the numbers of calibration tokens of any curve, rising."""
        return sorted({tokens for curve in self.places.values() for tokens in curve})

    def method(self, label: str) -> str:
        """Return the name of the method of a label."""
        fewest = next(iter(self.places[label].values()))
        return self.records[next(iter(fewest.values()))].cell.method

    def point(self, label: str, tokens: int) -> dict[str, Any]:
        """Return the row of the frame of a method at a number of tokens: the mean over its seeds."""
        rows = [self.rows[place] for place in self.places[label][tokens].values()]
        return pool_draws(rows) if len(rows) > 1 else rows[0]

    def measures(self) -> list[str]:
        """Return the columns of the frame in which any cell has a value; the seconds of pruning come last."""
        texts = [f"perplexity_{text}" for text in texts_of_records(self.every)]
        names = [*texts, "kl", "answer_bpb", "average", "prune_seconds"]
        rows = [self.point(label, tokens) for label, curve in self.places.items() for tokens in curve]
        return columns_with_values(rows, names)

    def sufficing_tokens(self, label: str, column: str, data: ReportData) -> int | None:
        """Return the smallest number of tokens of a method behind which no larger one is shown to be better.

        None for a column that is not tested, and where any pair of numbers has no test.
        """
        curve = self.places[label]
        place_of = {tokens: next(iter(seeds.values())) for tokens, seeds in curve.items()}
        pairs = list(combinations(place_of.values(), 2))
        contrasts = self._test(pairs, column, data, {place_of[tokens]: seeds for tokens, seeds in curve.items()})
        if len(curve) < 2 or len(contrasts) < len(pairs):
            return None
        sign = 1 if quantity_of_column(column).better == "higher" else -1
        neutral = 1 if column.startswith("perplexity_") else 0
        worse = set()
        for fewer, more in combinations(curve, 2):
            contrast = contrasts[place_of[fewer], place_of[more]]
            if contrast.p < LEVEL and sign * (contrast.estimate - neutral) > 0:
                worse.add(fewer)
        return min(tokens for tokens in curve if tokens not in worse)

    def _test(
        self, pairs: Sequence[tuple[int, int]], column: str, data: ReportData, seeds: Mapping[int, SeedPlaces]
    ) -> Contrasts:
        if column.startswith("perplexity_"):
            text = column.removeprefix("perplexity_")
            return contrast_of_perplexities(self.records, pairs, data.samples, text, seeds=seeds)
        if column == "average":
            tasks = keep_standard_tasks(tasks_with_accuracies(self.every))
            return contrast_of_averages(self.records, pairs, data.samples, tasks, seeds=seeds)
        if column == "answer_bpb":
            tasks = keep_standard_tasks(tasks_with_answers(self.every, column))
            return contrast_of_averages(self.records, pairs, data.samples, tasks, column, seeds=seeds)
        return {}


def curves_of_records(data: ReportData) -> list[CalibrationCurves]:
    """Return the curves of the methods that were measured with several numbers of calibration tokens."""
    rows = rows_of_records(data.records)
    groups, dense = dict[str, list[int]](), dict[str, list[int]]()
    for place, record in enumerate(data.records):
        setup, cell = setup_of_study(record), record.cell
        if record.status != "ok":
            continue
        if cell.method == "dense":
            dense.setdefault(setup, []).append(place)
        elif is_calibrated(record, data.needs):
            alike = [setup, cell.protocol.calibration, cell.protocol.calibration_length, cell.ratio, cell.ratio_of]
            groups.setdefault(json.dumps(alike), []).append(place)
    curves = []
    for key, numbers in groups.items():
        places = _places_of_methods({place: data.records[place] for place in numbers})
        several = {label: curve for label, curve in places.items() if len(curve) > 1}
        if several:
            curves.append(CalibrationCurves(several, dense.get(json.loads(key)[0], ()), data.records, rows))
    return curves


def _places_of_methods(records: Mapping[int, Record]) -> dict[str, dict[int, dict[int, int]]]:
    """Return {label: {tokens, rising: {seed: place}}}; of records that are alike in all three the first counts."""
    every = list(records.values())
    places: dict[str, dict[int, dict[int, int]]] = {}
    for place, record in sorted(records.items(), key=lambda item: tokens_of_calibration(item[1])):
        seeds = places.setdefault(label_with_differences(record, every), {})
        seeds.setdefault(tokens_of_calibration(record), {}).setdefault(record.cell.seed, place)
    return places


def tokens_of_calibration(record: Record) -> int:
    """Return how many calibration tokens a cell was offered."""
    return record.cell.protocol.calibration_sequences * record.cell.protocol.calibration_length


def tables_of_calibrations(data: ReportData) -> list[Table]:
    """Return a table for each curve and measure."""
    return [_table(curves, name, data) for curves in curves_of_records(data) for name in curves.measures()]


def _table(curves: CalibrationCurves, name: str, data: ReportData) -> Table:
    """Return the table of one measure, the method that is best at most tokens first, the dense model on top."""
    cell, measure, tested = curves.first.cell, column_of(name), quantity_of_column(name).tested
    ordered = [_column_of_tokens(name, tokens) for tokens in curves.tokens]
    columns, rows = pivot(_entries(curves, name), ordered)
    rows, sentence = sort_rows(rows, [f"{column.label} tokens" for column in columns], measure.better, BY, last=True)
    if tested:
        columns = (*columns, Column(SUFFICES, SUFFICES))
        rows = tuple(replace(row, cells=(*row.cells, _sufficing(curves, row.label, name, data))) for row in rows)
    explained = []
    for label, curve in curves.places.items():
        for tokens in curve:
            point = curves.point(label, tokens)
            explained.append({key: value for key, value in point.items() if key.startswith(EXPLAINED)})
    footnotes = legend.describe_columns(curves.every, explained, KINDS)
    amount = words_of_amount(cell.ratio, cell.ratio_of)
    return Table(
        name=f"calibration-{name.replace('_', '-', 1)}-{words_of_ratio(cell.ratio, cell.ratio_of)}",
        view="calibration",
        model=name_of_model(curves.first),
        title=f"{measure.head} by tokens of {cell.protocol.calibration} at {amount}",
        conditions=tuple(protocol.conditions_of(curves.every)),
        columns=columns,
        rows=rows,
        notes=tuple(legend.describe_flags(legend.flags_of_records(curves.every))),
        footnotes=(*[SUFFICING] * tested, *footnotes, *sentence),
        protocol=tuple(protocol.protocol_of_records(curves.every, KINDS, calibration=False)),
    )


def _entries(curves: CalibrationCurves, name: str) -> Iterator[Entry]:
    """Yield the cells of a measure with their rows and columns; the dense model's value is repeated in each column."""
    cell = curves.first.cell
    for place in curves.dense[:1]:
        for tokens in curves.tokens:
            yield Row(DENSE, DENSE, None), _column_of_tokens(name, tokens), cell_of(curves.rows[place], name)
    for label, curve in curves.places.items():
        row = Row(label, curves.method(label), cell.ratio, ratio_of=cell.ratio_of)
        for tokens in curve:
            point = curves.point(label, tokens)
            yield row, _column_of_tokens(name, tokens), mark_missed(cell_of(point, name), point)


def _sufficing(curves: CalibrationCurves, label: str, name: str, data: ReportData) -> TableCell:
    enough = curves.sufficing_tokens(label, name, data) if label in curves.places else None
    return TableCell() if enough is None else TableCell(f"{enough:,}", value=enough)


def _column_of_tokens(name: str, tokens: int) -> Column:
    return Column(f"{name}, tokens={tokens}", f"{tokens:,}")
