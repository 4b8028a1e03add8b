"""Reads what the cells of a run are calibrated, healed and measured on, and keeps statistics of the dense model.

Each text is read once, however many protocols use it. The run writes what it has tokenised to its scratch folder, where
the processes of its machine load it. Each process makes the tasks anew from their definitions. Statistics that one cell
computes on the calibration tokens serve later cells of the run on the same node.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.data import pretrained, questions, task_loading, texts
from bench.data.needle import CONTEXTS
from bench.data.texts import EvaluationText, refuse_shared
from bench.engines.engine import Machine, SearchStart
from bench.evaluation import checks, quality
from bench.healing.training import Text, draw_text
from bench.plan.cell import Cell, Inputs
from bench.plan.kinds import to_plain, value_from_plain
from bench.plan.protocol import Protocol, Recipe
from bench.runs.calibration import WRITTEN_HERE, OwnTexts, draw_calibration, questions_of_calibration
from bench.runs.inputs import hash_shared_inputs, with_own_inputs
from bench.schedule.estimate import Amounts
from bench.system import memory
from methods.model.calibration import Calibration, SweepLogs


class KeptStatistics:
    """Keeps statistics in files while the run lasts, and counts for one cell what others have spent on them.

    The folder is of one model in one dtype on one kind of device. Cells that run at once may each compute the same; the
    file of the last one stays.

    peaks    returns the highest memory of the stage so far, as bench.system.memory.WatchedPeaks has it
    seconds  that other cells took to compute what this one has read, each statistic once however often it is read
    peak     the highest memory while they did
    sweeps   where sweeps of the cell stand, whose interrupted ones have taken seconds too; None: that is not kept
    """

    def __init__(self, folder: Path, peaks: Callable[[], dict[str, Any]]) -> None:
        self.folder, self.peaks = folder, peaks
        self.sweeps: SweepLogs | None = None
        self.seconds = 0.0
        self.peak: dict[str, Any] = {}
        self._counted = set[str]()  # names of those that this cell has found or read

    def __call__(self, name: str, find: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the statistics of that name, from the file of another cell or by `find`."""
        file = self.folder / f"{name}.safetensors"
        counted = name in self._counted
        self._counted.add(name)
        if file.exists():
            return self._read(file, counted=counted)
        start, before = time.perf_counter(), self.sweeps.seconds if self.sweeps else 0.0
        statistics = find()
        earlier = self.sweeps.seconds - before if self.sweeps else 0.0
        cost = {"seconds": time.perf_counter() - start + earlier, "peak": self.peaks()}
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")  # another process may be about the same
        tensors = {str(number): statistic.contiguous() for number, statistic in enumerate(statistics)}
        save_file(tensors, unfinished, {"cost": json.dumps(cost)})
        unfinished.replace(file)  # so that a process that is killed leaves no half of it to the next one
        return statistics

    def _read(self, file: Path, *, counted: bool) -> list[Tensor]:
        with safe_open(file, "pt") as stored:
            cost = json.loads(stored.metadata()["cost"])
            tensors = [stored.get_tensor(str(number)) for number in range(len(stored.keys()))]
        if counted:
            return tensors
        self.seconds += cost["seconds"]
        self.peak = memory.merge_peaks(self.peak, cost["peak"]) if self.peak else cost["peak"]
        return tensors


READ_OF_CALIBRATION = ("ids", "mask", "source", "seed", "sha256", "memory")  # the rest is of one cell
CalibrationSetting = tuple[str, Protocol, int]  # what decides what a cell looks at: its model, protocol and seed


def setting_of_calibration(cell: Cell) -> CalibrationSetting:
    """Return the model, protocol and seed of a cell. Cells that share them have the same calibration."""
    return cell.model, cell.protocol, cell.seed


@dataclass(frozen=True)
class Datasets:
    """Holds what all cells of one protocol and seed read.

    dense              the dense model's predictions, for the checks
    inputs             the hashes of all of this (bench.runs.inputs)
    healing            the text of each recipe
    search_seconds     that other cells' searches took until each of the removals that this cell begins with
    statistics         those of the dense model that cells share; None where the model that is pruned is another
    keep               whether a later cell goes on from the model of the cell that is measured
    timed_threads      torch's while a cell is timed
    long_texts         the long windows of each text, for perplexity by position; empty where none is asked for
    """

    calibration: Calibration
    texts: dict[str, texts.EvaluationText]
    tasks: dict[str, Any]
    documents: dict[str, list[int]]
    dense: checks.DenseOutputs | None
    inputs: Inputs
    healing: dict[Recipe, Text] = field(default_factory=dict)
    search_seconds: tuple[float, ...] = ()
    statistics: KeptStatistics | None = None
    keep: bool = False
    timed_threads: int = 1
    long_texts: dict[str, EvaluationText] = field(default_factory=dict)

    @property
    def amounts(self) -> Amounts:
        """Return how much cells are measured on. Their time is estimated from that."""
        tokens = sum(text.ids.numel() for text in (*self.texts.values(), *self.long_texts.values()))
        return Amounts(tokens, {name: len(documents) for name, documents in self.documents.items()})

    def save(self, file: Path) -> None:
        """Write all but the tasks into a file, from which `load_datasets` makes the same data."""
        block = self.calibration
        facts = {
            "calibration": {
                name: getattr(block, name) for name in ("ids", "mask", "source", "seed", "sha256", "memory")
            },
            "texts": {name: vars(text) for name, text in self.texts.items()},
            "long_texts": {name: vars(text) for name, text in self.long_texts.items()},
            "documents": self.documents,
            "inputs": to_plain(self.inputs),
            "healing": [(vars(recipe), vars(text)) for recipe, text in self.healing.items()],
        }
        tensors: dict[str, Tensor] = {}
        text = json.dumps(collect_tensors(facts, tensors))
        save_file(tensors, file, {"facts": text})

    def cut_to_cell(
        self,
        search: SearchStart,
        *,
        keep: bool,
        timed_threads: int,
        statistics: KeptStatistics | None,
    ) -> Datasets:
        """Return the data of one cell, with the removals that it begins with and the seconds until each."""
        return replace(
            self,
            calibration=replace(self.calibration, order=search.order, keep=statistics),
            search_seconds=search.seconds,
            keep=keep,
            timed_threads=timed_threads,
            statistics=statistics,
        )


def collect_tensors(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Return plain values with {"tensor": name} in place of each tensor, which is put into `tensors` by that name."""
    if isinstance(value, Tensor):
        tensors[name] = value.clone(memory_format=torch.contiguous_format)  # no two of a file may share their memory
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {key: collect_tensors(inner, tensors, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [collect_tensors(inner, tensors, f"{name}.{number}") for number, inner in enumerate(value)]
    return value


def put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return plain values with the tensors that `collect_tensors` has taken out."""
    if isinstance(value, list):
        return [put_tensors(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"tensor"}:
        return tensors[value["tensor"]]
    return {key: put_tensors(inner, tensors) for key, inner in value.items()}


class DatasetReader:
    """Reads what the cells of a run need through the tokenizer of their model, and each text and task only once.

    `scratch` is a folder for what need not outlive the run, `machine` where timed cells run. `own` says where a text of
    the dense model is written.
    """

    def __init__(self, cell: Cell, scratch: Path, machine: Machine, own: OwnTexts) -> None:
        self.scratch, self.machine, self.own = scratch, machine, own
        self.tokenizer = pretrained.load_tokenizer(cell.model, cell.trust_remote_code)
        self._tasks = functools.cache(task_loading.load_tasks)
        self._text = functools.cache(functools.partial(texts.make_evaluation_text, self.tokenizer))
        self._long_text = functools.cache(functools.partial(texts.make_long_text, self.tokenizer))

    def read(self, cell: Cell, recipes: Iterable[Recipe] = ()) -> Datasets:
        """Read what `cell` is calibrated and measured on, and the texts of the recipes by which cells are healed.

        Raises UserError when a text is too short, when an evaluated text is calibrated or trained on under another
        name, or when a task's documents cannot be had.
        """
        p, tokenizer = cell.protocol, self.tokenizer
        loaded = _load_tasks(cell, self._tasks, tokenizer)
        block = draw_calibration(cell, tokenizer, self.own)
        held_out, long_texts = quality.cut_texts(p, self._text), quality.cut_long_texts(p, self._long_text)
        every_text = [*held_out.values(), *long_texts.values()]
        refuse_shared(tokenizer, block.ids, block.source, every_text, "calibrated on")
        healing = {recipe: draw_text(tokenizer, recipe) for recipe in recipes}
        for text in healing.values():
            refuse_shared(tokenizer, text.train, text.source, every_text, "trained on")
        documents = {name: task_loading.draw_documents(task, p.documents, cell.seed) for name, task in loaded.items()}
        questions.refuse_scored_questions(questions_of_calibration(tokenizer, block), loaded, documents)
        hashed = held_out | {f"{text}:{p.positions}": windows for text, windows in long_texts.items()}
        inputs = hash_shared_inputs(
            cell, tokenizer, self.machine, calibration=block, texts=hashed, loaded_tasks=loaded, documents=documents
        )
        return Datasets(
            calibration=replace(block, memory=p.calibration_memory_mib * 2**20),
            texts=held_out,
            tasks=loaded,
            documents=documents,
            dense=_dense_outputs(cell, held_out, self.scratch),
            inputs=inputs,
            healing=healing,
            long_texts=long_texts,
        )


def _load_tasks(cell: Cell, load_tasks: Callable[..., dict[str, Any]], tokenizer: Any = None) -> dict[str, Any]:
    """Return the tasks of a cell; only those with a needle depend on the tokenizer, that of its model by default."""
    p = cell.protocol
    if CONTEXTS.keys().isdisjoint(p.tasks):
        return load_tasks(p.tasks, p.task_data, p.fewshot, files=p.task_files)
    tokenizer = tokenizer or pretrained.load_tokenizer(cell.model, cell.trust_remote_code)
    return load_tasks(p.tasks, p.task_data, p.fewshot, tokenizer, files=p.task_files)


def _dense_outputs(
    cell: Cell, held_out: Mapping[str, texts.EvaluationText], scratch: Path
) -> checks.DenseOutputs | None:
    """Return the dense model's predictions on the first text, for the checks; None where there are none."""
    first = next(iter(held_out.values()), None)
    if first is None or not cell.protocol.checks:
        return None
    of = hashlib.sha256(f"{cell.model} {first.sha256}".encode()).hexdigest()[:16]
    return checks.DenseOutputs(first.ids, scratch / f"dense-{of}.safetensors", drawn=first.drawn)


def file_of_datasets(scratch: Path, setting: CalibrationSetting) -> Path:
    """Return the file in the scratch folder of a run in which it keeps the data of a setting."""
    text = json.dumps(to_plain(setting), sort_keys=True)
    return scratch / f"data-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def save_datasets(datasets: Mapping[CalibrationSetting, Datasets], scratch: Path) -> None:
    """Write what a run has read into its scratch folder, for the processes of its machine."""
    for setting, data in datasets.items():
        data.save(file_of_datasets(scratch, setting))


def load_datasets(file: Path, cell: Cell, machine: Machine, load_tasks: Callable[..., dict[str, Any]]) -> Datasets:
    """Return the data that a run has saved for a cell, with the tasks, which this process reads and hashes itself."""
    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no dictionary)
        facts = put_tensors(json.loads(stored.metadata()["facts"]), tensors)
    tasks, documents = _load_tasks(cell, load_tasks), facts["documents"]
    held_out, long_texts = (_read_texts(facts[name]) for name in ("texts", "long_texts"))
    return Datasets(
        calibration=Calibration(**facts["calibration"]),
        texts=held_out,
        tasks=tasks,
        documents=documents,
        dense=_dense_outputs(cell, held_out, file.parent),
        inputs=with_own_inputs(value_from_plain(Inputs, facts["inputs"]), cell, machine, tasks, documents),
        healing={Recipe(**recipe): Text(**text) for recipe, text in facts["healing"]},
        long_texts=long_texts,
    )


def _read_texts(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, EvaluationText]:
    """Return texts by name from the fields of each."""
    return {name: EvaluationText(**text) for name, text in facts.items()}


def read_datasets(
    cells: Sequence[Cell], scratch: Path, machine: Machine, own: OwnTexts = WRITTEN_HERE
) -> dict[CalibrationSetting, Datasets]:
    """Return the data of each model, protocol and seed of a run, whose timed cells run on one kind of machine."""
    first_of_each = {cell.model: cell for cell in cells}
    readers = {model: DatasetReader(cell, scratch, machine, own) for model, cell in first_of_each.items()}
    recipes = {cell.healing for cell in cells if cell.healing}
    one_of_each = {setting_of_calibration(cell): cell for cell in cells}
    return {setting: readers[cell.model].read(cell, recipes) for setting, cell in one_of_each.items()}
