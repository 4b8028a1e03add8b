"""What the answer of a cell stands on beyond what was asked for: the `inputs` of a cell, and so a part of its key.

bench.records.schema.asked.CellInputs says what each of them is of.

A cell is served from a record only where all of it is equal: no answer of another model, text, document, version or
state of a method's source is ever taken for this one's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench.data import pretrained
from bench.data import texts as text_data
from bench.engines.engine import Machine
from bench.evaluation import tasks
from bench.healing.text import Text
from bench.plan.cell import Cell, asked
from bench.plan.recipe import Recipe
from bench.records.record import InvalidRecord, Record, load
from bench.run.source_hash import as_of_today, healing_sha256
from bench.system import versions
from bench.system.threads import waiting
from methods.model.calibration import Calibration


def common(
    cell: Cell,
    tokenizer: Any,
    machine: Machine,
    *,
    calibration: Calibration,
    texts: Mapping[str, text_data.EvaluationText],
    loaded_tasks: Mapping[str, Any],
    documents: Mapping[str, list[int]],
) -> dict[str, Any]:
    """What all cells of a run share, but for the hash of the weights, which takes a while where they are large.

    machine  where timed cells run
    """
    found: dict[str, Any] = {
        "tokenizer_sha256": _tokenizer_sha256(tokenizer),
        "calibration_sha256": calibration.sha256,
        "texts": {name: text.sha256 for name, text in texts.items()},
        "tasks": {name: tasks.fingerprint(task, documents[name]) for name, task in loaded_tasks.items()},
        "versions": versions.installed(),
    }
    if settings := pretrained.config_sha256(cell.model, cell.trust_remote_code):
        found["config_sha256"] = settings
    if cell.protocol.speed_rounds:
        found["timed_on"] = {"processor": machine.processor, "threads": machine.threads} | waiting()
    return found


def healing(recipe: Recipe, text: Text) -> dict[str, str]:
    """What a healed cell stands on beside the pruned model."""
    found = {"text_sha256": text.sha256, "source_sha256": healing_sha256()}
    return found | ({"peft": metadata.version("peft")} if recipe.kind == "lora" else {})


def of_today(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `cell` of a record as it would be asked for today.

    Parameters have the names of today, one that the method did not have yet has its default, and hashes of earlier code
    that decides the same are today's (bench.run.source_hash).
    """

    def named(stage: Mapping[str, Any]) -> dict[str, Any]:
        parameters = methods.current_names(stage["method"], stage["parameters"])
        with contextlib.suppress(ValueError):  # of a plugin that is not loaded, or of a parameter that is no more
            parameters = methods.hyperparameters(methods.make(stage["method"], parameters))
        given = methods.current_names(stage["method"], dict.fromkeys(stage.get("given", ())))
        return {**stage, "parameters": parameters, "given": list(given)}

    inputs = dict(cell.get("inputs", {}))
    if "method_sha256" in inputs:
        inputs["method_sha256"] = as_of_today(cell["method"], inputs["method_sha256"])
    if "healing" in inputs:
        trained = inputs["healing"]
        inputs["healing"] = trained | {"source_sha256": as_of_today("healing", trained["source_sha256"])}
    earlier = {"earlier": [named(stage) for stage in cell["earlier"]]} if cell.get("earlier") else {}
    return named(cell) | earlier | {"inputs": inputs}


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names under which two inputs differ."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def earlier_names(folder: Path, cells: Sequence[Cell]) -> dict[str, str]:
    """Return the names of records that count for cells which have another key today: {today's key: name}."""
    return {cell.key: key for key, cell, _ in judged(folder, cells) if cell is not None}


def judged(folder: Path, cells: Sequence[Cell]) -> Iterator[tuple[str, Cell | None, str]]:
    """Yield the key of each record that no cell has, the cell for which it counts, or None and why it does not.

    Parents come in front of those that go on from them. What is not asked for is not among them.
    """
    keys, wanted = {cell.key for cell in cells}, {asked(cell): cell for cell in cells}
    found = list[tuple[str, Cell, Record]]()
    for path in sorted((folder / "cells").glob("*.json")):
        if path.stem in keys:
            continue
        try:
            record = load(path)
        except InvalidRecord as error:
            yield path.stem, None, str(error)
            continue
        if cell := wanted.get(asked(of_today(record.cell))):
            found.append((path.stem, cell, record))
    names = {key: key for key in keys if (folder / "cells" / f"{key}.json").exists()}
    for key, cell, record in sorted(found, key=lambda one: len(one[1].earlier)):
        if others := ", ".join(changed(folder, cell, record, names)):
            yield key, None, f"{key}.json is old, since this has changed: {others}"
        elif cell.key in names:
            yield key, None, f"{key}.json is old, since {cell.key}.json is of the same cell"
        else:
            names[cell.key] = key
            yield key, cell, ""


def changed(folder: Path, cell: Cell, record: Record, names: Mapping[str, str]) -> list[str]:
    """Return the names of those inputs of a cell that its record has otherwise.

    The parent is the same where the record goes on from the model that the parent's record, which may have been
    renamed, is of.
    """
    inputs = of_today(record.cell)["inputs"]
    parent = cell.inputs.get("parent")
    if parent and inputs.get("parent") not in (None, parent):
        *_, last = record.decisions.get("earlier") or [{}]
        model = last.get("measured", {}).get("pruned_sha256")
        for name in (parent, names.get(parent, parent)):
            with contextlib.suppress(InvalidRecord, OSError):
                if model and load(folder / "cells" / f"{name}.json").measured.get("pruned_sha256") == model:
                    inputs["parent"] = parent
    return differing(inputs, cell.inputs)


def state_sha256(model: nn.Module) -> str:
    """sha256 of every tensor of a model's state: its name, its kind, its shape and its values; tied ones once."""
    digest, names = hashlib.sha256(), dict[int, str]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        digest.update(f"{name} {first} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if first == name:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([rules, special], sort_keys=True).encode()).hexdigest()
