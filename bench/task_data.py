"""Documents of a task from local files, in place of the hub's: --task-data TASK=PATH.

PATH is one .arrow, .parquet or .jsonl file with the documents that are evaluated, or a folder of such files. A folder
whose files, or their folders, are named by split as the hub does it (test-00000-of-00001.parquet, test/...) gives each
split its own files; any other folder is taken whole. Columns are those of the data set that lm-eval's definition names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".arrow", ".parquet", ".jsonl")
SPLITS = ("train", "validation", "dev", "test")
SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?![A-Za-z])")  # at the start of a name


def parse(settings: Iterable[str]) -> tuple[tuple[str, str, str], ...]:
    """'race=PATH' -> (task, path, sha256 of the files), sorted, once per task. Raises UserError for what is none."""
    found = {}
    for setting in settings:
        task, equals, path = setting.partition("=")
        if not (task and equals and path):
            raise UserError(f"--task-data is written TASK=PATH, as in race=data/race/high; got {setting!r}")
        if task in found:
            raise UserError(f"--task-data names {task} twice")
        found[task] = (task, path, _sha256(_files(Path(path))))
    return tuple(sorted(found.values()))


def read(path: Path, split: str) -> datasets.Dataset | None:
    """The documents of `split`; None where the folder names its splits and has no such. A single file has any split."""
    import datasets

    files = _files(path)
    named = {file: SPLIT.match(file.relative_to(path).as_posix()) for file in files if file != path}
    if any(named.values()):
        files = [file for file, match in named.items() if match and match[1] == split]
    return datasets.concatenate_datasets([_read(file) for file in files]) if files else None


def names_splits(path: Path) -> bool:
    """Whether `path` is a folder that keeps its splits apart."""
    return path.is_dir() and any(SPLIT.match(file.relative_to(path).as_posix()) for file in _files(path))


def _files(path: Path) -> list[Path]:
    """The files of documents in `path`, in the order of their names."""
    if not path.exists():
        raise UserError(f"--task-data: there is no {path}")
    candidates = [path] if path.is_file() else [*path.glob("*"), *path.glob("*/*")]
    files = [file for file in candidates if file.suffix in SUFFIXES and (file == path or _counts(file, path))]
    if not files:
        raise UserError(f"--task-data: {path} holds no {', '.join(SUFFIXES)} file")
    return sorted(files)


def _counts(file: Path, folder: Path) -> bool:
    """Not a cache of the datasets library, nor in a folder that is no split's."""
    return not file.name.startswith("cache-") and (file.parent == folder or file.parent.name in SPLITS)


def _sha256(files: list[Path]) -> str:
    """Of the files' names and contents."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def _read(file: Path) -> datasets.Dataset:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix == ".arrow":
            return datasets.Dataset.from_file(str(file), in_memory=True)
        if file.suffix == ".parquet":
            return datasets.Dataset(pyarrow.parquet.read_table(file))
        return datasets.Dataset.from_list(_rows(file))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--task-data: {file} cannot be read as {file.suffix.removeprefix('.')}: {reason}") from error


def _rows(file: Path) -> list[dict[str, Any]]:
    """One JSON object per line."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("one object per line is expected")
    return rows
