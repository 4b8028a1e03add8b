"""Runs cells and writes their records: those without a record that counts, each an outcome of its own.

The folder belongs to one run at a time (bench.runs.store). An engine (bench.engines) measures cells: in this process,
or in workers, where a crash or a lack of memory is that cell's outcome and no other's, and with limits a hang; one
after the other or several at once, here or on other machines. Which one starts when is bench.schedule's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import methods
from bench import engines
from bench.data import pretrained
from bench.engines import local
from bench.engines.engine import Conditions, Engine, Job, Result, Session, refuse_gpus_of_cpus
from bench.plan import grid, validate
from bench.plan.cell import Cell
from bench.plan.run_spec import RunSpec
from bench.records.record import LOST, REFUSED, Record, load
from bench.runs import inputs, job, store
from bench.runs.datasets import CalibrationSetting, Datasets, read_datasets, setting_of_calibration
from bench.runs.searches import KnownSearches, read_valid_records
from bench.schedule.estimate import Estimate, Forecast, estimate_cells, read_records_nearby
from bench.schedule.memory_needs import find_misfits, refuse_misfits, room_of
from bench.schedule.order import CellEnd, Schedule, drive
from bench.system import interrupt
from bench.system.memory import check_offload
from bench.system.threads import set_up_threads
from bench.system.worker import Channel
from methods.console import say
from methods.errors import UserError

Report = Callable[[Path, list[Record]], object]
Ending = Callable[[str], object]

FEW = 3  # cells, one after the other, for which nobody asks when they will end


def ignore_end(key: str) -> None:
    """Take the key of a cell whose end nobody waits for."""


def run_spec(
    spec: RunSpec,
    report: Report = lambda folder, records: None,
    engine: Engine | None = None,
    ended: Ending = ignore_end,
    folder: Path | None = None,
) -> list[Record]:
    """Measure the cells of a spec and return their records, in order. Finished cells are skipped.

    report   is given the folder of the run and the records at the end, while the folder is still locked
    ended    is given the key of each cell as soon as its record is written, or read from the folder
    engine   where cells run; None: as the spec says
    folder   of the run; None: as the spec says. Its default holds the date, so that an interrupt names it

    Raises UserError, in one line and before any work, for what cannot be; and where `run` does.
    """
    set_up_threads()
    engine = engine or engines.engine_of_spec(spec)
    folder = folder or spec.folder()
    cells = validate.cells_of_spec(spec, is_here=engine.is_here)
    refuse_gpus_of_cpus(cells[0].device, spec.gpus_per_cell, spec.accelerator)
    with (
        interrupt.keep_prompt(words_for_folder(spec, folder), partial(store.clear_folder, folder)),
        store.clear_unless_written(folder),
    ):
        validate.check_folder(folder)
        if spec.offload and engine.is_here:
            check_offload(spec.offload)
        return run(
            cells,
            folder,
            retry_failed=spec.retry_failed,
            isolate=spec.isolate,
            limits=spec.limits,
            engine=engine,
            threads=spec.fixed_threads,
            free_cores=spec.threads == "auto",
            memory=spec.memory_gib,
            device_memory=spec.device_memory_gib,
            offload=spec.offload,
            report=report,
            ended=ended,
        )


def words_for_folder(spec: RunSpec, folder: Path) -> str:
    """Return the flag by which the command of a run goes on in its folder; empty where the command names it already."""
    return "" if spec.out else f"--out {folder}"


def run(
    cells: Sequence[Cell],
    folder: Path,
    *,
    retry_failed: bool = False,
    isolate: bool | None = None,
    limits: Mapping[str, float] | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
    free_cores: bool = False,
    memory: float | None = None,
    device_memory: float | None = None,
    offload: Path | None = None,
    report: Report = lambda folder, records: None,
    ended: Ending = ignore_end,
) -> list[Record]:
    """Run every cell that has no record in `folder` that counts, and return the records of all, in the cells' order.

    isolate  measure each cell in a process of its own, to which `limits` apply (by the names of
             bench.system.worker.Limits); None: where there are limits, and where cells are timed, run on a GPU or
             several at once in processes that measure one after the other, until one of them fails in it
    engine   where cells run; None: on this machine, one after the other
    threads  of each cell; None: as the engine divides what there is; with `free_cores` no more of them than other
             programs leave cores, looked at before each stage but timing
    memory   GiB of the host's memory that each cell may take, and device_memory of its GPU's; None: what there is
    offload  folder of the machine that measures, for states that wait between layers; None: they wait in memory
    report   is given the folder and the records at the end, while the folder is still held
    ended    is given the key of each cell as soon as its record is written, or found in the folder

    Raises UserError where another run holds the folder, a text is shorter than asked, a task's documents cannot be had,
    the engine cannot have what cells need, states cannot be put into `offload`, or the disk takes no more.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    engine = engine or local.Local()
    fresh = bool(limits) if isolate is None else isolate
    conditions = Conditions(
        folder=folder,
        device=cells[0].device,
        timed=any(cell.is_timed for cell in cells),
        fresh=fresh,
        threads=threads,
        models=any(cell.earlier or cell.protocol.save_dtype for cell in cells),
        work=job.run_job,
        measure=job.run_job_text,
        soon=isolate is not False and not any((folder / "cells").glob("*.json")),
    )
    with store.lock_folder(folder) as dead, store.keep_tidy(folder):
        if dead:
            say(dead)
        with store.make_scratch_folder(folder) as scratch, engine.start(conditions) as session:
            datasets = read_datasets(cells, scratch, session.machine)
            cells = with_inputs(cells, datasets)
            for line in store.set_aside(folder, cells):
                say(line)
            if engine.is_here:  # a cluster finds what is measured when it is asked for the cell
                for line in job.take_in_records(folder, cells):
                    say(line)
            if engine.is_here and (isolate is False or not conditions.is_apart(session.slots)):
                in_turn = partial(_in_this_process, {cell.key: cell for cell in cells}, datasets)
                measuring: Session = local.InThisProcess(in_turn, session.machine)
            else:
                _refuse_own(cells)
                measuring = session
            shared: dict[str, Any] = {"scratch": str(scratch) if engine.is_here else "", "limits": dict(limits or {})}
            shared |= {"code_sha256": inputs.sha256_of_code(), "plugins": tuple(methods.files_of_plugins())}
            shared |= {"device_memory": device_memory, "free_cores": free_cores}
            if offload is not None:
                shared["offload"] = str(offload.resolve() if engine.is_here else offload)
            if memory is not None or engine.is_here:
                shared["memory"] = room_of(memory, measuring.slots) / 2**30
            served = {
                key: (None if record is None else CellEnd.of(record), why)
                for key, record, why in store.find_records(folder, cells, retry_failed)
            }
            done = {key for key, (ended, _) in served.items() if ended}
            estimates = _estimate(cells, folder, datasets, measuring, done)
            rest: dict[str, Any] = {"is_here": engine.is_here, "estimates": estimates, "listener": ended}
            records = _measure_cells(cells, folder, measuring, served, shared, **rest)
        report(folder, records)
    return records


def _measure_cells(
    cells: Sequence[Cell],
    folder: Path,
    session: Session,
    served: Mapping[str, tuple[CellEnd | None, str]],
    shared: Mapping[str, Any],
    *,
    is_here: bool = True,
    estimates: Mapping[str, Estimate] | None = None,
    listener: Ending = ignore_end,
) -> list[Record]:
    """Have every cell measured without a record that counts; `shared` is what its jobs have in common.

    Only what other cells need of a record is kept meanwhile; at the end all are read from the folder. With estimates a
    line after each cell says when the run ends.

    served  of each cell the end of its record, or None and why it has none that counts
    """
    missing = [cell for cell in cells if served[cell.key][0] is None]
    _refuse_large(missing if is_here else [], session, shared)
    seconds = {key: estimate.seconds for key, estimate in (estimates or {}).items()} if session.slots > 1 else {}
    schedule = Schedule(cells, seconds or None)
    forecast = Forecast(estimates or {}, session.slots, one_machine=is_here, queues=session.machine.queues)
    for cell in missing if estimates else ():
        forecast.add(cell)
    known_removals = KnownSearches(read_valid_records(folder))
    parents = Counter(cell.parent_key for cell in cells if cell.parent_key and not served[cell.key][0])
    names = _names(cells)
    store.drop_models(folder, parents)

    def finish(cell: Cell, ended: CellEnd) -> None:
        schedule.finish(cell.key, ended)
        listener(cell.key)
        parent = cell.parent_key
        if parent and not served[cell.key][0]:
            parents[parent] -= 1
            if not parents[parent]:
                del parents[parent]
                store.drop_models(folder, parents)

    def write(cell: Cell, result: Result) -> None:
        record = _write_outcome(cell, result, folder, session.slots if is_here else None)
        known_removals.add(record)
        if record.error:
            say(f"{names[cell.key]}: {record.status}: {record.error.partition(chr(10))[0]}")
        finish(cell, CellEnd.of(record))
        if estimates:
            forecast.end(cell, record)
            end = forecast.line() if len(schedule.ended) < len(cells) else ""
            say("; ".join(filter(None, (schedule.progress(queues=session.machine.queues), end))))

    def begin(cell: Cell) -> None:
        where, (ended, why) = names[cell.key], served[cell.key]
        if ended is not None:
            say(f"{where}: has a record")
            store.remove_pieces(folder, cell.key, ended.status)
            finish(cell, ended)
            return
        say(
            f"{where}: {why}; it runs again"
            if why
            else f"{where}: {'loading the model' if is_here else 'is submitted'}"
        )
        if orphaned := _failure_of_parent(cell, schedule):
            write(cell, Result(cell.key, orphaned))
            return
        order, seconds = known_removals.of(cell) if schedule.may_search(cell.key) else ((), ())
        own: dict[str, Any] = {"where": where, "order": order, "seconds": seconds, "keep": cell.key in parents}
        job.hand_over_pieces(folder, cell.key, is_here)
        session.submit(job.job_of_cell(cell, folder, session, {**own, **shared}))
        schedule.start(cell.key)
        if estimates:
            forecast.begin(cell.key)

    drive(schedule, session, begin, lambda result: write(schedule.cells[result.key], result))
    return [load(folder / "cells" / f"{cell.key}.json") for cell in cells]


def _write_outcome(cell: Cell, result: Result, folder: Path, slots: int | None) -> Record:
    """Write the outcome of a cell into the folder, and return its record.

    `slots` is that of bench.runs.job.record_of_outcome.
    """
    store.refuse_removed(folder)
    if result.part is not None:
        return store.take_in(result.part, folder, cell.key)
    return store.write_record(
        job.record_of_outcome(cell, job.outcome_of_result(folder, result), slots), folder, cell.key
    )


def _refuse_large(cells: Sequence[Cell], session: Session, shared: Mapping[str, Any]) -> None:
    """Refuse cells for which this machine has too little memory, or the folder of states too little room."""
    limits = session.machine.gpus, shared.get("memory"), shared.get("device_memory")
    offload = Path(shared["offload"]) if shared.get("offload") else None
    refuse_misfits(find_misfits(cells, *limits, offload=offload, slots=session.slots))


def _estimate(
    cells: Sequence[Cell],
    folder: Path,
    datasets: Mapping[CalibrationSetting, Datasets],
    session: Session,
    done: Container[str],
) -> dict[str, Estimate] | None:
    """Return what cells will take, by key; None for a few cells in turn, of which nobody asks."""
    if session.slots == 1 and len(cells) <= FEW:
        return None
    return estimate_cells(
        cells,
        list(read_records_nearby(folder)),
        amounts=lambda cell: datasets[setting_of_calibration(cell)].amounts,
        threads=lambda cell: session.threads(cell.is_timed),
        timed_threads=session.machine.threads,
        done=done,
    )


def _names(cells: Sequence[Cell]) -> dict[str, str]:
    """Return what messages call each cell, by key: '[2/5] laco at 0.3', of several models with the model behind it."""
    several = len({cell.model for cell in cells}) > 1
    words = [f"{cell.title}{f', {Path(cell.model).name}' if several else ''}" for cell in cells]
    return {cell.key: f"[{at}/{len(cells)}] {words[at - 1]}" for at, cell in enumerate(cells, start=1)}


def _in_this_process(
    cells: Mapping[str, Cell], datasets: Mapping[CalibrationSetting, Datasets], line: Channel, asked_for: Job
) -> None:
    """Measure a cell on what this process has read for all."""
    cell = cells[asked_for.key]
    job.measure_cell(line, asked_for, cell, datasets[setting_of_calibration(cell)])


def _refuse_own(cells: Sequence[Cell]) -> None:
    """Refuse methods that the running script defines itself, which the process that measures them cannot import."""
    own = {name for name, kind in methods.load().items() if kind.__module__ == "__main__"}
    if used := own & {cell.method.partition("+")[0] for cell in cells}:
        raise UserError(
            f"{min(used)} is defined in the script that runs, which the process that measures it cannot import; put "
            "it into a file and name that in `plugins`, or leave the process out with isolate=False"
        )


def with_inputs(
    cells: Sequence[Cell], datasets: Mapping[CalibrationSetting, Datasets], *, download: bool = True
) -> list[Cell]:
    """Return the cells with their inputs. Raises UserError where the parent of a cell is missing."""
    models = {cell.model for cell in cells}
    weights = {model: pretrained.sha256_of_weights(model, download=download) for model in models}
    revisions = inputs.revisions_of_methods({cell.method for cell in cells})
    with_hashes, keys = list[Cell](), dict[str, str]()
    for cell in cells:
        own_datasets = datasets[setting_of_calibration(cell)]
        recipe = cell.healing
        filled = replace(
            own_datasets.inputs,
            weights_sha256=weights[cell.model],
            revision=revisions[cell.method],
            healing=inputs.inputs_of_healing(recipe, own_datasets.healing[recipe]) if recipe else None,
            parent=grid.key_of_parent(cell, keys) if cell.earlier else None,
        )
        with_hashes.append(replace(cell, inputs=filled))
        keys[cell.question] = with_hashes[-1].key
    return with_hashes


def _failure_of_parent(cell: Cell, schedule: Schedule) -> dict[str, Any] | None:
    """Return the outcome of a cell whose parent has no model to go on from; None for any other."""
    key = cell.parent_key
    if not key or schedule.ended[key].status == "ok":
        return None
    parent = schedule.ended[key]
    status, label = parent.status if parent.status in (*REFUSED, LOST) else "error", schedule.cells[key].label
    reason = f"{parent.status}, {parent.error}"
    return {"status": status, "error": f"there is no model of {label} to go on from: {reason}"}
