"""Fills folders of the cache, each of which appears whole or not at all, and says whether one is unchanged.

A folder appears by one rename, so that an interrupt leaves nothing that looks finished. Of two processes that fill it
at once the second one keeps the first one's. Its manifest holds size and sha256 of every file.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bench.system.failures import is_full_disk
from methods.errors import UserError, first_line_of
from methods.files import hash_file

MANIFEST = "manifest.json"
ABANDONED = 24 * 3600.0  # seconds after which what a killed process has left is removed

Fill = Callable[[Path, Path], Mapping[str, Any]]


def is_filled(folder: Path, holds: Iterable[str] = (), hash_of: Callable[[Path], str] | None = None) -> bool:
    """Say whether all files of a folder are there with the right size.

    holds    names of files that have to be among them
    hash_of  returns the sha256 of a file, which has to be right too; None: hashes are not compared
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        sized = all((folder / file).stat().st_size == entry["bytes"] for file, entry in files.items())
        sized = sized and files.keys() >= set(holds)
        return sized and not (hash_of and any(hash_of(folder / file) != files[file]["sha256"] for file in files))
    except (OSError, ValueError, KeyError):
        return False


def fill(folder: Path, name: str, write: Fill, holds: Iterable[str] = ()) -> None:
    """Have `write` fill a temporary neighbour of a folder, then rename that; a damaged folder is replaced.

    name   what messages call it
    write  is given the folder to fill, which it makes, and one for scratch; returns facts for the manifest

    Raises UserError where the disk is full or takes no files.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            staged, scratch = Path(temporary) / "staged", Path(temporary)
            facts = write(staged, scratch)
            _write_manifest(facts, staged)
            _move(staged, folder, holds)
    except (OSError, SafetensorError) as error:
        if not is_filled(folder, holds):  # or else another process was faster
            raise UserError(_refusal(folder.parent, name, error)) from error


def _refusal(folder: Path, name: str, error: Exception) -> str:
    if is_full_disk(error):
        return f"no space left for {name} in {folder}; make room, or name another folder in PRUNEBENCH_CACHE"
    return f"cannot keep {name} in {folder} (PRUNEBENCH_CACHE): {first_line_of(error)}"


def _remove_abandoned(folder: Path) -> None:
    """Remove the leftovers of processes that were killed while they filled a folder."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path)


def _write_manifest(facts: Mapping[str, Any], folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n", encoding="utf-8")


def _move(staged: Path, target: Path, holds: Iterable[str]) -> None:
    """Rename `staged` to `target`. A damaged target leaves with the temporary folder, a complete one stays."""
    if not is_filled(target, holds, hash_file):
        with suppress(FileNotFoundError):
            target.rename(staged.with_name("damaged"))
    try:
        staged.rename(target)
    except OSError:
        if not is_filled(target, holds):
            raise
