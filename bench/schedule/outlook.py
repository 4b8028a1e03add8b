"""Estimates the cells of one run: seconds by records of this machine that lie near the run's folder, and memory."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.plan.cell import Cell
from bench.records import run_folder
from bench.records.record import Record
from bench.schedule import passes
from bench.schedule.estimator import Estimate, Estimator, same_machine
from bench.schedule.memory_needs import MemoryNeeds, footprint_of, shape_of
from bench.schedule.order import predecessors, searches_of
from bench.schedule.work import Amounts, Cost, bytes_of
from bench.system import environment
from bench.system.rate import rates
from methods.errors import UserError

LEARNT = (
    *("parameters", "perplexity", "tasks", "seconds", "prune_seconds"),
    *("peak_memory", "weights_in", "states_in"),
)
NEAR = 20  # runs beside the run's folder whose records are read, those that changed last


@dataclass
class Outlook:
    """Knows what the cells of one run will take.

    device     of its cells, and dtype, as torch writes both
    earlier    records of the run's folder and of those beside it
    estimates  of the cells, by key (`add`)
    """

    device: str
    dtype: str
    earlier: Sequence[Record]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    _models: dict[str, Cell] = field(default_factory=dict)  # a cell of each
    _estimators: dict[int, Estimator] = field(default_factory=dict)  # of each number of threads

    @classmethod
    def of(cls, cell: Cell, folder: Path) -> Outlook:
        """Return the outlook of a run to which a cell belongs, without estimates."""
        return cls(cell.device, cell.dtype, list(records_near(folder)))

    def add(
        self,
        cells: Sequence[Cell],
        amounts: Callable[[Cell], Amounts],
        threads: Callable[[Cell], int],
        timed_threads: int,
        done: Container[str] = (),
    ) -> None:
        """Estimate cells that come in this order.

        amounts        on how much text and how many documents each is measured
        threads        how many each has but while it is timed
        timed_threads  how many each has then
        done           keys of those that are not measured, since they have a record
        """
        self._models |= {cell.model: cell for cell in cells}
        self._estimators.clear()
        known = known_ratios(cells, done)
        for cell in cells:
            known_ratio, text = known.get(cell.key, 0.0), amounts(cell)
            found = self._estimator(threads(cell)).estimate(cell, text, known_ratio)
            if "speed" in found.stages and threads(cell) != timed_threads:
                timed = self._estimator(timed_threads).estimate(cell, text, known_ratio)
                found = replace(found, stages=found.stages | {"speed": timed.stages["speed"]})
            self.estimates[cell.key] = found

    def needs(self, cell: Cell, room: int, card: int | None = None, *, offload: bool = False) -> MemoryNeeds:
        """Return the memory of a cell, which may take `room` bytes of the host's and `card` of its GPU's.

        offload  whether its states have a folder
        """
        peak = max((one.peak(cell) for one in self._estimators.values()), default=0)
        return footprint_of(cell, offload=offload).placed(cell, room, peak, card)

    def _estimator(self, threads: int) -> Estimator:
        if threads not in self._estimators:
            here = torch.device(self.device if self.device == "cpu" or torch.cuda.is_available() else "cpu")
            dtype = getattr(torch, self.dtype)
            shapes = {model: shape_of(model, one.trust_remote_code) for model, one in self._models.items()}
            costs = {
                model: Cost(shape, rates(str(here), dtype, threads, shape.widths), bytes_of(self.dtype))
                for model, shape in shapes.items()
            }
            found = Estimator(costs)
            machine: Mapping[str, Any] = environment.describe(here, dtype) | {"threads": threads, "device": self.device}
            for record in self.earlier:
                if same_machine(record, machine):
                    found.learn(record)
            self._estimators[threads] = found
        return self._estimators[threads]


def known_ratios(cells: Sequence[Cell], done: Container[str]) -> dict[str, float]:
    """Return up to which ratio others of a run have found what a cell needs, as bench.schedule.work has it: by key.

    Removals of a search are in the records of those that are done; of what a cell has seen in the dense model, only
    those know that are measured in the same run.
    """
    searches, by_key = searches_of(cells), {cell.key: cell for cell in cells}
    before, looked, found = predecessors(searches), set[str](), dict[str, float]()
    for key, search in searches.items():
        cell = by_key[key]
        if passes.reuses(cell.method) == "removals" and key in before:
            found[key] = min(by_key[before[key]].ratio or 0.0, cell.ratio or 0.0)
        elif passes.reuses(cell.method) == "statistics" and not cell.earlier:
            if search in looked:
                found[key] = cell.ratio or 0.0
            if key not in done:
                looked.add(search)
    return found


def records_near(folder: Path) -> Iterator[Record]:
    """Yield of the records of a run's folder, and of the runs beside it, what estimates need.

    What cannot be read is left out.
    """
    beside = [run for run in folder.absolute().parent.glob("*") if run_folder.is_run(run)]
    beside.sort(key=lambda run: (run.name == folder.name, run.stat().st_mtime), reverse=True)
    for run in beside[:NEAR]:
        with suppress(UserError, OSError):
            for record in run_folder.load_run(run, run_folder.unsaid):
                if record.status == "ok":
                    measured = {name: record.measured[name] for name in LEARNT if name in record.measured}
                    yield replace(record, decisions={}, measured=measured)
