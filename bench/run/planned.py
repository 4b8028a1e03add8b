"""Plans a run: says what it would do and what that takes, without doing any of it."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.engines import chosen, local
from bench.engines.engine import Machine, refuse_gpus_of_cpus
from bench.plan import chain, validate
from bench.plan.cell import Cell
from bench.plan.named import refuse_file
from bench.plan.run_spec import RunSpec
from bench.run import store
from bench.run.datasets import calibration_setting, read_datasets
from bench.run.runner import known
from bench.schedule.estimator import Estimate
from bench.schedule.memory_needs import MemoryNeeds, card_of, room_of
from bench.schedule.order import Ended
from bench.schedule.outlook import Outlook
from bench.schedule.plan import Plan, simulated
from bench.system import environment
from bench.system.offload import check


def plan_spec(spec: RunSpec) -> Plan:
    """Return what a run would do and what that takes, without measuring and without writing anything.

    Raises UserError for what `run_spec` would refuse before any work, but for what the machines of another engine lack.
    """
    here = spec.engine == "local"
    chosen.refuse_flags(spec)
    cells, folder = validate.cells(spec, here=here), spec.folder()
    refuse_gpus_of_cpus(cells[0].device, spec.gpus_per_cell, spec.accelerator)
    refuse_file(folder)
    device, every = torch.device(cells[0].device), torch.get_num_threads()
    slots: int = spec.slots if isinstance(spec.slots, int) else 1
    if here:
        seen = local.visible(torch.cuda.device_count())
        slots = len(local.environments(spec.slots or 1, str(device), seen, spec.gpus_per_cell))
        if device.type == "cuda" and any(map(chain.is_timed, cells)):
            local.refuse_unlike(slots, spec.gpus_per_cell)
    begun = time.perf_counter()
    datasets = read_datasets(cells, Path(), Machine(environment.processor(device) if here else None, every))
    cells, read = known(cells, datasets, download=False), time.perf_counter() - begun
    if spec.offload and here:
        check(spec.offload)
    served = store.served(folder, cells, spec.retry_failed)
    done = {key: Ended.of(one) for key, one, _ in served if one is not None}
    outlook = Outlook.of(cells[0], folder)
    shared = local.threads_of(slots, every, spec.fixed_threads)
    outlook.add(
        cells,
        lambda cell: datasets[calibration_setting(cell)].amounts,
        lambda cell: every if slots == 1 else shared,
        every,
        done,
    )
    room, card = _places(spec, cells[0], slots)
    needs = {cell.key: outlook.needs(cell, room, card, offload=spec.offload is not None) for cell in cells}
    gpus = spec.gpus_per_cell
    estimates = {cell.key: _timed(outlook.estimates[cell.key], cell, needs[cell.key], gpus) for cell in cells}
    free = shutil.disk_usage(spec.offload).free if spec.offload and here else None
    where: dict[str, Any] = {"here": here, "gpus": gpus, "room": room, "card": card, "free": free}
    return simulated(cells, done, estimates, slots=slots, start=read, needs=needs, **where)


def _places(spec: RunSpec, cell: Cell, slots: int) -> tuple[int, int | None]:
    """Return the bytes that a cell may take of its host's memory and of its GPU's.

    Of another machine nothing is known but what the spec says, and all may lie in memory there.
    """
    here = spec.engine == "local"
    room = room_of(spec.memory_gib, slots) if here or spec.memory_gib is not None else sys.maxsize
    known = here or spec.device_memory_gib is not None
    return room, card_of(cell, spec.gpus_per_cell, spec.device_memory_gib, slots) if known else None


def _timed(estimate: Estimate, cell: Cell, needs: MemoryNeeds, gpus: int) -> Estimate:
    """Return an estimate without what is not timed: models over several GPUs, a dense one without room."""
    if "speed" not in estimate.stages or not (needs.alone or gpus > 1):
        return estimate
    if gpus > 1 or cell.method == "dense":
        return replace(estimate, stages={name: one for name, one in estimate.stages.items() if name != "speed"})
    return replace(estimate, stages=estimate.stages | {"speed": estimate.stages["speed"] / 2})
