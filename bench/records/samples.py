"""Reads the samples of cells: a row for each document of a task or window of a text.

The samples of a cell are named by the folder RUN/samples/KEY. A run in progress has that folder, with NAME.parquet for
each task or text. A packed run (bench.records.packed_run) has RUN/samples/NAME.parquet for all cells instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.records import packed_run
from bench.records.record import Record
from bench.records.sample_tables import (
    is_file,
    is_finite_throughout,
    read_packed_tables,
    read_table,
    refuse_other_figures,
    refuse_unfit_file,
    require_columns,
)

UNITS = ("doc_hash", "doc_id", "tokens")  # columns that tell documents or windows apart, the surest first


@dataclass(frozen=True)
class Sample:
    """Holds a value for each document or window; units are documents' hashes or numbers, or windows' tokens."""

    units: Any
    figures: NDArray[np.float64]


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
            refuse_other_figures(f"{packed}: {folder.name}", name, table, record.measured)
            self._fitting.add(folder / name)
        return table.select([column for column in table.column_names if not columns or column in columns])


class Samples:
    """Reads single columns of the samples of given records, each once.

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

    def of(self, number: int, name: str, figure: str) -> Sample | None:
        """Return a column of each document of a task, or window of "perplexity-TEXT", of the record at a place.

        None where there are fewer than two rows, where one lacks the value, and where no column of UNITS tells the rows
        apart. Raises InvalidRecord where a file is
        damaged or does not fit its record.
        """
        key = (number, name, figure)
        if key not in self._read:
            folder = self._folders[number] if number < len(self._folders) else None
            table = self._files.table(self._records[number], folder, name, (*UNITS, figure)) if folder else None
            self._read[key] = None if table is None else _sample(table, figure)
        return self._read[key]


def _sample(table: Any, figure: str) -> Sample | None:
    unit = next((name for name in UNITS if name in table.column_names), None)
    if unit is None or table.num_rows < 2 or figure not in table.column_names:
        return None
    values = np.array(table[figure].to_pylist(), dtype=float)  # to_numpy would import pandas
    return Sample(table[unit], values) if is_finite_throughout(values) else None


def find_alike(samples: Mapping[int, Sample | None], conditions: Mapping[int, Any]) -> dict[int, int]:
    """Return {a record's place: the first place with an alike sample}, without places that have no sample.

    Samples are alike that have equal documents or windows in the same order, under equal conditions.
    """
    first: list[int] = []
    alike: dict[int, int] = {}
    for place, sample in samples.items():
        if sample is None:
            continue
        for earlier in first:
            earlier_sample = samples[earlier]
            if (
                conditions[earlier] == conditions[place]
                and earlier_sample
                and earlier_sample.units.equals(sample.units)
            ):
                alike[place] = earlier
                break
        else:
            first.append(place)
            alike[place] = place
    return alike
