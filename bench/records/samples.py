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
from methods.errors import first_line
from methods.files import sha256

CELL = "cell"  # the column of a packed file that says whose a row is
MOST = 1e100  # beyond any figure
FIGURES = "numbers"  # what every column holds that COLUMNS does not name: a metric, null where a document has none
COLUMNS = {
    **dict.fromkeys((CELL, "doc_hash", "prompt_hash", "target_hash"), "texts"),
    **dict.fromkeys(("doc_id", "tokens"), "whole numbers"),
    "target": "whole numbers or texts",
    "loglikelihoods": "lists of numbers",
    "greedy": "lists of true and false",
    "responses": "lists of texts",
}
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
            return _complete(own, read_table(own, columns))
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

        None where there are not two, one has none, or no telling which they are. Raises InvalidRecord where a file is
        damaged.
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
        return None if found is None or not are_figures(found) else Sample(table[unit], found)
    if figure not in table.column_names:
        return None
    found = np.array(table[figure].to_pylist(), dtype=float)  # to_numpy would import pandas
    return Sample(table[unit], found) if are_figures(found) else None


def are_figures(values: NDArray[np.float64]) -> bool:
    """Say whether all values are numbers that can be squared and summed."""
    return bool((np.abs(values) < MOST).all())  # nan is not


def read_table(path: Path, columns: Sequence[str] = ()) -> Any:
    """Read a Parquet file, or those of the columns that it has. Raises InvalidRecord where it holds no samples.

    That is where it is damaged, where a column stands there twice, and where one holds other than COLUMNS says.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            known = file.schema_arrow.names
            if twice := [name for name in known if known.count(name) > 1]:
                raise InvalidRecord(f"{path} has the column {twice[0]!r} twice; copy the file again")
            wanted = [name for name in known if not columns or name in columns]
            table = file.read(columns=wanted, use_threads=False)
        table.validate(full=True)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InvalidRecord(f"{path} cannot be read: {first_line(error)}") from None
    for field in table.schema:
        if (held := COLUMNS.get(field.name, FIGURES)) not in _kinds(field.type):
            raise InvalidRecord(f"{path}: column {field.name!r} holds values of type {field.type}, not {held}")
    return table.replace_schema_metadata(None)  # what pandas would read of it


def _kinds(kind: Any) -> tuple[str, ...]:
    """Return what values of a pyarrow type may be called in COLUMNS."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return tuple(f"lists of {inner}" for inner in _kinds(kind.value_type))
    if types.is_integer(kind):
        return ("whole numbers", FIGURES, "whole numbers or texts")
    if types.is_boolean(kind):
        return ("true and false", FIGURES)
    if types.is_string(kind) or types.is_large_string(kind):
        return ("texts", "whole numbers or texts")
    return (FIGURES,) if types.is_floating(kind) else ()


def _complete(path: Path, table: Any) -> Any:
    """Return a table of the samples of one cell. Raises InvalidRecord where a column but a figure's has gaps."""
    if gaps := [name for name in table.column_names if name in COLUMNS and table[name].null_count]:
        raise InvalidRecord(f"{path}: column {gaps[0]!r} lacks values of some rows; copy the file again")
    return table


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
    if CELL not in table.column_names:
        raise InvalidRecord(f"{path} has no column {CELL!r}, which says whose a row is; copy the file again")
    for key, rows in groupby(table[CELL].to_pylist()):
        length = len(list(rows))
        part = table.slice(start, length).drop_columns([CELL])
        part = part.drop_columns([name for name in part.column_names if part[name].null_count == length])
        found[key] = _complete(path, part)
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
