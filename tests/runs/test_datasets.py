"""What a run has read is what a process of its machine loads."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from bench.data import task_loading
from bench.engines.engine import Machine
from bench.plan import validate
from bench.plan.protocol import Recipe
from bench.plan.run_spec import RunSpec
from bench.runs.datasets import file_of_datasets, load_datasets, read_datasets, save_datasets, setting_of_calibration
from methods.model.calibration import Calibration

MACHINE = Machine("a processor", 2)


def same(first: Any, second: Any) -> bool:
    """Whether two dataclasses hold equal values."""
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(first)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_what_is_loaded_is_what_was_read(model_folder, text_file, tmp_path):
    protocol = {"tasks": (), "texts": (str(text_file),), "calibration": str(text_file), "window": 32, "windows": 4}
    protocol |= {"calibration_sequences": 4, "calibration_length": 24}
    recipe = Recipe("full", str(text_file), tokens=64, length=16)
    asked = {"profile": "smoke", "device": "cpu", "protocol": protocol, "healing": recipe}
    spec = RunSpec("drop-tail", str(model_folder), [0.3], **asked)
    cells = validate.cells_of_spec(spec)
    cell = next(cell for cell in cells if cell.healing)
    setting = setting_of_calibration(cell)
    (read,) = read_datasets(cells, tmp_path, MACHINE).values()
    save_datasets({setting: read}, tmp_path)
    loaded = load_datasets(file_of_datasets(tmp_path, setting), cell, MACHINE, task_loading.load_tasks)
    assert isinstance(loaded.calibration, Calibration)
    assert same(loaded.calibration, read.calibration)
    assert loaded.texts.keys() == read.texts.keys()
    assert all(same(loaded.texts[name], read.texts[name]) for name in read.texts)
    assert list(loaded.healing) == list(read.healing) == [cell.healing]
    assert all(same(loaded.healing[recipe], read.healing[recipe]) for recipe in read.healing)
    assert (loaded.inputs, loaded.documents, loaded.amounts) == (read.inputs, read.documents, read.amounts)
    assert loaded.dense is not None
    assert loaded.dense.file == read.dense.file
    assert torch.equal(loaded.dense.ids, read.dense.ids)
    other = replace(cell, seed=cell.seed + 1)
    assert not file_of_datasets(tmp_path, setting_of_calibration(other)).exists()
