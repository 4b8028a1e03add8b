"""Which cells of a table differ from a chosen reference: the paired tests of bench.stats.contrasts, column by column.

What nothing pairs with the reference has no test and no mark. The p values of a column are adjusted for their number.
Beside that, which row of a table is shown to be better than another in a column, by the tests of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from bench.records.columns import accuracies, answered
from bench.records.guessing import may_be_guessed
from bench.records.record import ANSWER_BPB, amount, label
from bench.records.samples import Samples
from bench.stats import contrasts
from bench.stats.contrasts import LEVEL, Contrasts, Pair, shown_more
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
    pairs = [(number[a], number[b]) for a, b in places]
    found = _tests(block, list(models), pairs, column, samples, seeds=seeds, intervals=False, bounds=bounds)
    return {(place[a], place[b]): contrast for (a, b), contrast in found.items()}


def _tests(
    block: TableGroup,
    rows: Iterable[int],
    pairs: Sequence[Pair],
    column: str,
    samples: Samples,
    *,
    seeds: Mapping[int, Mapping[int, int]],
    intervals: bool,
    bounds: bool = False,
) -> Contrasts:
    """Test pairs of models of the block's rows in a column; pairs and seeds are by the numbers of records."""
    records = {n: one for at in rows for n, one in zip(block.numbers[at], block.drawn[at], strict=True)}
    if column.startswith("perplexity_"):
        text = column.removeprefix("perplexity_")
        return contrasts.perplexity(records, pairs, samples, text, intervals=intervals, seeds=seeds)
    which, tasks = "", accuracies(block.records) if column == "average" else [column.removeprefix("task_")]
    if column.startswith(ANSWER_BPB):
        which = ANSWER_BPB
        tasks = answered(block.records) if column == which else [column.removeprefix(f"{which}_")]
    return contrasts.average(records, pairs, samples, tasks, which, intervals=intervals, bounds=bounds, seeds=seeds)


def shown_better(block: TableGroup, column: str, better: str, samples: Samples) -> Callable[[int, int], bool]:
    """Return what says of the places of two rows whether the first is shown to be better in a column.

    The tests are those of all pairs of models, adjusted by Holm, as the page of a run has them. `kept` is as the
    average is, and an accuracy that may be that of guesses is not better than another. Figures that nothing tests,
    such as speeds, are compared by their intervals.
    """
    column = "average" if column == "kept" else column
    if not column.startswith(TESTED):
        return partial(_by_intervals, block.rows, column, better)
    rows = [at for at, record in enumerate(block.records) if record.status == "ok"]
    seeds = {next(iter(model.values())): model for at in rows for model in block.models(at)}

    @cache
    def tests() -> Contrasts:
        return _tests(block, rows, contrasts.all_pairs(list(seeds)), column, samples, seeds=seeds, intervals=True)

    def is_better(one: int, another: int) -> bool:
        more = (one, another) if better == "higher" else (another, one)
        return not may_be_guessed(block.rows[one], column) and shows_more(block, tests(), *more, column)

    return is_better


def _by_intervals(rows: Sequence[Mapping[str, Any]], column: str, better: str, one: int, another: int) -> bool:
    """Say whether the interval of a row's figure lies on the better side of another's; no where there is none."""
    ends = [row.get(f"{column}_{end}") for row in (rows[one], rows[another]) for end in ("low", "high")]
    known = [float(end) for end in ends if end is not None]
    if len(known) < len(ends):
        return False
    low, high, low_of_another, high_of_another = known
    return bool(low > high_of_another if better == "higher" else high < low_of_another)


def models_of(block: TableGroup, place: int) -> list[int]:
    """Return the numbers under which the models of a row are tested, one for each choice of a random method."""
    return [next(iter(model.values())) for model in block.models(place)]


def shows_more(block: TableGroup, tests: Contrasts, some: int, than: int, column: str) -> bool:
    """Say whether one row is shown to have more of a column than another, at every seed of the two."""
    neutral = 1 if column.startswith("perplexity_") else 0
    more = shown_more(tests, models_of(block, some), models_of(block, than), neutral=neutral)
    return more and not block.tied(some, than, column)
