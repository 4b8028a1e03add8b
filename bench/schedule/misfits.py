"""Refuses, before any work, cells that surely need more memory, or more of a disk, than there is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.plan.cell import Cell
from bench.schedule.memory_needs import GIB, card_of, footprint_of, gpus_bytes, room_of
from bench.schedule.plan import named
from bench.system.console import say
from methods.errors import UserError

ALONE = (
    "there is no room for the dense model, which is not timed; pruned models are timed alone, beside what the removed "
    "work alone would bring"
)
SURE = 0.5  # of what a cell takes beside its weights by its estimate, which tests hold to at most twice the peak


def refuse_misfits(
    cells: Sequence[Cell],
    gpus: int = 1,
    memory: float | None = None,
    device_memory: float | None = None,
    *,
    offload: bool = False,
    slots: int = 1,
) -> None:
    """Raise UserError where one of the cells surely needs more memory than there is, and name those that may.

    Where the dense model has no room to be timed in, that is said too.

    gpus    that each cell has, where cells run on GPUs
    memory  GiB of the host's memory that each may take, where they run on the CPU; None: what the machine has
    device_memory  GiB of its GPU's that each may take, where it has one; None: what that has
    offload  whether states that wait on the host have a folder
    slots    among which GPUs are divided
    """
    if not cells:
        return
    if cells[0].device.startswith("cuda"):
        _refuse_on_gpus(cells, gpus, device_memory, slots)
        return
    room = room_of(memory)
    needed = [(cell, footprint_of(cell, offload=offload).placed(cell, room)) for cell in cells]
    if any(needs.alone for _, needs in needed):
        say(ALONE)
    for cell, needs in needed:
        footprint = footprint_of(cell, offload=offload)
        words = f"{cell.label} needs about {needs.host / GIB:.1f} GiB, and may take {room / GIB:.1f} GiB"
        if needs.in_files:
            whole = footprint.needs(cell).host / GIB
            words = f"{cell.label} needs about {whole:.1f} GiB, or {needs.host / GIB:.1f} GiB with its weights in files"
            words = f"{words}, and may take {room / GIB:.1f} GiB"
        if needs.host <= room:
            continue
        if not needs.in_files and footprint.weights > room:
            raise UserError(f"{words}: it {footprint.not_in_files(cell)}; leave that out, or give a smaller model")
        if footprint.process + SURE * (needs.host - footprint.process) > room:
            other = _with_a_folder(cell, room) or "leave it out"
            raise UserError(f"{words}; {other}, or give less calibration or fewer --batch-tokens")
        say(f"{words}: it may run out of memory")


def _with_a_folder(cell: Cell, room: int) -> str:
    """Say that states which wait can lie in a folder, where the cell would fit then."""
    needs = footprint_of(cell, offload=True).placed(cell, room)
    return f"give --offload DIR, where {needs.offloaded / GIB:.1f} GiB of states can wait" if needs.host <= room else ""


def refuse_full(cells: Sequence[Cell], folder: Path, slots: int = 1) -> None:
    """Raise UserError where a folder has not the room for the states of those cells that take most of it at once."""
    sizes = [(named(cell), footprint_of(cell, offload=True).offloaded(cell)) for cell in cells]
    largest = sorted(sizes, key=lambda one: -one[1])[:slots]
    taken, free = sum(size for _, size in largest), shutil.disk_usage(folder).free
    if taken > free:
        names = " and ".join(name for name, _ in largest)
        raise UserError(
            f"states of {names} take about {taken / GIB:.1f} GiB of --offload {folder}, which has {free / GIB:.1f} GiB "
            "left; name another folder, or give less calibration"
        )


def _refuse_on_gpus(cells: Sequence[Cell], gpus: int, device_memory: float | None, slots: int) -> None:
    all_of_them = gpus_bytes(cells[0], gpus, slots)
    cards = "the GPU has" if gpus == 1 else f"{gpus} GPUs have"
    card = card_of(cells[0], gpus, device_memory, slots)
    if any(footprint_of(cell).placed(cell, room_of(None), card=card).alone for cell in cells):
        say(ALONE)
    for cell in sorted(cells, key=lambda one: -footprint_of(one).needs(one).device):
        footprint = replace(footprint_of(cell), process=0)
        there, whole = card or all_of_them, footprint.needs(cell).device
        if whole <= there:
            break
        needs = footprint.placed(cell, room_of(None), card=card)
        words = f"{cell.label} needs about {whole / GIB:.1f} GiB"
        if needs.in_files:
            words = f"{words}, or {needs.device / GIB:.1f} GiB with layers that visit the GPU"
        words = f"{words}, and {'it may take' if device_memory else cards} {there / GIB:.1f} GiB"
        if needs.device <= there:
            continue
        least = footprint.weights if not needs.in_files else 0
        if least + SURE * (needs.device - least) > there:
            all_there = card is not None and not needs.in_files
            why = f"it {footprint.not_in_files(cell)}; leave that out" if all_there else "leave it out"
            raise UserError(f"{words}; {why}, or give a smaller model, --dtype bfloat16 or less calibration")
        say(f"{words}: it may run out of memory")
