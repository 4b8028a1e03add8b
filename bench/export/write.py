"""Writes models out of a run: a cell's pruned model as a folder or GGUF file that loads again (methods.checkpoint).

run --save-models    every pruned model is saved, loaded again, and measured as it loads
export               a saved model is copied; any other is made again from its record, which must agree
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.data import pretrained
from bench.records import run_folder
from bench.records.record import Record
from bench.run.reproduce import PrunedModel, prune_again
from bench.run.saving import wanted_dtype
from methods.checkpoint import save_load, weight_files
from methods.checkpoint.transformers_compat import padded
from methods.errors import UserError
from methods.model.stock import Uneven

CARRIED = ("base", "pruning", "measured")  # what a copy says as its original does


def find(run: Path, wanted: str) -> Record:
    """Find the record of the one measured cell that is meant (bench.records.run_folder). Raises UserError."""
    key, record = run_folder.cell(run, wanted)
    if record.status != "ok":
        raise UserError(f"{key} has no model: {record.status}, {(record.error or '').partition(chr(10))[0]}")
    return record


def model_of(record: Record, run: Path, device: str, dtype: str | None) -> PrunedModel:
    """Return the record's model: the saved one unless that was rounded too far, else made again. Raises UserError."""
    saved = record.measured.get("saved")
    enough = saved and (dtype in (None, saved["dtype"]) or saved["dtype"] == "float32")
    if saved and enough and save_load.is_checkpoint(run / saved["folder"]):
        folder = run / saved["folder"]
        manifest = save_load.read_manifest(folder)
        known: dict[str, Any] = {name: manifest[name] for name in CARRIED if name in manifest}
        tokenizer = pretrained.load_tokenizer(str(folder))
        return PrunedModel(save_load.load(folder), tokenizer, known, None)
    return prune_again(record, device)


def copy(source: Path, target: Path) -> None:
    """Copy a saved model whole, after its hashes have been checked. Raises UserError."""
    weight_files.check(source, save_load.read_manifest(source)["weights"])
    with weight_files.staged(target) as inside:
        shutil.copytree(source, inside, dirs_exist_ok=True)


def write(
    record: Record,
    run: Path,
    *,
    to: Path | None,
    gguf: Path | None,
    pad: bool,
    dtype: str | None,
    most: int,
    device: str,
) -> list[str]:
    """Write the record's model as a folder, as a GGUF file, or as both; a line on each. Raises UserError."""
    for target in filter(None, (to, gguf)):
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise UserError(f"{target} exists{'' if target.is_file() else ' and is not empty'}; name a new one")
    saved = record.measured.get("saved")
    unchanged = not pad and not gguf and most == save_load.SHARD_BYTES and dtype in (None, (saved or {}).get("dtype"))
    if to and saved and unchanged and save_load.is_checkpoint(run / saved["folder"]):
        copy(run / saved["folder"], to)
        return [_line(to, save_load.read_manifest(to))]
    cell = record.cell
    try:
        found = model_of(record, run, device, dtype)
        kind = wanted_dtype(dtype or (saved or {}).get("dtype", "auto"), cell["model"], cell["dtype"])
        lines = []
        if to:
            options = {"tokenizer": found.tokenizer, "facts": found.facts, "dtype": kind, "pad": pad}
            manifest = save_load.save(found.model, to, shard_bytes=most, probe=found.probe, **options)
            lines.append(_line(to, manifest))
        if gguf:
            from bench.export import gguf_file

            ids = save_load.default_probe(found.model)
            model = padded(found.model, ids)[0] if pad else found.model
            gguf_file.write(model, found.tokenizer, gguf, kind, pretrained.display_name(cell["model"]))
            lines.append(f"{gguf}: {gguf.stat().st_size / 1e6:.1f} MB, matrices in {str(kind).removeprefix('torch.')}")
    except Uneven as error:
        raise UserError(str(error)) from error
    return lines


def _line(folder: Path, manifest: Mapping[str, Any]) -> str:
    size = sum(entry["bytes"] for entry in manifest["weights"].values()) / 1e6
    means = "stock transformers" if manifest["loads_with"] == "transformers" else "prunebench"
    reason = f" ({manifest['reason']})" if manifest["reason"] else ""
    count = f"{manifest['parameters']:,} parameters, {size:.1f} MB, {manifest['dtype']}"
    return f"{folder}: {count}, loads with {means}{reason}"
