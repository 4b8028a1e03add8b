"""Which cells of a table differ from a chosen reference: the paired tests of reports.contrasts, column by column.

What nothing pairs with the reference has no test and no mark. The p values of a column are adjusted for their number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from reports import contrasts
from reports.blocks import Block
from reports.contrasts import LEVEL, Contrasts
from reports.frame import accuracies, label
from reports.metrics import metric
from reports.samples import Samples

TESTS = {
    "mcnemar": "McNemar's exact test on documents",
    "normal": "a normal test on documents, every task weighing alike",
    "student": "Student's test on windows",
}


@dataclass(frozen=True)
class Tested:
    """Which cells of a table differ from the reference's, as (row, column), and what is to be said of the tests."""

    differs: set[tuple[int, str]] = field(default_factory=set)
    notes: tuple[str, ...] = ()


def tested(reference: str, block: Block, columns: Sequence[str], samples: Samples) -> Tested:
    """Test every row of a block against the row of `reference`, an empty name for none."""
    place = next((at for at, record in enumerate(block.records) if label(record.cell) == reference), None)
    if not reference or place is None or block.records[place].status != "ok":
        return Tested()
    if len(block.numbers[place]) > 1:
        return Tested(notes=(f"{reference} is a mean of draws, and no single model to test others against.",))
    differs, untested, tests = set(), [], set()
    candidates = [at for at, record in enumerate(block.records) if at != place and record.status == "ok"]
    for column in (column for column in columns if column.startswith(("perplexity_", "task_")) or column == "average"):
        found = _against(block, place, [at for at in candidates if len(block.numbers[at]) == 1], column, samples)
        row = {block.numbers[at][0]: at for at in candidates}
        known = {row[other]: contrast.p for (_, other), contrast in found.items()}
        differs |= {(at, column) for at, p in known.items() if p < LEVEL}
        tests |= {contrast.test for contrast in found.values()}
        if len(known) < len(candidates):
            untested.append((metric(column).label, [block.label(at) for at in candidates if at not in known]))
    return Tested(differs, tuple(_notes(reference, differs, untested, tests)))


def _notes(
    reference: str, differs: set[tuple[int, str]], untested: list[tuple[str, list[str]]], tests: Collection[str]
) -> list[str]:
    """What the dagger claims, if there is one, and which cells no test has seen."""
    said = []
    if differs:
        how = ", ".join(words for test, words in TESTS.items() if test in tests)
        said.append(
            f"†: differs from {reference}, p < {LEVEL} (paired: {how}; adjusted by Holm for the methods of a column)."
        )
    for names in dict.fromkeys(tuple(names) for _, names in untested):
        columns = ", ".join(column for column, others in untested if tuple(others) == names)
        said.append(
            f"not tested against {reference} in {columns}: {', '.join(names)} (draws, or no samples in common)."
        )
    return said


def _against(block: Block, place: int, others: Sequence[int], column: str, samples: Samples) -> Contrasts:
    """The row at `place` beside each of the others, as far as samples pair them."""
    one, records = block.numbers[place][0], {block.numbers[at][0]: block.records[at] for at in (place, *others)}
    pairs = [(one, block.numbers[at][0]) for at in others]
    if column.startswith("perplexity_"):
        return contrasts.perplexity(records, pairs, samples, column.removeprefix("perplexity_"), intervals=False)
    tasks = accuracies(block.records) if column == "average" else [column.removeprefix("task_")]
    return contrasts.average(records, pairs, samples, tasks, intervals=False)
