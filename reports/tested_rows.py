"""A group of rows with the tests between its cells, and the words in which the page speaks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.records.columns import accuracies, answered, texts
from bench.records.record import ANSWER_BPB, Record, amount
from bench.records.samples import Samples
from bench.stats import contrasts
from bench.stats.contrasts import Contrasts, all_pairs
from reports.blocks import TableGroup
from reports.metrics import finite, metric, shown
from reports.tables import significance

NAMES = 5  # as many are listed before the rest is counted


@dataclass(frozen=True)
class TestedRow:
    """A group of rows of one ratio, with the tests between its cells, and how sentences speak of them.

    dense       the place of the dense model's row, None where it has no figures
    rows        the places of the other rows that have figures
    perplexity  by text;  average  of the accuracies;  answers  of the bits per byte of the right answer
    """

    block: TableGroup
    dense: int | None
    rows: list[int]
    perplexity: dict[str, Contrasts]
    average: Contrasts
    answers: Contrasts

    def tests(self, column: str) -> Contrasts:
        """Return the tests of a column of the frame."""
        whole = {"average": self.average, ANSWER_BPB: self.answers}
        return whole[column] if column in whole else self.perplexity[column.removeprefix("perplexity_")]

    def models(self, place: int) -> list[int]:
        """Return the numbers under which the models of a row are tested, one for each choice of a random method."""
        return significance.models_of(self.block, place)

    def shows_more(self, some: int, than: int, column: str) -> bool:
        """Say whether one row is shown to have more of a column than another, at every seed of the two."""
        return significance.shows_more(self.block, self.tests(column), some, than, column)

    def where(self) -> str:
        """Say 'At ratio 0.3'."""
        return (
            "With the methods' own parameters"
            if self.block.ratio is None
            else f"At {amount(self.block.ratio, self.block.ratio_of)}"
        )

    def eligible(self) -> list[int]:
        """Return the places of the rows that can win: a cell that removed too little cannot."""
        return [place for place in self.rows if not self.block.removed_too_little(place)]

    def ordered(self, places: Sequence[int], column: str, better: str) -> list[int]:
        """Return the places with a finite figure, the best first; equal ones in the order of the run."""
        sign = -1 if better == "higher" else 1
        known = [place for place in places if finite(self.block.rows[place].get(column))]
        return sorted(known, key=lambda place: sign * self.block.rows[place][column])

    def figure(self, place: int, column: str) -> str:
        """Return a figure with its spread and its unit, such as '36.8 ± 6.2'."""
        unit = metric(column).unit if not metric(column).unit_in_cell else ""
        return f"{shown(self.block.rows[place], column)} {unit}".strip()

    def name(self, place: int) -> str:
        """Return the name of a method, which says whether its figures are a mean over draws."""
        draws, seeds = len(self.block.numbers[place]), len(self.block.models(place)[0])
        of = f"{seeds} seeds" if draws == seeds else f"{draws} draws"
        return self.block.label(place) + (f" (mean of {of})" if draws > 1 else "")

    def names(self, places: Sequence[int]) -> str:
        """List the methods in this order; the rest of many is counted."""
        names = [self.block.label(place) for place in places]
        more = len(names) - NAMES
        return ", ".join(names) if more <= 1 else f"{', '.join(names[:NAMES])} and {more} more"

    def shown(self, side: str, places: Sequence[int], rest: Sequence[int]) -> str:
        """Say 'shown to be below all 5 others', or below how many, and which ones not, the nearest first."""
        others = "the other one" if len(rest) == 1 else f"{len(rest)} others"
        if len(places) == len(rest):
            return f"shown to be {side} {others if len(rest) == 1 else f'all {others}'}"
        if not places:
            return f"not shown to be {side} {others if len(rest) == 1 else f'any of the {others}'}"
        unshown = [place for place in rest if place not in places]
        return f"shown to be {side} {len(places)} of {others}; not {side} {self.names(unshown)}"


def tested_block(records: Sequence[Record], block: TableGroup, samples: Samples) -> TestedRow:
    """Test every pair of cells of a group of rows; `records` are those of its setup, `samples` those of all setups."""
    ok = [place for place, record in enumerate(block.records) if record.status == "ok"]
    dense = next((place for place in ok if block.records[place].cell["method"] == "dense"), None)
    cells = {number: r for place in ok for number, r in zip(block.numbers[place], block.drawn[place], strict=True)}
    seeds = {next(iter(model.values())): model for place in ok for model in block.models(place)}
    pairs = all_pairs(list(seeds))
    return TestedRow(
        block,
        dense,
        [place for place in ok if block.records[place].cell["method"] != "dense"],
        {text: contrasts.perplexity(cells, pairs, samples, text, seeds=seeds) for text in texts(records)},
        contrasts.average(cells, pairs, samples, accuracies(records), seeds=seeds),
        contrasts.average(cells, pairs, samples, answered(records), ANSWER_BPB, seeds=seeds),
    )
