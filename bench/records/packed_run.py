"""Packs a finished run into few files, unpacks it, and moves records to its folder superseded/.

    records.jsonl            a line for each cell: `key`, `rows_sha256`, and the keys of its record
    samples/NAME.parquet     the samples of a task or text of all cells; the column `cell` has the key of a row's cell
    served.jsonl             served records, as in a run that is not packed

A record names the sha256 of each file of samples that its run wrote. In the packed form those files are gone. For each
of them `rows_sha256` has the sha256 of its rows, which no version of Parquet changes. It is checked wherever the rows
are read.

Channels that went from a layer are numbers with a bit each in a line, as hexadecimal digits: [0, 2, 5] is "25". As
lists, which lines may have too, they would be four fifths of the file.

A record in superseded/, with its samples, is no part of reports any more.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import served
from bench.records.record import LEFT_OUT, InvalidRecord, Record, read_content, read_json, record_from_json, write_json
from bench.records.sample_tables import (
    CELL,
    read_packed_tables,
    read_table,
    refuse_rows_of_other_values,
    refuse_unfit,
    sha256_of_rows,
)
from methods.console import say
from methods.errors import UserError, first_line_of
from methods.files import write_atomically

RECORDS = "records.jsonl"
SUPERSEDED = "superseded"
BESIDE = ("models", "kept", "partial")  # folders that a cell may have beside record and samples (bench.runs.store)
LONGEST = 240  # bytes of a key or a sample's name, which a file system takes with an ending
MOST_CHARACTERS = 60  # characters of a name that is none
CHANNELS = "removed_channels"  # of a record's decisions: a list of rising numbers for each layer
MOST_CHANNELS = 2**18  # of a layer, four to a digit
DIGITS = re.compile(f"[0-9a-f]{{1,{MOST_CHANNELS // 4}}}")


def is_packed(run: Path) -> bool:
    """Say whether a folder holds a packed run."""
    return (run / RECORDS).is_file()


def files_of_packed_run(run: Path) -> list[Path]:
    """Return the files of a packed run, none where it is not packed."""
    return [run / RECORDS, *sorted((run / "samples").glob("*.parquet"))] if is_packed(run) else []


@dataclass(frozen=True)
class PackedLine:
    """Holds a line of a packed run's records: its record, or why it is none.

    key    of the cell; where a line has none, the words of messages for the line
    plain  the keys of the record
    rows   sha256 of the rows of its samples, by name
    """

    key: str
    plain: dict[str, Any]
    rows: dict[str, str]
    record: Record | InvalidRecord


def read_lines(run: Path) -> list[PackedLine]:
    """Return the lines of a packed run's records; a line with the key of an earlier one is no record."""
    lines, number_by_key = list[PackedLine](), dict[str, int]()
    for number, text in enumerate(read_content(run / RECORDS).splitlines(), start=1):
        where = f"{run / RECORDS}: line {number}"
        line = _line(text, where, run)
        first = number_by_key.setdefault(line.key, number)
        if first != number:
            line = PackedLine(where, {}, {}, InvalidRecord(f"{where} has the key of line {first}, {line.key}"))
        lines.append(line)
    return lines


def rows_of_cells(run: Path) -> dict[str, dict[str, str]]:
    """Return {key: {name: sha256 of the rows}} of the samples of a packed run's cells, without lines that are none."""
    rows_by_key = dict[str, dict[str, str]]()
    for number, text in enumerate(read_content(run / RECORDS).splitlines(), start=1):
        with suppress(InvalidRecord):
            key, _, rows = _parse_line(text, f"{run / RECORDS}: line {number}", run)
            rows_by_key.setdefault(key, rows)
    return rows_by_key


def refuse_other_rows(path: Path, key: str, table: Any, rows: Mapping[str, str]) -> None:
    """Raise InvalidRecord where rows of a packed file are not those of a cell that were packed.

    rows  `rows_sha256` of the cell
    """
    if path.stem not in rows:
        raise InvalidRecord(f"{path} has rows of {key}, and {RECORDS} has no rows_sha256 of them; pack the run again")
    if sha256_of_rows(table) != rows[path.stem]:
        raise InvalidRecord(f"{path} has not the rows of {key} that were packed; copy the run again")


def _line(text: bytes, where: str, run: Path) -> PackedLine:
    key = where
    try:
        key, plain, rows = _parse_line(text, where, run)
        return PackedLine(key, plain, rows, record_from_json(plain, f"{run / RECORDS}: {key}"))
    except InvalidRecord as error:
        return PackedLine(key, {}, {}, error)


def _parse_line(text: bytes, where: str, run: Path) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return the key, the plain record and the rows' sha256 of a line. Raises InvalidRecord where it has none."""
    plain = read_json(text, where)
    if not isinstance(plain, dict) or not isinstance(plain.get("key"), str):
        raise InvalidRecord(f"{where} is not a record with its key")
    rows = plain.pop("rows_sha256", {})
    if not isinstance(rows, dict):
        raise InvalidRecord(f"{run / RECORDS}: {plain['key']}: rows_sha256 is not an object")
    for name in (plain["key"], *rows):
        if not _is_file_name(name):
            raise InvalidRecord(
                f"{where}: a key and the names of samples are file names, and {name[:MOST_CHARACTERS]!r} is none"
            )
    _read_bits(plain.get("decisions"), where)
    return plain.pop("key"), plain, rows


def _read_bits(decisions: Any, where: str) -> None:
    """Replace the channels of decisions that a line has as bits by lists. Raises InvalidRecord."""
    if not isinstance(decisions, dict) or not isinstance(layers := decisions.get(CHANNELS), list):
        return  # which is judged with the whole record
    if wrong := [bits for bits in layers if isinstance(bits, str) and not DIGITS.fullmatch(bits)]:
        got = wrong[0][:MOST_CHARACTERS]
        raise InvalidRecord(f"{where}: {CHANNELS} are lists, or bits as hexadecimal digits; got {got!r}")
    decisions[CHANNELS] = [_numbers_of_bits(bits) if isinstance(bits, str) else bits for bits in layers]


def _bits_of_numbers(numbers: list[int]) -> str:
    """Return numbers as bits, each set once."""
    return f"{sum(1 << number for number in set(numbers)):x}"


def _numbers_of_bits(bits: str) -> list[int]:
    """Return the places of the bits that are set, rising, the last digit's first bit being 0: "25" is [0, 2, 5]."""
    return [number for number, bit in enumerate(reversed(f"{int(bits, 16):b}")) if bit == "1"]


def _line_of_record(key: str, rows: Mapping[str, str], plain: dict[str, Any]) -> bytes:
    """Return the line of a plain record that fits, its channels as bits where they are rising numbers."""
    decisions = plain.get("decisions", {})
    layers = decisions.get(CHANNELS, [])
    if max(map(max, filter(None, layers)), default=MOST_CHANNELS) < MOST_CHANNELS:
        as_bits = list(map(_bits_of_numbers, layers))
        if [_numbers_of_bits(bits) for bits in as_bits] == layers:
            plain = plain | {"decisions": decisions | {CHANNELS: as_bits}}
    return json.dumps({"key": key, "rows_sha256": rows} | plain, allow_nan=False).encode()


def _is_file_name(name: str) -> bool:
    """Say whether a name can be a file's in any folder, and leads into no other folder."""
    fits = name.isprintable() and not set(name) & set("/\\") and name not in ("", ".", "..")
    return fits and len(name.encode()) <= LONGEST


def pack_run(run: Path, target: Path, warn: Callable[[str], None] = say) -> int:
    """Write the packed form of a run folder to `target`, and return the number of its cells.

    The run may be packed already. Where `target` is the run folder itself, the files of each cell are removed once the
    packed ones are whole. A record that does not fit is left out, or moved to superseded/ there, and `warn` gets a line
    on it. Raises UserError where there is nothing to pack, where `target` has files, and where a sample is damaged.
    """
    paths = sorted((run / "cells").glob("*.json"))
    _refuse_packing(run, target, paths)
    wrong = dict[str, InvalidRecord]()
    packed = _copy_packed(run, target, wrong) if is_packed(run) else _pack_samples(run, paths, target, wrong)
    if target != run and (run / served.FILE).is_file():
        write_atomically(target / served.FILE, (run / served.FILE).read_bytes())
    write_atomically(target / RECORDS, b"".join(line + b"\n" for line in packed))
    for key, error in wrong.items():
        if target == run:
            move_to_superseded(run, key)
        warn(f"{error}; {f'moved to {SUPERSEDED}/' if target == run else LEFT_OUT}")
    if target == run:
        shutil.rmtree(run / "cells")
        for path in paths:
            shutil.rmtree(run / "samples" / path.stem, ignore_errors=True)
    return len(packed)


def _refuse_packing(run: Path, target: Path, paths: Sequence[Path]) -> None:
    """Raise UserError where there is nothing to pack, and where `target` has files."""
    if is_packed(run) and target == run:
        raise UserError(f"{run} is packed already")
    if not paths and not is_packed(run):
        raise UserError(f"{run} is no run folder: it has no cells/*.json")
    if target != run and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; name a new one")


def _copy_packed(run: Path, target: Path, wrong: dict[str, InvalidRecord]) -> list[bytes]:
    """Copy the samples of a packed run to `target`, and return the lines of its records.

    wrong  is filled with the errors of lines that hold no record, by key
    """
    every = read_lines(run)
    wrong |= {line.key: line.record for line in every if isinstance(line.record, InvalidRecord)}
    packed = [_line_of_record(line.key, line.rows, line.plain) for line in every if line.key not in wrong]
    refuse_none_left(run, packed, wrong)
    _tables(run, every)
    for path in files_of_packed_run(run)[1:]:
        write_atomically(target / path.relative_to(run), path.read_bytes())
    return packed


def _pack_samples(run: Path, paths: Sequence[Path], target: Path, wrong: dict[str, InvalidRecord]) -> list[bytes]:
    """Write the samples of a run folder to `target`, and return the lines of its records.

    wrong  is filled with the errors of files that hold no record, by key
    """
    tables: dict[str, list[Any]] = {}
    packed = []
    for path in paths:
        try:
            plain = read_json(read_content(path), str(path))
            record = record_from_json(plain, str(path))
        except InvalidRecord as error:
            wrong[path.stem] = error
            continue
        table_by_name = _samples(run / "samples" / path.stem, record)
        hashes = {name: sha256_of_rows(table) for name, table in table_by_name.items()}
        for name, table in table_by_name.items():
            tables.setdefault(name, []).append(_with_cell(table, path.stem))
        packed.append(_line_of_record(path.stem, hashes, plain))
    refuse_none_left(run, packed, wrong)
    files = {name: _parquet(f"{run}: the samples {name}", several) for name, several in tables.items()}
    for name, table in files.items():
        write_atomically(target / "samples" / f"{name}.parquet", table)
    return packed


def refuse_none_left(run: Path, sound: Collection[Any], wrong: Mapping[str, InvalidRecord]) -> None:
    """Raise InvalidRecord where a run has no record, as an empty file, and where none of them fits."""
    if not sound and not wrong:
        raise InvalidRecord(f"{run} has no record; copy the run again")
    if not sound:
        first, *more = wrong.values()
        raise InvalidRecord(f"{first}; none of the other {len(more)} records of {run} fits either" if more else first)


def unpack_run(run: Path, target: Path | None = None) -> int:
    """Write a file for each cell of a packed run, so that the run can go on, and return the number of its cells.

    With a target they are written beside the files that it has, without the lines that are no records, and the packed
    run stays. Without a target they take the place of the packed run, and a line that is no record is refused, since it
    would be lost. Raises UserError where the run is not packed, and InvalidRecord where its samples are not those that
    were packed. Where another version of Parquet writes other bytes for the same rows, the record names their sha256.
    """
    if not is_packed(run):
        raise UserError(f"{run} is not packed: it has no {RECORDS}")
    every, place = read_lines(run), target or run
    if target is None:
        for line in every:
            if isinstance(line.record, InvalidRecord):
                raise InvalidRecord(f"{line.record}; mend the line, or take it out of {RECORDS}")
    tables = _tables(run, every)
    sound = [line for line in every if isinstance(line.record, Record)]
    for line in sound:
        plain, folder, written = line.plain, place / "samples" / line.key, {}
        for name in line.rows:
            table = tables[line.key, name]
            buffer = io.BytesIO()
            table.to_pandas().to_parquet(buffer, index=False)
            write_atomically(folder / f"{name}.parquet", buffer.getvalue())
            written[name] = {"rows": table.num_rows, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        if "samples" in plain["measured"]:
            named = {name: written.get(name, entry) for name, entry in plain["measured"]["samples"].items()}
            plain = plain | {"measured": plain["measured"] | {"samples": named}}
        write_json(plain, place / "cells" / f"{line.key}.json")
    for path in files_of_packed_run(run) if place == run else ():
        path.unlink()
    return len(sound)


def _tables(run: Path, every: Sequence[PackedLine]) -> dict[tuple[str, str], Any]:
    """Return {(key, name): table} of a packed run's samples. Raises InvalidRecord where one does not fit its line."""
    files, tables = dict[str, dict[str, Any]](), dict[tuple[str, str], Any]()
    for line in every:
        for name in line.rows:
            path = run / "samples" / f"{name}.parquet"
            if name not in files:
                files[name] = read_packed_tables(path)
            if line.key not in files[name]:
                raise InvalidRecord(f"{path} has not the rows of {line.key} that were packed; copy the run again")
            tables[line.key, name] = table = files[name][line.key]
            refuse_other_rows(path, line.key, table, line.rows)
            if isinstance(line.record, Record):
                refuse_rows_of_other_values(f"{path}: {line.key}", name, table, line.record.measured)
    return tables


def _samples(folder: Path, record: Record) -> dict[str, Any]:
    """Return a cell's samples by name. Raises InvalidRecord where one does not fit the record."""
    refuse_unfit(folder, record.measured)
    return {path.stem: read_table(path) for path in sorted(folder.glob("*.parquet"))}


def _with_cell(table: Any, key: str) -> Any:
    import pyarrow as pa

    return table.replace_schema_metadata(None).add_column(0, CELL, pa.array([key] * table.num_rows, pa.string()))


def _parquet(where: str, tables: list[Any]) -> bytes:
    """Return the Parquet file of several tables.

    Raises InvalidRecord where a column has values of one cell that its type in another cannot hold. Its message begins
    with `where`: the run and the name of the samples.
    """
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InvalidRecord(f"{where} differ in a column from cell to cell: {first_line_of(error)}") from None
    parquet.write_table(whole, buffer, compression="zstd")
    return buffer.getvalue()


def move_to_superseded(folder: Path, key: str, to: Path | None = None) -> None:
    """Move a record and its samples from a run folder to another one, by default to its superseded/.

    In another run folder the cell still counts, and so its models and pieces are moved too.
    """
    beside = BESIDE if to else ()
    to = to or folder / SUPERSEDED
    for kind, ending in (*((kind, "") for kind in beside), ("samples", ""), ("cells", ".json")):
        source, target = folder / kind / f"{key}{ending}", to / kind / f"{key}{ending}"
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            source.replace(target)
