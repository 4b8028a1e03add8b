"""The samples that a run has kept of its cells: one figure for each document of a task or window of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.records.record import InvalidRecord

UNITS = ("doc_hash", "doc_id", "tokens")  # the column that tells documents or windows apart, the surest first


@dataclass(frozen=True)
class Sample:
    """A figure for each document or window; units: a column of the documents' hashes or numbers, or windows' tokens."""

    units: Any
    figures: NDArray[np.float64]


class Samples:
    """The samples of some records, each file read once. A folder that is None, or lacks a file, has none."""

    def __init__(self, folders: Sequence[Path | None] = ()) -> None:
        self._folders = folders
        self._read: dict[tuple[int, str, str], Sample | None] = {}

    def of(self, number: int, name: str, figure: str) -> Sample | None:
        """One figure of each document of a task, or window of a text by "perplexity-TEXT", of the record at this place.

        None where there are not two, or no telling which they are. Raises InvalidRecord where a file is damaged.
        """
        key = (number, name, figure)
        if key not in self._read:
            folder = self._folders[number] if number < len(self._folders) else None
            path = folder / f"{name}.parquet" if folder else None
            self._read[key] = _read(path, figure) if path and path.is_file() else None
        return self._read[key]


def _read(path: Path, figure: str) -> Sample | None:
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            unit = next((name for name in UNITS if name in names), None)
            if unit is None or figure not in names or file.metadata.num_rows < 2:
                return None
            table = file.read(columns=[unit, figure], use_threads=False)
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise InvalidRecord(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from None
    return Sample(table[unit], np.array(table[figure].to_pylist(), dtype=float))  # to_numpy would import pandas


def alike(samples: Mapping[int, Sample | None], conditions: Mapping[int, Any]) -> dict[int, int]:
    """{record's place: the first place that saw the same}: the same documents or windows in the same order, and equal
    conditions. A record without a sample is left out."""
    first: list[int] = []
    found: dict[int, int] = {}
    for place, sample in samples.items():
        if sample is None:
            continue
        for other in first:
            known = samples[other]
            if conditions[other] == conditions[place] and known and known.units.equals(sample.units):
                found[place] = other
                break
        else:
            first.append(place)
            found[place] = place
    return found
