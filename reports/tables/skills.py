"""The view skills: what each method loses of each skill, as shares of what the dense model has of it.

Each ratio has a table of the accuracy that is lost, one that tells texts of choices from their letters, and one of the
bits per byte that are added (bench.records.skill_losses). Where tasks were written too, a further table has how many of
the answers that are chosen right are written right (bench.records.written). The methods stand in the order of the main
table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from bench.records.frame import columns_of_quantity, columns_with_values
from bench.records.quantities import DERIVED
from bench.records.skill_losses import SKILLS, SkillColumn, tasks_by_skill
from bench.regression.contrasts import LEVEL
from bench.stats.intervals import holm, normal_p
from reports import legend, protocol
from reports.groups import TableGroup
from reports.tables.rows import ReportData, compare_rows, sorting_note, table_of_group, word_of_ratio
from reports.tables.table import Row, Table, TableCell, cell_of, column_of

WRITTEN = next(quantity for quantity in DERIVED if quantity.part == "written")
GUESSES = "guesses"  # in place of a share, where the dense model is not shown to be above them
ABOVE = "dense, above guesses"
TITLES = {  # of the kinds of loss that share a table
    ("loss",): "accuracy lost, in % of what the dense model has above guesses",
    ("text", "letter"): "accuracy lost where texts of choices are scored, and where their letters are",
    ("bits",): "bits per byte of right answers added, in % of the dense model's",
}
FORMS_OF_CHOICE = {"rc": "text", "mc": "letter"}
WORDS = {"text": ", text", "letter": ", letter"}  # behind a skill in a heading
ABOUT = {
    "loss": "lost: (dense - pruned) / (dense - guesses) of the accuracies, so that 0 % is the dense model, and 100 % "
    "is guessing. Every task of a skill weighs alike, and the two forms of a task are one task.",
    "text": "text, letter: tasks that were scored in both forms, on the same documents. A model may know an answer "
    "and no longer point at its letter.",
    "bits": "bits added: pruned / dense - 1, the geometric mean over the tasks of a skill, without those of letters. "
    "Guessing has no bits per byte, so that this is no share of what guesses leave.",
}
WRITTEN_TITLE = "of the answers chosen right, those that are written right too"
ABOUT_WRITTEN = (
    "a value: of the documents whose answer a model chooses right, by its text or by its letter, the share that it "
    "writes right too.",
    "intervals: 95 %, Wilson's, of the documents that the model itself chooses right, which differ between models.",
)
FIELLER = "intervals: 95 %, by Fieller's theorem, of the documents that both models answered."
NORMAL = "intervals: 95 %, normal on the logarithm, of the documents that both models answered."
DIFFERS = f"†: differs from the dense model, p < {LEVEL} (normal tests on documents, adjusted by Holm for a table)."
GUESSED = f"{GUESSES}: the dense model is not shown to be above them, so that there is no share to lose."


@dataclass(frozen=True)
class SkillLosses:
    """What the rows of a ratio lose of each skill, by kinds that share a table."""

    group: TableGroup
    kinds: tuple[str, ...]

    @cached_property
    def columns(self) -> list[SkillColumn]:
        """Return the columns, skill by skill, for which a row has a loss or the dense model an accuracy."""
        measured = {name for row in self.group.rows for name, value in row.items() if value is not None}
        columns = []
        for skill in SKILLS:
            several = [SkillColumn(kind, skill) for kind in self.kinds]
            names = {*(column.name for column in several), *(column.above for column in several)}
            columns += several if measured & names else []
        return columns

    @property
    def pruned(self) -> list[int]:
        """Return the places of the rows of pruned models."""
        return [place for place, record in enumerate(self.group.records) if record.cell.method != "dense"]

    @property
    def dense(self) -> Mapping[str, Any]:
        """Return the values of the dense model; none if it was not measured."""
        return next((row for row in self.group.rows if row["method"] == "dense"), {})

    def is_guessed(self, column: SkillColumn) -> bool:
        """Say whether the dense model is not shown to be above guesses, so that no row has a loss."""
        low = self.dense.get(f"{column.above}_low")
        return low is not None and low <= 0

    @cached_property
    def differing(self) -> set[tuple[int, SkillColumn]]:
        """Return the losses that are shown to differ from 0, as (place of the row, column).

        The p values are adjusted for all of them. A mean of random choices is never shown to differ.
        """
        p_values = {}
        for place in (place for place in self.pruned if not self.group.is_drawn(place)):
            for column in self.columns:
                cell = self.cell(place, column)
                if isinstance(cell.value, float) and cell.stderr is not None:
                    estimate = math.log1p(cell.value) if column.kind == "bits" else cell.value
                    p_values[place, column] = normal_p(estimate, cell.stderr)
        p_adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        return {at for at, p in p_adjusted.items() if p < LEVEL and not self._holds_zero(*at)}

    def cell(self, place: int, column: SkillColumn) -> TableCell:
        """Return the loss of a row, with its interval and its standard error."""
        return cell_of(self.group.rows[place], column.name)

    def _holds_zero(self, place: int, column: SkillColumn) -> bool:
        """Say whether the interval of a loss holds 0. That of several seeds has their draw in it, which p lacks."""
        cell = self.cell(place, column)
        return cell.low is None or cell.high is None or cell.low <= 0 <= cell.high

    def mark(self, row: Row, place: int) -> Row:
        """Return a row with marks on losses that are shown, and words where the dense model may guess."""
        cells = list(row.cells)
        for number, column in enumerate(self.columns):
            if self.is_guessed(column) and row.failure is None:
                cells[number] = TableCell(GUESSES)
            elif (place, column) in self.differing:
                cells[number] = cells[number].with_mark("differs")
        return replace(row, cells=tuple(cells))

    def row_of_dense(self) -> Row:
        """Return the row of the accuracy above guesses that the shares below it are of."""
        return Row(ABOVE, "dense", None, tuple(cell_of(self.dense, column.above) for column in self.columns))


def tables_of_skills(data: ReportData) -> list[Table]:
    """Return the tables of each ratio for which there are samples of tasks by skill."""
    groups = data.groups if tasks_by_skill(data.records) else []
    tables = list[Table]()
    for group in groups:
        every = [SkillLosses(group, kinds) for kinds in TITLES]
        tables += [_table(losses, data) for losses in every if losses.columns and losses.pruned]
        tables += _tables_of_written(group, data)
    return tables


def columns_of_written(group: TableGroup) -> list[str]:
    """Return the columns with shares of answers that are written right, of each task that a row has one for."""
    return columns_with_values(group.rows, columns_of_quantity(WRITTEN, group.records))


def name_of_written_column(column: str) -> str:
    """Return the heading of such a column: 'arithmetic, text' of written_basic_skills_arithmetic_rc."""
    name, _, form = column.removeprefix("written_").removeprefix("basic_skills_").rpartition("_")
    return f"{name.replace('_', ' ')}{WORDS[FORMS_OF_CHOICE[form]]}"


def _tables_of_written(group: TableGroup, data: ReportData) -> list[Table]:
    """Return the table of the answers that are chosen and written right; none where no task has both forms."""
    columns = [replace(column_of(name), label=name_of_written_column(name)) for name in columns_of_written(group)]
    if not columns:
        return []
    rows, tests = compare_rows(group, columns, data)
    records = list(chain(*group.drawn))
    table = table_of_group(
        "skills",
        group,
        columns,
        rows,
        [
            *ABOUT_WRITTEN,
            *(legend.READING[word] for word in sorted(legend.words_of_seeds(records))),
            *sorting_note(group, data.sorting_quantity(group)),
        ],
        name=f"skills-written-{word_of_ratio(group)}",
        title=f"{WRITTEN_TITLE}, {protocol.words_of_ratio(group.records)}",
        remarks=legend.describe_flags(tests),
        measured=protocol.protocol_of_records(records, ("tasks",)),
    )
    return [table]


def _table(losses: SkillLosses, data: ReportData) -> Table:
    group, kinds, is_bits = losses.group, losses.kinds, losses.kinds == ("bits",)
    columns = []
    for column in losses.columns:
        head = column.skill + WORDS.get(column.kind, "")
        columns.append(replace(column_of(column.name), label=head, unit=""))
    every_row, tests = compare_rows(group, columns, data)
    rows = [losses.mark(every_row[place], place) for place in losses.pruned]
    records = list(chain(*group.drawn))
    flags = legend.flags_of_records(group.records_with_notes(), beside=group.beside)
    footnotes = [
        *(ABOUT[kind] for kind in dict.fromkeys([*["loss"] * (not is_bits), kinds[0]])),
        NORMAL if is_bits else FIELLER,
        *[DIFFERS] * bool(losses.differing),
        *[GUESSED] * any(map(losses.is_guessed, losses.columns)),
        *(legend.READING[word] for word in sorted(legend.words_of_seeds(records))),
        *sorting_note(group, data.sorting_quantity(group)),
    ]
    return table_of_group(
        "skills",
        group,
        columns,
        rows if is_bits else [losses.row_of_dense(), *rows],
        footnotes,
        name=f"skills-{'-'.join(kinds)}-{word_of_ratio(group)}",
        title=f"{TITLES[kinds]}, {protocol.words_of_ratio(group.records)}",
        remarks=legend.describe_flags([*flags, *tests]),
        measured=protocol.protocol_of_records(records, ("tasks",)),
    )
