"""Keeps a run folder: one run at a time, which of its records count, and what a killed run has left.

    cells/<key>.json                finished cells (bench.records.record)
    samples/<key>/<name>.parquet    their documents and windows
    partial/<key>/<name>.*          finished pieces of a cell without a record: figures (.json), samples (.parquet)
    partial/<key>/prune/            the removals of its greedy search (bench.runs.searches), and where its sweeps over
                                    the layers stand (methods.model.calibration); kept when the cell failed
    partial/<key>/heal-*/           the checkpoint of its healing (bench.healing), for the pruned model whose
                                    hash is in the name; kept when the cell failed
    parts/<key>/                    a job folder, in which a machine that sees this folder measures that cell, or has
                                    measured it and was not heard (bench.runs.job); meanwhile it has partial/<key>/
    models/<key>/                   saved models (bench.runs.saving)
    kept/<key>/                     models from which a cell without a record goes on, unless they are in models/; as
                                    methods.checkpoint writes them, in the dtype that they have in memory
    superseded/                     records, with their samples, that a changed input or layout has made old
    .lock                           locked while a run goes on; stays, since two could hold a lock that is removed
    .owner.json                     {pid, host, started} of the run that goes on, or of one that was killed

A cell is finished when its record and every file of samples that the record names are whole. Every file is renamed into
place once it is on the disk, samples before the record that names them. A cell whose model is needed and missing, or
not whole, is measured again, whatever its record says.

The lock is the system's own (flock, through filelock). It ends with its owner, however the owner ended. A file system
without it is refused, since filelock would then use a file that a killed owner leaves for ever. .owner.json tells who
is refused which run has the folder.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from filelock import FileLock, Timeout

from bench.engines.engine import PARTS, InUse
from bench.plan.cell import Cell
from bench.plan.kinds import to_plain, value_from_plain
from bench.records import packed_run
from bench.records.measured import SampleFile
from bench.records.record import EARLIER, FAILED, LOST, InvalidRecord, Record, load, save
from bench.records.sample_tables import refuse_damaged
from bench.runs import inputs
from methods.checkpoint import save_load, weight_files
from methods.errors import CheckpointError, Unwritable, UserError
from methods.files import WRITING, hash_file, write_atomically
from methods.model.decoder import Decoder, Place
from methods.model.layer_store import LayerStore

T = TypeVar("T")

LOCK, OWNER = ".lock", ".owner.json"


@contextmanager
def clear_unless_written(folder: Path) -> Iterator[None]:
    """Remove the lock and the empty folders of a run that is refused before it has written anything."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    locked = (folder / LOCK).exists()
    try:
        yield
    except InUse:
        raise
    except UserError:
        with suppress(OSError):
            if not locked and not (folder / "cells").exists():
                (folder / LOCK).unlink(missing_ok=True)
            for path in new:
                path.rmdir()
        raise


@contextmanager
def lock_folder(folder: Path, patience: float = 0.0) -> Iterator[str | None]:
    """Own the folder within the block; yield a line about an earlier owner that did not finish, or None.

    patience  seconds to wait for another owner, whose end may not be known everywhere yet

    Raises InUse, which names the owner, where another run holds the folder. Raises UserError where the run in it is
    packed, and where the folder cannot be made or locked, or is removed within.
    """
    if packed_run.is_packed(folder):
        raise UserError(
            f"{folder} is a packed run; `python -m bench pack {folder} --unpack` lets it go on, or name another --out"
        )
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_lockless(folder)
        lock.acquire(timeout=patience)
    except Timeout:
        raise InUse(
            f"{folder} is in use by {_owner(folder) or 'another run'}; wait for it, end it, or name another --out"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be made or locked: {error.strerror}; name another with --out") from None
    try:
        dead = _owner(folder)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"pid": os.getpid(), "host": platform.node(), "started": started}
        write_atomically(folder / OWNER, json.dumps(who) + "\n")
        yield f"{dead} did not come to its end; going on from there" if dead else None
    except Exception as error:
        refuse_removed(folder, error)
        raise
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def refuse_removed(folder: Path, error: Exception | None = None) -> None:
    """Raise UserError, as the cause of `error`, where a locked folder does not exist any more."""
    if not (folder / LOCK).exists():
        raise UserError(f"{folder} was removed while the run went on; the same command begins anew") from error


def _refuse_lockless(folder: Path) -> None:
    """Refuse a folder whose file system has no flock, by unlocking there what is not locked."""
    if os.name != "posix":  # filelock uses another lock there
        return
    import fcntl

    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise UserError(
                f"{folder} lies on a file system without locks (flock), which a run needs to have its folder for "
                "itself; mount it with them, as Lustre with -o flock, or name another --out"
            ) from None


def is_own(folder: Path) -> bool:
    """Say whether the owner's file names this process."""
    try:
        who = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return bool((who["pid"], who["host"]) == (os.getpid(), platform.node()))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _owner(folder: Path) -> str | None:
    """Return the owner of a folder in words; None where its file is missing or cannot be read."""
    try:
        who = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"the run with process {who['pid']:d} on {who['host']}, started {who['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


KEPT = "kept"
SCRATCH = ".run-"  # begins the name of a folder that lasts as long as its run


@dataclass(frozen=True)
class Pieces:
    """Keeps the finished pieces of a cell in a folder of its own. They count for the model with that hash alone."""

    folder: Path
    pruned_sha256: str

    @property
    def healing(self) -> Path:
        """Return where a checkpoint is written while the model with that hash is trained."""
        return self.folder / f"heal-{self.pruned_sha256[:16]}"

    def recall(self, name: str, kind: type[T]) -> T | None:
        """Return the score of a piece, of the class `kind`, if it is whole and of the same model, else None."""
        piece = self._read(name)
        return None if piece is None else value_from_plain(kind, piece["figures"])

    def keep(self, name: str, score: Any, samples: pd.DataFrame) -> None:
        """Write the score and the samples of a piece. Raises Unwritable."""
        buffer = io.BytesIO()
        samples.to_parquet(buffer, index=False)
        write_atomically(self.folder / f"{name}.parquet", buffer.getvalue())
        piece = {
            "pruned_sha256": self.pruned_sha256,
            "rows": len(samples),
            "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "figures": to_plain(score),
        }
        write_atomically(self.folder / f"{name}.json", json.dumps(piece))

    def publish(self, samples: Path) -> dict[str, SampleFile]:
        """Copy the samples of every piece to the folder `samples`; return {name: its file} for the record."""
        shutil.rmtree(samples, ignore_errors=True)  # left by an attempt that failed
        published = {}
        for path in sorted(self.folder.glob("*.json")):
            if piece := self._read(path.stem):
                write_atomically(samples / f"{path.stem}.parquet", path.with_suffix(".parquet").read_bytes())
                published[path.stem] = SampleFile(rows=piece["rows"], sha256=piece["sha256"])
        return published

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            piece: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            whole = piece["sha256"] == hash_file(self.folder / f"{name}.parquet")
            return piece if whole and piece["pruned_sha256"] == self.pruned_sha256 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def pieces_of(folder: Path, key: str, pruned_sha256: str | None) -> Pieces:
    """Return the pieces of the cell `key`, for the model with that hash."""
    return Pieces(folder / "partial" / key, pruned_sha256 or "")


def write_record(record: Record, folder: Path, key: str) -> Record:
    """Write the samples, then the record, drop the pieces, and return the record as written. Raises Unwritable.

    A cell with a value that no record holds has failed, and keeps the other values.
    """
    from bench.records.record import without_invalid_values  # here, since pydantic takes a while to import

    record = without_invalid_values(record)
    if record.status != LOST:
        move_pieces(folder / PARTS / key, folder, key)
    published = pieces_of(folder, key, record.measured.pruned_sha256).publish(folder / "samples" / key)
    if published:
        record = replace(record, measured=replace(record.measured, samples=published))
    save(record, folder / "cells" / f"{key}.json")
    remove_pieces(folder, key, record.status)
    return record


def take_in(part: Path | Mapping[str, bytes], folder: Path, key: str) -> Record:
    """Move the files of a cell from a job folder (bench.runs.job) into the folder, and return its record.

    part  the job folder, or {path in it: bytes} where another machine has sent them

    Raises InvalidRecord where the record cannot be read, or samples are not those that it names.
    """
    if not isinstance(part, Path):
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as name:
            for path, content in part.items():
                if (Path(name) / path).resolve().is_relative_to(Path(name).resolve()):
                    write_atomically(Path(name) / path, content)
            return take_in(Path(name), folder, key)
    record = load(part / "cells" / f"{key}.json")
    refuse_damaged(part / "samples" / key, record.measured)
    packed_run.move_to_superseded(part, key, folder)
    remove_pieces(folder, key, record.status)
    return record


def move_pieces(source: Path, target: Path, key: str) -> None:
    """Move the pieces of a cell from one folder to another that has none of it."""
    old, new = source / "partial" / key, target / "partial" / key
    if old.exists() and not new.exists():
        new.parent.mkdir(parents=True, exist_ok=True)
        old.replace(new)
        with suppress(OSError):  # the folder may hold those of other cells
            old.parent.rmdir()


def remove_pieces(folder: Path, key: str, status: str) -> None:
    """Remove the pieces of a cell that has a record, also pieces left by a run that was killed at that moment.

    Of a cell that failed, the progress of its healing and its pruning is kept for the run that tries it again. Of a
    lost cell everything is kept.
    """
    if status == LOST:
        return
    move_pieces(folder / PARTS / key, folder, key)
    shutil.rmtree(folder / PARTS / key, ignore_errors=True)
    place = folder / "partial" / key
    for piece in place.glob("*"):
        if piece.is_file():
            piece.unlink()
        elif status not in FAILED:
            shutil.rmtree(piece, ignore_errors=True)
    for empty in (place, place.parent, folder / PARTS):
        with suppress(OSError):  # with a checkpoint, or of another cell that is not finished
            empty.rmdir()


def find_record(folder: Path, key: str, cell: Cell, *, retry_failed: bool) -> tuple[Record | None, str]:
    """Return the record of the cell `key` if it counts, else None and, where a file does not count, the reason."""
    path = folder / "cells" / f"{key}.json"
    if not path.exists():
        return None, ""
    try:
        record = load(path)
    except InvalidRecord as error:
        return None, str(error)
    differing = inputs.names_of_differences(record.cell.inputs, cell.inputs)
    if differing or inputs.question_of_record(record) != cell.question:
        return None, f"{path} is another cell's"
    try:
        refuse_damaged(folder / "samples" / key, record.measured)
    except InvalidRecord as error:
        return None, str(error)
    if record.status == LOST or (retry_failed and record.status in FAILED):
        return None, f"it failed before: {record.status}"
    return record, ""


def set_aside(folder: Path, cells: Sequence[Cell]) -> Iterator[str]:
    """Move old records with their samples to superseded/, where reports do not read them; yield a line on each."""
    for key, why in inputs.find_old_records(folder, cells):
        packed_run.move_to_superseded(folder, key)
        yield f"{why}; moved to superseded/"


@contextmanager
def make_scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a folder inside the run's folder, and remove it at the end of the block. Raises Unwritable."""
    try:
        folder_context = tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise Unwritable(f"{folder} cannot hold results: {error.strerror}") from error
    with folder_context as name:
        yield Path(name)


@contextmanager
def keep_tidy(folder: Path) -> Iterator[None]:
    """Clear what a killed run has left and, at the end, what ended processes have."""
    clear_leftovers(folder)
    try:
        yield
    finally:
        clear_leftovers(folder)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed run has left: files that are not whole, scratch folders, half-saved models."""
    for place in (".", "cells", "samples/*", "partial/*"):
        for path in folder.glob(f"{place}/{WRITING}*"):
            path.unlink(missing_ok=True)
    for path in (*folder.glob(f"{SCRATCH}*"), *folder.glob("models/.*--*"), *folder.glob("kept/.*--*")):
        shutil.rmtree(path, ignore_errors=True)


def clear_folder(folder: Path) -> None:
    """Remove from a folder what this process would have removed at its end, if it owns the folder."""
    if is_own(folder):
        clear_leftovers(folder)
        (folder / OWNER).unlink(missing_ok=True)


def find_records(folder: Path, cells: Sequence[Cell], retry_failed: bool) -> Iterator[tuple[str, Record | None, str]]:
    """Yield of each cell its key and its record, or None and a line on why no record counts.

    A parent's record does not count where a cell without a record needs its model and the model is missing.
    """
    needed = set[str]()
    for cell in reversed(cells):  # whoever goes on from a cell comes behind it
        record, why = find_record(folder, cell.key, cell, retry_failed=retry_failed)
        if record is not None and record.status == "ok" and cell.key in needed and find_model(folder, cell.key) is None:
            record, why = None, "another cell goes on from its model, which is not kept"
        if record is None and cell.parent_key:
            needed.add(cell.parent_key)
        yield cell.key, record, why


def keep_model(model: Decoder, folder: Path, key: str) -> None:
    """Write the model of the cell `key`. Raises CheckpointError where the disk refuses."""
    place = folder / KEPT / key
    shutil.rmtree(place, ignore_errors=True)  # left by an attempt without a record
    save_load.save(model, place)


def find_model(folder: Path, key: str) -> Path | None:
    """Return the folder that has the model of the cell `key` whole, or None."""
    for place in (folder / "models" / key, folder / KEPT / key):
        try:
            weight_files.check_weights(place, save_load.read_manifest(place)["weights"])
        except CheckpointError:
            continue
        return place
    return None


def load_model(folder: Path, key: str, record: Record, device: Place, files: LayerStore | None = None) -> Decoder:
    """Load the model that was measured for the record; over several devices its layers are spread.

    files  where its weights lie; None: in memory

    Raises RuntimeError where it is not there.
    """
    place, dtype = find_model(folder, key), getattr(torch, record.cell.dtype)
    if place is not None:
        model = save_load.load(place, dtype=dtype, device=device, check_hashes=False, store=files)
    if place is None or inputs.sha256_of_state(model.model) != record.measured.pruned_sha256:
        raise RuntimeError(f"the model of {key}, from which this cell goes on, is not the one that was measured")
    return model


def stage_of_record(record: Record) -> dict[str, Any]:
    """Return the fields of a record that describe it as the parent of another cell, see bench.records.measured."""
    stage, measured = record.cell.stage, to_plain(record.measured)
    decided = {name: value for name, value in record.decisions.items() if name not in ("calibration", "earlier")}
    return {
        "label": stage.label,
        **{name: value for name, value in to_plain(stage).items() if name != "given"},
        "decisions": decided,
        "measured": {name: measured[name] for name in EARLIER if name in measured},
    }


def drop_models(folder: Path, but: Collection[str]) -> None:
    """Remove the kept models from which no cell goes on any more: all but those of the keys `but`.

    A model of those keys that is being written has a name of its own until it is whole.
    """
    for place in (folder / KEPT).glob("*"):
        if place.name not in but and not any(place.name.startswith(f".{key}.") for key in but):
            shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):  # the folder may hold others, or not exist
        (folder / KEPT).rmdir()
