"""Joins run folders into one: those of machines that know nothing of each other, each with a part of the cells."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.records import packed_run, run_folder, served
from bench.records.record import LEFT_OUT, Record
from bench.records.sample_tables import refuse_unfit
from methods.checkpoint.weight_files import staged
from methods.errors import UserError


def merge(parts: Sequence[Path], out: Path) -> dict[str, Record]:
    """Write the cells of all parts, packed or not, with samples and saved models to the new folder `out`; return them.

    A cell of one key and one content in several parts is taken once. What inference engines made of a model is joined
    as `served.join` says. Raises UserError, and writes nothing, where a part is no run folder or has a record that does
    not fit, where two have different records of one key, where samples are damaged, where a saved model has links, and
    where `out` has files.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for part in parts:
        for key, record in run_folder.records(part, _refuse).items():
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
            _copy_model(part / "models" / key, folder / "models" / key)
        served.join(parts, folder)
    return {key: record for key, (_, record) in found.items()}


def _refuse(wrong: str) -> None:
    """Raise UserError for a record that does not fit, which would be lost."""
    raise UserError(f"{wrong.removesuffix(f'; {LEFT_OUT}')}; mend it, or move it out of the part")


def _copy_model(model: Path, target: Path) -> None:
    """Copy the saved model of a cell, where there is one. Raises UserError where it has links."""
    if not model.is_dir():
        return
    if link := next((path for path in (model.parent, model, *model.rglob("*")) if path.is_symlink()), None):
        raise UserError(f"{link} is a link, and what it leads to is not copied; put the files there, or remove it")
    shutil.copytree(model, target)


def _copy(part: Path, key: str, record: Record, folder: Path) -> None:
    """Copy a cell's record, and its samples where they are those that the record names."""
    refuse_unfit(run_folder.samples_folder(part, key), record.measured)
    samples = run_folder.samples_folder(folder, key)
    for path in sorted(run_folder.samples_folder(part, key).glob("*.parquet")):
        samples.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, samples)
    target = folder / "cells" / f"{key}.json"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(part / "cells" / target.name, target)
