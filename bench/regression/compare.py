"""Compares the cells of two runs: what the second has more, and whether that can be told from chance.

run, run -> pairs of cells -> [ComparedRow] (bench.regression.compared_rows) -> [Judged]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.records import run_folder
from bench.regression import cell_results
from bench.regression.cell_results import CellResults
from bench.regression.compared_rows import ComparedRow
from bench.stats import intervals
from methods.errors import UserError

ALPHA = 0.05  # below which an adjusted p value is called a difference


@dataclass(frozen=True)
class Judged:
    """Hold a row and its verdict.

    p           adjusted for all that the comparison tests; None where there is none
    detectable  the smallest true change that is found with the probability bench.stats.intervals.POWER at the strictest
                level that the adjustment gives a test, in the scale of ComparedRow.change
    """

    cells: str
    row: ComparedRow
    p: float | None
    verdict: str
    detectable: float | None = None


def sides(a: str, b: str) -> list[tuple[str, CellResults, CellResults]]:
    """Return (name, cell of A, cell of B) of the two that are named, or of two runs by label, ratio and seed."""
    one, other = _side(a), _side(b)
    if not any(run_folder.is_run(Path(named)) for named in (a, b)):
        (first,), (second,) = one.values(), other.values()
        pairs = [(first.name if first.name == second.name else f"{first.name} → {second.name}", first, second)]
    else:
        pairs = [(name, one[name], other[name]) for name in one if name in other]
    if not pairs:
        raise UserError(
            f"no cell of {a} has label, ratio and seed of one of {b}: {'; '.join(one)} against {'; '.join(other)}; "
            "name two cells as RUN/CELL"
        )
    return pairs


def _side(named: str) -> dict[str, CellResults]:
    """Return the cells of a run folder, or the one cell of RUN/CELL, by its key, the start of one, or its label."""
    if run_folder.is_run(Path(named)):
        return cell_results.of_run(Path(named))
    found = run_folder.split(named)
    if found is None:
        raise UserError(f"{named} is neither a run folder nor a cell of one, as RUN/CELL")
    run, wanted = found
    key, record = run_folder.cell(run, wanted)
    cell = cell_results.of_cell(record, run, key)
    return {cell.name: cell}


def refusal(pairs: Mapping[str, Sequence[ComparedRow]]) -> str | None:
    """Say in one line why these cells cannot be compared; None if they can."""
    found: dict[str, str] = {}
    for cells, compared in pairs.items():
        for row in compared:
            for name, words in row.differs:
                found.setdefault(name, f"{name} ({words} in {cells}, for {row.metric})")
    if not found:
        return None
    return f"not comparable, these differ: {'; '.join(found.values())}; --allow {','.join(found)} compares all the same"


def judged(pairs: Mapping[str, Sequence[ComparedRow]]) -> list[Judged]:
    """Judge every row; the p values are adjusted (intervals.holm) for the number of them in the table."""
    every = [(cells, row) for cells, compared in pairs.items() for row in _without_repetition(compared)]
    tested = [number for number, (_, row) in enumerate(every) if row.difference and not np.isnan(row.difference.p)]
    adjusted = intervals.holm([every[number][1].difference.p for number in tested])  # type: ignore[union-attr]
    p = dict(zip(tested, adjusted, strict=True))
    found = []
    for number, (cells, row) in enumerate(every):
        detectable = row.detectable(ALPHA / len(tested)) if number in p else None
        found.append(Judged(cells, row, p.get(number), _verdict(row, p.get(number)), detectable))
    return found


def _without_repetition(compared: Sequence[ComparedRow]) -> list[ComparedRow]:
    """Return the rows without the figure over all tasks where there is one task, whose row says the same."""
    kinds = [row.kind for row in compared]
    same = [whole for whole, one in (("accuracy", "task"), ("bits", "bits of a task")) if kinds.count(one) == 1]
    return [row for row in compared if row.kind not in same]


def _verdict(row: ComparedRow, p: float | None) -> str:
    if row.before is None or row.after is None:
        return "only in B" if row.before is None else "only in A"
    if row.kind == "size":
        return "same" if row.before == row.after else "smaller" if row.after < row.before else "larger"
    if row.difference is None:
        return "not paired"
    _, low, high = row.changes
    if p > ALPHA if p is not None else low <= 0 <= high:
        return "no difference shown"
    if row.kind == "task" and not row.is_accuracy:
        return "differs"  # which way is better is not known of every metric
    return "better" if row.change > 0 else "worse"
