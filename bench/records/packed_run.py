"""Packs a finished run: all its records in one file, and the samples of each task or text in one file.

    records.jsonl            a line for each cell: `key`, `rows_sha256`, and the keys of its record, which is unchanged
    samples/NAME.parquet     the samples of all cells, whose the column `cell` says, by its key
    served.jsonl             what inference engines made of the models, as in a run that is not packed

A record names the sha256 of each file of samples that its run wrote. In the packed form those files are gone, so
`rows_sha256` has for each of them the sha256 of its rows, which no version of Parquet changes; `unpack` looks at it.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.records import served
from bench.records.record import InvalidRecord, Record, from_json, load, save
from bench.records.samples import CELL, SampleFiles, read_table, refuse_damaged
from methods.errors import UserError
from methods.files import write_atomically

RECORDS = "records.jsonl"


def is_packed(run: Path) -> bool:
    """Say whether a folder holds a packed run."""
    return (run / RECORDS).is_file()


def files(run: Path) -> list[Path]:
    """Return the files of a packed run, none where it is not packed."""
    return [run / RECORDS, *sorted((run / "samples").glob("*.parquet"))] if is_packed(run) else []


def _carry_served(run: Path, target: Path) -> None:
    """Copy what inference engines made of the models, where a run is packed or unpacked to another folder."""
    if (found := served.load(run)) and target != run:
        served.save(target, found)


def lines(run: Path) -> dict[str, dict[str, Any]]:
    """Read the lines of a packed run's records: {key: the line without its key}. Raises InvalidRecord."""
    found = {}
    for number, text in enumerate((run / RECORDS).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            plain = json.loads(text)
            found[plain.pop("key")] = plain
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidRecord(f"{run / RECORDS}: line {number} is not a record with its key") from None
    return found


def record_of(line: Mapping[str, Any], run: Path, key: str) -> Record:
    """Return the record in a line of `lines`. Raises InvalidRecord."""
    plain = {name: value for name, value in line.items() if name != "rows_sha256"}
    return from_json(plain, f"{run / RECORDS}: {key}")


def pack(run: Path, target: Path) -> int:
    """Write the packed form of a run folder, which may be packed, to `target`, and return the number of its cells.

    Where `target` is the run folder itself the files of each cell are removed once the packed ones are whole. Raises
    UserError where there is nothing to pack, where `target` has files, and where a record or a sample is damaged.
    """
    paths = sorted((run / "cells").glob("*.json"))
    if is_packed(run) and target == run:
        raise UserError(f"{run} is packed already")
    if not paths and not is_packed(run):
        raise UserError(f"{run} is no run folder: it has no cells/*.json")
    if target != run and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; name a new one")
    if is_packed(run):
        for path in files(run):
            write_atomically(target / path.relative_to(run), path.read_bytes())
        _carry_served(run, target)
        return len(lines(run))
    tables: dict[str, list[Any]] = {}
    packed = []
    for path in paths:
        record = load(path)
        found = _samples(run / "samples" / path.stem, record)
        hashes = {name: rows_sha256(table) for name, table in found.items()}
        for name, table in found.items():
            tables.setdefault(name, []).append(_with_cell(table, path.stem))
        packed.append(json.dumps({"key": path.stem, "rows_sha256": hashes} | asdict(record), allow_nan=False))
    for name, several in tables.items():
        write_atomically(target / "samples" / f"{name}.parquet", _parquet(several))
    _carry_served(run, target)
    write_atomically(target / RECORDS, "".join(f"{line}\n" for line in packed))
    if target == run:
        shutil.rmtree(run / "cells")
        for path in paths:
            shutil.rmtree(run / "samples" / path.stem, ignore_errors=True)
    return len(paths)


def unpack(run: Path, target: Path | None = None) -> int:
    """Give a packed run a file for each cell again, so that it can go on, and return the number of its cells.

    They are written to `target` beside what is there, and the packed run stays; without one they take its place.
    Raises UserError where it is not packed, and InvalidRecord where its samples are not those that were packed. Where
    another version of Parquet writes other bytes for the same rows, the record names the sha256 of those.
    """
    if not is_packed(run):
        raise UserError(f"{run} is not packed: it has no {RECORDS}")
    known, tables, place = lines(run), SampleFiles(), target or run
    for key, line in known.items():
        record, folder, written = record_of(line, run, key), place / "samples" / key, {}
        for name, expected in line["rows_sha256"].items():
            table = tables.table(run / "samples" / key, name)
            if table is None or rows_sha256(table) != expected:
                raise InvalidRecord(f"{run / 'samples' / name}.parquet has not the rows of {key} that were packed")
            buffer = io.BytesIO()
            table.to_pandas().to_parquet(buffer, index=False)
            write_atomically(folder / f"{name}.parquet", buffer.getvalue())
            written[name] = {"rows": table.num_rows, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        if "samples" in record.measured:
            named = {name: written.get(name, entry) for name, entry in record.measured["samples"].items()}
            record = replace(record, measured=record.measured | {"samples": named})
        save(record, place / "cells" / f"{key}.json")
    for path in files(run) if place == run else ():
        path.unlink()
    return len(known)


def rows_sha256(table: Any) -> str:
    """Return the sha256 of a pyarrow.Table's column names and values, whatever Parquet makes of them."""
    columns = {name: table[name].to_pylist() for name in table.column_names if table[name].null_count < table.num_rows}
    return hashlib.sha256(json.dumps(columns, default=str).encode()).hexdigest()


def _samples(folder: Path, record: Record) -> dict[str, Any]:
    """Read a cell's samples by name. Raises InvalidRecord where one is not the file that the record names."""
    refuse_damaged(folder, record.measured)
    return {path.stem: read_table(path) for path in sorted(folder.glob("*.parquet"))}


def _with_cell(table: Any, key: str) -> Any:
    import pyarrow as pa

    return table.replace_schema_metadata(None).add_column(0, CELL, pa.array([key] * table.num_rows, pa.string()))


def _parquet(tables: list[Any]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pa.concat_tables(tables, promote_options="permissive"), buffer, compression="zstd")
    return buffer.getvalue()
