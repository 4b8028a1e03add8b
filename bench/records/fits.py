"""Reads from a record how well the fits of its compensation or of LaCo-LS hold on sequences that they have not seen.

Each fit notes error_before, error_after and error_held_out, ||y - z||^2 / ||z||^2 over the tokens that are no attention
sinks, and the same over the sinks (methods/least_squares.py). error_held_out is that of a solution of three quarters of
the sequences, over the last quarter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.records.record import Record

FAR = 2.0  # held-out errors are far above the fitted ones from so many times them on
SMALL = 0.01  # a share of the squared state that may be missed, whatever the fitted ones are


def fits(record: Record) -> list[dict[str, Any]]:
    """Return what the record says of each fit, in the order in which they were made: windows, then a compensation."""
    mended = record.decisions.get("compensation", {})
    lists = record.decisions.get("errors"), mended.get("cuts"), mended.get("refitted")
    return [one for found in lists for one in found or [] if "error_after" in one]


def misfits(record: Record) -> Iterator[tuple[str, str, float, float]]:
    """Yield (where, of which tokens, fitted and held-out error) of each fit that does not hold on other sequences."""
    for one in fits(record):
        for tokens, errors in (("tokens", one), ("attention sinks", one.get("sinks", {}))):
            held_out = errors.get("error_held_out")
            if held_out is not None and held_out > max(FAR * errors["error_after"], SMALL):
                yield _where(one), tokens, errors["error_after"], held_out


def _where(one: dict[str, Any]) -> str:
    """Say where a fit was made: behind what is left at a cut, in a block, or for a window of layers."""
    if "window" in one:
        first, last = one["window"]
        return f"for layers {first} to {last}"
    if "part" in one:
        return f"of {one['part']} {one['layer']}"
    return f"for {', '.join(one['removed'])}"
