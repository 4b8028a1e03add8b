"""What a run folder holds, and which of it counts.

    cells/<key>.json                finished cells (bench.record)
    samples/<key>/<name>.parquet    their documents and windows
    partial/<key>/<name>.*          finished pieces of a cell without a record: figures (.json), samples (.parquet)
    partial/<key>/heal-*/           the checkpoint of its healing (bench.heal), for the pruned model with that hash;
                                    kept when the cell failed
    kept/<key>/                     models from which a cell without a record goes on (bench.kept)
    superseded/                     records, with their samples, that a changed input or layout has made old
    models/<key>/                   saved models (bench.export)

A cell is finished when its record and every file of samples that the record names are whole. Every file is renamed into
place once it is on the disk, samples before the record that names them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.inputs import differing
from bench.record import FAILED, WRITING, InvalidRecord, Record, load, save, write_atomically
from bench.spec import Cell, asked

SCRATCH = ".run-"  # begins the name of a folder that lasts as long as its run


@dataclass(frozen=True)
class Pieces:
    """The finished pieces of a cell, in a folder of its own. They count for the model with that hash and no other."""

    folder: Path
    pruned_sha256: str

    @property
    def healing(self) -> Path:
        """Where a checkpoint is written while the model with that hash is trained."""
        return self.folder / f"heal-{self.pruned_sha256[:16]}"

    def recall(self, name: str) -> dict[str, Any] | None:
        """The figures of a piece, if it is whole and of the same model."""
        found = self._read(name)
        return None if found is None else dict(found["figures"])

    def keep(self, name: str, figures: Mapping[str, Any], samples: pd.DataFrame) -> None:
        """Raises Unwritable."""
        buffer = io.BytesIO()
        samples.to_parquet(buffer, index=False)
        write_atomically(self.folder / f"{name}.parquet", buffer.getvalue())
        found = {
            "pruned_sha256": self.pruned_sha256,
            "rows": len(samples),
            "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "figures": figures,
        }
        write_atomically(self.folder / f"{name}.json", json.dumps(found))

    def publish(self, samples: Path) -> dict[str, dict[str, Any]]:
        """Copy the samples of every piece to the folder `samples`: {name: {rows, sha256}}, for the record."""
        shutil.rmtree(samples, ignore_errors=True)  # of an attempt that failed
        published = {}
        for path in sorted(self.folder.glob("*.json")):
            if found := self._read(path.stem):
                write_atomically(samples / f"{path.stem}.parquet", path.with_suffix(".parquet").read_bytes())
                published[path.stem] = {"rows": found["rows"], "sha256": found["sha256"]}
        return published

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            whole = found["sha256"] == _sha256(self.folder / f"{name}.parquet")
            return found if whole and found["pruned_sha256"] == self.pruned_sha256 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def pieces(folder: Path, key: str, measured: Mapping[str, Any]) -> Pieces:
    """Those of the cell `key`, for the model whose hash stands in `measured`."""
    return Pieces(folder / "partial" / key, measured.get("pruned_sha256", ""))


def finish(record: Record, folder: Path, key: str) -> Record:
    """Write the samples, then the record, and drop the pieces. Returns the record as written. Raises Unwritable."""
    record = _without_lost_figures(record)
    published = pieces(folder, key, record.measured).publish(folder / "samples" / key)
    if published:
        record = replace(record, measured=record.measured | {"samples": published})
    save(record, folder / "cells" / f"{key}.json")
    drop_pieces(folder, key, record.status)
    return record


def drop_pieces(folder: Path, key: str, status: str) -> None:
    """They are of no use once there is a record; a run that was killed just then has left them.

    How far a cell was healed that then failed is kept for the run that tries it again.
    """
    place = folder / "partial" / key
    for piece in place.glob("*"):
        if piece.is_file():
            piece.unlink()
        elif status not in FAILED:
            shutil.rmtree(piece, ignore_errors=True)
    for empty in (place, place.parent):
        with suppress(OSError):  # with a checkpoint, or of another cell that is not finished
            empty.rmdir()


def _without_lost_figures(record: Record) -> Record:
    """JSON has no infinity: a cell with a figure that is no number has failed, and keeps its other figures."""
    found = {"decisions": record.decisions, "measured": record.measured}
    lost = ", ".join(dict.fromkeys(_not_finite(found)))
    if not lost:
        return record
    plain = _without_none(json.loads(json.dumps(found), parse_constant=lambda _: None))
    return replace(record, status="error", error=record.error or f"not a finite number: {lost}", **plain)


def _not_finite(plain: Any, path: str = "") -> Iterator[str]:
    if isinstance(plain, float) and not math.isfinite(plain):
        yield path
    elif isinstance(plain, dict):
        for name, value in plain.items():
            yield from _not_finite(value, f"{path}.{name}".lstrip("."))
    elif isinstance(plain, list | tuple):
        for value in plain:
            yield from _not_finite(value, path)


def _without_none(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {name: _without_none(value) for name, value in plain.items() if value is not None}
    return plain


def finished(folder: Path, cell: Cell, *, retry_failed: bool) -> tuple[Record | None, str]:
    """The cell's record, if it counts; else None and, where there is a file that does not, why in one line."""
    key = cell.key
    path = folder / "cells" / f"{key}.json"
    if not path.exists():
        return None, ""
    try:
        record = load(path)
    except InvalidRecord as error:
        return None, str(error)
    if asked(record.cell) != asked(cell) or differing(record.cell.get("inputs", {}), cell.inputs):
        return None, f"{path} is another cell's"
    for name, entry in record.measured.get("samples", {}).items():
        samples = folder / "samples" / key / f"{name}.parquet"
        if not samples.is_file() or _sha256(samples) != entry["sha256"]:
            return None, f"{samples} is missing or not the file that was written"
    if retry_failed and record.status in FAILED:
        return None, f"it failed before: {record.status}"
    return record, ""


def set_aside(folder: Path, cells: Sequence[Cell]) -> Iterator[str]:
    """Move what is old out of the way of reports, to superseded/, with its samples; a line on each.

    Old is a record that cannot be read, and one of what is asked for again while what its answer stands on has changed.
    """
    keys = {cell.key for cell in cells}
    wanted = {asked(cell): cell.inputs for cell in cells}
    for path in sorted((folder / "cells").glob("*.json")):
        if path.stem in keys:
            continue
        try:
            record = load(path)
        except InvalidRecord as error:
            _move(folder, path.stem)
            yield f"{error}; moved to superseded/"
            continue
        inputs = wanted.get(asked(record.cell))
        if inputs is not None:
            _move(folder, path.stem)
            changed = ", ".join(differing(record.cell.get("inputs", {}), inputs)) or "nothing that is known"
            yield f"{path.name} is old, since this has changed: {changed}; moved to superseded/"


def _move(folder: Path, key: str) -> None:
    for kind, name in (("samples", key), ("cells", f"{key}.json")):
        source, target = folder / kind / name, folder / "superseded" / kind / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            source.replace(target)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed run has left: files that are not whole, scratch folders, half-saved models."""
    for place in (".", "cells", "samples/*", "partial/*"):
        for path in folder.glob(f"{place}/{WRITING}*"):
            path.unlink(missing_ok=True)
    for path in (*folder.glob(f"{SCRATCH}*"), *folder.glob("models/.*--*"), *folder.glob("kept/.*--*")):
        shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
