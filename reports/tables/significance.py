"""Which cells of a table differ from a chosen reference: the paired tests of bench.stats.contrasts, column by column.

What nothing pairs with the reference has no test and no mark. The p values of a column are adjusted for their number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bench.records.columns import accuracies, answered
from bench.records.record import ANSWER_BPB, amount, label
from bench.records.samples import Samples
from bench.stats import contrasts
from bench.stats.contrasts import LEVEL, Contrasts, Pair
from reports.blocks import TableGroup
from reports.metrics import metric

TESTED = ("perplexity_", "task_", "average", "answer_bpb")  # how columns begin that are tested
TESTS = {
    "mcnemar": "McNemar's exact test on documents",
    "normal": "a normal test on documents, every task weighing alike",
    "student": "Student's test on windows",
    "draws": "Student's test on the calibration seeds beside windows or documents",
}


@dataclass(frozen=True)
class Tested:
    """Which cells of a table differ from the reference's, as (row, column), and what is to be said of the tests."""

    differs: set[tuple[int, str]] = field(default_factory=set)
    notes: tuple[str, ...] = ()


def tested(reference: str, block: TableGroup, columns: Sequence[str], samples: Samples) -> Tested:
    """Test every row of a block against the row of `reference`, an empty name for none."""
    columns = [one for one in columns if one.startswith(TESTED)]
    if not reference or not columns:
        return Tested()
    place = _reference(reference, block)
    if isinstance(place, str):
        return Tested(notes=(place,))
    differs, untested, tests = set(), [], set()
    candidates = [at for at, record in enumerate(block.records) if at != place and record.status == "ok"]
    for column in columns:
        single = [at for at in candidates if len(block.models(at)) == 1]
        found = in_pairs(block, [(place, at) for at in single], column, samples)
        known = {at: contrast.p for (_, at), contrast in found.items()}
        differs |= {(at, column) for at, p in known.items() if p < LEVEL and not block.tied(place, at, column)}
        tests |= {contrast.test for contrast in found.values()}
        if len(known) < len(candidates):
            untested.append((metric(column).label, [block.label(at) for at in candidates if at not in known]))
    return Tested(differs, tuple(_notes(block.label(place), differs, untested, tests)))


def _reference(reference: str, block: TableGroup) -> int | str:
    """Return the place of the row of this name, else of the one with this label; or why none can be tested against."""
    named = [at for at in range(len(block.records)) if block.label(at) == reference]
    places = named or [at for at, record in enumerate(block.records) if label(record.cell) == reference]
    known = [at for at in places if block.records[at].status == "ok"]
    asked = amount(block.ratio, block.ratio_of)
    where = f" at {asked}" if asked else ""
    if not known:
        return f"not tested against {reference}{where}, which has no figures there."
    if len(known) > 1:
        names = "; ".join(map(block.label, known))
        return f"not tested against {reference}{where}: several rows have that label; --reference takes one of {names}."
    if len(block.models(known[0])) > 1:
        return f"{reference} is a mean of draws, and no single model to test others against."
    return known[0]


def _notes(
    reference: str, differs: set[tuple[int, str]], untested: list[tuple[str, list[str]]], tests: Collection[str]
) -> list[str]:
    """Return what the dagger claims, if there is one, and which cells no test has seen."""
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


def in_pairs(
    block: TableGroup, places: Sequence[Pair], column: str, samples: Samples, *, bounds: bool = False
) -> Contrasts:
    """Test pairs of rows of the block, by their places, each a single model, as far as samples pair them.

    bounds  as of contrasts.average
    """
    models = {at: block.models(at)[0] for pair in places for at in pair}
    number = {at: next(iter(model.values())) for at, model in models.items()}
    place, seeds = {found: at for at, found in number.items()}, {number[at]: model for at, model in models.items()}
    records = {n: one for at in models for n, one in zip(block.numbers[at], block.drawn[at], strict=True)}
    pairs = [(number[a], number[b]) for a, b in places]
    if column.startswith("perplexity_"):
        text = column.removeprefix("perplexity_")
        found = contrasts.perplexity(records, pairs, samples, text, intervals=False, seeds=seeds)
    else:
        which, tasks = "", accuracies(block.records) if column == "average" else [column.removeprefix("task_")]
        if column.startswith(ANSWER_BPB):
            which = ANSWER_BPB
            tasks = answered(block.records) if column == which else [column.removeprefix(f"{which}_")]
        found = contrasts.average(records, pairs, samples, tasks, which, intervals=False, bounds=bounds, seeds=seeds)
    return {(place[a], place[b]): contrast for (a, b), contrast in found.items()}
