"""Flags of the order of rows: seeds that disagree, steep steps, methods that do not beat random layers.

The page has them beside the flags of single cells. "Shown" means p < 0.05 after the adjustment for all pairs of cells
at a ratio, see bench.regression.contrasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

from bench.plan.cell import words_of_ratio
from bench.records.frame import texts_of_records
from bench.records.measured import ANSWER_BPB
from bench.records.quantities import format_value, quantity_of_column
from bench.records.quantity import is_finite
from reports import legend
from reports.groups import TableGroup
from reports.legend import FlaggedCell
from reports.tables.rows import GroupTests, word_of_ratio
from reports.tables.ties import Ties

CLIFF = 10  # times the perplexity in one step of the ratio
NAMES = 5  # pairs that are named of those whose order depends on the seed; the rest is counted
RANDOM = "drop-random"  # the control, which removes random layers


def flags_of_order(tested: GroupTests) -> Iterator[FlaggedCell]:
    """Yield the flags of the order of the rows of one ratio, by the first perplexity and by the means over tasks."""
    texts = texts_of_records(tested.records)
    where = "" if tested.group.ratio is None else f" at {word_of_ratio(tested.group)}"
    for text in texts[:1]:
        yield from _random(tested, f"perplexity_{text}", {"where": where.strip()})
        yield from _disagreement(tested, f"perplexity_{text}", where)
    for column in (*(f"perplexity_{text}" for text in texts), "average", ANSWER_BPB):
        yield from _disagreeing_seeds(Ties(tested, column), where)


def _disagreeing_seeds(ties: Ties, where: str) -> Iterator[FlaggedCell]:
    """Yield the pairs of methods whose order by a quantity depends on the seed; the first of many, and a count."""
    group = ties.tests.group
    values = {"quantity": quantity_of_column(ties.column).heading, "where": where}
    pairs = [pair for pair in combinations(ties.order, 2) if group.order_depends_on_seed(*pair, ties.column)]
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


def flags_of_steps(groups: Sequence[TableGroup]) -> Iterator[FlaggedCell]:
    """Yield for each method the first step between neighbouring ratios that multiplies a perplexity by CLIFF.

    The first text in which there is one counts; what is destroyed is so by every text and at each further step.
    """
    records = [record for group in groups for record in group.records]
    first: dict[str, FlaggedCell] = {}
    for text in texts_of_records(records):
        for cliff in _cliffs(groups, f"perplexity_{text}"):
            first.setdefault(cliff.name, cliff)
    yield from first.values()


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
