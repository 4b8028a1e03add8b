"""Reads the tables of samples from their files, and checks that they fit the record of their cell.

A file of samples fits where its sha256 is the one that the record names; in a packed run the rows have the sha256 with
which they were packed. And the record's own values have to follow from the rows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.plan.protocol import name_of_samples
from bench.records.measured import ANSWER_BPB, Measured, TaskScore
from bench.records.record import InvalidRecord
from methods.errors import first_line_of
from methods.files import hash_file

CONTINUATIONS = "continuations"  # the samples of the checks: what was written behind each prompt
CELL = "cell"  # the column of a packed file that says whose a row is
MOST = 1e100  # beyond any figure
FIGURES = "numbers"  # what every column holds that COLUMNS does not name: a metric, null where a document has none
COLUMNS = {
    **dict.fromkeys((CELL, "doc_hash", "prompt_hash", "target_hash", "check", "prompt", "written"), "texts"),
    **dict.fromkeys(("doc_id", "tokens"), "whole numbers"),
    "target": "whole numbers or texts",
    "loglikelihoods": "lists of numbers",
    "greedy": "lists of true and false",
    "responses": "lists of texts",
}
OF_WINDOWS = ("nll", "tokens")  # columns of the samples of a text
MEANS = ("acc", "acc_norm", "exact_match", ANSWER_BPB)  # metrics that are means over documents
ROUNDING = 1e-6  # share by which a figure may differ from that of its rows: they are sums in another order


def is_finite_throughout(values: NDArray[np.float64]) -> bool:
    """Say whether all values are numbers that can be squared and summed."""
    return bool((np.abs(values) < MOST).all())  # nan is not


def read_table(path: Path, columns: Sequence[str] = ()) -> Any:
    """Return the table of a Parquet file, with all columns or those of `columns` that it has.

    Raises InvalidRecord where it is damaged, where it has a column twice, and where a column does not hold the values
    that COLUMNS says.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise InvalidRecord(f"{path} has the column {twice[0]!r} twice; copy the file again")
            chosen = [name for name in names if not columns or name in columns]
            table = file.read(columns=chosen, use_threads=False)
        table.validate(full=True)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InvalidRecord(f"{path} cannot be read: {first_line_of(error)}") from None
    for field in table.schema:
        if (expected := COLUMNS.get(field.name, FIGURES)) not in _kinds(field.type):
            raise InvalidRecord(f"{path}: column {field.name!r} holds values of type {field.type}, not {expected}")
    return table.replace_schema_metadata(None)  # what pandas would read of it


def _kinds(kind: Any) -> tuple[str, ...]:
    """Return the words of COLUMNS for values of a pyarrow type."""
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


def require_columns(path: Path, table: Any) -> Any:
    """Return the table of one cell's samples. Raises InvalidRecord where a column of COLUMNS lacks values."""
    if gaps := [name for name in table.column_names if name in COLUMNS and table[name].null_count]:
        raise InvalidRecord(f"{path}: column {gaps[0]!r} lacks values of some rows; copy the file again")
    return table


def sha256_of_rows(table: Any) -> str:
    """Return the sha256 of a pyarrow.Table's column names and values, the same however Parquet writes them."""
    columns = {name: table[name].to_pylist() for name in table.column_names if table[name].null_count < table.num_rows}
    return hashlib.sha256(json.dumps(columns, default=str).encode()).hexdigest()


def refuse_damaged(folder: Path, measured: Measured) -> None:
    """Raise InvalidRecord where a file of samples that a record's `measured` names is missing or not the same file."""
    for name in measured.samples or {}:
        if not is_file(path := folder / f"{name}.parquet"):
            raise InvalidRecord(f"{path} is missing or not the file that was written; copy the run again")
        refuse_other_file(path, measured)


def refuse_unfit(folder: Path, measured: Measured) -> None:
    """Raise InvalidRecord where the files of a cell's samples do not fit its record's `measured`."""
    refuse_damaged(folder, measured)
    for path in sorted(folder.glob("*.parquet")):
        refuse_unfit_file(path, measured)


def refuse_unfit_file(path: Path, measured: Measured) -> None:
    """Raise InvalidRecord if a file of samples has another hash than the record says, or gives other values."""
    refuse_other_file(path, measured)
    table = read_table(path, columns_of_figures(path.stem, measured))
    refuse_rows_of_other_values(str(path), path.stem, table, measured)


def refuse_other_file(path: Path, measured: Measured) -> None:
    """Raise InvalidRecord if a cell's file of samples has another hash than the record's `measured` says.

    A record that names no samples at all is held to its figures alone.
    """
    named = measured.samples or {}
    if named and (path.stem not in named or sha256_of_samples(path) != named[path.stem].sha256):
        raise InvalidRecord(f"{path} is missing or not the file that was written; copy the run again")


def is_file(path: Path) -> bool:
    """Say whether there is a file. Raises InvalidRecord where the file system does not say."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # of a text with a long name, of which no run has kept samples
            return False
        raise InvalidRecord(f"{path} cannot be read: {first_line_of(error)}") from None


def sha256_of_samples(path: Path) -> str:
    """Return the sha256 of a file of samples. Raises InvalidRecord where it cannot be read."""
    try:
        return hash_file(path)
    except OSError as error:
        raise InvalidRecord(f"{path} cannot be read: {first_line_of(error)}") from None


def refuse_rows_of_other_values(where: str, name: str, table: Any, measured: Measured) -> None:
    """Raise InvalidRecord unless a record's values follow from its rows.

    where  the file and cell of the rows; the message begins with it
    name   of a task, or "perplexity-TEXT"
    table  the pyarrow.Table of its rows, at least with the columns of `columns_of_figures`
    """
    for figure, recorded, by_rows in _figures(name, table, measured):
        if not math.isclose(recorded, by_rows, rel_tol=ROUNDING, abs_tol=ROUNDING):
            raise InvalidRecord(
                f"{where}: {figure} is {by_rows:.6g} by these rows and {recorded:.6g} in the record; copy the run again"
            )


def columns_of_figures(name: str, measured: Measured) -> tuple[str, ...]:
    """Return the columns of the samples of a task or text from which values of a record follow."""
    return (*OF_WINDOWS, *(metric for metric, _ in _means(measured.task_scores.get(name))))


def _figures(name: str, table: Any, measured: Measured) -> Iterator[tuple[str, float, float]]:
    """Yield (name, value in the record, value by the rows)."""
    for text, entry in measured.scores_of_windows.items():
        if name == name_of_samples(text) and set(OF_WINDOWS) <= set(table.column_names):
            nll, tokens = (_numbers(table[column]) for column in OF_WINDOWS)
            yield "the number of windows", entry.windows, len(nll)
            yield "the number of tokens", entry.tokens, float(tokens.sum())
            nats = float(nll.sum() / tokens.sum()) if tokens.sum() else math.nan
            yield "the logarithm of the perplexity", math.log(entry.perplexity), nats
            if entry.nll_per_token is not None:
                yield "nll_per_token", entry.nll_per_token, nats
    task = measured.task_scores.get(name)
    if task and table.num_columns:  # of no column no number of rows is known
        yield "the number of documents", task.documents, table.num_rows
    for metric, value in _means(task):
        if metric in table.column_names:
            values = _numbers(table[metric].drop_null())
            yield metric, value, float(values.mean()) if len(values) else math.nan


def _means(task: TaskScore | None) -> Iterator[tuple[str, float]]:
    """Yield the metrics of a task that are means over its documents, with their values; none without a task.

    These have a standard error, except in a task of one document.
    """
    for metric, entry in task.every_metric().items() if task else ():
        if metric in MEANS or entry.stderr is not None:
            yield metric, entry.value


def _numbers(column: Any) -> NDArray[np.float64]:
    return np.array(column.to_pylist(), dtype=float)  # to_numpy would import pandas


def read_packed_tables(path: Path) -> dict[str, Any]:
    """Return {key: table} of a packed file, each table without the columns that only other cells have."""
    if not is_file(path):
        return {}
    table, tables, start = read_table(path), {}, 0
    if CELL not in table.column_names:
        raise InvalidRecord(f"{path} has no column {CELL!r}, which says whose a row is; copy the file again")
    for key, rows in groupby(table[CELL].to_pylist()):
        length = len(list(rows))
        part = table.slice(start, length).drop_columns([CELL])
        part = part.drop_columns([name for name in part.column_names if part[name].null_count == length])
        tables[key] = require_columns(path, part)
        start += length
    return tables
