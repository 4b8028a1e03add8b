"""Reads what the cells of a run are calibrated, healed and measured on: each text and task once, however many protocols
use it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.data import contamination, pretrained, task_loading, texts
from bench.engines.engine import Machine
from bench.evaluation import checks
from bench.evaluation.statistics import KeptStatistics
from bench.healing.text import Text, draw
from bench.plan.cell import Cell
from bench.plan.protocol import Protocol
from bench.plan.recipe import Recipe
from bench.run import fingerprint
from bench.schedule.work import Amounts
from methods.model.calibration import Calibration

CalibrationSetting = tuple[str, Protocol, int]  # what decides what a cell looks at: its model, protocol and seed


def calibration_setting(cell: Cell) -> CalibrationSetting:
    """Return what cells share that look at the same."""
    return cell.model, cell.protocol, cell.seed


@dataclass(frozen=True)
class Datasets:
    """Holds what all cells of one protocol and seed read.

    dense              the dense model's predictions, for the checks
    inputs             the hashes of all of this (bench.run.fingerprint)
    healing            the text of each recipe
    search_seconds     what it took other cells until they had found each of the removals that this one begins with
    statistics         those of the dense model that cells share; None where the model that is pruned is another
    keep               whether a later cell goes on from the model of the one that is measured
    timed_threads      torch's while a cell is timed
    """

    calibration: Calibration
    texts: dict[str, texts.EvaluationText]
    tasks: dict[str, Any]
    documents: dict[str, list[int]]
    dense: checks.DenseOutputs | None
    inputs: dict[str, Any]
    healing: dict[Recipe, Text] = field(default_factory=dict)
    search_seconds: tuple[float, ...] = ()
    statistics: KeptStatistics | None = None
    keep: bool = False
    timed_threads: int = 1

    @property
    def amounts(self) -> Amounts:
        """Return on how much cells are measured, from which their time is estimated."""
        tokens = sum(text.ids.numel() for text in self.texts.values())
        return Amounts(tokens, {name: len(documents) for name, documents in self.documents.items()})

    def for_cell(
        self,
        order: tuple[str, ...],
        seconds: tuple[float, ...],
        *,
        keep: bool,
        timed_threads: int,
        statistics: KeptStatistics | None,
    ) -> Datasets:
        """Return these for one cell, with the removals that an earlier one found and the seconds until each."""
        return replace(
            self,
            calibration=replace(self.calibration, order=order, keep=statistics),
            search_seconds=seconds,
            keep=keep,
            timed_threads=timed_threads,
            statistics=statistics,
        )


class DatasetReader:
    """Reads what the cells of a run need, through the tokenizer of their model, and each text and task only once.

    `scratch` is a folder for what need not outlive the run, `machine` where timed cells run.
    """

    def __init__(self, cell: Cell, scratch: Path, machine: Machine) -> None:
        self.scratch, self.machine = scratch, machine
        self.tokenizer = pretrained.load_tokenizer(cell.model, cell.trust_remote_code)
        self._tasks = functools.cache(task_loading.load)
        self._text = functools.cache(functools.partial(texts.evaluation, self.tokenizer))

    def read(self, cell: Cell, recipes: Iterable[Recipe] = ()) -> Datasets:
        """Read what `cell` is calibrated and measured on, and the texts of the recipes by which cells are healed.

        Raises UserError when a text is shorter than asked, when one that is evaluated is calibrated or trained on under
        another name, or when a task's documents cannot be had.
        """
        p, tokenizer = cell.protocol, self.tokenizer
        loaded = self._tasks(p.tasks, p.task_data, p.fewshot)
        block = texts.calibration(tokenizer, p.calibration, p.calibration_sequences, p.calibration_length, cell.seed)
        held_out = {
            text: self._text(
                text, p.window, p.stride, p.windows, drawn=p.windows_drawn, whole=texts.is_whole(text, p.calibration)
            )
            for text in p.texts
        }
        contamination.refuse_shared(tokenizer, block.ids, block.source, held_out.values(), "calibrated on")
        healing = {recipe: draw(tokenizer, recipe) for recipe in recipes}
        for text in healing.values():
            contamination.refuse_shared(tokenizer, text.train, text.source, held_out.values(), "trained on")
        documents = {name: task_loading.draw(task, p.documents, cell.seed) for name, task in loaded.items()}
        first = next(iter(held_out.values()), None)
        dense = None
        if first and p.checks:
            of = hashlib.sha256(f"{cell.model} {first.sha256}".encode()).hexdigest()[:16]
            dense = checks.DenseOutputs(first.ids, self.scratch / f"dense-{of}.safetensors", drawn=first.drawn)
        inputs = fingerprint.common(
            cell, tokenizer, self.machine, calibration=block, texts=held_out, loaded_tasks=loaded, documents=documents
        )
        return Datasets(
            calibration=replace(block, memory=p.calibration_memory_mib * 2**20),
            texts=held_out,
            tasks=loaded,
            documents=documents,
            dense=dense,
            inputs=inputs,
            healing=healing,
        )


def read_datasets(cells: Sequence[Cell], scratch: Path, machine: Machine) -> dict[CalibrationSetting, Datasets]:
    """Read the data of each model, protocol and seed of a run, which is timed on one kind of machine."""
    first_of_each = {cell.model: cell for cell in cells}
    readers = {model: DatasetReader(cell, scratch, machine) for model, cell in first_of_each.items()}
    recipes = {cell.healing for cell in cells if cell.healing}
    one_of_each = {calibration_setting(cell): cell for cell in cells}
    return {setting: readers[cell.model].read(cell, recipes) for setting, cell in one_of_each.items()}
