"""Runs cells and writes their records: those without a record that counts, each an outcome of its own.

The folder belongs to one run at a time (bench.run.lock). An engine (bench.engines) measures cells: in this process, or
in workers, where a crash or a lack of memory is that cell's outcome and no other's, and with limits a hang; one after
the other or several at once. Which one starts when is bench.run.schedule's.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import methods
from bench.data import pretrained
from bench.engines import local
from bench.engines.engine import Engine, Job
from bench.plan import chain, validate
from bench.plan.cell import Cell, asked
from bench.plan.run_spec import RunSpec
from bench.records.record import REFUSED, Record
from bench.run import fingerprint, job, lock, store
from bench.run.datasets import DatasetReader, Datasets
from bench.run.job import CalibrationSetting, calibration_setting
from bench.run.schedule import Schedule, removals, valid
from bench.run.source_hash import method_sha256
from bench.system import environment, interrupt
from bench.system.console import say
from bench.system.threads import let_threads_wait
from bench.system.worker import Line
from methods.errors import Unwritable, UserError

Report = Callable[[Path, list[Record]], object]


def run_spec(spec: RunSpec, report: Report = lambda folder, records: None) -> list[Record]:
    """Measure what is asked for and return the records of its cells, in their order; finished cells are skipped.

    report   is given the folder of the run and the records at the end, while the folder is still held

    Raises UserError, in one line and before any work, for what cannot be; and where `run` does.
    """
    let_threads_wait()
    cells, folder = validate.cells(spec), spec.folder()
    slots = local.environments(spec.slots, cells[0].device, local.visible(torch.cuda.device_count()))
    validate.check_folder(folder)
    if len(slots) > 1 and all(map(chain.is_timed, cells)):
        say(f"every cell is timed, which it is alone: {len(slots)} slots gain nothing without --speed-rounds 0")
    limits = {"memory": spec.cell_memory_mib * 2**20, "seconds": spec.cell_minutes * 60}
    with interrupt.prompt():
        return run(
            cells,
            folder,
            retry_failed=spec.retry_failed,
            isolate=spec.isolate,
            limits={name: limit for name, limit in limits.items() if limit},
            slots=slots,
            threads=local.threads_of(len(slots), torch.get_num_threads(), spec.threads),
            report=report,
        )


def run(
    cells: Sequence[Cell],
    folder: Path,
    *,
    retry_failed: bool = False,
    isolate: bool | None = None,
    limits: Mapping[str, float] | None = None,
    slots: Sequence[Mapping[str, str]] = ({},),
    threads: int | None = None,
    report: Report = lambda folder, records: None,
) -> list[Record]:
    """Run every cell that has no record in `folder` that counts, and return the records of all, in the cells' order.

    isolate  measure each cell in a process of its own, to which `limits` apply (by the names of
             bench.system.worker.Limits); None: where there are limits, and where cells are timed or several run at once
             in processes that measure one after the other, until one of them fails in it
    slots    as many cells run at once, each with these variables in its environment
    threads  of a cell that is not alone; None: those of this process
    report   is given the folder and the records at the end, while the folder is still held

    Raises UserError where another run holds the folder, a text is shorter than asked, a task's documents cannot be had,
    or the disk takes no more.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    fresh = bool(limits) if isolate is None else isolate
    elsewhere = fresh or (isolate is None and (cells[0].protocol.speed_rounds > 0 or len(slots) > 1))
    if elsewhere:
        _refuse_own(cells)
    with lock.held(folder) as dead:
        if dead:
            say(dead)
        store.clear_leftovers(folder)
        with _scratch(folder) as scratch:
            datasets = _datasets(cells, scratch)
            cells = known(cells, datasets)
            for line in store.set_aside(folder, cells):
                say(line)
            engine: Engine = (
                local.Local(job.work, slots, fresh=fresh)
                if elsewhere
                else local.InThisProcess(partial(_in_this_process, {cell.key: cell for cell in cells}, datasets))
            )
            shared: dict[str, Any] = {"scratch": str(scratch), "limits": dict(limits or {})}
            shared["threads"] = threads or torch.get_num_threads()
            with engine:
                records = _measured(cells, folder, engine, retry_failed, shared)
        report(folder, records)
    return records


def _measured(
    cells: Sequence[Cell], folder: Path, engine: Engine, retry_failed: bool, shared: Mapping[str, Any]
) -> list[Record]:
    """Have the engine measure every cell without a record that counts; `shared` is what its jobs have in common."""
    served = store.served(folder, cells, retry_failed=retry_failed)
    schedule = Schedule(cells, phases=engine.slots > 1)
    parents = {cell.key: cell.inputs["parent"] for cell in cells if cell.earlier and not served[cell.key][0]}
    names = {cell.key: _where(cell, number, len(cells)) for number, cell in enumerate(cells, start=1)}

    def may_start(cell: Cell) -> bool:
        return engine.has_room(timed=engine.slots > 1 and chain.is_timed(cell))

    def finish(cell: Cell, record: Record) -> None:
        schedule.finish(cell.key, record)
        parents.pop(cell.key, None)
        store.drop_models(folder, parents.values())

    def write(cell: Cell, found: Mapping[str, Any]) -> None:
        record = store.finish(_record(cell, found, engine.slots), folder, cell.key)
        if record.error:
            say(f"{names[cell.key]}: {record.status}: {record.error.partition(chr(10))[0]}")
        finish(cell, record)
        if engine.slots > 1:
            say(schedule.progress())

    while (cell := schedule.next(may_start)) or schedule.running:
        if cell is None:
            result = engine.next_result()
            write(schedule.cells[result.key], result.found)
            continue
        where, (record, why) = names[cell.key], served[cell.key]
        if record is not None:
            say(f"{where}: has a record")
            store.drop_partial_results(folder, cell.key, record.status)
            finish(cell, record)
            continue
        say(f"{where}: {why}; it runs again" if why else f"{where}: loading the model")
        if orphaned := _orphaned(cell, schedule.records):
            write(cell, orphaned)
            continue
        order, seconds = removals(cell, valid(folder)) if schedule.may_search(cell.key) else ((), 0.0)
        own: dict[str, Any] = {"where": where, "order": order, "seconds": seconds, "keep": cell.key in parents.values()}
        engine.submit(_job(cell, folder, engine.slots, {**own, **shared}))
        schedule.start(cell.key)
    return [schedule.records[cell.key] for cell in cells]


def _where(cell: Cell, number: int, count: int) -> str:
    """Return what messages call a cell: '[2/5] laco at 0.3'."""
    return f"[{number}/{count}] {cell.label}{'' if cell.ratio is None else f' at {cell.ratio:g}'}"


def _job(cell: Cell, folder: Path, slots: int, given: Mapping[str, Any]) -> Job:
    """Return the job of a cell, which has all threads where it is alone on its machine: in the only slot, or timed."""
    timed, every = chain.is_timed(cell), torch.get_num_threads()
    threads = every if slots == 1 or timed else given["threads"]
    return Job(
        **{**given, "threads": threads},
        cell=cell.plain(),
        key=cell.key,
        folder=str(folder),
        plugins=tuple(methods.plugins()),
        timed=timed,
        gpus=int(cell.device.startswith("cuda")),
        run_threads=every,
    )


def _in_this_process(
    cells: Mapping[str, Cell], datasets: Mapping[CalibrationSetting, Datasets], line: Line, asked_for: Job
) -> None:
    """Measure a cell on what this process has read for all."""
    cell = cells[asked_for.key]
    job.measure(line, asked_for, cell, datasets[calibration_setting(cell)])


def _refuse_own(cells: Sequence[Cell]) -> None:
    """Refuse methods that the running script defines itself, which the process that measures them cannot import."""
    own = {name for name, kind in methods.load().items() if kind.__module__ == "__main__"}
    if found := own & {cell.method.partition("+")[0] for cell in cells}:
        raise UserError(
            f"{min(found)} is defined in the script that runs, which the process that measures it cannot import; put "
            "it into a file and name that in `plugins`, or leave the process out with isolate=False"
        )


def _datasets(cells: Sequence[Cell], scratch: Path) -> dict[CalibrationSetting, Datasets]:
    """Read the data of each protocol and seed of a run, which is of one model."""
    reader = DatasetReader(cells[0], scratch)
    recipes = {cell.healing for cell in cells if cell.healing}
    one_of_each = {calibration_setting(cell): cell for cell in cells}
    return {setting: reader.read(cell, recipes) for setting, cell in one_of_each.items()}


def known(cells: Sequence[Cell], datasets: Mapping[CalibrationSetting, Datasets]) -> list[Cell]:
    """Return the cells with their inputs. Raises UserError where one goes on from a cell that is missing."""
    weights = pretrained.weights_sha256(cells[0].model)
    hashes = {method: method_sha256(method) for method in {cell.method for cell in cells}}
    found, keys = list[Cell](), dict[str, str]()
    for cell in cells:
        here = datasets[calibration_setting(cell)]
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


def _record(cell: Cell, found: Mapping[str, Any], slots: int) -> Record:
    """Return the record of what was found of a cell; what its process did not tell is of this one."""
    names = {"display_name": pretrained.display_name(cell.model), "label": cell.label}
    described = dict(found.get("environment") or {})
    if not described:  # of a process that died at once
        described = environment.describe(torch.device(cell.device), getattr(torch, cell.dtype))
    described["date"] = environment.date()
    if slots > 1 and not chain.is_timed(cell):
        described["slots"] = slots
    decisions, measured = found.get("decisions", {}), found.get("measured", {})
    return Record(cell.plain() | names, found["status"], described, decisions, measured, found["error"])


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Make a folder beside the results that is gone at the end."""
    try:
        made = tempfile.TemporaryDirectory(prefix=store.SCRATCH, dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise Unwritable(f"{folder} cannot hold results: {error.strerror}") from error
    with made as name:
        yield Path(name)
