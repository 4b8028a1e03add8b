"""Models that later cells of a run go on from, kept in its folder for as long as one of them has no record.

    kept/<key>/      as methods.checkpoint writes it, in the dtype of the memory; of the cell with that key
    models/<key>/    where the run saves its models, that one is taken

A cell whose model is needed and not there, or not whole, is measured again, whatever its record says.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench import inputs, ledger
from bench.record import EARLIER, Record, label
from bench.spec import Cell
from methods import checkpoint, shards
from methods.anatomy import Decoder

FOLDER = "kept"


def standing(folder: Path, cells: Sequence[Cell], *, retry_failed: bool) -> dict[str, tuple[Record | None, str]]:
    """{key: (its record if that counts, else None and why not in a line)}, see bench.ledger.finished.

    A parent's record does not count where a cell without a record goes on from a model that is gone.
    """
    found, needed = dict[str, tuple[Record | None, str]](), set[str]()
    for cell in reversed(cells):  # whoever goes on from a cell comes behind it
        record, why = ledger.finished(folder, cell, retry_failed=retry_failed)
        if record is not None and record.status == "ok" and cell.key in needed and find(folder, cell.key) is None:
            record, why = None, "another cell goes on from its model, which is not kept"
        if record is None and cell.earlier:
            needed.add(cell.inputs["parent"])
        found[cell.key] = record, why
    return found


def keep(model: Decoder, folder: Path, key: str) -> None:
    """Write the model of the cell `key`. Raises CheckpointError where the disk refuses."""
    place = folder / FOLDER / key
    shutil.rmtree(place, ignore_errors=True)  # of an attempt that did not come to its record
    checkpoint.save(model, place)


def find(folder: Path, key: str) -> Path | None:
    """Where the model of the cell `key` lies whole."""
    for place in (folder / "models" / key, folder / FOLDER / key):
        try:
            shards.check(place, checkpoint.read_manifest(place)["weights"])
        except checkpoint.CheckpointError:
            continue
        return place
    return None


def load(folder: Path, key: str, record: Record, device: torch.device) -> Decoder:
    """The model that was measured for the record. Raises RuntimeError where it is not there."""
    place, dtype = find(folder, key), getattr(torch, record.cell["dtype"])
    model = None if place is None else checkpoint.load(place, dtype=dtype, device=device, check_hashes=False)
    if model is None or inputs.state_sha256(model.model) != record.measured["pruned_sha256"]:
        raise RuntimeError(f"the model of {key}, from which this cell goes on, is not the one that was measured")
    return model


def stage(record: Record) -> dict[str, Any]:
    """What a chained cell's record says of the one that it goes on from, see bench.record."""
    cell = {name: value for name, value in record.cell.items() if name != "earlier"}
    decided = {name: value for name, value in record.decisions.items() if name not in ("calibration", "earlier")}
    asked = ("method", "parameters", "ratio", "healing")
    return (
        {"label": label(cell)}
        | {name: cell[name] for name in asked if name in cell}
        | {
            "decisions": decided,
            "measured": {name: record.measured[name] for name in EARLIER if name in record.measured},
        }
    )


def drop(folder: Path, but: Collection[str]) -> None:
    """Remove the models from which no cell goes on any more: all but those of the keys `but`."""
    for place in (folder / FOLDER).glob("*"):
        if place.name not in but:
            shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):  # which holds others, or is not there
        (folder / FOLDER).rmdir()
