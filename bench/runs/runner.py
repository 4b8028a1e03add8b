"""Runs cells and writes their records: those without a record that counts, each an outcome of its own.

The folder belongs to one run at a time (bench.runs.store). An engine (bench.engines) measures cells: in this process,
or in workers, where a crash or a lack of memory is that cell's outcome and no other's, and with limits a hang; one
after the other or several at once, here or on other machines. Which one starts when is bench.schedule's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import methods
from bench import engines
from bench.data import pretrained
from bench.engines import local
from bench.engines.engine import (
    Engine,
    Job,
    Result,
    RunConditions,
    SearchStart,
    Session,
    SessionNeeds,
    refuse_gpus_of_cpus,
)
from bench.inference import endpoint, vllm_scorer
from bench.inference.predictor import NoAnswer
from bench.plan import grid, validate
from bench.plan.address import ServerAddress, VllmPython
from bench.plan.cell import Cell, ScoringEngine
from bench.plan.run_spec import RunSpec
from bench.records.record import LOST, REFUSED, Record, load
from bench.runs import inputs, job, store
from bench.runs.calibration import OwnTexts
from bench.runs.datasets import (
    CalibrationSetting,
    Datasets,
    read_datasets,
    save_datasets,
    setting_of_calibration,
)
from bench.runs.searches import KnownSearches, read_valid_records
from bench.schedule.estimate import Estimate, Forecast, estimate_cells, read_records_nearby
from bench.schedule.memory_needs import GIB, find_misfits, refuse_misfits, room_of
from bench.schedule.order import CellEnd, Schedule, drive
from bench.system import interrupt
from bench.system.memory import check_offload
from bench.system.threads import set_up_threads, settings_of_waiting
from bench.system.worker import Channel, Limits
from methods.console import say
from methods.errors import UserError
from methods.plugin_sources import read_sources

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
            server=spec.server,
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
    server: ServerAddress | VllmPython | None = None,
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
    server   that scores the cells whose protocol says so
    report   is given the folder and the records at the end, while the folder is still held
    ended    is given the key of each cell as soon as its record is written, or found in the folder

    Raises UserError where the server cannot score, another run holds the folder, a text is shorter than asked, a
    task's documents cannot be had, two files of plugins would be one where jobs run, the engine cannot have what cells
    need, states cannot be put into `offload`, or the disk takes no more.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    engine = engine or local.Local()
    plugins = tuple(map(Path, methods.files_of_plugins()))
    names, sources = (plugins, {}) if engine.is_here else read_sources(plugins)
    scored_by = find_scoring_engine(cells, server)
    soon = isolate is not False and not any((folder / "cells").glob("*.json"))
    needs = _needs_of_cells(cells, folder, threads, fresh=bool(limits) if isolate is None else isolate, soon=soon)
    with store.lock_folder(folder) as dead, store.keep_tidy(folder):
        if dead:
            say(dead)
        with store.make_scratch_folder(folder) as scratch, engine.start(needs) as started:
            session: Session = started
            datasets = read_datasets(cells, scratch, session.machine, OwnTexts(True, memory, device_memory))
            cells = with_inputs(cells, datasets, scored_by)
            _take_in_earlier(cells, folder, engine.is_here)
            shared = scratch if engine.is_here else None
            if engine.is_here and (isolate is False or not needs.is_apart(session.slots)):
                session = local.InThisProcess(partial(_measure_here, datasets), session.machine)
            else:
                _hand_over_data(cells, datasets, shared)
            conditions = RunConditions(
                folder=folder,
                scratch=shared,
                code_sha256=inputs.sha256_of_code(),
                plugins=names,
                sources=sources,
                limits=Limits(**(limits or {})),
                memory_gib=room_of(memory, session.slots) / GIB if memory is not None or engine.is_here else None,
                device_memory_gib=device_memory,
                offload=offload.resolve() if offload and engine.is_here else offload,
                free_cores=free_cores,
                timed_threads=session.machine.threads,
                variables={name.upper(): value for name, value in settings_of_waiting().items()},
                server=server,
            )
            earlier = EarlierCells.find(folder, cells, retry_failed)
            estimates = _estimate(cells, folder, datasets, session, earlier.ends)
            loop = CellLoop(cells, session, conditions, earlier, estimates, is_here=engine.is_here, ended=ended)
            records = loop.measure_all()
        report(folder, records)
    return records


def _needs_of_cells(
    cells: Sequence[Cell], folder: Path, threads: int | None, *, fresh: bool, soon: bool
) -> SessionNeeds:
    """Return what cells need of the session that measures them; arguments as of `SessionNeeds`."""
    return SessionNeeds(
        folder=folder,
        device=cells[0].device,
        timed=any(cell.is_timed for cell in cells),
        fresh=fresh,
        threads=threads,
        models=any(cell.earlier or cell.protocol.save_dtype for cell in cells),
        work=job.run_job,
        measure=job.run_job_text,
        soon=soon,
    )


def _take_in_earlier(cells: Sequence[Cell], folder: Path, is_here: bool) -> None:
    """Set old records aside, and take in what other machines have measured for an earlier run.

    A cluster finds what is measured when it is asked for the cell.
    """
    for line in store.set_aside(folder, cells):
        say(line)
    for line in job.take_in_records(folder, cells) if is_here else ():
        say(line)


@dataclass(frozen=True)
class EarlierCells:
    """Holds the ends of the cells that have a record that counts, and why another's record does not, both by key."""

    ends: Mapping[str, CellEnd]
    reasons: Mapping[str, str]

    @classmethod
    def find(cls, folder: Path, cells: Sequence[Cell], retry_failed: bool) -> EarlierCells:
        """Return how the cells with a record in a run's folder have ended, and why other records do not count."""
        ends, reasons = dict[str, CellEnd](), dict[str, str]()
        for key, record, reason in store.find_records(folder, cells, retry_failed):
            if record is None:
                reasons[key] = reason
            else:
                ends[key] = CellEnd.of(record)
        return cls(ends, reasons)


class CellLoop:
    """Measures the cells of a run that have no record: starts each when the schedule lets it, and writes its record.

    Of a record only what other cells need is kept meanwhile. With estimates a line after each cell says when the run
    ends.

    ended  is given the key of each cell that is done
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        session: Session,
        run: RunConditions,
        earlier: EarlierCells,
        estimates: Mapping[str, Estimate] | None = None,
        *,
        is_here: bool = True,
        ended: Ending = ignore_end,
    ) -> None:
        self.cells, self.session, self.run, self.earlier = cells, session, run, earlier
        self.is_here, self.ended, self.titles = is_here, ended, _titles_of_cells(cells)
        self.missing = [cell for cell in cells if cell.key not in earlier.ends]
        seconds = {key: estimate.seconds for key, estimate in (estimates or {}).items()} if session.slots > 1 else {}
        self.schedule = Schedule(cells, seconds or None)
        self.forecast: Forecast | None = None
        if estimates:
            queues = session.machine.queues
            self.forecast = Forecast(estimates, session.slots, one_machine=is_here, queues=queues)
            for cell in self.missing:
                self.forecast.add(cell)
        self.searches = KnownSearches(read_valid_records(run.folder))
        self.children = Counter(cell.parent_key for cell in self.missing if cell.parent_key)  # that wait for each model

    def measure_all(self) -> list[Record]:
        """Return the records of all cells, in their order."""
        if self.is_here:
            self._refuse_large()
        store.drop_models(self.run.folder, self.children)
        drive(self.schedule, self.session, self.begin, self.end)
        return [load(self.run.folder / "cells" / f"{cell.key}.json") for cell in self.cells]

    def begin(self, cell: Cell) -> None:
        """Skip a cell that has a record, fail one whose parent has no model, and submit any other."""
        key, title = cell.key, self.titles[cell.key]
        if end := self.earlier.ends.get(key):
            say(f"{title}: has a record")
            store.remove_pieces(self.run.folder, key, end.status)
            self._finish(cell, end)
            return
        reason = self.earlier.reasons[key]
        first_step = "loading the model" if self.is_here else "is submitted"
        say(f"{title}: {reason}; it runs again" if reason else f"{title}: {first_step}")
        if failure := _failure_of_parent(cell, self.schedule):
            self._write(cell, Result(key, failure))
            return
        job.hand_over_pieces(self.run.folder, key, self.is_here)
        self.session.submit(self.job_of(cell))
        self.schedule.start(key)
        if self.forecast:
            self.forecast.begin(key)

    def job_of(self, cell: Cell) -> Job:
        """Return the job by which the session measures a cell."""
        return Job(
            cell=cell,
            key=cell.key,
            title=self.titles[cell.key],
            folder=self.run.folder,
            run=self.run,
            threads=self.session.threads(cell.is_timed),
            gpus=self.session.machine.gpus if cell.device.startswith("cuda") else 0,
            search=self.searches.start_of(cell) if self.schedule.may_search(cell.key) else SearchStart(),
            keep_model=cell.key in self.children,
        )

    def end(self, result: Result) -> None:
        """Write what the session has measured."""
        self._write(self.schedule.cells[result.key], result)

    def _write(self, cell: Cell, result: Result) -> None:
        """Write the record of a cell, let those start that have waited for it, and say when the run will end."""
        record = self._take_in(cell, result)
        self.searches.add(record)
        if record.error:
            say(f"{self.titles[cell.key]}: {record.status}: {CellEnd.of(record).error}")
        self._finish(cell, CellEnd.of(record))
        if self.forecast:
            self.forecast.end(cell, record)
            progress = self.schedule.progress(queues=self.session.machine.queues)
            end = self.forecast.line() if len(self.schedule.ended) < len(self.cells) else ""
            say("; ".join(filter(None, (progress, end))))

    def _take_in(self, cell: Cell, result: Result) -> Record:
        """Write the outcome of a cell into the folder, and return its record."""
        folder = self.run.folder
        store.refuse_removed(folder)
        if result.part is not None:
            return store.take_in(result.part, folder, cell.key)
        outcome = job.outcome_of_result(folder, result)
        record = job.record_of_outcome(cell, outcome, self.session.slots if self.is_here else None)
        return store.write_record(record, folder, cell.key)

    def _finish(self, cell: Cell, end: CellEnd) -> None:
        """Note how a cell has ended, and drop its parent's model once no other cell needs it."""
        self.schedule.finish(cell.key, end)
        self.ended(cell.key)
        parent = cell.parent_key
        if parent and parent in self.children and cell.key not in self.earlier.ends:
            self.children[parent] -= 1
            self.children = +self.children  # without those at zero
            if parent not in self.children:
                store.drop_models(self.run.folder, self.children)

    def _refuse_large(self) -> None:
        """Refuse cells for which this machine has too little memory, or the folder of states too little room."""
        limits = self.session.machine.gpus, self.run.memory_gib, self.run.device_memory_gib
        misfits = find_misfits(self.missing, *limits, offload=self.run.offload, slots=self.session.slots)
        refuse_misfits(misfits)


def _estimate(
    cells: Sequence[Cell],
    folder: Path,
    datasets: Mapping[CalibrationSetting, Datasets],
    session: Session,
    done: Container[str],
) -> dict[str, Estimate] | None:
    """Return what cells will take, by key; None for a few cells in turn, where no line says when they end."""
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


def _titles_of_cells(cells: Sequence[Cell]) -> dict[str, str]:
    """Return {key: what messages call the cell}: '[2/5] laco at 0.3', of several models with the model behind it."""
    several = len({cell.model for cell in cells}) > 1
    words = [f"{cell.title}{f', {Path(cell.model).name}' if several else ''}" for cell in cells]
    return {cell.key: f"[{at}/{len(cells)}] {words[at - 1]}" for at, cell in enumerate(cells, start=1)}


def _measure_here(datasets: Mapping[CalibrationSetting, Datasets], channel: Channel, order: Job) -> None:
    """Measure a job's cell on what this process has read for all."""
    job.measure_cell(channel, order, datasets[setting_of_calibration(order.cell)])


def _hand_over_data(
    cells: Sequence[Cell], datasets: Mapping[CalibrationSetting, Datasets], scratch: Path | None
) -> None:
    """Write what the run has read into `scratch`, where the processes that measure read it; other machines have none.

    Raises UserError for a method that the running script defines itself, which those processes cannot import.
    """
    own = {name for name, kind in methods.load().items() if kind.__module__ == "__main__"}
    if used := own & {cell.method.partition("+")[0] for cell in cells}:
        raise UserError(
            f"{min(used)} is defined in the script that runs, which the process that measures it cannot import; put "
            "it into a file and name that in `plugins`, or leave the process out with isolate=False"
        )
    if scratch:
        save_datasets(datasets, scratch)


def find_scoring_engine(cells: Sequence[Cell], address: ServerAddress | VllmPython | None) -> ScoringEngine | None:
    """Return what stands behind the address at which cells are scored; None where this process scores them.

    Raises UserError for a server that cannot score them, and where the address is not known.
    """
    served = [cell.protocol for cell in cells if cell.protocol.is_served]
    if not served:
        return None
    if address is None:
        raise UserError("this was scored by an engine whose place no record holds, and is not measured again here")
    name = f"vLLM of {address.python}" if isinstance(address, VllmPython) else f"server at --endpoint {address.url}"
    try:
        if isinstance(address, VllmPython):
            return vllm_scorer.find_engine(address)
        server = endpoint.connect(address)
        for protocol in served:
            server.refuse_longer(1 + max(protocol.window * bool(protocol.texts), protocol.positions))
    except NoAnswer as reason:
        raise UserError(f"the {name} {reason}") from None
    return server.engine


def with_inputs(
    cells: Sequence[Cell],
    datasets: Mapping[CalibrationSetting, Datasets],
    scored_by: ScoringEngine | None,
    *,
    download: bool = True,
) -> list[Cell]:
    """Return the cells with their inputs. Raises UserError where the parent of a cell is missing."""
    models = {cell.model for cell in cells}
    weights = {model: pretrained.sha256_of_weights(model, download=download) for model in models}
    revisions = inputs.revisions_of_methods({cell.method for cell in cells})
    with_hashes, keys = list[Cell](), dict[str, str]()
    for cell in cells:
        own_datasets = datasets[setting_of_calibration(cell)]
        recipe, healing = cell.healing, None
        if recipe:
            healing = inputs.inputs_of_healing(recipe, own_datasets.healing[recipe], download=download)
        filled = replace(
            own_datasets.inputs,
            weights_sha256=weights[cell.model],
            revision=revisions[cell.method],
            healing=healing,
            parent=grid.key_of_parent(cell, keys) if cell.earlier else None,
            scored_by=scored_by if cell.protocol.is_served else None,
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
