"""The rows of one ratio with what is shown about them, and how sentences speak of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.record import Record
from reports import contrasts
from reports.blocks import Block
from reports.contrasts import Contrasts, all_pairs
from reports.frame import accuracies, removed_too_little, texts
from reports.metrics import finite, metric, shown
from reports.samples import Samples

NAMES = 5  # as many are listed before the rest is counted


@dataclass(frozen=True)
class Tested:
    """A block with the tests between its cells.

    dense       the place of the dense model's row, None where it has no figures
    rows        the places of the other rows that have figures
    perplexity  by text;  average  of the accuracies
    """

    block: Block
    dense: int | None
    rows: list[int]
    perplexity: dict[str, Contrasts]
    average: Contrasts

    def where(self) -> str:
        """'At ratio 0.3'."""
        return "With the methods' own parameters" if self.block.ratio is None else f"At ratio {self.block.ratio:g}"

    def eligible(self) -> list[int]:
        """The places that can win: a cell that removed too little cannot."""
        return [place for place in self.rows if not removed_too_little(self.block.records[place])]

    def ordered(self, places: Sequence[int], column: str, better: str) -> list[int]:
        """The places with a finite figure, the best first; equal ones in the order of the run."""
        sign = -1 if better == "higher" else 1
        known = [place for place in places if finite(self.block.rows[place].get(column))]
        return sorted(known, key=lambda place: sign * self.block.rows[place][column])

    def figure(self, place: int, column: str) -> str:
        """'36.8 ± 6.2', with its unit."""
        unit = metric(column).unit if not metric(column).unit_in_cell else ""
        return f"{shown(self.block.rows[place], column)} {unit}".strip()

    def name(self, place: int) -> str:
        """The method, and whether its figures are a mean over draws."""
        draws = len(self.block.numbers[place])
        return self.block.label(place) + (f" (mean of {draws} draws)" if draws > 1 else "")

    def names(self, places: Sequence[int]) -> str:
        """The methods in this order; many are counted."""
        names = [self.block.label(place) for place in places]
        more = len(names) - NAMES
        return ", ".join(names) if more <= 1 else f"{', '.join(names[:NAMES])} and {more} more"

    def shown(self, side: str, places: Sequence[int], rest: Sequence[int]) -> str:
        """'shown to be below all 5 others', or below how many and, the nearest first, not below whom."""
        others = "the other one" if len(rest) == 1 else f"{len(rest)} others"
        if len(places) == len(rest):
            return f"shown to be {side} {others if len(rest) == 1 else f'all {others}'}"
        if not places:
            return f"not shown to be {side} {others if len(rest) == 1 else f'any of the {others}'}"
        unshown = [place for place in rest if place not in places]
        return f"shown to be {side} {len(places)} of {others}; not {side} {self.names(unshown)}"


def tested_block(records: Sequence[Record], block: Block, samples: Samples) -> Tested:
    """The block with every pair of its cells tested; records: those of its setup, samples: those of all setups."""
    ok = [place for place, record in enumerate(block.records) if record.status == "ok"]
    dense = next((place for place in ok if block.records[place].cell["method"] == "dense"), None)
    cells = {number: r for place in ok for number, r in zip(block.numbers[place], block.drawn[place], strict=True)}
    pairs = all_pairs(list(cells))
    return Tested(
        block,
        dense,
        [place for place in ok if block.records[place].cell["method"] != "dense"],
        {text: contrasts.perplexity(cells, pairs, samples, text) for text in texts(records)},
        contrasts.average(cells, pairs, samples, accuracies(records)),
    )


def end_of(row: Mapping[str, Any], column: str, end: str) -> float:
    """The "low" or "high" end of an interval; the figure itself where it has none."""
    found = row.get(f"{column}_{end}")
    return float(row[column] if found is None else found)
