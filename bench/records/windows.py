"""Gives the perplexities of earlier versions the intervals of windows that follow each other in their text.

Earlier versions read the first windows of a text and computed intervals as if they had been drawn from all of it, which
are too narrow (bench.stats.clusters). Entries of such records have no `drawn`. Their interval is computed again where
their records are read, from the nats of each window in the samples; where there are none, and for the divergence from
the dense model, of which single windows were not kept, the record has no interval. The files stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.records.record import InvalidRecord, Record, text_name
from bench.records.sample_tables import are_figures
from bench.stats.clusters import ratio_interval

if TYPE_CHECKING:
    from bench.records.samples import SampleFiles

PERPLEXITY, KL = ("perplexity_low", "perplexity_high"), ("kl_low", "kl_high")


def completed(record: Record, folder: Path, files: SampleFiles) -> Record:
    """Return a record whose intervals over windows know how the windows lie in the text.

    folder, files   of its samples, see bench.records.samples.SampleFiles
    """
    measured, found = record.measured, {}
    texts = measured.get("perplexity", {})
    if earlier := {name: text for name, text in texts.items() if "drawn" not in text}:
        again = {name: _with_interval(record, name, folder, files) for name, text in earlier.items()}
        found["perplexity"] = texts | again
    checks = measured.get("checks", {})
    if "drawn" not in checks and any(name in checks for name in KL):
        found["checks"] = _without(checks, KL)
    return replace(record, measured=measured | found) if found else record


def in_a_row(text: Mapping[str, Any]) -> bool:
    """Say whether the windows behind the figures of a text in a record follow each other, or else are drawn."""
    return not text.get("drawn", False)


def with_interval(text: Mapping[str, Any], nll: Sequence[float], tokens: Sequence[float]) -> dict[str, Any]:
    """Return the figures of a text of an earlier version with the interval of windows in a row.

    nll, tokens   nats, and tokens that are scored, of each window
    """
    found = _without(text, PERPLEXITY)
    if len(nll) < 2 or not are_figures(np.asarray(nll, dtype=float)):
        return found
    with suppress(OverflowError):
        low, high = map(math.exp, ratio_interval(nll, tokens, in_a_row=True))
        found |= dict(zip(PERPLEXITY, (low, high), strict=True))
    return found


def _with_interval(record: Record, name: str, folder: Path, files: SampleFiles) -> dict[str, Any]:
    table, text = None, record.measured["perplexity"][name]
    with suppress(InvalidRecord):  # damaged samples are refused where they are what was asked for
        table = files.table(record, folder, f"perplexity-{text_name(name)}", ("nll", "tokens"))
    if table is None or not {"nll", "tokens"} <= set(table.column_names):
        return _without(text, PERPLEXITY)
    return with_interval(text, table["nll"].to_pylist(), table["tokens"].to_pylist())


def _without(entry: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in names}
