"""What the answer of a cell stands on beyond what was asked for: the `inputs` of a cell, and so a part of its key.

bench.records.schema.asked.CellInputs says what each of them is of.

A cell is served from a record only where all of it is equal: no answer of another model, text, document, version or
state of a method's source is ever taken for this one's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from torch import nn

import methods
from bench.data import pretrained
from bench.data import texts as text_data
from bench.engines.engine import Machine
from bench.evaluation import tasks
from bench.healing.text import Text
from bench.plan.cell import Cell
from bench.plan.recipe import Recipe
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
