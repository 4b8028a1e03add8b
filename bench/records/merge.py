"""Joins run folders into one: those of machines that know nothing of each other, each with a part of the cells."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.records import packed_run, run_folder, served
from bench.records.record import Record
from bench.records.samples import refuse_damaged
from methods.checkpoint.weight_files import staged
from methods.errors import UserError


def merge(parts: Sequence[Path], out: Path) -> dict[str, Record]:
    """Write the cells of all parts, packed or not, with samples and saved models to the new folder `out`; return them.

    A cell of one key and one content in several parts is taken once, and a link stays a link: a part of another's may
    lead to files of this machine. What inference engines made of a model is joined
    as `served.join` says, and other records that do not fit are left out. Raises UserError, and writes nothing, where a
    part is no run folder, where two have different records of one key, where samples are damaged, and where `out` has
    files.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for part in parts:
        for key, record in run_folder.records(part, run_folder.unsaid).items():
            first, known = found.setdefault(key, (part, record))
            if known != record:
                raise UserError(
                    f"{key} is in {first} and in {part}, and not the same: it was measured twice; leave one of the two "
                    "out, or compare the parts as runs of their own"
                )
    with staged(out) as folder:
        for part in parts:
            if packed_run.is_packed(part):
                packed_run.unpack(part, folder)
        for key, (part, record) in found.items():
            if not packed_run.is_packed(part):
                _copy(part, key, record, folder)
            if (model := part / "models" / key).is_dir():
                shutil.copytree(model, folder / "models" / key, symlinks=True)
        served.join(parts, folder)
    return {key: record for key, (_, record) in found.items()}


def _copy(part: Path, key: str, record: Record, folder: Path) -> None:
    """Copy a cell's record, and its samples where they are those that the record names."""
    refuse_damaged(run_folder.samples_folder(part, key), record.measured)
    if (samples := run_folder.samples_folder(part, key)).is_dir():
        shutil.copytree(samples, run_folder.samples_folder(folder, key), dirs_exist_ok=True, symlinks=True)
    target = folder / "cells" / f"{key}.json"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(part / "cells" / target.name, target)
