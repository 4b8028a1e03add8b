"""Plans a run: says what it would do and what that takes, and measures nothing.

The schedule of the run drives a `SimulatedSession`, whose clock jumps from the end of one cell to that of the next.
Jobs take as long as they are estimated to take. Nothing works beside one while it is timed, as on one machine
(bench.engines.local, bench.system.worker). Tests of the driver use the same session.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import engines
from bench.engines import local
from bench.engines.engine import Job, Machine, Result, refuse_gpus_of_cpus
from bench.plan import validate
from bench.plan.cell import Cell
from bench.plan.named import refuse_file
from bench.plan.run_spec import RunSpec
from bench.runs import inputs, store
from bench.runs.calibration import OwnTexts
from bench.runs.datasets import read_datasets, setting_of_calibration
from bench.runs.runner import find_scoring_engine, with_inputs
from bench.schedule.data_sheets import DATA_SHEETS, GB, DataSheet
from bench.schedule.estimate import (
    ESTIMATED,
    Estimate,
    estimate_cells,
    format_duration,
    read_records_nearby,
    reuse_of_method,
)
from bench.schedule.memory_needs import (
    ALONE,
    GIB,
    MemoryNeeds,
    bytes_of_card,
    find_misfits,
    footprint_of,
    room_of,
    to_gib,
)
from bench.schedule.order import CellEnd, Schedule, drive
from bench.system import environment
from bench.system.memory import bytes_of_host, check_offload
from methods.errors import UserError

OutcomeOfKey = Callable[[str], dict[str, Any]]


class SimulatedSession:
    """Has slots, and a clock in seconds.

    seconds  that each job takes, by its key
    alone    how many of them, at the end, it is timed, by its key; 0 for a missing key
    outcome_of  returns the outcome of a job; by default nothing but a good status
    start    what a slot takes before its first job
    spans    (slot, begin, end) of each job, by its key
    """

    def __init__(
        self,
        slots: int,
        seconds: Mapping[str, float],
        alone: Mapping[str, float] | None = None,
        *,
        outcome_of: OutcomeOfKey | None = None,
        start: float = 0.0,
    ) -> None:
        self.slots, self.machine = slots, Machine(None, 1)
        self.now = 0.0
        self.spans: dict[str, tuple[int, float, float]] = {}
        self._seconds, self._alone, self._outcome_of, self._start = seconds, alone or {}, outcome_of or _fine, start
        self._idle = list(range(slots))
        self._warm = set[int]()
        self._started: dict[str, tuple[int, float]] = {}
        self._next: list[tuple[float, int, str, bool]] = []  # when a job comes to its timing (False) or ends (True)
        self._at_gate: list[str] = []

    def threads(self, timed: bool) -> int:
        """Return 1, since nothing computes."""
        return 1

    def has_room(self, timed: bool) -> bool:
        """Say whether a slot is idle, and no cell waits to be timed alone."""
        return bool(self._idle) and not self._at_gate

    def submit(self, job: Job) -> None:
        """Begin a cell at the time of the simulated clock."""
        self.begin(job.key)

    def begin(self, key: str) -> None:
        """Let a job run in the first slot that is idle."""
        slot = heapq.heappop(self._idle)
        alone = self._alone.get(key, 0.0)
        comes = self.now + self._seconds[key] - alone + (0.0 if slot in self._warm else self._start)
        self._warm.add(slot)
        self._started[key] = slot, self.now
        heapq.heappush(self._next, (comes, slot, key, not alone))

    def next_result(self) -> Result:
        """Move the clock to the next end of a cell, and return an empty result of it."""
        while True:
            self.now, slot, key, ends = heapq.heappop(self._next)
            if not ends:
                self._at_gate.append(key)
            else:
                self.spans[key] = (*self._started.pop(key), self.now)
                heapq.heappush(self._idle, slot)
            if self._at_gate and not self._next:  # all others have ended, or come to theirs
                self._time_all()
            if ends:
                return Result(key, self._outcome_of(key))

    def _time_all(self) -> None:
        """Time the jobs at the gate one after the other. All leave it together."""
        over = self.now + sum(self._alone[key] for key in self._at_gate)
        for key in self._at_gate:
            heapq.heappush(self._next, (over, self._started[key][0], key, True))
        self._at_gate.clear()

    def cancel(self) -> None:
        """Forget all cells that run."""
        self._next.clear()

    def __enter__(self) -> SimulatedSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def _fine(key: str) -> dict[str, Any]:
    """Return the outcome of a cell that ended well, without any values."""
    return {"status": "ok", "error": None}


def plan_spec(spec: RunSpec, card: str | None = None) -> Plan:
    """Return what a run would do and what that takes, without measuring and without writing anything.

    card  a GPU of bench.schedule.data_sheets, by which the run is planned; None: this machine, or an engine's

    Raises UserError for what `run_spec` would refuse before any work, but for what the machines of another engine lack.
    """
    if card:
        spec = _spec_for_card(spec, DATA_SHEETS[card])
    is_here = spec.engine == "local" and not card
    engines.refuse_flags(spec)
    cells, folder = validate.cells_of_spec(spec, is_here=is_here), spec.folder()
    refuse_gpus_of_cpus(cells[0].device, spec.gpus_per_cell, spec.accelerator)
    refuse_file(folder)
    device, every = torch.device(cells[0].device), torch.get_num_threads()
    slots: int = spec.slots if isinstance(spec.slots, int) else 1
    if is_here:
        visible = local.names_of_visible_gpus(torch.cuda.device_count())
        slots = len(local.environments_of_slots(spec.slots or 1, str(device), visible, spec.gpus_per_cell))
        if device.type == "cuda" and any(cell.is_timed for cell in cells):
            local.refuse_unlike(slots, spec.gpus_per_cell)
    start = time.perf_counter()
    machine = Machine(environment.name_of_processor(device) if is_here else None, every)
    datasets = read_datasets(cells, Path(), machine, OwnTexts(may_write=False))
    scored_by = find_scoring_engine(cells, spec.server)
    cells, read = with_inputs(cells, datasets, scored_by, download=False), time.perf_counter() - start
    if spec.offload and is_here:
        check_offload(spec.offload)
    served = store.find_records(folder, cells, spec.retry_failed)
    done = {key: CellEnd.of(record) for key, record, _ in served if record is not None}
    threads = every if slots == 1 else local.threads_of(slots, every, spec.fixed_threads)
    estimates = estimate_cells(
        cells,
        list(read_records_nearby(folder)),
        amounts=lambda cell: datasets[setting_of_calibration(cell)].amounts,
        threads=lambda _: threads,
        timed_threads=every,
        done=done,
        rates=DATA_SHEETS[card].rates(getattr(torch, cells[0].dtype)) if card else None,
    )
    room, device_room = _places(spec, cells[0], slots, is_here=is_here)
    has_folder, gpus = spec.offload is not None, spec.gpus_per_cell
    needs = {cell.key: footprint_of(cell, offload=has_folder).place(cell, room, device_room) for cell in cells}
    estimates = {cell.key: _without_untimed(estimates[cell.key], cell, needs[cell.key], gpus) for cell in cells}
    missing = [cell for cell in cells if cell.key not in done]
    remarks = [f"{why}; it is measured again" for _, why in inputs.find_old_records(folder, cells)]
    remarks += remarks_on_memory(missing, needs, spec, slots, room / GIB, is_here=is_here) if is_here or card else []
    return simulate(cells, done, estimates, slots=slots, start=read, needs=needs, is_here=is_here, remarks=remarks)


def _spec_for_card(spec: RunSpec, card: DataSheet) -> RunSpec:
    """Return a spec of this machine's as it is on one with a GPU of a data sheet."""
    if spec.engine != "local":
        raise UserError(f"--plan with a GPU's name plans for one machine with it; leave --engine {spec.engine} out")
    if spec.device not in ("auto", "cuda"):
        raise UserError(f"--plan with a GPU's name is for --device cuda, not for {spec.device}; leave --device out")
    memory = card.memory * GB / GIB if spec.device_memory == "auto" else spec.device_memory
    return replace(spec, device="cuda", device_memory=memory)


def remarks_on_memory(
    cells: Sequence[Cell],
    needs: Mapping[str, MemoryNeeds],
    spec: RunSpec,
    slots: int,
    memory: float,
    *,
    is_here: bool = True,
) -> list[str]:
    """Return a line for each cell that is larger than the memory, and on slots or states that are so together.

    memory   GiB of the host's memory that a cell may take
    is_here  whether the host is this machine, whose memory is known
    """
    limits = spec.gpus_per_cell, memory, spec.device_memory_gib
    misfits = find_misfits(cells, *limits, offload=spec.offload, slots=slots)
    remarks = [misfit.words for misfit in misfits if misfit.words != ALONE]
    largest, host = sum(sorted((needs[cell.key].host for cell in cells), reverse=True)[:slots]), bytes_of_host()
    if is_here and not remarks and largest > host:
        several = f"{slots} slots" if slots > 1 else "a cell"
        remarks.append(f"{several} may need {to_gib(largest)} at once, and the machine has {to_gib(host)}")
    return remarks


def _places(spec: RunSpec, cell: Cell, slots: int, *, is_here: bool) -> tuple[int, int | None]:
    """Return the bytes that a cell may take of its host's memory and of its GPU's.

    Of another machine nothing is known beside the spec, and all may lie in memory there.
    """
    room = room_of(spec.memory_gib, slots) if is_here or spec.memory_gib is not None else sys.maxsize
    has_room = is_here or spec.device_memory_gib is not None
    return room, bytes_of_card(cell, spec.gpus_per_cell, spec.device_memory_gib, slots) if has_room else None


def _without_untimed(estimate: Estimate, cell: Cell, needs: MemoryNeeds, gpus: int) -> Estimate:
    """Return an estimate without what is not timed: models over several GPUs, a dense one without room."""
    if "speed" not in estimate.stages or not (needs.alone or gpus > 1):
        return estimate
    if gpus > 1 or cell.method == "dense":
        return replace(estimate, stages={name: seconds for name, seconds in estimate.stages.items() if name != "speed"})
    return replace(estimate, stages=estimate.stages | {"speed": estimate.stages["speed"] / 2})


@dataclass(frozen=True)
class PlannedCell:
    """Says when a cell runs, in seconds from the start, and what it takes.

    done   the status of its record, where it has one that counts; then nothing else is known
    after  the cell that it waits for, as messages call it; "" where it waits for none
    """

    cell: Cell
    done: str = ""
    estimate: Estimate | None = None
    needs: MemoryNeeds = MemoryNeeds(0, 0)
    slot: int = 0
    begin: float = 0.0
    end: float = 0.0
    after: str = ""


@dataclass(frozen=True)
class Plan:
    """Holds the cells of a run in their order, when each slot ends, and sentences on what is wrong or doubtful."""

    cells: Sequence[PlannedCell]
    slots: Sequence[float]
    remarks: Sequence[str]

    @property
    def seconds(self) -> float:
        """Return when the last slot ends."""
        return max(self.slots, default=0.0)

    @property
    def is_coarse(self) -> bool:
        """Say whether the seconds of a cell are estimated without records of like work."""
        return any(cell.estimate is not None and cell.estimate.basis == ESTIMATED for cell in self.cells)


def simulate(
    cells: Sequence[Cell],
    done: Mapping[str, CellEnd],
    estimates: Mapping[str, Estimate],
    *,
    slots: int,
    start: float = 0.0,
    needs: Mapping[str, MemoryNeeds],
    is_here: bool = True,
    remarks: Sequence[str] = (),
) -> Plan:
    """Return the plan of a run: its driver runs with estimated seconds in place of measurements.

    done     the cells that have a record that counts, by key
    start    seconds in which a slot reads its texts and tasks before its first cell
    is_here  whether cells run on this machine, where nothing works beside a timed cell
    remarks  on what is wrong or doubtful
    """
    seconds = {key: estimate.seconds for key, estimate in estimates.items()}
    schedule = Schedule(cells, seconds if slots > 1 else None)
    timed = {key: estimate.stages.get("speed", 0.0) for key, estimate in estimates.items()} if is_here else None
    session = SimulatedSession(slots, seconds, timed, start=start)

    def begin(cell: Cell) -> None:
        if cell.key in done:
            schedule.finish(cell.key, done[cell.key])
            return
        session.begin(cell.key)
        schedule.start(cell.key)

    def end(key: str) -> None:
        schedule.finish(key, CellEnd("ok", no_search=reuse_of_method(schedule.cells[key].method) != "removals"))

    drive(schedule, session, begin, lambda result: end(result.key))
    planned = []
    for cell in cells:
        if cell.key in done:
            planned.append(PlannedCell(cell, done[cell.key].status))
            continue
        slot, first, ended = session.spans[cell.key]
        after = schedule.predecessor(cell.key)
        after = schedule.cells[after].title if after and after not in done else ""
        planned.append(PlannedCell(cell, "", estimates[cell.key], needs[cell.key], slot, first, ended, after))
    ends = [0.0] * slots
    for used_slot, _, ended in session.spans.values():
        ends[used_slot] = max(ends[used_slot], ended)
    return Plan(planned, ends, remarks)


def summarise_plan(plan: Plan) -> str:
    """Say in a sentence how long the run takes: '5 of 7 cells are to be measured, which takes about 12 min'."""
    unmeasured = sum(not cell.done for cell in plan.cells)
    takes = format_duration(plan.seconds, is_coarse=plan.is_coarse)
    return f"{unmeasured} of {len(plan.cells)} cells are to be measured, which takes about {takes}"
