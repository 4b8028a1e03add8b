"""Runs cells and writes their records: those without a record that counts, one after the other, each an outcome of its
own.

The folder belongs to one run at a time (bench.run.lock). A cell is measured in this process or in a worker, where a
crash or a lack of memory is that cell's outcome and no other's, and with limits a hang.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import methods
from bench.data import pretrained
from bench.plan import chain, validate
from bench.plan.cell import Cell, asked
from bench.plan.protocol import Protocol
from bench.plan.run_spec import RunSpec
from bench.records import comparability
from bench.records.record import REFUSED, InvalidRecord, Record, load
from bench.run import fingerprint, lock, store
from bench.run.datasets import DatasetReader, Datasets
from bench.run.measure import Outcome, attempt
from bench.run.source_hash import method_sha256
from bench.system import environment, interrupt
from bench.system.console import say
from bench.system.threads import let_threads_wait
from bench.system.worker import Limits, Line, Worker
from methods.errors import Unwritable, UserError

Report = Callable[[Path, list[Record]], object]


def run_spec(spec: RunSpec, report: Report = lambda folder, records: None) -> list[Record]:
    """Measure what is asked for and return the records of its cells, in their order; finished cells are skipped.

    report   is given the folder of the run and the records at the end, while the folder is still held

    Raises UserError, in one line and before any work, for what cannot be; and where `run` does.
    """
    let_threads_wait()
    cells, folder = validate.cells(spec), spec.folder()
    validate.check_folder(folder)
    limits = {"memory": spec.cell_memory_mib * 2**20, "seconds": spec.cell_minutes * 60}
    with interrupt.prompt():
        return run(
            cells,
            folder,
            retry_failed=spec.retry_failed,
            isolate=spec.isolate,
            limits=Limits(**{name: limit for name, limit in limits.items() if limit}),
            report=report,
        )


def run(
    cells: Sequence[Cell],
    folder: Path,
    *,
    retry_failed: bool = False,
    isolate: bool | None = None,
    limits: Limits = Limits(),  # noqa: B008  # frozen
    report: Report = lambda folder, records: None,
) -> list[Record]:
    """Run every cell that has no record in `folder` that counts, and return the records of all, in the cells' order.

    isolate  measure each cell in a process of its own, to which `limits` apply; None: where there are limits, and where
             cells are timed in a process that measures one after the other, until one of them fails in it
    report   is given the folder and the records at the end, while the folder is still held

    Raises UserError where another run holds the folder, a text is shorter than asked, a task's documents cannot be had,
    or the disk takes no more.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    alone = limits != Limits() if isolate is None else isolate
    elsewhere = alone or (isolate is None and cells[0].protocol.speed_rounds > 0)
    if elsewhere:
        _refuse_own(cells)
    with lock.held(folder) as dead:
        if dead:
            say(dead)
        store.clear_leftovers(folder)
        with _scratch(folder) as scratch, Worker() as worker:
            datasets = _datasets(cells, scratch)
            cells = known(cells, datasets)
            for line in store.set_aside(folder, cells):
                say(line)
            served = store.served(folder, cells, retry_failed=retry_failed)
            waiting = {cell.key: cell.inputs["parent"] for cell in cells if cell.earlier and not served[cell.key][0]}
            records = dict[str, Record]()
            for index, cell in enumerate(cells):
                where = f"[{index + 1}/{len(cells)}] {cell.label}{'' if cell.ratio is None else f' at {cell.ratio:g}'}"
                record, why = served[cell.key]
                if record is not None:
                    say(f"{where}: has a record")
                    store.drop_partial_results(folder, cell.key, record.status)
                else:
                    say(f"{where}: {why}; it runs again" if why else f"{where}: loading the model")
                    order, seconds = removals(cell, _valid(folder))
                    job = CellJob(cell, folder, scratch, where, order, seconds, cell.key in waiting.values())
                    found = _orphaned(cell, records) or (
                        _in_worker(job, worker, limits)
                        if elsewhere
                        else _in_this_process(job, datasets[_calibration_setting(cell)])
                    )
                    if alone or found["status"] not in SOUND:
                        worker.stop()
                    record = store.finish(_record(cell, found), folder, cell.key)
                    if record.error:
                        say(f"{where}: {record.status}: {record.error.partition(chr(10))[0]}")
                records[cell.key] = record
                waiting.pop(cell.key, None)
                store.drop_models(folder, waiting.values())
        report(folder, list(records.values()))
    return list(records.values())


def _refuse_own(cells: Sequence[Cell]) -> None:
    """Refuse methods that the running script defines itself, which the process that measures them cannot import."""
    own = {name for name, kind in methods.load().items() if kind.__module__ == "__main__"}
    if found := own & {cell.method.partition("+")[0] for cell in cells}:
        raise UserError(
            f"{min(found)} is defined in the script that runs, which the process that measures it cannot import; put "
            "it into a file and name that in `plugins`, or leave the process out with isolate=False"
        )


SOUND = ("ok", *REFUSED)  # a process in which a cell ended otherwise measures no other one
CalibrationSetting = tuple[Protocol, int]  # what decides what a cell looks at: its protocol and its seed


def _calibration_setting(cell: Cell) -> CalibrationSetting:
    return cell.protocol, cell.seed


def _datasets(cells: Sequence[Cell], scratch: Path) -> dict[CalibrationSetting, Datasets]:
    """Read the data of each protocol and seed of a run, which is of one model."""
    reader = DatasetReader(cells[0], scratch)
    recipes = {cell.healing for cell in cells if cell.healing}
    one_of_each = {_calibration_setting(cell): cell for cell in cells}
    return {setting: reader.read(cell, recipes) for setting, cell in one_of_each.items()}


def known(cells: Sequence[Cell], datasets: Mapping[CalibrationSetting, Datasets]) -> list[Cell]:
    """Return the cells with their inputs. Raises UserError where one goes on from a cell that is missing."""
    weights = pretrained.weights_sha256(cells[0].model)
    hashes = {method: method_sha256(method) for method in {cell.method for cell in cells}}
    found, keys = list[Cell](), dict[str, str]()
    for cell in cells:
        here = datasets[_calibration_setting(cell)]
        own: dict[str, Any] = {"weights_sha256": weights, "method_sha256": hashes[cell.method]}
        if cell.healing:
            own["healing"] = fingerprint.healing(cell.healing, here.healing[cell.healing])
        if cell.earlier:
            own["parent"] = chain.parent_key(cell, keys)
        found.append(replace(cell, inputs=here.inputs | own))
        keys[asked(cell)] = found[-1].key
    return found


def _orphaned(cell: Cell, records: Mapping[str, Record]) -> dict[str, Any] | None:
    """Return the outcome of a cell whose parent has no model to go on from; None for any other."""
    parent = records[cell.inputs["parent"]] if cell.earlier else None
    if parent is None or parent.status == "ok":
        return None
    status = parent.status if parent.status in REFUSED else "error"
    reason = f"{parent.status}, {(parent.error or '').partition(chr(10))[0]}"
    return {"status": status, "error": f"there is no model of {parent.cell['label']} to go on from: {reason}"}


@dataclass(frozen=True)
class CellJob:
    """Names a cell to measure, and what its process cannot know; the last three are those of Datasets.for_cell."""

    cell: Cell
    folder: Path
    scratch: Path
    where: str
    order: tuple[str, ...]
    seconds: float
    keep: bool


def _in_this_process(job: CellJob, datasets: Datasets) -> dict[str, Any]:
    """Measure the cell in this process and return its decisions, measured, status and error."""
    found: dict[str, Any] = {}
    _attempt(job, datasets, found.update, lambda doing: None)
    return found


def _in_worker(job: CellJob, worker: Worker, limits: Limits) -> dict[str, Any]:
    """Measure the cell in the worker's process, with the results of `_in_this_process`.

    Raises UserError for a mistake that is no cell's alone, such as a missing text.
    """
    found: dict[str, Any] = {}
    arguments = job, torch.get_num_threads(), methods.plugins()
    failure = worker.run(_child, arguments, limits=limits, hear=found.update)
    if "refused" in found:
        raise UserError(found["refused"])
    if failure and "status" not in found:
        found |= {"status": failure.status, "error": failure.reason}
    return found


def _child(line: Line, job: CellJob, threads: int, plugins: list[str]) -> None:
    """Measure the cell, in the worker's process; what an earlier cell has read there is in its cache."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    line.alive("while it read its texts and tasks")
    torch.set_num_threads(threads)
    methods.load(plugins)
    cell, cache = job.cell, line.cache
    try:
        if "reader" not in cache:
            cache["reader"] = DatasetReader(cell, job.scratch)
        setting = (*_calibration_setting(cell), cell.healing)
        if setting not in cache:
            cache[setting] = cache["reader"].read(cell, [cell.healing] if cell.healing else [])
        imported = {"method_sha256": method_sha256(cell.method)}
        _attempt(job, replace(cache[setting], inputs=cache[setting].inputs | imported), line.tell, line.alive)
    except UserError as error:
        line.tell({"refused": str(error)})


def _attempt(
    job: CellJob, datasets: Datasets, tell: Callable[[dict[str, Any]], object], doing: Callable[[str], object]
) -> None:
    outcome = Outcome(tell, doing, lambda message: say(f"{job.where}: {message}"))
    attempt(job.cell, job.folder, datasets.for_cell(job.order, job.seconds, job.keep), outcome)


def _record(cell: Cell, found: dict[str, Any]) -> Record:
    names = {"display_name": pretrained.display_name(cell.model), "label": cell.label}
    described = environment.describe(torch.device(cell.device), getattr(torch, cell.dtype))
    decisions, measured = found.get("decisions", {}), found.get("measured", {})
    return Record(cell.plain() | names, found["status"], described, decisions, measured, found["error"])


def removals(cell: Cell, records: Sequence[Record]) -> tuple[tuple[str, ...], float]:
    """Return the longest start of a greedy search's removals that other cells of the folder found, and its seconds.

    They may differ in the ratio, in the compensation, which follows the search, and in how they are measured; not in
    what the method is, and what it looks at.
    """

    def search(plain: dict[str, Any]) -> list[Any]:
        pruner = {name: value for name, value in plain["parameters"].items() if "." not in name}
        return [plain["method"].partition("+")[0], pruner, comparability.shared(plain, "decision")]

    def by_this_source(plain: dict[str, Any]) -> bool:
        here = cell.inputs.get("method_sha256")
        wanted = here if plain["method"] == cell.method else method_sha256(plain["method"])
        return bool(plain["inputs"].get("method_sha256") == wanted)

    best: tuple[tuple[str, ...], float] = ((), 0.0)
    for record in records:
        order = record.decisions.get("removal_order", [])[: record.decisions.get("free_removals", 0)]
        known = fingerprint.of_today(record.cell)
        if len(order) > len(best[0]) and search(known) == search(cell.plain()) and by_this_source(known):
            best = tuple(order), record.measured["prune_seconds"]
    return best


def _valid(folder: Path) -> list[Record]:
    """Load every record of the folder that can be read and is a result."""
    found = []
    for path in sorted((folder / "cells").glob("*.json")):
        with suppress(InvalidRecord):
            found.append(load(path))
    return [record for record in found if record.status == "ok"]


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Make a folder beside the results that is gone at the end."""
    try:
        made = tempfile.TemporaryDirectory(prefix=store.SCRATCH, dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise Unwritable(f"{folder} cannot hold results: {error.strerror}") from error
    with made as name:
        yield Path(name)
