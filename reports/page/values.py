"""A cell of a table as the script of the page shows it."""

from __future__ import annotations

import math
from typing import Any

from bench.records.quantity import is_finite
from bench.stats.intervals import NORMAL_95
from reports.tables.table import TableCell


def value_of_cell(cell: TableCell, may_be_guess: bool = False) -> list[Any]:
    """Return the value, its text, its spread as text, the ends of its interval, and 1 if it may be that of guesses."""
    if not isinstance(cell.value, int | float) or not is_finite(cell.value):
        return [None, str(cell.text), "", None, None, 0]
    low, high = cell.low, cell.high
    if (low is None or high is None) and cell.stderr is not None:
        low, high = (cell.value + sign * NORMAL_95 * cell.stderr for sign in (-1, 1))
    beside = cell.text.removeprefix(cell.short).strip()
    return [_short(cell.value), cell.short, beside, _short(low), _short(high), int(may_be_guess)]


def _short(value: float | None) -> float | None:
    """Return a number with six digits, which is enough to draw and to sort by; None where it has no end."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
