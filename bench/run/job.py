"""Makes the job of a cell, and measures it wherever an engine runs it: reads what the cell needs, tells its outcome,
and makes the record of what was told.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import logging
import platform
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import methods
from bench.data import pretrained
from bench.engines.engine import Job, Machine, Session
from bench.evaluation.forwards import Sweeping
from bench.evaluation.statistics import KeptStatistics
from bench.plan import chain
from bench.plan.cell import Cell, from_plain
from bench.records.record import Record
from bench.run import fingerprint, store
from bench.run.datasets import DatasetReader, Datasets, calibration_setting
from bench.run.measure import attempt
from bench.run.outcome import Outcome
from bench.schedule.memory_needs import GIB, card_of, needs_of, room_for_states, room_of
from bench.speed import timed_cell
from bench.system import environment, memory, offload, versions
from bench.system.console import say
from bench.system.threads import FreeCores, waiting
from bench.system.worker import Line
from methods.errors import UserError
from methods.model.layer_store import LayerStore

CODE = "the code of prunebench"


def job(cell: Cell, folder: Path, session: Session, given: Mapping[str, Any]) -> Job:
    """Return the job by which a session of an engine measures a cell; `given` are the fields that its run has found."""
    timed = chain.is_timed(cell)
    return Job(
        **given,
        cell=cell.plain(),
        key=cell.key,
        folder=str(folder),
        parents=str(folder),
        timed=timed,
        gpus=session.machine.gpus if cell.device.startswith("cuda") else 0,
        threads=session.threads(timed),
        run_threads=session.machine.threads,
        variables={name.upper(): value for name, value in waiting().items()},
    )


def work(line: Line, job: Job) -> None:
    """Measure the cell in a worker's process; what an earlier cell has read there is in its cache.

    Raises UserError for a mistake that is no cell's alone, such as a missing text.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    line.alive("while it read its texts and tasks")
    torch.set_num_threads(job.run_threads)
    methods.load(job.plugins)
    cell, cache = from_plain(job.cell), line.cache
    _refuse_other_code(cell, job.code_sha256)
    if cell.model not in cache:
        machine = Machine(environment.processor(torch.device(cell.device)), job.run_threads)
        cache[cell.model] = DatasetReader(cell, Path(job.scratch), machine)
    setting = (*calibration_setting(cell), cell.healing)
    if setting not in cache:
        cache[setting] = cache[cell.model].read(cell, [cell.healing] if cell.healing else [])
        gc.freeze()  # what stays as long as the process; to look for garbage in it after each cell takes 0.15 s
        atexit.register(gc.unfreeze)  # or libraries report it as leaked when the process ends
    torch.set_num_threads(job.threads)
    measure(line, job, cell, cache[setting])


def told(line: Line, job: Job) -> None:
    """Do `work`, and tell a mistake that is no cell's alone as `refused`."""
    try:
        work(line, job)
    except UserError as error:
        line.tell({"refused": str(error)})


def measure(line: Line, job: Job, cell: Cell, datasets: Datasets) -> None:
    """Measure the cell on what has been read for it; tell the environment first, then what is found."""
    described = environment.describe(torch.device(cell.device), getattr(torch, cell.dtype))
    described |= {"threads": job.run_threads} if job.timed else {}
    line.tell({"environment": described | ({"slots": job.slots} if job.slots > 1 else {})})
    devices = pretrained.devices(torch.device(cell.device), job.gpus)
    if job.timed and "memory" not in job.limits:  # of which a process that waits would take its part
        timed_cell.begin(cell.device)
    outcome = Outcome(
        line.tell,
        line.alive,
        lambda message: say(f"{job.where}: {message}"),
        line.alone,
        devices,
        cores=FreeCores(job.threads) if job.free_cores and devices[0].type == "cpu" else None,
    )
    statistics = None
    if not cell.earlier:  # what is pruned is the dense model

        def peaks() -> dict[str, Any]:
            return outcome.peaks()  # of the stage that goes on then

        statistics = KeptStatistics(statistics_of(cell, Path(job.scratch)), peaks)
    own = datasets.for_cell(job.order, job.seconds, keep=job.keep, timed_threads=job.run_threads, statistics=statistics)
    folder = Path(job.folder)
    with ExitStack() as stack:
        if job.offload:
            place = stack.enter_context(offload.of_cell(Path(job.offload), folder, cell.key))
            own = replace(own, calibration=replace(own.calibration, offload=place))
            if cell.method != "dense":
                outcome.measured["states_in"] = "files"
        card = card_of(cell, job.gpus, job.device_memory)
        memory_gib = room_of(job.memory, job.slots) / GIB
        needs = needs_of(cell, memory_gib, card, offload=bool(job.offload))
        outcome.timed_alone = needs.alone
        if needs.in_files:
            on_gpu = devices[0] if devices[0].type == "cuda" else None
            outcome.files = LayerStore(stack.enter_context(store.scratch(folder)), on_gpu)
            outcome.sweeping = Sweeping(room_for_states(cell, memory_gib, card), outcome.files)
            outcome.measured["weights_in"] = "files"
        else:  # in which memory is what is short
            memory.keep_freed()
        attempt(cell, folder, own, outcome, parents=Path(job.parents))


def statistics_of(cell: Cell, scratch: Path) -> Path:
    """Return the folder of statistics of the cell's dense model: its weights, as its settings and code use them."""
    model = hashlib.sha256(f"{cell.inputs['weights_sha256']} {cell.inputs.get('config_sha256')}".encode()).hexdigest()
    return scratch / f"statistics-{model[:16]}-{cell.dtype}-{torch.device(cell.device).type}"


def _refuse_other_code(cell: Cell, code_sha256: str) -> None:
    """Refuse a machine whose packages or code are not those of the run."""
    own = versions.installed() | {CODE: fingerprint.code_sha256()[:12]}
    versions.refuse_unlike(platform.node(), own, cell.inputs["versions"] | {CODE: code_sha256[:12]})


def record(cell: Cell, found: Mapping[str, Any], slots: int | None = 1) -> Record:
    """Return the record of what was found of a cell; what its process did not tell of its machine is of this one.

    slots  cells that ran at once on this machine; None: it ran on another, of which nothing is known
    """
    names = {"display_name": pretrained.display_name(cell.model), "label": cell.label}
    described: dict[str, Any] = dict(found.get("environment") or {})
    if slots is None:
        described = {"device": cell.device, "dtype": cell.dtype} | described
    elif not described:  # of a process that died at once
        described = environment.describe(torch.device(cell.device), getattr(torch, cell.dtype))
    described["date"] = environment.date()
    if slots and slots > 1:
        described["slots"] = slots
    decisions, measured = found.get("decisions", {}), found.get("measured", {})
    return Record(cell.plain() | names, found["status"], described, decisions, measured, found["error"])
