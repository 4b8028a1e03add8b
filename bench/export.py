"""Models out of a run: a cell's pruned model as a folder that loads again, see methods.checkpoint.

run --save-models    every pruned model is saved, loaded again, and measured as it loads
export               a saved model is copied; any other is made anew from its record, which must agree
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import methods
from bench import data, lookup, models
from bench.errors import UserError
from bench.record import Record
from bench.spec import Cell
from methods import checkpoint, shards
from methods.anatomy import Decoder
from methods.budget import parameters
from methods.pruner import Calibration
from methods.stock import Uneven, padded

RELOADED = "the model as it loads again from this folder"
IN_MEMORY = "the model in memory, before it was saved"
CARRIED = ("base", "pruning", "measured")  # what a copy says as its original does
PROBE_TOKENS = 128  # leading tokens of the first calibration sequence, on which the cost of rounding is measured


def folder_of(run: Path, key: str) -> Path:
    """Where a run keeps the model of a cell."""
    return run / "models" / key


def save_and_reload(
    cell: Cell,
    model: Decoder,
    tokenizer: Any,
    *,
    calibration: Calibration,
    decisions: Mapping[str, Any],
    measured: dict[str, Any],
    run: Path,
) -> Decoder:
    """Save the cell's model in its run, note that under measured["saved"], and return what loads from there.

    The weights of `model` are given up on the way, so that there is one model in memory and not two.
    """
    folder, dtype = folder_of(run, cell.key), wanted_dtype(cell.protocol.save_dtype, cell.model, cell.dtype)
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that did not come to its record
    known = facts(cell.plain() | {"label": cell.label}, decisions, measured)
    probe = calibration.ids[:1, :PROBE_TOKENS]
    manifest = checkpoint.save(model, folder, tokenizer=tokenizer, facts=known, dtype=dtype, probe=probe)
    measured["saved"] = {
        "folder": folder.relative_to(run).as_posix(),
        "bytes": sum(entry["bytes"] for entry in manifest["weights"].values()),
        **{name: manifest[name] for name in ("loads_with", "reason", "dtype", "rounding") if name in manifest},
    }
    device = model.embed.weight.device
    model.model.to("meta")
    return checkpoint.load(folder, dtype=getattr(torch, cell.dtype), device=device)


def complete(measured: Mapping[str, Any], run: Path) -> None:
    """Write what has been measured since the model was saved into its card."""
    checkpoint.complete(run / measured["saved"]["folder"], {"measured": _figures(measured)})


def wanted_dtype(name: str, model: str, own: str) -> torch.dtype:
    """The dtype to store in; "auto" is the one that the base's weights have."""
    stored = models.stored_dtype(model) or own if name == "auto" else name
    dtype: torch.dtype = getattr(torch, stored)
    return dtype


def facts(cell: Mapping[str, Any], decisions: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says besides the model itself: base, pruning, and figures as far as there are any."""
    base = {
        "name": models.display_name(cell["model"]),
        "licence": models.licence(cell["model"]),
        "weights_sha256": measured.get("weights_sha256"),
        "parameters": measured.get("dense_parameters"),
        "pruning": _earlier(cell["model"]),
        "hub": cell["model"] if models.is_on_hub(cell["model"]) else None,
    }
    calibration = _without_path(decisions["calibration"])
    pruning = {
        **{name: cell[name] for name in ("method", "label", "parameters", "match", "seed")},
        "requested": cell["ratio"],
        "budget": measured.get("ratio_budget"),
        "achieved": measured.get("ratio"),
        "calibration": calibration,
        "decisions": {name: value for name, value in decisions.items() if name not in ("calibration", "earlier")},
        "healing": _without_path(measured["healing"]["recipe"]) if "healing" in measured else None,
        "earlier": [_stage(stage) for stage in decisions.get("earlier", [])] or None,
    }
    found = {
        "base": {name: value for name, value in base.items() if value is not None},
        "pruning": {name: value for name, value in pruning.items() if value is not None},
    }
    figures = _figures(measured)
    return found | ({"measured": figures} if figures else {})


def _without_path(said: Mapping[str, Any]) -> dict[str, Any]:
    """With the name of a text's file only, under "source" or "text"."""
    names = {name: Path(said[name]).name for name in ("source", "text") if name in said and Path(said[name]).is_file()}
    return {**said, **names}


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell in front of this one did, by the names of `facts`."""
    found = {name: stage[name] for name in ("method", "label", "parameters", "decisions")}
    found |= {"requested": stage["ratio"], "achieved": stage["measured"]["ratio"]}
    return found | ({"healing": _without_path(stage["healing"])} if "healing" in stage else {})


def _earlier(model: str) -> list[dict[str, Any]]:
    """How a base that had been pruned before came to be, oldest step first."""
    if not checkpoint.is_checkpoint(Path(model)):
        return []
    manifest = checkpoint.read_manifest(Path(model))
    last = manifest.get("pruning", {})
    return [*manifest.get("base", {}).get("pruning", []), *last.get("earlier", []), last]


def _figures(measured: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: measured[name] for name in ("perplexity", "tasks") if measured.get(name)}
    if not found:
        return {}
    return found | {"model": RELOADED if "saved" in measured else IN_MEMORY}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A cell's model in memory, with what its card says."""

    model: Decoder
    tokenizer: Any
    facts: dict[str, Any]
    probe: torch.Tensor | None


def find(run: Path, wanted: str) -> Record:
    """The measured record of the one cell that is meant (bench.lookup). Raises UserError."""
    key, record = lookup.cell(run, wanted)
    if record.status != "ok":
        raise UserError(f"{key} has no model: {record.status}, {(record.error or '').partition(chr(10))[0]}")
    return record


def model_of(record: Record, run: Path, device: str, dtype: str | None) -> Exported:
    """The record's model: the saved one unless that has been rounded too far, else made anew. Raises UserError."""
    saved = record.measured.get("saved")
    enough = saved and (dtype in (None, saved["dtype"]) or saved["dtype"] == "float32")
    if saved and enough and checkpoint.is_checkpoint(run / saved["folder"]):
        folder = run / saved["folder"]
        manifest = checkpoint.read_manifest(folder)
        known: dict[str, Any] = {name: manifest[name] for name in CARRIED if name in manifest}
        tokenizer = models.load_tokenizer(str(folder))
        return Exported(checkpoint.load(folder), tokenizer, known, None)
    return made_anew(record, device)


def made_anew(record: Record, device: str) -> Exported:
    """Prune again as the record says. Raises UserError where weights, tokens or decisions are no longer the same, and
    for a cell that has more behind it than pruning.
    """
    cell, measured, protocol = record.cell, record.measured, record.cell["protocol"]
    if "healing" in cell or "earlier" in cell:
        raise UserError(
            f"{cell['label']} was trained or goes on from another cell; `run --save-models` keeps its model"
        )
    models.check(cell["model"], cell["trust_remote_code"])
    if models.weights_sha256(cell["model"]) != measured["weights_sha256"]:
        raise UserError(f"{cell['model']} is not the model of the record: the sha256 of its weights differs")
    data.check(protocol["calibration"])
    on = models.resolve_device(cell["device"] if device == "auto" else device)
    torch.manual_seed(cell["seed"])
    loaded, tokenizer = models.load(cell["model"], on, getattr(torch, cell["dtype"]), cell["trust_remote_code"])
    sizes = (protocol["calibration_sequences"], protocol["calibration_length"])
    block = data.calibration(tokenizer, protocol["calibration"], *sizes, cell["seed"])
    if block.sha256 != record.decisions["calibration"]["sha256"]:
        raise UserError(f"the calibration tokens are not those of the record: {protocol['calibration']} has changed")
    block = dataclasses.replace(block, memory=protocol["calibration_memory_mib"] * 2**20)
    model = Decoder(loaded)
    decided: dict[str, Any] = {}
    if cell["method"] != "dense":
        pruner = methods.make(cell["method"], cell["parameters"])
        decided = pruner.prune(model, block, measured.get("ratio_budget", 0.0))
    removed = [{k: v for k, v in d.items() if k.startswith("removed_")} for d in (decided, record.decisions)]
    if removed[0] != removed[1] or parameters(model) != measured["parameters"]:
        where = record.environment.get("gpu") or record.environment.get("cpu", "another machine")
        raise UserError(f"{cell['label']} does not remove here what it removed for the record, on {where}")
    return Exported(model, tokenizer, facts(cell, record.decisions, measured), block.ids[:1, :PROBE_TOKENS])


def copy(source: Path, target: Path) -> None:
    """Copy a saved model whole, after its hashes have been checked. Raises UserError."""
    try:
        shards.check(source, checkpoint.read_manifest(source)["weights"])
        with shards.staged(target) as inside:
            shutil.copytree(source, inside, dirs_exist_ok=True)
    except checkpoint.CheckpointError as error:
        raise UserError(str(error)) from error


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
    unchanged = not pad and not gguf and most == checkpoint.SHARD_BYTES and dtype in (None, (saved or {}).get("dtype"))
    if to and saved and unchanged and checkpoint.is_checkpoint(run / saved["folder"]):
        copy(run / saved["folder"], to)
        return [_line(to, checkpoint.read_manifest(to))]
    cell = record.cell
    try:
        found = model_of(record, run, device, dtype)
        kind = wanted_dtype(dtype or (saved or {}).get("dtype", "auto"), cell["model"], cell["dtype"])
        lines = []
        if to:
            options = {"tokenizer": found.tokenizer, "facts": found.facts, "dtype": kind, "pad": pad}
            manifest = checkpoint.save(found.model, to, shard_bytes=most, probe=found.probe, **options)
            lines.append(_line(to, manifest))
        if gguf:
            from bench import gguf_file

            ids = checkpoint.default_probe(found.model)
            model = padded(found.model, ids)[0] if pad else found.model
            gguf_file.write(model, found.tokenizer, gguf, kind, models.display_name(cell["model"]))
            lines.append(f"{gguf}: {gguf.stat().st_size / 1e6:.1f} MB, matrices in {str(kind).removeprefix('torch.')}")
    except (checkpoint.CheckpointError, Uneven) as error:
        raise UserError(str(error)) from error
    return lines


def _line(folder: Path, manifest: Mapping[str, Any]) -> str:
    size = sum(entry["bytes"] for entry in manifest["weights"].values()) / 1e6
    means = "stock transformers" if manifest["loads_with"] == "transformers" else "prunebench"
    reason = f" ({manifest['reason']})" if manifest["reason"] else ""
    count = f"{manifest['parameters']:,} parameters, {size:.1f} MB, {manifest['dtype']}"
    return f"{folder}: {count}, loads with {means}{reason}"
