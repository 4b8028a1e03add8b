"""The methods of a run of docs/results at one ratio: their order, and what the tests of all pairs show."""

from __future__ import annotations

from functools import cache
from itertools import combinations

from pages import ROOT

from bench.records import run_folder
from bench.records.selection import Selection
from reports.tables import rows as tested_rows


class TestedRun:
    """A model of a run, by its ratios."""

    __test__ = False  # it is no test

    def __init__(self, name: str, model: str) -> None:
        self.merged = run_folder.load_runs([ROOT / "docs/results" / name], Selection(models=[model]))
        data = tested_rows.ReportData(self.merged.records, "", self.merged.samples)
        self.by_ratio: dict[float, tested_rows.GroupTests] = {}
        for group in data.groups:
            if group.ratio is not None:
                every = [row for drawn in group.drawn for row in drawn]
                self.by_ratio[group.ratio] = tested_rows.GroupTests(group, self.merged.samples, every)

    def order(self, ratio: float, column: str) -> list[str]:
        """Return the methods at a ratio, that of the lowest figure first; of the average, that of the highest."""
        rows = self.by_ratio[ratio]
        places = rows.order(rows.rows, column, "higher" if column == "average" else "lower")
        return [rows.group.label(place) for place in places]

    def place(self, ratio: float, method: str) -> int:
        rows = self.by_ratio[ratio]
        return next(row for row in rows.rows if rows.group.label(row) == method)

    def value(self, ratio: float, method: str, column: str) -> float:
        return self.by_ratio[ratio].group.rows[self.place(ratio, method)][column]

    def unshown(self, ratio: float, method: str, column: str) -> list[str]:
        """Return the methods of which the tests of all pairs do not show that they have more than `method`."""
        rows, mine = self.by_ratio[ratio], self.place(ratio, method)
        others = [label for label in self.order(ratio, column) if label != method]
        return [label for label in others if not rows.has_more(self.place(ratio, label), mine, column)]

    def pairs_shown(self, ratio: float, column: str) -> tuple[int, int]:
        """Return how many pairs of methods a measure tells apart, and how many there are."""
        rows = self.by_ratio[ratio]
        pairs = list(combinations(rows.rows, 2))
        return sum(rows.has_more(a, b, column) or rows.has_more(b, a, column) for a, b in pairs), len(pairs)


@cache
def load_run(name: str, model: str = "smollm2-135m") -> TestedRun:
    return TestedRun(name, model)
