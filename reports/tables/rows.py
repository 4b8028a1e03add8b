"""Rows of tables from groups of cells: their values and marks, their order, their tests, and words on the tests.

Rows are sorted by the quantity that separates them, and not by the alphabet. The dense model is on top, and then the
best row is first. Rows without a value come next, failed ones last; ties are sorted by name.

Cells are tested against a reference by the paired tests of bench.regression.contrasts, column by column, with p values
adjusted for their number. A cell that no sample pairs with the reference has no test and no mark. A row is marked as
the best if the tests of all pairs show it to be better than the next. `GroupTests` has the tests of a group for the
summary of the page.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, combinations, product
from typing import Any

from bench.plan.cell import words_of_amount, words_of_ratio
from bench.records.frame import (
    column_of_amount,
    keep_standard_tasks,
    may_be_guessed,
    tasks_with_accuracies,
    tasks_with_answers,
    texts_of_records,
)
from bench.records.quantities import quantity_of_column
from bench.records.quantity import is_finite
from bench.records.record import Record, name_of_model
from bench.records.samples import Samples
from bench.records.served import ServedRecord
from bench.regression.contrasts import (
    LEVEL,
    Contrasts,
    Places,
    Seeds,
    contrast_of_averages,
    contrast_of_perplexities,
)
from reports import legend, protocol
from reports.groups import TableGroup, group_records
from reports.legend import FlaggedCell
from reports.tables.table import Column, Row, Table, TableCell, cell_of, is_apart, mark_best


@dataclass(frozen=True)
class ReportData:
    """The data from which the tables of a report are made.

    reference    the label of the method, or of the row, that others are tested against; empty for no tests
    samples      the samples of the records; tests read them
    needs        what each method looks at, by its name: "calibration, gradients"
    served       the served records of the models
    has_answers  whether the rows have flips and losses of skills; they need the samples of all cells
    sort         the column of the frame that orders the rows of each group; empty for that of each view
    """

    records: Sequence[Record]
    reference: str = ""
    samples: Samples = field(default_factory=Samples)
    needs: Mapping[str, str] = field(default_factory=dict)
    served: Sequence[ServedRecord] = ()
    has_answers: bool = False
    sort: str = ""

    @cached_property
    def setups(self) -> list[list[TableGroup]]:
        """Return the groups of cells of each setup, one for each ratio, their rows in the order of the tables."""
        setups = []
        for groups in group_records(self.records, self.samples if self.has_answers else None):
            setups.append([sort_rows(group, self.sorting_quantity(group)) for group in groups])
        return setups

    def sorting_quantity(self, group: TableGroup, *preferred: str) -> str:
        """Return the column that orders a group: `sort` where any row has it, else that of the view."""
        return sorting_quantity(group, *[self.sort] * bool(self.sort), *preferred)

    @property
    def groups(self) -> list[TableGroup]:
        """Return the groups of all setups."""
        return list(chain(*self.setups))


def compare_rows(group: TableGroup, columns: Sequence[Column], data: ReportData) -> tuple[list[Row], list[FlaggedCell]]:
    """Return the rows of a group with their marks, and the flags of the tests.

    Marks are the best value, a missed ratio, a difference from the reference, and an accuracy that may be that of
    guesses. Tests decide the first and the third.
    """
    tests = GroupTests(group, data.samples)
    tested = contrasts_of_rows(data.reference, tests, [column.name for column in columns])
    rows, amount = [], column_of_amount(group.ratio_of)
    for place, (record, figures) in enumerate(zip(group.records, group.rows, strict=True)):
        cells = [cell_of(figures, column.name) for column in columns]
        for number, column in enumerate(columns):
            cells[number] = mark_missed(cells[number], figures) if column.name == amount else cells[number]
            if (place, column.name) in tested.differs:
                cells[number] = cells[number].with_mark("differs")
            if not group.is_drawn(place) and may_be_guessed(figures, column.name):
                cells[number] = cells[number].with_mark("guess")
        rows.append(row_of(record, group.label(place), cells))
    eligible = [_may_win(group, place) for place in range(len(group.records))]
    for number, column in enumerate(columns):
        if column.better:
            is_better = partial(_is_best, tests, "average" if column.name == "kept" else column.name, column.better)
            rows = mark_best(rows, number, column.better, eligible, is_better)
    return rows, [*tested.flags, *_guesses(rows, columns, group)]


def _guesses(rows: Sequence[Row], columns: Sequence[Column], group: TableGroup) -> Iterator[FlaggedCell]:
    """Yield the flag of each column in which a cell has the mark of guesses."""
    for number, column in enumerate(columns):
        if any("guess" in row.cells[number].marks for row in rows):
            chance = next(row[f"{column.name}_chance"] for row in group.rows if f"{column.name}_chance" in row)
            yield FlaggedCell(legend.GUESS, column.label, {"chance": quantity_of_column("average").show(chance)})


def _is_best(tests: GroupTests, column: str, better: str, first: int, second: int) -> bool:
    """Say whether a row is shown to be better than another. An accuracy that may be that of guesses is never better."""
    return not may_be_guessed(tests.group.rows[first], column) and tests.is_better(first, second, column, better)


def _may_win(group: TableGroup, place: int) -> bool:
    """Say whether a row can be the best of its ratio. The dense model and a row that removed too little cannot."""
    record = group.records[place]
    return record.cell.method != "dense" and record.status == "ok" and not group.removes_too_little(place)


def row_of(record: Record, label: str, cells: Sequence[TableCell]) -> Row:
    """Return the row of a record; a failed one has its status in place of values."""
    failure = None if record.status == "ok" else legend.words_of_status(record)
    return Row(label, record.cell.method, record.cell.ratio, tuple(cells), failure, record.cell.ratio_of)


def mark_missed(cell: TableCell, *rows: Mapping[str, object]) -> TableCell:
    """Return a cell with a star if one of its rows of the frame missed its ratio; otherwise the cell unchanged."""
    if not any("missed_ratio" in str(row["flags"]) for row in rows):
        return cell
    return replace(cell, text=f"{cell.text}*", brief=f"{cell.short}*", marks=(*cell.marks, "missed"))


def ratio_cell(record: Record) -> TableCell:
    """Return the cell of the share of parameters that was removed."""
    ratio = record.measured.ratio
    return TableCell() if ratio is None else TableCell(quantity_of_column("ratio").show(ratio), value=ratio)


def word_of_ratio(group: TableGroup) -> str:
    """Return the ratio of a group in the names of its tables: '0.3', '0.3 of the decoder', or 'fixed'."""
    return words_of_ratio(group.ratio, group.ratio_of) or "fixed"


def table_of_group(
    view: str,
    group: TableGroup,
    columns: Sequence[Column],
    rows: Sequence[Row],
    footnotes: Collection[str],
    *,
    name: str = "",
    title: str = "",
    remarks: Sequence[str] | None = None,
    measured: Sequence[protocol.ProtocolRow] = (),
    lead: Sequence[str] = (),
) -> Table:
    """Return the table of a view for one group; by default it is named and titled by the ratio.

    remarks   the notes of the table; None for the flags of its cells
    measured  the rows of the protocol
    lead      sentences on which row is first
    """
    return Table(
        name=name or f"{view}-{word_of_ratio(group)}",
        view=view,
        model=name_of_model(group.records[0]),
        title=title or protocol.words_of_ratio(group.records),
        conditions=(*protocol.conditions_of(list(chain(*group.drawn))), *group.apart),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(
            legend.describe_flags(legend.flags_of_records(group.records_with_notes(), beside=group.beside))
            if remarks is None
            else remarks
        ),
        footnotes=tuple(footnotes),
        protocol=tuple(measured),
        lead=tuple(lead),
    )


Key = tuple[int, float, str]


def sorting_quantity(group: TableGroup, *preferred: str) -> str:
    """Return the column of the frame that orders a group: the first in which any row has a finite value, or "".

    preferred  columns to try before the perplexities, the divergence and the average
    """
    names = [*preferred, *(f"perplexity_{text}" for text in texts_of_records(group.records)), "kl", "average"]
    finite = {name for row in group.rows for name in names if is_number(row.get(name))}
    return next((name for name in names if name in finite), "")


def is_number(value: Any) -> bool:
    """Say whether a value of the frame is a finite number, and no word."""
    return isinstance(value, int | float) and is_finite(value)


def sort_rows(group: TableGroup, name: str) -> TableGroup:
    """Return a group with its rows sorted by the column `name` of the frame."""

    def key(place: int) -> Key:
        record, figure = group.records[place], group.rows[place].get(name)
        failed = record.status != "ok"
        return key_of_row(
            group.label(place), record.cell.method, figure, quantity_of_column(name).better if name else None, failed
        )

    order = sorted(range(len(group.records)), key=key)
    return replace(
        group,
        records=[group.records[at] for at in order],
        rows=[group.rows[at] for at in order],
        numbers=[group.numbers[at] for at in order],
        drawn=[group.drawn[at] for at in order],
        each=[group.each[at] for at in order],
    )


def records_of(groups: Iterable[TableGroup]) -> list[Record]:
    """Return the records of several groups in the order of their rows, each once."""
    return list({id(record): record for group in groups for drawn in group.drawn for record in drawn}.values())


def key_of_row(label: str, method: str, figure: Any, better: str | None, failed: bool) -> Key:
    """Return the key that a row is sorted by."""
    if method == "dense":
        return 0, 0.0, ""
    if failed or figure is None or math.isnan(figure):
        return 3 if failed else 2, 0.0, label
    return 1, -figure if better == "higher" else figure, label


def sorting_note(group: TableGroup, name: str, where: str = "rows") -> list[str]:
    """Return the sentence on the column that the rows of a group are sorted by; empty for a single row."""
    rows = [Row(group.label(place), record.cell.method, None) for place, record in enumerate(group.records)]
    return (
        sentence_on_order(rows, quantity_of_column(name).heading, quantity_of_column(name).better, where)
        if name
        else []
    )


def sentence_on_order(rows: Sequence[Row], by: str, better: str | None, where: str = "rows") -> list[str]:
    """Return the sentence on how rows are sorted; empty if at most one is not of the dense model."""
    several = sum(row.method != "dense" for row in rows) > 1
    return [f"{where} are sorted by {by}, the {'highest' if better == 'higher' else 'lowest'} first."] * several


TESTS = {
    "mcnemar": "McNemar's exact test on documents",
    "normal": "a normal test on documents, every task weighing alike",
    "student": "Student's test on windows",
    "draws": "Student's test on the calibration seeds beside windows or documents",
}


@dataclass(frozen=True)
class TestedCells:
    """The cells of a table that differ from the reference's, as (row, column), and the flags of the tests."""

    differs: set[tuple[int, str]] = field(default_factory=set)
    flags: tuple[FlaggedCell, ...] = ()


def contrasts_of_rows(reference: str, tests: GroupTests, columns: Sequence[str]) -> TestedCells:
    """Return the tests of every row of a group against the row of `reference`; no test if the name is empty."""
    group, columns = tests.group, [column for column in columns if quantity_of_column(column).tested]
    if not reference or not columns:
        return TestedCells()
    place = _reference(reference, group)
    if isinstance(place, str):
        return TestedCells(flags=(FlaggedCell(legend.NO_REFERENCE, reference, {"reason": place}),))
    differs, untested, names = set(), [], set()
    candidates = [at for at, record in enumerate(group.records) if at != place and record.status == "ok"]
    for column in columns:
        single = [at for at in candidates if len(group.models(at)) == 1]
        results = tests.test_pairs([(place, at) for at in single], column)
        p_by_place = {at: contrast.p for (_, at), contrast in results.items()}
        differs |= {
            (at, column)
            for at, p in p_by_place.items()
            if p < LEVEL and not group.order_depends_on_seed(place, at, column)
        }
        names |= {contrast.test for contrast in results.values()}
        if len(p_by_place) < len(candidates):
            untested.append(
                (quantity_of_column(column).heading, [group.label(at) for at in candidates if at not in p_by_place])
            )
    return TestedCells(differs, tuple(_flags(group.label(place), differs, untested, names)))


def _reference(reference: str, group: TableGroup) -> int | str:
    """Return the place of the row that is called `reference`, or whose method has that label; or why there is none."""
    named = [at for at in range(len(group.records)) if group.label(at) == reference]
    places = named or [at for at, record in enumerate(group.records) if record.cell.label == reference]
    measured = [at for at in places if group.records[at].status == "ok"]
    amount = words_of_amount(group.ratio, group.ratio_of)
    where = f" at {amount}" if amount else ""
    if not measured:
        return f"no figures{where}"
    if len(measured) > 1:
        return f"several rows{where}: --reference takes one of {'; '.join(map(group.label, measured))}"
    if len(group.models(measured[0])) > 1:
        return "a mean of draws"
    return measured[0]


def _flags(
    reference: str, differs: set[tuple[int, str]], untested: list[tuple[str, list[str]]], tests: Collection[str]
) -> Iterator[FlaggedCell]:
    """Yield the flag of the dagger if a cell has one, and those of the rows that are not tested."""
    if differs:
        how = ", ".join(words for test, words in TESTS.items() if test in tests)
        yield FlaggedCell(legend.DIFFERS, reference, {"tests": how})
    for label in dict.fromkeys(label for _, labels in untested for label in labels):
        columns = ", ".join(column for column, labels in untested if label in labels)
        yield FlaggedCell(legend.UNTESTED, label, {"columns": columns})


def is_perplexity(column: str) -> bool:
    """Say whether a column is the perplexity of a text, or of a range of positions."""
    return column.startswith(("perplexity_", "position_perplexity_"))


@dataclass(frozen=True)
class GroupTests:
    """A group of rows of one ratio with the tests between its cells.

    samples  the samples of all setups
    records  those whose texts and tasks are tested; none for those of the rows
    """

    group: TableGroup
    samples: Samples
    records: Sequence[Record] = ()

    @cached_property
    def measured(self) -> list[int]:
        """Return the places of the rows that have figures."""
        return [place for place, record in enumerate(self.group.records) if record.status == "ok"]

    @property
    def dense(self) -> int | None:
        """Return the place of the dense model's row; None if it has no figures."""
        return next((place for place in self.measured if self.group.records[place].cell.method == "dense"), None)

    @property
    def rows(self) -> list[int]:
        """Return the places of all other rows that have figures."""
        return [place for place in self.measured if self.group.records[place].cell.method != "dense"]

    def tests(self, column: str) -> Contrasts:
        """Return the tests of all pairs of models in a column of the frame, by the numbers of `models`."""
        if column not in self._tests_by_column:
            seeds = {next(iter(model.values())): model for at in self.measured for model in self.group.models(at)}
            self._tests_by_column[column] = self._test(list(combinations(seeds, 2)), column, seeds, intervals=True)
        return self._tests_by_column[column]

    @cached_property
    def _tests_by_column(self) -> dict[str, Contrasts]:
        """Return the tests that are computed already, empty at first."""
        return {}

    def test_pairs(self, places: Sequence[Places], column: str, *, bounds: bool = False, base: str = "") -> Contrasts:
        """Return the tests of pairs of rows, by their places, as far as samples pair them. Each row is a single model.

        bounds  as of bench.regression.contrasts.contrast_of_averages
        base    a range of positions, as of contrast_of_perplexities
        """
        number = {at: self.models(at)[0] for pair in places for at in pair}
        place = {record_number: at for at, record_number in number.items()}
        seeds = {number[at]: self.group.models(at)[0] for at in number}
        pairs = [(number[a], number[b]) for a, b in places]
        tested = self._test(pairs, column, seeds, intervals=False, bounds=bounds, base=base)
        return {(place[a], place[b]): contrast for (a, b), contrast in tested.items()}

    def _test(
        self,
        pairs: Sequence[Places],
        column: str,
        seeds: Seeds,
        *,
        intervals: bool,
        bounds: bool = False,
        base: str = "",
    ) -> Contrasts:
        """Return the tests of pairs of models in a column; `pairs` and `seeds` have the numbers of records."""
        numbers = chain.from_iterable(self.group.numbers)
        cells = dict(zip(numbers, chain.from_iterable(self.group.drawn), strict=True))
        records, samples = self.records or self.group.records, self.samples
        if is_perplexity(column):
            text = column.partition("perplexity_")[2]
            return contrast_of_perplexities(cells, pairs, samples, text, intervals=intervals, seeds=seeds, base=base)
        quantity, which = quantity_of_column(column), ""
        averaged = keep_standard_tasks(tasks_with_accuracies(records))
        tasks = averaged if column == "average" else [column.removeprefix("task_")]
        if quantity.part == "answers":
            which = quantity.field
            tasks = [column.removeprefix(f"{which}_")]
        elif quantity.over_tasks:
            which, tasks = column, keep_standard_tasks(tasks_with_answers(records, column))
        return contrast_of_averages(
            cells, pairs, samples, tasks, which, intervals=intervals, bounds=bounds, seeds=seeds
        )

    def models(self, place: int) -> list[int]:
        """Return the numbers under which the models of a row are tested, one for each choice of a random method."""
        return [next(iter(model.values())) for model in self.group.models(place)]

    def is_shown_higher(self, models: Sequence[int], than: Sequence[int], column: str) -> bool:
        """Say whether each of these models is shown to have more of a column than each of `than`.

        Several models are the draws of a random method: the claim is then for every one of them.
        """
        tests, neutral = self.tests(column), 1 if is_perplexity(column) else 0
        for a, b in product(models, than):
            contrast, sign = (tests[b, a], 1) if (b, a) in tests else (tests.get((a, b)), -1)
            if contrast is None or not (contrast.p < LEVEL and sign * (contrast.estimate - neutral) > 0):
                return False
        return True

    def has_more(self, first: int, second: int, column: str) -> bool:
        """Say whether one row is shown to have more of a column than another, at every seed of the two."""
        more = self.is_shown_higher(self.models(first), self.models(second), column)
        return more and not self.group.order_depends_on_seed(first, second, column)

    def is_better(self, first: int, second: int, column: str, better: str) -> bool:
        """Say whether one row is shown to be better than another; by their intervals in a column without tests."""
        if not quantity_of_column(column).tested:
            rows = self.group.rows
            return is_apart(cell_of(rows[first], column), cell_of(rows[second], column), better)
        return self.has_more(*((first, second) if better == "higher" else (second, first)), column)

    def eligible(self) -> list[int]:
        """Return the places of the rows that can be the best. A row that removed too little cannot."""
        return [place for place in self.rows if not self.group.removes_too_little(place)]

    def order(self, places: Sequence[int], column: str, better: str) -> list[int]:
        """Return the places with a finite value, the best first; equal ones in the order of the run."""
        sign = -1 if better == "higher" else 1
        with_value = [place for place in places if is_finite(self.group.rows[place].get(column))]
        return sorted(with_value, key=lambda place: sign * self.group.rows[place][column])
