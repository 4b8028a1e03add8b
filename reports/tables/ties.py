"""Groups of ties: which rows of a table are not shown to differ in a column.

Two rows share a letter exactly if they are not shown to differ: a compact letter display, by inserting and absorbing.
H.-P. Piepho, "An algorithm for a letter-based representation of all-pairwise comparisons", 2004. A rank would claim an
order that tests do not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, groupby
from string import ascii_lowercase

from bench.records.frame import may_be_guessed
from bench.records.quantities import format_value, quantity_of_column
from reports.tables.rows import GroupTests
from reports.tables.table import cell_of

RUN = 3  # from so many neighbouring letters on a range is written
NAMES = 5  # tied methods that a sentence names; the rest is counted
BETTER, WORSE, TIED, UNTESTED = "><=."


def letters_of_ties(count: int, is_apart: Callable[[int, int], bool]) -> list[str]:
    """Return the letters of `count` rows, the best first: 'a', 'a b', 'b-e'. Rows share one if they are not apart.

    is_apart  takes the places of two rows, and says whether they are shown to differ
    """
    sets = [frozenset(range(count))]
    for pair in combinations(range(count), 2):
        if not is_apart(*pair):
            continue
        split = [together - {place} for together in sets if together.issuperset(pair) for place in pair]
        kept = [together for together in sets if not together.issuperset(pair)]
        sets = kept + [new for new in split if not any(map(new.issubset, kept))]
    sets.sort(key=sorted)
    return [_words_of_letters(place, sets) for place in range(count)]


def _words_of_letters(place: int, sets: Sequence[frozenset[int]]) -> str:
    """Return the letters of the sets that a row is in as words; three or more in a row as a range."""
    numbers, parts = [at for at, together in enumerate(sets) if place in together], list[str]()
    for _, neighbours in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        run = [_letter(number) for _, number in neighbours]
        parts += [f"{run[0]}-{run[-1]}"] if len(run) >= RUN else run
    return " ".join(parts)


def _letter(number: int) -> str:
    """Return 'a' for 0, 'z' for 25, 'a2' for 26."""
    rounds, letter = divmod(number, len(ascii_lowercase))
    return ascii_lowercase[letter] + (str(rounds + 1) if rounds else "")


@dataclass(frozen=True)
class Ties:
    """The rows of a group compared in one column.

    column  of the frame; its quantity says which way is better
    """

    tests: GroupTests
    column: str

    @property
    def better(self) -> str:
        """Return which way is better."""
        return quantity_of_column(self.column).better or "lower"

    @cached_property
    def order(self) -> list[int]:
        """Return the places of the methods that removed enough and have a value, the best first."""
        return self.tests.order(self.tests.eligible(), self.column, self.better)

    @cached_property
    def is_tested(self) -> bool:
        """Say whether pairs are compared at all: by tests, or by intervals of the values."""
        if quantity_of_column(self.column).tested:
            return bool(self.tests.tests(self.column))
        rows = self.tests.group.rows
        return any(cell_of(rows[place], self.column).low is not None for place in self.order)

    def verdict(self, first: int, second: int) -> str:
        """Return BETTER or WORSE where the first row is shown to be so, else TIED; UNTESTED without a test."""
        if not self.is_tested or not self._has_test(first, second):
            return UNTESTED
        if self.tests.is_better(first, second, self.column, self.better):
            return BETTER
        return WORSE if self.tests.is_better(second, first, self.column, self.better) else TIED

    def _has_test(self, first: int, second: int) -> bool:
        if not quantity_of_column(self.column).tested:
            rows = (self.tests.group.rows[place] for place in (first, second))
            return all(cell_of(row, self.column).low is not None for row in rows)
        tests, (a, b) = self.tests.tests(self.column), (self.tests.models(place)[0] for place in (first, second))
        return (a, b) in tests or (b, a) in tests

    @cached_property
    def letters(self) -> dict[int, str]:
        """Return {place: letters} of the methods in `order`; empty where no pair is compared."""
        if not self.is_tested:
            return {}
        order = self.order
        words = letters_of_ties(len(order), lambda a, b: self.verdict(order[a], order[b]) in (BETTER, WORSE))
        return dict(zip(order, words, strict=True))

    @cached_property
    def best(self) -> list[int]:
        """Return the rows that no other is shown to be better than, if they are fewer than all; else none.

        They are the first and all that are not shown to be worse. An accuracy that may be that of guesses is never one.
        """
        rows = self.tests.group.rows
        if len(self.order) < 2 or not self.is_tested or may_be_guessed(rows[self.order[0]], self.column):
            return []
        together = [place for place in (self.order[0], *self.tied) if not may_be_guessed(rows[place], self.column)]
        return together if len(together) < len(self.order) else []

    @cached_property
    def tied(self) -> list[int]:
        """Return all rows but the first that no test shows to be worse than the first."""
        return [place for place in self.order[1:] if self.verdict(self.order[0], place) != BETTER]

    def sentences(self) -> list[str]:
        """Return which method is first, beside the dense model and the next, and which are not shown to be worse."""
        if not self.order or not quantity_of_column(self.column).better:
            return []
        dense, rest = self.tests.dense, self.order[1:]
        beside = [] if dense is None else [f"dense {self._text(dense)}"]
        beside += [f"next {self._named(place)}" for place in rest[:1]]
        extreme = "highest" if self.better == "higher" else "lowest"
        among = " of those that removed enough" * (len(self.order) < len(self._measured))
        quantity = quantity_of_column(self.column)
        heading = quantity.heading + (f" ({quantity.unit})" if quantity.unit and not quantity.unit_in_cell else "")
        brackets = f" ({', '.join(beside)})" if beside else ""
        first = f"{extreme} {heading}{among}: {self._named(self.order[0])}{brackets}."
        if not rest:
            return [first]
        if not self.is_tested:
            return [first, "nothing tests whether others are worse."]
        worse = len(rest) - len(self.tied)
        if not self.tied:
            return [first, f"shown to be worse: {'the other method' if worse == 1 else f'all {worse} others'}."]
        labels = [self.tests.group.label(place) for place in self.tied]
        named = labels if len(labels) <= NAMES + 1 else [*labels[:NAMES], f"{len(labels) - NAMES} more"]
        return [first, f"not shown to be worse: {', '.join(named)}; shown to be: {worse} of {len(rest)} others."]

    @property
    def _measured(self) -> list[int]:
        """Return the places of all methods with a value, also of those that removed too little, the best first."""
        return self.tests.order(self.tests.rows, self.column, self.better)

    def _named(self, place: int) -> str:
        return f"{self.tests.group.label(place)} {self._text(place)}"

    def _text(self, place: int) -> str:
        return format_value(self.tests.group.rows[place], self.column, spread=False)
