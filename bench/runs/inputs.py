"""Computes the `inputs` of a cell: hashes of all that its answer stands on beside its question. Its key holds them.

A record serves a cell only where all inputs are equal. No answer of another model, text, document, version or revision
of a method is ever taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench.data import pretrained
from bench.data import texts as text_data
from bench.data.chat import sha256_of_template
from bench.engines.engine import Machine
from bench.evaluation import tasks
from bench.healing.training import REVISION, Text
from bench.plan.cell import Cell, HealingInput, Inputs, TimedOn
from bench.plan.kinds import to_plain
from bench.plan.protocol import Recipe
from bench.records.record import InvalidRecord, Record, load
from bench.system import environment, versions
from bench.system.threads import settings_of_waiting
from methods.errors import UserError
from methods.model.calibration import Calibration


def hash_shared_inputs(
    cell: Cell,
    tokenizer: Any,
    machine: Machine,
    *,
    calibration: Calibration,
    texts: Mapping[str, text_data.EvaluationText],
    loaded_tasks: Mapping[str, Any],
    documents: Mapping[str, list[int]],
) -> Inputs:
    """Return the inputs that all cells of a run share. The weights' hash, which takes long, and the revision are empty.

    machine  where timed cells run
    """
    of_texts = Inputs(
        weights_sha256="",
        tokenizer_sha256=sha256_of_tokenizer(tokenizer),
        chat_template_sha256=sha256_of_template(tokenizer) if cell.protocol.apply_chat_template else None,
        calibration_sha256=calibration.sha256,
        texts={name: text.sha256 for name, text in texts.items()},
        tasks={},
        revision="",
        versions=versions.installed_versions(),
    )
    return with_own_inputs(of_texts, cell, machine, loaded_tasks, documents)


def with_own_inputs(
    inputs: Inputs, cell: Cell, machine: Machine, loaded_tasks: Mapping[str, Any], documents: Mapping[str, list[int]]
) -> Inputs:
    """Return the inputs with what every process looks at itself: the configuration, tasks, and what times cells."""
    timed_on = TimedOn(machine.processor, machine.threads, **settings_of_waiting())
    return replace(
        inputs,
        config_sha256=pretrained.sha256_of_config(cell.model, cell.trust_remote_code) or None,
        tasks={name: tasks.fingerprint_of_task(task, documents[name]) for name, task in loaded_tasks.items()},
        timed_on=timed_on if cell.protocol.speed_rounds else None,
    )


def inputs_of_healing(recipe: Recipe, text: Text, *, download: bool = True) -> HealingInput:
    """Return the inputs that a healed cell has beside those of the pruned model; `download` as `sha256_of_weights`."""
    teacher = pretrained.sha256_of_weights(recipe.teacher, download=download) if recipe.teacher else None
    peft = metadata.version("peft") if recipe.kind == "lora" else None
    return HealingInput(text.sha256, str(REVISION), peft, teacher)


def names_of_differences(before: Inputs | None, after: Inputs | None) -> list[str]:
    """Return the names under which two inputs differ, sorted."""
    first, second = to_plain(before) or {}, to_plain(after) or {}
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


def find_old_records(folder: Path, cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Yield the key of each old record, and the reason in a line.

    A record is old that cannot be read, or that has the question of a cell and other inputs or another default. Records
    of other questions are not old.
    """
    keys, cell_by_question = {cell.key for cell in cells}, {cell.question: cell for cell in cells}
    for path in sorted((folder / "cells").glob("*.json")):
        if path.stem in keys:
            continue
        try:
            record = load(path)
        except InvalidRecord as error:
            yield path.stem, str(error)
            continue
        if cell := cell_by_question.get(question_of_record(record)):
            yield path.stem, f"{path.stem}.json is old, since this has changed: {_words_of_change(record.cell, cell)}"


def _words_of_change(before: Cell, after: Cell) -> str:
    """Return the inputs that differ between two cells of one question, a plugin's by the names of its files."""
    names = names_of_differences(before.inputs, after.inputs)
    words = {name: name for name in names}
    if "revision" in words and before.inputs is not None and after.inputs is not None:
        words["revision"] = _words_of_revision(before.inputs.revision, after.inputs.revision, after.method)
    return ", ".join(words.values()) or "a default"


def _words_of_revision(before: str, now: str, method: str) -> str:
    """Return what has changed of a method: files of a plugin, or its revision from one number to another."""
    (number, *hashes), (number_now, *hashes_now) = before.split(", "), now.split(", ")
    if number != number_now:
        return f"revision ({number} before, {number_now} now)"
    files = [file.name for file in methods.sources_of_method(method)]
    if not files:
        return "revision"
    if len(hashes) != len(hashes_now):
        return f"{files[0]} or what it imports"
    pairs = zip(files, hashes, hashes_now, strict=False)  # behind them may stand a hash of all built-in methods
    return ", ".join(name for name, first, second in pairs if first != second) or "revision"


def question_of_record(record: Record) -> str:
    """Return the question of a record's cell, as Cell.question has it; empty where this version cannot ask it."""
    try:
        return record.cell.question
    except (UserError, ValueError):
        return ""


def revisions_of_methods(names: Collection[str]) -> dict[str, str]:
    """Return the revision of each method, which its class declares.

    In a checkout whose methods differ from their commit, the sha256 of all of them follows. Who edits a method then
    measures it again.
    """
    edited = environment.is_edited("methods")
    more = f", {sha256_of_python_files([Path(methods.__file__).parent])}" if edited else ""
    return {name: methods.revision_of_method(name) + more for name in names}


def sha256_of_code() -> str:
    """Return the sha256 of the code that measures: all modules of bench and methods."""
    return sha256_of_python_files([Path(__file__).parents[1], Path(methods.__file__).parent])


def sha256_of_python_files(folders: Sequence[Path]) -> str:
    """Return the sha256 of the names and contents of all Python files in some folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes() + b"\n")
    return digest.hexdigest()


def sha256_of_state(model: nn.Module) -> str:
    """Return the sha256 of every tensor of a model's state: name, kind, shape and values. Tied tensors count once."""
    digest, names = hashlib.sha256(), dict[int, str]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        digest.update(f"{name} {first} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if first == name:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def sha256_of_tokenizer(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer's vocabulary, rules and special tokens."""
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([rules, special], sort_keys=True).encode()).hexdigest()
