"""Reads the samples of cells, a row for each document of a task or window of a text, and pairs those of two cells.

The samples of a cell are named by the folder RUN/samples/KEY. A run in progress has that folder, with NAME.parquet for
each task or text. A packed run (bench.records.packed_run) has RUN/samples/NAME.parquet for all cells instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.records import packed_run
from bench.records.record import Record
from bench.records.sample_tables import (
    is_file,
    is_finite_throughout,
    read_packed_tables,
    read_table,
    refuse_rows_of_other_values,
    refuse_unfit_file,
    require_columns,
)

HASHES = ("doc_hash", "prompt_hash", "target_hash")
UNITS = (*HASHES, "doc_id", "tokens")  # columns that tell documents or windows apart
LIKELIEST = "likeliest"  # the place of the likeliest choice of a document, which follows from a column
COLUMN_OF_FIGURE = {LIKELIEST: "loglikelihoods"}


@dataclass(frozen=True)
class Sample:
    """Holds a value for each document or window.

    units   what tells them apart: of a document "DOCUMENT:PROMPT:TARGET" by their hashes, or "TASK NUMBER" without
            these; of a window (place, scored tokens)
    source  what the units are of, where they do not say it themselves: a text's hash, window and stride
    """

    units: tuple[Any, ...]
    values: NDArray[np.float64]
    source: tuple[Any, ...] = ()

    @cached_property
    def sorted_units(self) -> tuple[Any, ...]:
        """Return the units in an order that does not depend on that of the sample."""
        return tuple(sorted(self.units))

    @cached_property
    def documents(self) -> tuple[str, ...]:
        """Return the units without prompts and targets."""
        return tuple(str(unit).partition(":")[0] for unit in self.units)

    @cached_property
    def is_right_or_wrong(self) -> bool:
        """Return whether every value is 1 or 0 for right or wrong."""
        return bool(np.isin(self.values, (0, 1)).all())

    def take(self, places: Sequence[int]) -> Self:
        """Return the sample of the units at these places."""
        return replace(self, units=tuple(self.units[place] for place in places), values=self.values[list(places)])


AnySample = TypeVar("AnySample", bound=Sample)


class Pair(NamedTuple, Generic[AnySample]):
    """Holds two samples of the same documents or windows in the same order."""

    first: AnySample
    second: AnySample

    @property
    def differences(self) -> NDArray[np.float64]:
        """Return the second's value minus the first's of each unit."""
        return self.second.values - self.first.values


def pair(first: AnySample, second: AnySample) -> Pair[AnySample]:
    """Return two samples on the units that both have, in the order of the first.

    A unit that comes several times is paired as often as both have it. Units of two sources are never the same.
    """
    if first.source != second.source:
        return Pair(first.take(()), second.take(()))
    if first.units is second.units or first.units == second.units:
        return Pair(first, second)
    place_by_unit = {unit: place for place, unit in enumerate(_number_units(second.units))}
    shared = [(at, unit) for at, unit in enumerate(_number_units(first.units)) if unit in place_by_unit]
    return Pair(first.take([at for at, _ in shared]), second.take([place_by_unit[unit] for _, unit in shared]))


def _number_units(units: Sequence[Hashable]) -> list[tuple[Hashable, int]]:
    """Return each unit with the number of equal ones in front of it."""
    count_by_unit: dict[Hashable, int] = {}
    numbered = []
    for unit in units:
        count_by_unit[unit] = count_by_unit.get(unit, 0) + 1
        numbered.append((unit, count_by_unit[unit]))
    return numbered


def pair_whole(first: AnySample | None, second: AnySample | None) -> Pair[AnySample] | None:
    """Return two samples as `pair` does if they have the same units in any order; else None."""
    if first is None or second is None or first.source != second.source:
        return None
    same = first.units is second.units or first.sorted_units == second.sorted_units
    return pair(first, second) if same else None


class SampleFiles:
    """Reads the tables of samples of any cells, packed or not, and checks each against the record of its cell once.

    A packed file is read once for all its cells.
    """

    def __init__(self) -> None:
        self._packed: dict[Path, dict[str, Any]] = {}
        self._rows: dict[Path, dict[str, dict[str, str]]] = {}
        self._fitting = set[Path]()

    def table(self, record: Record | None, folder: Path, name: str, columns: Sequence[str] = ()) -> Any | None:
        """Return the pyarrow.Table of a task, or of a text by "perplexity-TEXT", of the cell with this folder.

        It has all columns, or those of `columns` that there are. None where the cell has no such samples. Raises
        InvalidRecord where a file is damaged, and where it does not fit the record.
        """
        own = folder / f"{name}.parquet"
        if not is_file(own):
            return self._of_packed(record, folder, name, columns)
        if record and own not in self._fitting:
            refuse_unfit_file(own, record.measured)
            self._fitting.add(own)
        return require_columns(own, read_table(own, columns))

    def _of_packed(self, record: Record | None, folder: Path, name: str, columns: Sequence[str]) -> Any | None:
        packed, run = folder.parent / f"{name}.parquet", folder.parent.parent
        if packed not in self._packed:
            self._packed[packed] = read_packed_tables(packed)
        table = self._packed[packed].get(folder.name)
        if table is None:
            return None
        if record and folder / name not in self._fitting:
            if run not in self._rows:
                self._rows[run] = packed_run.rows_of_cells(run)
            packed_run.refuse_other_rows(packed, folder.name, table, self._rows[run].get(folder.name, {}))
            refuse_rows_of_other_values(f"{packed}: {folder.name}", name, table, record.measured)
            self._fitting.add(folder / name)
        return table.select([column for column in table.column_names if not columns or column in columns])


class Samples:
    """Reads single columns of the samples of given records, each once, and whole rows.

    folders  of the records, in their order; None for one without samples
    records  that the samples are checked against; none where they are not checked
    files    reads the tables, and keeps those that it has read
    """

    def __init__(
        self,
        folders: Sequence[Path | None] = (),
        records: Sequence[Record] = (),
        files: SampleFiles | None = None,
    ) -> None:
        self._folders = folders
        self._records: Sequence[Record | None] = records or [None] * len(folders)
        self._files = files or SampleFiles()
        self._read: dict[tuple[int, str, str], Sample | None] = {}
        self._units: dict[tuple[Any, ...], tuple[Any, ...]] = {}  # so that equal units are one object

    def of(self, number: int, name: str, figure: str) -> Sample | None:
        """Return a column of each document of a task, or window of "perplexity-TEXT", of the record at a place.

        Of a document there is also LIKELIEST. None where there are fewer than two rows, where one lacks the value, and
        where no column of UNITS tells the rows apart. Raises InvalidRecord where a file is damaged or does not fit its
        record.
        """
        key = (number, name, figure)
        if key not in self._read:
            folder = self._folders[number] if number < len(self._folders) else None
            columns = (*UNITS, COLUMN_OF_FIGURE.get(figure, figure))
            table = self._files.table(self._records[number], folder, name, columns) if folder else None
            sample = None if table is None or table.num_rows < 2 else sample_of_table(table, name, figure)
            self._read[key] = sample and replace(sample, units=self._units.setdefault(sample.units, sample.units))
        return self._read[key]

    def rows(self, number: int, name: str, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the rows of a task, or of CONTINUATIONS, of the record at a place, with those of `columns` it has.

        There are none without samples. Raises InvalidRecord where a file is damaged or does not fit its record.
        """
        folder = self._folders[number] if number < len(self._folders) else None
        table = self._files.table(self._records[number], folder, name, columns) if folder else None
        return [] if table is None else table.to_pylist()


def sample_of_table(table: Any, name: str, figure: str) -> Sample | None:
    """Return a column of a pyarrow.Table of samples of a task or text, or LIKELIEST.

    None where it is missing, is empty or lacks a finite value, and where no column of UNITS tells the rows apart.
    """
    columns, units = table.column_names, list[Any]()
    if "doc_hash" in columns:
        hashes = [table[column].to_pylist() for column in HASHES if column in columns]
        units += map(":".join, zip(*hashes, strict=True))
    elif "doc_id" in columns:
        units += (f"{name} {number}" for number in table["doc_id"].to_pylist())
    elif "tokens" in columns:
        units += enumerate(table["tokens"].to_pylist())
    column = COLUMN_OF_FIGURE.get(figure, figure)
    if not units or column not in columns:
        return None
    rows = table[column].to_pylist()  # to_numpy would import pandas
    if figure == LIKELIEST:
        if min(map(len, rows)) < 2:
            return None
        rows = [likelihoods.index(max(likelihoods)) for likelihoods in rows]
    values = np.array(rows, dtype=float)
    return Sample(tuple(units), values) if is_finite_throughout(values) else None
