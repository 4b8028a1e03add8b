"""Plans a run without running it: lets its schedule drive a session whose clock jumps from one end to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.engines.simulated import SimulatedSession
from bench.plan.cell import Cell
from bench.records.record import share
from bench.schedule import passes
from bench.schedule.estimator import Estimate
from bench.schedule.forecast import duration
from bench.schedule.memory_needs import MemoryNeeds, gpus_bytes
from bench.schedule.order import Ended, Schedule, drive
from bench.system.memory import host_bytes

GIB = 2**30


@dataclass(frozen=True)
class PlannedCell:
    """Says when a cell runs, in seconds from the start, and what it takes.

    done   the status of its record, where it has one that counts; then nothing else is known
    after  what it waits for, by what messages call it; "" where it waits for nothing
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


def named(cell: Cell) -> str:
    """Return what messages call a cell: 'laco at 0.3'."""
    return f"{cell.label}{'' if cell.ratio is None else f' at {share(cell.ratio, cell.ratio_of)}'}"


def simulated(
    cells: Sequence[Cell],
    done: Mapping[str, Ended],
    estimates: Mapping[str, Estimate],
    *,
    slots: int,
    start: float = 0.0,
    needs: Mapping[str, MemoryNeeds],
    here: bool = True,
    gpus: int = 1,
    room: int | None = None,
    card: int | None = None,
    free: int | None = None,
) -> Plan:
    """Return the plan of a run.

    done   the cells that have a record that counts, by key
    start  seconds in which a slot reads its texts and tasks before its first cell
    here   whether cells run on this machine: then nothing works beside one that is timed, and its memory is looked at
    gpus   over which the model of a cell is spread
    room   bytes of the host's memory that a cell may take; None: all of it
    card   bytes of its GPU's that it may take; None: all that its GPUs have
    free   bytes that the folder has left in which states wait; None: it is not looked at, or there is none
    """
    seconds = {key: estimate.seconds for key, estimate in estimates.items()}
    schedule = Schedule(cells, seconds if slots > 1 else None)
    timed = {key: estimate.stages.get("speed", 0.0) for key, estimate in estimates.items()} if here else None
    session = SimulatedSession(slots, seconds, timed, start=start)

    def begin(cell: Cell) -> None:
        if cell.key in done:
            schedule.finish(cell.key, done[cell.key])
            return
        session.begin(cell.key)
        schedule.start(cell.key)

    def end(key: str) -> None:
        schedule.finish(key, Ended("ok", no_search=passes.reuses(schedule.cells[key].method) != "removals"))

    drive(schedule, session, begin, lambda result: end(result.key))
    planned = []
    for cell in cells:
        if cell.key in done:
            planned.append(PlannedCell(cell, done[cell.key].status))
            continue
        slot, first, ended = session.spans[cell.key]
        after = schedule.awaited(cell.key)
        after = named(schedule.cells[after]) if after and after not in done else ""
        planned.append(PlannedCell(cell, "", estimates[cell.key], needs[cell.key], slot, first, ended, after))
    ends = [max((end for at, _, end in session.spans.values() if at == slot), default=0.0) for slot in range(slots)]
    remarks = [*_misfits(planned, slots, gpus, room, card), *_full(planned, slots, free)] if here else []
    return Plan(planned, ends, remarks)


def _full(planned: Sequence[PlannedCell], slots: int, free: int | None) -> list[str]:
    """Say that the folder of --offload has not the room that states take at once."""
    taken = sum(sorted((one.needs.offloaded for one in planned), reverse=True)[:slots])
    if free is None or taken <= free:
        return []
    return [f"states take about {gib(taken)} of the folder of --offload, which has {gib(free)} left; name another"]


def _misfits(planned: Sequence[PlannedCell], slots: int, gpus: int, room: int | None, of_card: int | None) -> list[str]:
    """Name the cells that are larger than the memory, and slots that are so together."""
    host, device = host_bytes(), 0
    left = [one for one in planned if not one.done]
    if left and left[0].cell.device.startswith("cuda") and torch.cuda.is_available():
        device = gpus_bytes(left[0].cell, gpus, slots)
    device = of_card or device
    card = "the GPU has" if gpus == 1 else f"{gpus} GPUs have"
    found = []
    for one in left:
        limited = room is not None and room * slots < host
        may = ("it may take", one.needs.host, room) if limited else ("the machine has", one.needs.host, host)
        for where, needed, there in ((card, one.needs.device, device), may):
            if there and needed > there:
                found.append(f"{named(one.cell)} does not fit: it needs about {gib(needed)}, and {where} {gib(there)}")
    largest = sum(sorted((one.needs.host for one in left), reverse=True)[:slots])
    if not found and slots > 1 and largest > host:
        found.append(f"{slots} slots may need {gib(largest)} at once, and the machine has {gib(host)}; take fewer")
    return found


def gib(count: float) -> str:
    """Write bytes as a reader wants them: '1.6 GiB'."""
    return f"{count / GIB:.1f} GiB"


def summary(plan: Plan) -> str:
    """Say in a sentence how long the run takes: '5 of 7 cells are to be measured, which takes about 12 min'."""
    left = sum(not one.done for one in plan.cells)
    return f"{left} of {len(plan.cells)} cells are to be measured, which takes about {duration(plan.seconds)}"
