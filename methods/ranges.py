"""Writes numbers as ranges, 3+20-24, and reads them."""

from __future__ import annotations

from collections.abc import Iterable


def write_ranges(numbers: Iterable[int], between: str = "+") -> str:
    """Return [3, 20, 21, 22] as "3+20-22"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return between.join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_ranges(text: str) -> list[tuple[int, int]]:
    """Return the first and last number of each range of "3+20-22". Raises ValueError."""
    pieces = list[tuple[int, int]]()
    for piece in filter(None, text.split("+")):
        first, dash, last = piece.partition("-")
        try:
            ends = int(first), int(last if dash else first)
        except ValueError:
            raise ValueError(f"numbers and ranges are joined by +, as in 3+20-24; got {piece!r}") from None
        if ends[1] < ends[0]:
            raise ValueError(f"a range names its lower end first, as in 20-24; got {piece!r}")
        pieces.append(ends)
    return pieces


def read_numbers(text: str) -> list[int]:
    """Return the numbers that lie in the ranges of a text, rising. Raises ValueError."""
    return sorted({number for first, last in read_ranges(text) for number in range(first, last + 1)})
