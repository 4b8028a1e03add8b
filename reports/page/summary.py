"""The summary of a page: for each quantity and ratio the best method, its value, and what the tests show of it.

"Shown" means p < 0.05 after the adjustment for all pairs of cells at that ratio, see bench.regression.contrasts. Speeds
have no tests and are compared by their intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, pairwise
from typing import Any

from bench.plan.cell import words_of_ratio
from bench.records.frame import texts_of_records
from bench.records.measured import ANSWER_BPB
from bench.records.quantities import format_value, quantity_of_column
from bench.records.quantity import is_finite
from bench.records.record import Record, name_of_model
from bench.records.samples import Samples
from bench.regression.contrasts import LEVEL
from reports import legend, protocol
from reports.groups import TableGroup, group_records
from reports.legend import FlaggedCell
from reports.tables.rows import GroupTests, word_of_ratio
from reports.tables.table import Column, Row, Table, cell_of, cell_of_text, column_of, column_of_words

SPEEDS = ("decode_speed", "prefill_speed")
QUANTITIES = ("average", ANSWER_BPB, *SPEEDS)  # beside the perplexities
CLIFF = 10  # times the perplexity in one step of the ratio
NAMES = 5  # pairs that are named of those whose order depends on the seed; the rest is counted
RANDOM = "drop-random"  # the control, which removes random layers
COLUMNS = (
    Column("ratio", "ratio"),
    column_of_words("best", "best method"),
    Column("value", "value"),
    Column("dense", "dense"),
    Column("better", "better than"),
    Column("dense_better", "dense better than"),
    Column("apart", "pairs apart"),
)
ABOUT = (
    f"better than: of the other methods at that ratio, shown with p < {LEVEL} after Holm's adjustment for all pairs of "
    "cells.",
    "Perplexities are tested on windows, accuracies and bpb on documents; speeds are compared by their intervals.",
    "dense better than: of all methods that count. A method that removed too little does not count.",
    "pairs apart: pairs of cells at that ratio, the dense model among them, that are shown to differ.",
)
INDEPENDENT = "Without samples in common, two intervals are compared as if they were independent, which shows less."


def summarise_setups(records: Sequence[Record], samples: Samples) -> list[Table]:
    """Return the table of each setup in which a pruned model has a value, or any cell a flag."""
    tables = [_table(groups, samples) for groups in group_records(records)]
    return [table for table in tables if table.rows or table.notes]


def _table(groups: Sequence[TableGroup], samples: Samples) -> Table:
    records = [record for group in groups for record in chain(*group.drawn)]
    tested = [GroupTests(group, samples, records) for group in groups]
    names = [*(f"perplexity_{text}" for text in texts_of_records(records)), *QUANTITIES]
    contests = [Contest(row, name) for name in names for row in tested]
    contests = [contest for contest in contests if contest.places]
    flags = [flag for row in tested for flag in _flags_of_group(row)]
    flags += chain.from_iterable(map(_ties, contests))
    flags += chain.from_iterable(_cliffs(groups, name) for name in names if name.startswith("perplexity_"))
    is_rough = any(contrast.test == "intervals" for contest in contests for contrast in contest.tests.values())
    return Table(
        name="summary",
        view="summary",
        model=name_of_model(records[0]) if records else "",
        title="The best method at each ratio",
        conditions=(*protocol.conditions_of(records), *groups[0].apart) if records else (),
        columns=COLUMNS,
        rows=tuple(contest.row() for contest in contests),
        notes=tuple(legend.describe_flags(flags)),
        footnotes=(
            *ABOUT,
            *[INDEPENDENT] * is_rough,
            *(legend.READING[word] for word in sorted(legend.words_of_seeds(records))),
        ),
        head="quantity",
    )


@dataclass(frozen=True)
class Contest:
    """The methods of one ratio compared by one quantity."""

    tested: GroupTests
    name: str

    @property
    def better(self) -> str:
        """Return which way is better."""
        return quantity_of_column(self.name).better or "lower"

    @cached_property
    def tests(self) -> dict[Any, Any]:
        """Return the tests of all pairs of models; a speed has none."""
        return {} if self.name in SPEEDS else dict(self.tested.tests(self.name))

    @cached_property
    def places(self) -> list[int]:
        """Return the rows with a value that removed enough, the best first."""
        return self.tested.order(self.tested.eligible(), self.name, self.better)

    @cached_property
    def best(self) -> list[int]:
        """Return the rows that share the best value."""
        values = self.tested.group.rows
        return [place for place in self.places if values[place][self.name] == values[self.places[0]][self.name]]

    def is_better(self, first: int, second: int) -> bool:
        """Say whether a row is shown to be better than another."""
        return self.tested.is_better(first, second, self.name, self.better)

    def row(self) -> Row:
        """Return the row of the summary."""
        group, dense = self.tested.group, self.tested.dense
        rest = [place for place in self.places if place not in self.best]
        unbeaten = {place for place in rest for first in self.best if not self.is_better(first, place)}
        beaten = [place for place in rest if place not in unbeaten]
        below = [place for place in self.places if dense is not None and self.is_better(dense, place)]
        apart = [contrast for contrast in self.tests.values() if contrast.p < LEVEL]
        cells = (
            cell_of_text(word_of_ratio(group)),
            cell_of_text(", ".join(sorted(map(group.label, self.best)))),
            cell_of(group.rows[self.best[0]], self.name),
            cell_of(group.rows[dense] if dense is not None else {}, self.name),
            cell_of_text(f"{len(beaten)} of {len(rest)}, shown" if rest else None),
            cell_of_text(None if dense is None else f"{len(below)} of {len(self.places)}"),
            cell_of_text(f"{len(apart)} of {len(self.tests)}" if self.tests else None),
        )
        method = group.records[self.best[0]].cell.method
        return Row(column_of(self.name).head, method, group.ratio, cells, ratio_of=group.ratio_of)


def _flags_of_group(tested: GroupTests) -> Iterator[FlaggedCell]:
    """Yield the flags of the cells of a ratio, and of the order of its rows by perplexity."""
    group = tested.group
    where = _where(group)
    yield from legend.flags_of_records(group.records_with_notes(), (), group.beside, where)
    for text in texts_of_records(tested.records)[:1]:
        yield from _random(tested, f"perplexity_{text}", {"where": where.strip()})
        yield from _disagreement(tested, f"perplexity_{text}", where)


def _where(group: TableGroup) -> str:
    return "" if group.ratio is None else f" at {word_of_ratio(group)}"


def _ties(contest: Contest) -> Iterator[FlaggedCell]:
    """Yield the pairs of methods whose order by a quantity depends on the seed; the first of many, and a count."""
    group = contest.tested.group
    values = {"quantity": quantity_of_column(contest.name).heading, "where": _where(group)}
    pairs = [pair for pair in combinations(contest.places, 2) if group.order_depends_on_seed(*pair, contest.name)]
    for first, second in pairs[:NAMES]:
        yield FlaggedCell(legend.SEEDS_DISAGREE, f"{group.label(first)} and {group.label(second)}", values)
    if len(pairs) > NAMES:
        yield FlaggedCell(legend.SEEDS_DISAGREE, f"{len(pairs) - NAMES} more pairs", values)


def _random(tested: GroupTests, column: str, where: dict[str, str]) -> Iterator[FlaggedCell]:
    """Yield the methods that are not shown to be better than every draw of random layers, or shown to be worse."""
    control = [place for place in tested.rows if tested.group.records[place].cell.method == RANDOM]
    draws = [number for place in control for number in tested.models(place)]
    rest = [place for place in tested.rows if place not in control] if draws else []
    for place in tested.order(rest, column, "lower"):
        if tested.is_shown_higher(tested.models(place), draws, column):
            yield FlaggedCell(legend.WORSE_THAN_RANDOM, tested.group.label(place), where)
        elif not tested.is_shown_higher(draws, tested.models(place), column):
            yield FlaggedCell(legend.NOT_ABOVE_RANDOM, tested.group.label(place), where)


def _disagreement(tested: GroupTests, column: str, where: str) -> Iterator[FlaggedCell]:
    """Yield the most accurate method if it is in the worse half by perplexity; of several, the one with the lowest."""
    rows = tested.group.rows
    accurate = tested.order(tested.eligible(), "average", "higher")
    order = [place for place in tested.order(tested.eligible(), column, "lower") if place in accurate]
    first = next((at for at, place in enumerate(order) if rows[place]["average"] == rows[accurate[0]]["average"]), 0)
    if len(order) > 2 and first + 1 > len(order) / 2:
        values = {"place": first + 1, "count": len(order)}
        yield FlaggedCell(legend.ORDERS_DISAGREE, tested.group.label(order[first]) + where, values)


def _cliffs(groups: Sequence[TableGroup], column: str) -> Iterator[FlaggedCell]:
    """Yield the steps between neighbouring ratios, or from the dense model, that multiply a perplexity by ten."""
    lines: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for group in (group for group in groups if group.ratio is not None):
        cells = list(zip(group.records, group.rows, range(len(group.rows)), strict=True))
        dense = [("dense", row) for record, row, _ in cells if record.cell.method == "dense"][:1]
        for place in (place for record, _, place in cells if record.cell.method != "dense"):
            line = lines.setdefault((group.label(place), group.ratio_of), [*dense])
            line.append((words_of_ratio(group.ratio, group.ratio_of), group.rows[place]))
    for (label, _), line in lines.items():
        finite = [(ratio, row) for ratio, row in line if is_finite(row.get(column))]
        for (lower, before), (higher, after) in pairwise(finite):
            if after[column] >= CLIFF * before[column]:
                ends = " to ".join(format_value(row, column, spread=False) for row in (before, after))
                values = {"quantity": quantity_of_column(column).heading}
                yield FlaggedCell(legend.CLIFF, label, values | {"lower": lower, "higher": higher, "ends": ends})
