"""Makes the job of a cell, measures it wherever an engine runs it, and makes the record of its outcome.

In a worker of this machine a job reads what its cell needs and sends the outcome (`run_job`). Another machine measures
into a job folder: a run folder with that one cell (`run_remote_job`). `python -m bench cell JOB.json --out PART` calls
that, and so do the engines of other machines (bench.engines). The run takes in what the job folder holds
(`take_in_records`, bench.runs.store.take_in), or `merge` joins it with others.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import hashlib
import json
import logging
import math
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import methods
from bench.data import pretrained, task_loading
from bench.engines.engine import PARTS, SOUND, InUse, Job, Machine, Result, Workplace
from bench.evaluation.forwards import Sweeping
from bench.plan.cell import Cell
from bench.plan.kinds import value_from_plain
from bench.records.measured import Measured
from bench.records.record import LOST, Record
from bench.runs import inputs, store
from bench.runs.calibration import OwnTexts
from bench.runs.datasets import (
    DatasetReader,
    Datasets,
    KeptStatistics,
    file_of_datasets,
    load_datasets,
    setting_of_calibration,
)
from bench.runs.measure import CellProgress, try_cell
from bench.schedule.memory_needs import GIB, bytes_of_card, needs_of, room_for_states, room_of
from bench.speed import timed_cell
from bench.system import environment, interrupt, memory, versions
from bench.system.threads import FreeCores
from bench.system.worker import Channel
from methods.console import say
from methods.errors import UserError
from methods.files import write_atomically
from methods.model.layer_store import LayerStore

CODE = "the code of prunebench"


def _run_job(channel: Channel, job: Job) -> None:
    """Measure the cell in a worker's process. What an earlier cell has read there is in its cache.

    Raises UserError for a mistake that is not one cell's, such as a missing text.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    channel.alive("while it read its texts and tasks")
    torch.set_num_threads(job.run.timed_threads)
    if job.run.imports and str(job.run.imports) not in sys.path:
        sys.path.insert(0, str(job.run.imports))
    methods.load([str(file) for file in job.run.plugins])
    _refuse_other_code(job.cell, job.run.code_sha256)
    datasets = find_datasets(job, channel.cache)
    torch.set_num_threads(job.threads)
    measure_cell(channel, job, datasets)


def find_datasets(job: Job, cache: dict[Any, Any]) -> Datasets:
    """Return the data of a job's cell, from the cache of this process where an earlier job has read them.

    They are those that the run has written to its scratch folder. Another machine reads them anew.
    """
    cell, scratch = job.cell, _scratch_of(job)
    setting = (*setting_of_calibration(cell), cell.healing)
    if setting not in cache:
        machine = Machine(environment.name_of_processor(torch.device(cell.device)), job.run.timed_threads)
        if (file := file_of_datasets(scratch, setting_of_calibration(cell))).exists():
            load_tasks = cache.setdefault(task_loading.load_tasks, functools.cache(task_loading.load_tasks))
            cache[setting] = load_datasets(file, cell, machine, load_tasks)
        else:
            if cell.model not in cache:
                own = OwnTexts(True, job.run.memory_gib, job.run.device_memory_gib)
                cache[cell.model] = DatasetReader(cell, scratch, machine, own)
            cache[setting] = cache[cell.model].read(cell, [cell.healing] if cell.healing else [])
        gc.freeze()  # what stays as long as the process; to look for garbage in it after each cell takes 0.15 s
        atexit.register(gc.unfreeze)  # or libraries report it as leaked when the process ends
    datasets: Datasets = cache[setting]
    return datasets


def run_job(channel: Channel, job: Job) -> None:
    """Measure the cell of a job in a worker's process. A mistake that is not one cell's is sent as `refused`."""
    try:
        _run_job(channel, job)
    except UserError as error:
        channel.send({"refused": str(error)})


def _scratch_of(job: Job) -> Path:
    """Return the folder for what need not outlive the run, which every job has where it is measured."""
    assert job.run.scratch is not None, "a job has a scratch folder where it is measured"
    return job.run.scratch


def measure_cell(channel: Channel, job: Job, datasets: Datasets) -> None:
    """Measure the cell on the data that were read for it; send the environment first, then each value."""
    cell, run, is_timed = job.cell, job.run, job.is_timed
    described = environment.describe(torch.device(cell.device), getattr(torch, cell.dtype))
    described |= {"threads": run.timed_threads} if is_timed else {}
    channel.send({"environment": described | ({"slots": run.slots} if run.slots > 1 else {})})
    devices = pretrained.devices_of_cell(torch.device(cell.device), job.gpus)
    if is_timed and math.isinf(run.limits.memory):  # a process that waits would take a part of it
        timed_cell.begin_timing(cell.device)
    outcome = CellProgress(
        channel.send,
        channel.alive,
        lambda message: say(f"{job.title}: {message}"),
        channel.alone,
        devices,
        cores=FreeCores(job.threads) if run.free_cores and devices[0].type == "cpu" else None,
        server=run.server,
    )
    statistics = None
    if not cell.earlier:  # what is pruned is the dense model

        def peaks() -> dict[str, Any]:
            return outcome.peaks()  # peaks of the current stage

        statistics = KeptStatistics(folder_of_statistics(cell, _scratch_of(job)), peaks)
    own = datasets.cut_to_cell(job.search, keep=job.keep_model, timed_threads=run.timed_threads, statistics=statistics)
    with ExitStack() as stack:
        if run.offload:
            place = stack.enter_context(memory.make_folder_of_cell(run.offload, job.folder, job.key))
            own = replace(own, calibration=replace(own.calibration, offload=place))
            if cell.method != "dense":
                outcome.measured = replace(outcome.measured, states_in="files")
        card = bytes_of_card(cell, job.gpus, run.device_memory_gib)
        memory_gib = room_of(run.memory_gib, run.slots) / GIB
        needs = needs_of(cell, memory_gib, card, offload=bool(run.offload))
        outcome.timed_alone = needs.alone
        if needs.in_files:
            on_gpu = devices[0] if devices[0].type == "cuda" else None
            outcome.files = LayerStore(stack.enter_context(store.make_scratch_folder(job.folder)), on_gpu)
            outcome.sweeping = Sweeping(room_for_states(cell, memory_gib, card), outcome.files)
            outcome.measured = replace(outcome.measured, weights_in="files")
        else:  # memory is short there
            memory.keep_freed()
        try_cell(cell, job.folder, own, outcome, parents=run.folder)


def folder_of_statistics(cell: Cell, scratch: Path) -> Path:
    """Return the folder of statistics of the cell's dense model: its weights, as its settings and code use them."""
    hashes = cell.filled_inputs
    model = hashlib.sha256(f"{hashes.weights_sha256} {hashes.config_sha256}".encode()).hexdigest()
    return scratch / f"statistics-{model[:16]}-{cell.dtype}-{torch.device(cell.device).type}"


def _refuse_other_code(cell: Cell, code_sha256: str) -> None:
    """Refuse a machine whose packages or code are not those of the run."""
    own = versions.installed_versions() | {CODE: inputs.sha256_of_code()[:12]}
    versions.refuse_unlike(platform.node(), own, cell.filled_inputs.versions | {CODE: code_sha256[:12]})


def record_of_outcome(cell: Cell, outcome: Mapping[str, Any], slots: int | None = 1) -> Record:
    """Return the record of a cell's outcome. What the outcome does not say of the machine is that of this one.

    slots  cells that ran at once on this machine; None: it ran on another, of which nothing is known
    """
    described: dict[str, Any] = dict(outcome.get("environment") or {})
    if slots is None:
        described = {"device": cell.device, "dtype": cell.dtype} | described
    elif not described:  # the process died at once
        described = environment.describe(torch.device(cell.device), getattr(torch, cell.dtype))
    described["date"] = environment.date_in_utc()
    if slots and slots > 1:
        described["slots"] = slots
    return Record(
        cell,
        outcome["status"],
        described,
        outcome.get("decisions", {}),
        value_from_plain(Measured, outcome.get("measured", {})),
        outcome["error"],
        display_name=pretrained.name_of_model(cell.model),
    )


SOURCES = "plugins"  # in the folder of a workplace, the files of its run's plugins
PROGRESS_FILE = "told.json"  # in a part, what its cell has told so far
PATIENCE = 120.0  # seconds for the lock of a process that is gone to be free on a file system over a network


def run_job_text(text: str, out: str, place: Workplace | None = None) -> None:
    """Measure the job that a JSON text holds into the folder `out`, unless its record is there.

    place  workplace in which earlier jobs of the run may have been measured; None: one for this job alone

    Raises InUse where another process measures there. Raises UserError where the text is no job, the folder holds
    another run, or this machine has other code, versions, texts or tasks than the run.
    """
    with interrupt.keep_prompt(leave=partial(store.clear_folder, Path(out))):
        run_remote_job(Job.from_json(text), Path(out), place)


def run_remote_job(job: Job, part: Path, place: Workplace | None = None) -> Record:
    """Measure the job into the job folder `part`, unless its record is there, and return the record."""
    with store.lock_folder(part, PATIENCE) as dead, contextlib.ExitStack() as opened:
        if dead:
            say(dead)
        if other_keys := [path.stem for path in (part / "cells").glob("*.json") if path.stem != job.key]:
            raise UserError(f"{part} belongs to another run, it holds {min(other_keys)}; name another --out")
        earlier, _ = store.find_record(part, job.key, job.cell, retry_failed=False)
        if earlier is not None:
            return earlier
        opened.enter_context(store.keep_tidy(part))
        if place is None:
            scratch = tempfile.TemporaryDirectory(prefix=store.SCRATCH, dir=part, ignore_cleanup_errors=True)
            place = opened.enter_context(Workplace(Path(opened.enter_context(scratch))))
        outcome = dict[str, Any]()
        own_job, run = _job_on_this_machine(job, part, place.folder), job.run

        def hear(news: Mapping[str, Any]) -> None:
            outcome.update(news)
            with contextlib.suppress(TypeError, ValueError):  # the values fit no record
                write_atomically(part / PROGRESS_FILE, json.dumps(outcome))

        failure = place.run(run_job, (own_job,), variables=run.variables, limits=run.limits, hear=hear)
        if "refused" in outcome:
            raise UserError(outcome["refused"])
        if failure and "status" not in outcome:
            outcome |= {"status": failure.status, "error": failure.reason}
        if outcome["status"] not in SOUND:
            place.end_process()
        record = store.write_record(record_of_outcome(job.cell, outcome), part, job.key)
        (part / PROGRESS_FILE).unlink(missing_ok=True)
        return record


def hand_over_pieces(folder: Path, key: str, is_here: bool) -> None:
    """Move the pieces of a cell to where it goes on: into its job folder, or back to the run to be measured here.

    Nothing is moved while a process measures in the job folder.
    """
    part = folder / PARTS / key
    source, target = (part, folder) if is_here else (folder, part)
    if (part if is_here else folder / "partial" / key).exists():
        with contextlib.suppress(InUse), store.lock_folder(part):
            store.move_pieces(source, target, key)
            (part / PROGRESS_FILE).unlink(missing_ok=True)


def take_in_records(folder: Path, cells: Iterable[Cell]) -> Iterator[str]:
    """Take in the records that other machines have measured for an earlier run; yield a line on each cell.

    A job folder stays where a process measures there, and where its cell has failed, which is measured again.
    """
    for cell in cells:
        part, record = folder / PARTS / cell.key, None
        if not (part / "cells").exists() or (folder / "cells" / f"{cell.key}.json").exists():
            continue
        with contextlib.suppress(InUse), store.lock_folder(part):
            record, _ = store.find_record(part, cell.key, cell, retry_failed=True)
        if record is not None:
            store.take_in(part, folder, cell.key)
            yield f"{cell.label} was measured for an earlier run, on another machine"


def outcome_of_result(folder: Path, result: Result) -> dict[str, Any]:
    """Return the outcome of a cell. Where its job was ended from outside, it has what the job had written until then.

    A lost job goes on in its folder, and writes all of it at its end.
    """
    progress = dict[str, Any]()
    if result.outcome["status"] != LOST:
        with contextlib.suppress(OSError, ValueError):  # it had told nothing
            progress = json.loads((folder / PARTS / result.key / PROGRESS_FILE).read_text(encoding="utf-8"))
    return {**progress, **result.outcome}


def _job_on_this_machine(job: Job, part: Path, scratch: Path) -> Job:
    """Return the job with its plugins as files, its own folder, and `scratch` if it names none.

    A plugin's file has the same path for all jobs of a workplace, so that its methods are registered once in a process.
    """
    imports = (scratch / SOURCES).resolve()
    for name, text in job.run.sources.items():
        file = imports / name
        if imports not in file.resolve().parents:
            raise UserError(f"this is no job of a run: a plugin has the name {name!r}")
        if not file.exists():
            write_atomically(file, text)  # another process may be about the same
    if missing := [str(name) for name in job.run.plugins if name.as_posix() not in job.run.sources]:
        raise UserError(f"this is no job of a run: it has no text of the plugin {missing[0]!r}")
    plugins = tuple(imports / name for name in job.run.plugins)
    run = replace(job.run, plugins=plugins, imports=imports, scratch=job.run.scratch or scratch)
    return replace(job, folder=part, run=run)
