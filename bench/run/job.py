"""Measures the cell of a job, wherever an engine runs it: reads what the cell needs, and tells its outcome."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

import methods
from bench.engines.engine import Job
from bench.plan.cell import Cell, from_plain
from bench.plan.protocol import Protocol
from bench.run.datasets import DatasetReader, Datasets
from bench.run.measure import Outcome, attempt
from bench.run.source_hash import method_sha256
from bench.system import environment
from bench.system.console import say
from bench.system.worker import Line

CalibrationSetting = tuple[Protocol, int]  # what decides what a cell looks at: its protocol and its seed


def calibration_setting(cell: Cell) -> CalibrationSetting:
    """Return what cells share that look at the same."""
    return cell.protocol, cell.seed


def work(line: Line, job: Job) -> None:
    """Measure the cell in a worker's process; what an earlier cell has read there is in its cache.

    Raises UserError for a mistake that is no cell's alone, such as a missing text.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    line.alive("while it read its texts and tasks")
    torch.set_num_threads(job.run_threads)
    methods.load(job.plugins)
    cell, cache = from_plain(job.cell), line.cache
    if "reader" not in cache:
        cache["reader"] = DatasetReader(cell, Path(job.scratch))
    setting = (*calibration_setting(cell), cell.healing)
    if setting not in cache:
        cache[setting] = cache["reader"].read(cell, [cell.healing] if cell.healing else [])
    imported = {"method_sha256": method_sha256(cell.method)}
    torch.set_num_threads(job.threads)
    measure(line, job, cell, replace(cache[setting], inputs=cache[setting].inputs | imported))


def measure(line: Line, job: Job, cell: Cell, datasets: Datasets) -> None:
    """Measure the cell on what has been read for it; tell the environment first, then what is found."""
    line.tell({"environment": environment.describe(torch.device(cell.device), getattr(torch, cell.dtype))})
    outcome = Outcome(line.tell, line.alive, lambda message: say(f"{job.where}: {message}"))
    attempt(cell, Path(job.folder), datasets.for_cell(job.order, job.seconds, job.keep), outcome)
