"""Reads the samples that a run keeps of its cells: a row for each document of a task or window of a text.

The samples of a cell are called by the folder RUN/samples/KEY. A run in progress has that folder, with NAME.parquet for
each task or text; a packed run (bench.records.packed_run) has RUN/samples/NAME.parquet for all cells instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.records import answers
from bench.records.record import InvalidRecord
from methods.files import sha256

CELL = "cell"  # the column of a packed file that says whose a row is
UNITS = ("doc_hash", "doc_id", "tokens")  # the column that tells documents or windows apart, the surest first


@dataclass(frozen=True)
class Sample:
    """Hold a figure for each document or window; units are documents' hashes or numbers, or windows' tokens."""

    units: Any
    figures: NDArray[np.float64]


class SampleFiles:
    """Reads the tables of samples of any cells, packed or not; a packed file is read once for all its cells."""

    def __init__(self) -> None:
        self._packed: dict[tuple[Path, tuple[str, ...]], dict[str, Any]] = {}

    def table(self, folder: Path, name: str, columns: Sequence[str] = ()) -> Any | None:
        """Return the pyarrow.Table of a task, or of a text by "perplexity-TEXT", of the cell with this folder.

        With `columns` given it has those of them that there are, else all. None where the cell has no such samples.
        Raises InvalidRecord where a file is damaged.
        """
        own, packed = folder / f"{name}.parquet", folder.parent / f"{name}.parquet"
        if own.is_file():
            return read_table(own, columns)
        known = (packed, tuple(columns))
        if known not in self._packed:
            self._packed[known] = _packed_tables(packed, columns)
        return self._packed[known].get(folder.name)


class Samples:
    """Reads single figures of the samples of some records, each once. A folder that is None has no samples."""

    def __init__(self, folders: Sequence[Path | None] = ()) -> None:
        self._folders = folders
        self._files = SampleFiles()
        self._read: dict[tuple[int, str, str], Sample | None] = {}

    def of(self, number: int, name: str, figure: str) -> Sample | None:
        """Return a figure of each document of a task, or window of "perplexity-TEXT", of the record at a place.

        None where there are not two, or no telling which they are. Raises InvalidRecord where a file is damaged.
        """
        key = (number, name, figure)
        if key not in self._read:
            folder = self._folders[number] if number < len(self._folders) else None
            columns = (*UNITS, figure, *(answers.NEEDED if figure == answers.NAME else ()))
            table = self._files.table(folder, name, columns) if folder else None
            self._read[key] = None if table is None else _sample(name, table, figure)
        return self._read[key]


def _sample(name: str, table: Any, figure: str) -> Sample | None:
    unit = next((name for name in UNITS if name in table.column_names), None)
    if unit is None or table.num_rows < 2:
        return None
    if figure == answers.NAME:
        found = answers.of_documents(name, table)
        return None if found is None or not np.isfinite(found).all() else Sample(table[unit], found)
    if figure not in table.column_names:
        return None
    return Sample(table[unit], np.array(table[figure].to_pylist(), dtype=float))  # to_numpy would import pandas


def read_table(path: Path, columns: Sequence[str] = ()) -> Any:
    """Read a Parquet file, or those of the columns that it has. Raises InvalidRecord where it is damaged."""
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            known = file.schema_arrow.names
            return file.read(columns=[name for name in known if not columns or name in columns], use_threads=False)
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise InvalidRecord(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from None


def refuse_damaged(folder: Path, measured: Mapping[str, Any]) -> None:
    """Raise InvalidRecord where a file of samples that a record's `measured` names is missing or another one."""
    for name, entry in measured.get("samples", {}).items():
        path = folder / f"{name}.parquet"
        if not path.is_file() or sha256(path) != entry["sha256"]:
            raise InvalidRecord(f"{path} is missing or not the file that was written")


def _packed_tables(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    """Read a packed file: {key: the table of that cell}, each without the columns that only other cells have."""
    if not path.is_file():
        return {}
    table, found, start = read_table(path, (CELL, *columns) if columns else ()), {}, 0
    for key, rows in groupby(table[CELL].to_pylist()):
        length = len(list(rows))
        part = table.slice(start, length).drop_columns([CELL])
        found[key] = part.drop_columns([name for name in part.column_names if part[name].null_count == length])
        start += length
    return found


def alike(samples: Mapping[int, Sample | None], conditions: Mapping[int, Any]) -> dict[int, int]:
    """Return {a record's place: the first place that saw the same}, without those that have no sample.

    The same are equal documents or windows in the same order, under equal conditions.
    """
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
