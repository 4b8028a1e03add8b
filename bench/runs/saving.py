"""Saves the pruned model of a cell and loads it again. The cell measures the model that was loaded."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.data import pretrained
from bench.data.mixture import shares_of_calibration
from bench.plan.cell import Cell
from bench.plan.kinds import to_plain
from bench.records.measured import Measured, SavedModel
from bench.system import memory
from methods.checkpoint import save_load
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, Place, devices_of
from methods.model.layer_store import LayerStore

RELOADED = "the model as it loads again from this folder"
IN_MEMORY = "the model in memory, before it was saved"
PROBE_TOKENS = 128  # leading tokens of the first calibration sequence, on which the cost of rounding is measured


def folder_of(run: Path, key: str) -> Path:
    """Return where a run keeps the model of a cell."""
    return run / "models" / key


def save_and_reload(
    cell: Cell,
    model: Decoder,
    tokenizer: Any,
    *,
    calibration: Calibration,
    decisions: Mapping[str, Any],
    measured: Measured,
    run: Path,
    place: Place,
    files: LayerStore | None = None,
) -> tuple[Decoder, SavedModel]:
    """Save the cell's model in its run; return the model as it loads from there, and where it was saved.

    place  the devices of that model
    files  where its weights lie then; None: in memory

    The weights of `model` are freed on the way, so that there is one model in memory and not two.
    """
    folder, dtype = folder_of(run, cell.key), dtype_to_save(cell.protocol.save_dtype, cell.model, cell.dtype)
    shutil.rmtree(folder, ignore_errors=True)  # left by an attempt without a record
    facts = facts_of_card(cell, decisions, measured)
    probe = calibration.ids[:1, :PROBE_TOKENS]
    manifest = save_load.save(model, folder, tokenizer=tokenizer, facts=facts, dtype=dtype, probe=probe)
    written = SavedModel(
        folder=folder.relative_to(run).as_posix(),
        bytes=sum(entry["bytes"] for entry in manifest["weights"].values()),
        **{name: manifest[name] for name in ("loads_with", "reason", "dtype", "rounding") if name in manifest},
    )
    nn.Module.to(model.model, "meta")  # not model.to: accelerate warns of that where layers are spread
    gc.collect()  # the model that was tried out shares the weights and refers to itself
    memory.give_back(devices_of(place))
    return save_load.load(folder, dtype=getattr(torch, cell.dtype), device=place, store=files), written


def complete_card(measured: Measured, folder: Path) -> None:
    """Write into the card of a saved model what has been measured since it was saved."""
    save_load.complete(folder, {"measured": _figures(measured)})


def dtype_to_save(name: str, model: str, own: str) -> torch.dtype:
    """Return the dtype to store in; "auto" is the dtype of the base's weights."""
    stored = pretrained.dtype_of_weights(model) or own if name == "auto" else name
    dtype: torch.dtype = getattr(torch, stored)
    return dtype


def facts_of_card(cell: Cell, decisions: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    """Return what the card says besides the model itself: base, pruning, and figures as far as there are any."""
    base = {
        "name": pretrained.name_of_model(cell.model),
        "licence": pretrained.licence_of_model(cell.model),
        "weights_sha256": measured.weights_sha256,
        "parameters": measured.dense_parameters,
        "pruning": _earlier(cell.model),
        "hub": cell.model if pretrained.is_on_hub(cell.model) else None,
    }
    calibration = _without_path(decisions["calibration"])
    pruning = {
        **{name: getattr(cell, name) for name in ("method", "label", "parameters", "match", "seed")},
        "requested": cell.ratio,
        "ratio_of": cell.ratio_of,
        "budget": measured.ratio_budget,
        "quantity": to_plain(measured.budget),
        "achieved": measured.ratio,
        "calibration": calibration,
        "decisions": {name: value for name, value in decisions.items() if name not in ("calibration", "earlier")},
        "healing": _without_path(to_plain(measured.healing.recipe)) if measured.healing else None,
        "earlier": [_stage(stage) for stage in decisions.get("earlier", [])] or None,
    }
    facts = {
        "base": {name: value for name, value in base.items() if value is not None},
        "pruning": {name: value for name, value in pruning.items() if value is not None},
    }
    figures = _figures(measured)
    return facts | ({"measured": figures} if figures else {})


def _without_path(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten the path of a text under "source" or "text" to the file's name, and that of a teacher to the model's."""
    teacher = {"teacher": pretrained.name_of_model(facts["teacher"])} if facts.get("teacher") else {}
    return {**facts, **{name: _name(facts[name]) for name in ("source", "text") if name in facts}, **teacher}


def _name(text: str) -> str:
    """Return the name of a text or of a mixture; of a file without its folder."""
    shares = shares_of_calibration(text)
    if len(shares) > 1:
        return ",".join(str(each._replace(text=_name(each.text))) for each in shares)
    return Path(text).name if Path(text).is_file() else text


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an earlier stage of a chained cell did, by the names of `facts_of_card`."""
    facts = {name: stage[name] for name in ("method", "label", "parameters", "decisions")}
    facts |= {"requested": stage["ratio"], "achieved": stage["measured"]["ratio"]}
    return facts | ({"healing": _without_path(stage["healing"])} if "healing" in stage else {})


def _earlier(model: str) -> list[dict[str, Any]]:
    """Return how a base that had been pruned before was made, oldest step first."""
    if not save_load.is_checkpoint(Path(model)):
        return []
    manifest = save_load.read_manifest(Path(model))
    last = manifest.get("pruning", {})
    return [*manifest.get("base", {}).get("pruning", []), *last.get("earlier", []), last]


def _figures(measured: Measured) -> dict[str, Any]:
    """Return the scores of texts and tasks as plain values, and of which model they are; {} without any."""
    texts = {_name(text): to_plain(score) for text, score in measured.text_scores.items()}
    figures = ({"perplexity": texts} if texts else {}) | ({"tasks": to_plain(measured.tasks)} if measured.tasks else {})
    if not figures:
        return {}
    return figures | {"model": RELOADED if measured.saved is not None else IN_MEMORY}
