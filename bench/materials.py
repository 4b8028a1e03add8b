"""What the cells of a run look at: the same tokens, the same documents, and the hashes of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import checks, data, inputs, leaks, tasks
from bench.reading import Reading
from bench.recipe import Recipe, Text, draw
from bench.spec import Cell, Protocol
from methods.pruner import Calibration


@dataclass(frozen=True)
class Materials:
    """The same for all cells of one protocol and seed.

    healing  the text of each recipe
    keep     whether a later cell goes on from the model of the one that is measured
    """

    calibration: Calibration
    texts: dict[str, data.EvaluationText]
    tasks: dict[str, Any]
    documents: dict[str, list[int]]
    dense: checks.Dense | None
    inputs: dict[str, Any]
    scratch: Path
    healing: dict[Recipe, Text] = field(default_factory=dict)
    inherited_seconds: float = 0.0
    keep: bool = False

    def knowing(self, order: tuple[str, ...], seconds: float, keep: bool) -> Materials:
        """For one cell: with the removals that an earlier one found, what finding them took, and `keep`."""
        block = replace(self.calibration, order=order)
        return replace(self, calibration=block, inherited_seconds=seconds, keep=keep)

    @staticmethod
    def of(cell: Cell, scratch: Path, recipes: Iterable[Recipe] = (), reading: Reading | None = None) -> Materials:
        """`scratch` is a folder for what need not outlive the run; `recipes` are those by which its cells are healed,
        and `reading` has what earlier cells have read.

        Raises UserError when a text is shorter than asked, when one that is evaluated is calibrated or trained on under
        another name, or when a task's documents cannot be had.
        """
        p, reading = cell.protocol, reading or Reading(cell, scratch)
        tokenizer, loaded = reading.tokenizer, reading.load(p.tasks, p.task_data, p.fewshot)
        block = data.calibration(tokenizer, p.calibration, p.calibration_sequences, p.calibration_length, cell.seed)
        texts = {text: _held_out(reading, text, p) for text in p.texts}
        leaks.refuse_shared(tokenizer, block.ids, block.source, texts.values(), "calibrated on")
        healing = {recipe: draw(tokenizer, recipe) for recipe in recipes}
        for text in healing.values():
            leaks.refuse_shared(tokenizer, text.train, text.source, texts.values(), "trained on")
        documents = {name: tasks.draw(task, p.documents, cell.seed) for name, task in loaded.items()}
        first = next(iter(texts.values()), None)
        return Materials(
            replace(block, memory=p.calibration_memory_mib * 2**20),
            texts,
            loaded,
            documents,
            reading.dense(first) if first and p.checks else None,
            inputs.common(cell, tokenizer, calibration=block, texts=texts, loaded_tasks=loaded, documents=documents),
            scratch,
            healing,
        )


def _held_out(reading: Reading, text: str, p: Protocol) -> data.EvaluationText:
    return reading.text(text, p.window, p.stride, p.windows, whole=data.is_whole(text, p.calibration))
