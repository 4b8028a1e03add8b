"""Says how much memory a cell takes on its device and on its host, from shapes alone.

`Footprint` computes it for the cells of one model. `find_misfits` finds cells that may need more memory, or more of a
disk, than there is. `refuse_misfits` refuses, before any work, those that surely do.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import methods
from bench.data import pretrained
from bench.healing import training
from bench.healing.teacher import LOGITS_OF_DENSE
from bench.plan.cell import Cell
from bench.schedule.pruning_memory import FLOAT32, PruningMemory
from bench.schedule.shape import Shape
from bench.system.memory import bytes_of_host
from methods.base import Pruner
from methods.checkpoint.save_load import SHARD_BYTES
from methods.console import say
from methods.counted import QUANTITIES
from methods.errors import UserError
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

LOGITS = 2**27  # the most of one forward, as bench.evaluation.scoring has it
GIB = 2**30
STATES = 2**28  # bytes: 20,000 tokens of 4,096 bfloat16 numbers with masks, which a CPU reads faster than it computes
WHOLE = {"layers", "attentions", "mlps"}  # kinds of removals that cut no matrix, so that copies share all matrices
PROCESS = 3 * 2**28  # bytes of a process that has imported everything and read its texts, without a model


@dataclass(frozen=True)
class MemoryNeeds:
    """Holds bytes; on a CPU the host's memory is the device's, and `device` is 0.

    in_files   whether the weights lie in files; only those in use are counted then (methods.model.layer_store)
    offloaded  bytes of states that wait in a folder, on its disk (methods.model.layer_store)
    alone      whether the cell is timed without the dense model, since that has no room
    """

    device: int
    host: int
    in_files: bool = False
    offloaded: int = 0
    alone: bool = False

    @property
    def device_bytes(self) -> int:
        """Return the bytes of the device, which on a CPU are the host's."""
        return self.device or self.host


@dataclass(frozen=True)
class Footprint:
    """Computes the memory of cells of one model.

    bytes_each  of a weight
    process     of a process that has imported everything and read its texts, without a model
    offload     whether states that wait on the host have a folder
    """

    shape: Shape
    bytes_each: int
    process: int = 0
    offload: bool = False

    @property
    def weights(self) -> int:
        """Return the bytes of the dense model."""
        return self.bytes_each * self.shape.parameters

    def needs(self, cell: Cell) -> MemoryNeeds:
        """Return the memory of a cell whose weights lie in memory."""
        stages, timed = self.stages(cell), cell.is_timed
        model = max(bytes_ for stage, bytes_ in stages.items() if stage != "speed")
        if cell.device.startswith("cuda"):  # where weights are read, and models wait while another process has the card
            waits = self.process + 2 * self.weights if timed else min(self.weights, SHARD_BYTES)
            host = self.process + waits + self._parked(cell)
            return MemoryNeeds(max(stages.values()), host, offloaded=self.offloaded(cell))
        own = self.process + model + self._parked(cell)
        host = max(own, 2 * self.process + 3 * self.weights if timed else 0)
        return MemoryNeeds(0, host, offloaded=self.offloaded(cell))

    def offloaded(self, cell: Cell) -> int:
        """Return the bytes of states that wait in a folder while the cell prunes, where it has one."""
        pruning = self.pruning(cell)
        return 0 if not self.offload else pruning.parked if pruning.on_gpu else pruning.waiting

    def place(self, cell: Cell, room: int, card: int | None = None) -> MemoryNeeds:
        """Return the memory of a cell that may take `room` bytes of a host: with its weights in files, if need be.

        card  bytes that it may take of its GPU; None: it has none, or several, or an unknown one

        Shapes alone decide whether weights lie in files. A cell whose model has to be in memory returns its needs even
        where they do not fit. A cell in files is timed beside the dense model where both fit, and alone where only the
        pruned one does. Where neither does, its model has to be in memory. The dense model alone is not timed.
        """
        whole, on_gpu = self.needs(cell), cell.device.startswith("cuda")
        room = room if not on_gpu else sys.maxsize if card is None else card
        if whole.device_bytes <= room or reason_for_memory(cell):
            return whole
        in_files = self._visiting(cell, room) if on_gpu else self._in_files(cell, room)
        if not cell.is_timed:
            return in_files
        *beside, alone = self._timings(cell, in_files)
        fits = next((needs for needs in (*beside, alone) if needs.device_bytes <= room), None)
        # where not even pruning in files has the room for it, that is what is refused
        return fits or (whole if in_files.device_bytes <= room else alone)

    def not_in_files(self, cell: Cell) -> str:
        """Return the words on why the weights of a cell that does not fit cannot lie in files."""
        *_, alone = self._timings(cell, MemoryNeeds(0, 0))
        takes = (alone.device or alone.host) / GIB
        return reason_for_memory(cell) or f"is timed, for which the pruned model alone takes {takes:.1f} GiB"

    def _timings(self, cell: Cell, needs: MemoryNeeds) -> Iterator[MemoryNeeds]:
        """Yield the memory of a cell in files where both models are timed, and where the pruned one alone is.

        A process of its own holds the models. Meanwhile the cell's process, without a model, is beside it.
        """
        pruned_weights = self._pruned_weights(cell)
        both, pruned = self.weights + pruned_weights, 0 if cell.method == "dense" else pruned_weights
        for weights, alone in ((both, False), (pruned, True)):
            work = weights + self._timed(cell) if weights else 0
            if cell.device.startswith("cuda"):  # where one waits on the host while the other is timed
                device, host = min(work, self.weights + self._timed(cell)), self.process + (0 if alone else weights)
            else:
                device, host = 0, self.process + work
            host = max(needs.host, self.process + host if weights else 0)
            yield replace(needs, device=max(needs.device, device), host=host, alone=alone)

    def _in_files(self, cell: Cell, room: int) -> MemoryNeeds:
        """Return the memory of a cell whose weights lie in files: one layer, and a new head, are in memory."""
        written = self.bytes_each * max(self.shape.layer, self.shape.head)
        scoring = self._scoring(cell) + self._states(cell, room)
        work = max(scoring, self.pruning(cell, in_files=True).device_bytes + written)
        host = round(self.process + work + self._parked(cell))
        return MemoryNeeds(0, host, True, self.offloaded(cell))

    def _visiting(self, cell: Cell, card: int) -> MemoryNeeds:
        """Return the memory of a cell whose layers lie in files and visit its GPU. All but the layers stays on the GPU.

        At most two layers are on the GPU, the dense one and the pruned one, and one is brought back to the host.
        """
        layer = round(self.bytes_each * self.shape.layer)
        scoring = self._scoring(cell) + self._states(cell, card)
        work = max(scoring, self.pruning(cell, in_files=True).device_bytes)
        head = 0 if cell.method == "dense" else self.bytes_each * self.shape.head
        device = self._around + 2 * layer + round(work) + head
        parked = self._parked(cell, in_files=True)
        return MemoryNeeds(device, self.process + layer + parked, True, self.offloaded(cell))

    def _pruned_weights(self, cell: Cell) -> int:
        """Return the bytes of the pruned model."""
        return round(self.weights * (1 - self.shape.share(cell.ratio, cell.ratio_of)))

    @property
    def _around(self) -> int:
        """Return the bytes of all parameters outside the layers."""
        return round(self.bytes_each * (self.shape.parameters - self.shape.inner))

    def room_for_states(self, cell: Cell, room: int) -> int:
        """Return the bytes that states may take while a cell in files is scored: half of the rest, at most STATES.

        room  bytes that the cell may take on its device

        They wait between two layers (bench.evaluation.forwards); the other half is for pages of the files.
        """
        other_bytes = (
            self._around + self.bytes_each * self.shape.layer if cell.device.startswith("cuda") else self.process
        )
        return max(0, min(STATES, round(room - other_bytes - self._scoring(cell)) // 2))

    def _states(self, cell: Cell, room: int) -> int:
        """Return the bytes of states that wait while a cell in files is scored: those of its windows, or all room."""
        p, room = cell.protocol, self.room_for_states(cell, room)
        windows = self.bytes_each * p.windows * p.window * self.shape.width * len(p.texts)
        return room if p.tasks or (p.texts and not p.windows) else min(room, windows)

    def stages(self, cell: Cell) -> dict[str, int]:
        """Return the bytes on the device of each stage that has any, by the names of its seconds, the model included.

        In `speed` one of both models lies on the device at a time where both do not fit.
        """
        pruned_weights = self._pruned_weights(cell)
        bytes_by_stage = {"load": self.weights, "perplexity": pruned_weights + self._scoring(cell)}
        if cell.method != "dense":
            beside = self.pruning(cell).device_bytes + self._kept_head(cell) + self._copies(cell, pruned_weights)
            bytes_by_stage["prune"] = self.weights + beside
        if cell.healing:
            bytes_by_stage["heal"] = max(self._healing(cell, pruned_weights), self._teaching(cell))
        if cell.is_timed:
            bytes_by_stage["speed"] = self.weights + self._timed(cell)
        return bytes_by_stage

    def _copies(self, cell: Cell, pruned_weights: int) -> int:
        """Return the bytes of cut models while a budget is searched for: the nearest one and another."""
        kind = methods.load()[cell.method.partition("+")[0]]
        shares_all = kind.only_cuts and WHOLE.issuperset(kind.leaves)
        return 0 if shares_all or cell.ratio_of not in QUANTITIES else 2 * pruned_weights

    def pruning(self, cell: Cell, *, in_files: bool = False) -> PruningMemory:
        """Return the memory that a cell's pruning takes beside the dense weights, with these in memory or in files."""
        p, on_gpu = cell.protocol, cell.device.startswith("cuda")
        return PruningMemory(
            make_pruner(cell.method, cell.parameters),
            self.shape,
            self.bytes_each,
            self.shape.share(cell.ratio, cell.ratio_of),
            p.calibration_sequences,
            p.calibration_length,
            p.calibration_memory_mib * 2**20 or Calibration.memory,  # 0 takes a share of free memory, and needs none
            on_gpu=on_gpu,
            in_files=in_files,
            in_folder=self.offload and not on_gpu,
        )

    def _scoring(self, cell: Cell) -> int:
        """Return the bytes of one forward and of its logits in float32."""
        p, shape = cell.protocol, self.shape
        windows = p.batch_tokens if p.tasks else p.windows * p.window or p.batch_tokens
        rows = min(p.batch_tokens, windows) if p.texts or p.tasks else 1
        logits = min(rows * shape.vocabulary, LOGITS)
        each = FLOAT32 + (self.bytes_each if self.bytes_each < FLOAT32 else 0)
        return logits * each + self.bytes_each * rows * (8 * shape.width + 4 * shape.mlp + shape.layers * shape.keys)

    def _timed(self, cell: Cell) -> int:
        """Return the bytes of the largest batch, in its prompt's forward and in the cache."""
        p, shape = cell.protocol, self.shape
        tokens = max(p.batches) * (max((*p.prefill, *p.decode)) + p.decode_steps)
        return self.bytes_each * tokens * (8 * shape.width + 4 * shape.mlp + shape.layers * shape.keys)

    def _healing(self, cell: Cell, pruned_weights: int) -> int:
        """Return the bytes of the model, of trained weights with gradients and moments, and of one micro-batch."""
        assert cell.healing is not None
        recipe, shape, b = cell.healing, self.shape, self.bytes_each
        most = training.LOGITS if cell.device.startswith("cuda") else training.LOGITS_ON_CPU
        tokens = recipe.length * max(1, min(recipe.batch, most // (shape.vocabulary * recipe.length)))
        kept = shape.kept(shape.share(cell.ratio, cell.ratio_of))
        layers, D, I = shape.layers * kept, shape.width, shape.mlp
        adapters = layers * recipe.rank * (7 * D + 3 * I + 2 * shape.heads + shape.keys)
        few = {"lora": 4 * FLOAT32 * adapters, "norms": 4 * FLOAT32 * layers * 4 * D}
        trained = 4 * FLOAT32 * pruned_weights / b  # at most, of layers beside a cut
        trained = pruned_weights + few[recipe.kind] if recipe.kind in few else trained
        cast = FLOAT32 * (6 * D + I) if recipe.kind == "lora" and b < FLOAT32 else 0  # for adapters, which are float32
        logits = 3 * FLOAT32 + (b if b < FLOAT32 else 0)
        layer = b * (10 * D + 4 * I) + cast
        inside = layers * b * D + layer if recipe.recompute else layers * layer
        passed = tokens * (inside + shape.vocabulary * logits)
        dense = tokens * shape.vocabulary * 3 * FLOAT32 if recipe.loss == "kl" else 0
        copies = 0 if recipe.processes == 1 else recipe.processes * (self.process + pruned_weights + passed + dense)
        return round(trained + passed + dense + self._kept_head(cell) + copies)

    def _teaching(self, cell: Cell) -> int:
        """Return the bytes of a teacher, in memory before the model is, and of its forward; 0 without one."""
        recipe, teacher = cell.healing, self._teacher(cell)
        if not recipe or not recipe.teacher:
            return 0
        tokens = min(recipe.sequences * recipe.length, max(recipe.length, LOGITS_OF_DENSE // teacher.vocabulary))
        return round(self.bytes_each * teacher.parameters + tokens * teacher.vocabulary * (FLOAT32 + self.bytes_each))

    def _teacher(self, cell: Cell) -> Shape:
        """Return the shape of the model that healing learns from."""
        teacher = cell.healing.teacher if cell.healing else None
        return shape_of(teacher, cell.trust_remote_code) if teacher else self.shape

    def _kept_head(self, cell: Cell) -> int:
        """Return the bytes of the teacher's head where healing needs its predictions; else 0."""
        kept = cell.healing is not None and cell.healing.loss == "kl" and not cell.healing.top
        return self.bytes_each * self._teacher(cell).head if kept else 0

    def _parked(self, cell: Cell, *, in_files: bool = False) -> int:
        """Return the bytes that wait on the host: inputs of the dense head; beside a GPU states and dense layers."""
        teacher, recipe = self._teacher(cell), cell.healing
        pruning = self.pruning(cell, in_files=in_files)
        states = 0 if self.offload else pruning.parked
        in_memory = recipe is not None and recipe.loss == "kl" and not recipe.top
        kept = teacher.width + (teacher.width + teacher.keys if recipe and recipe.attention else 0)
        read = self.bytes_each * recipe.sequences * recipe.length * kept if recipe and in_memory else 0
        if not pruning.on_gpu:
            return states + read
        # of a checkpoint of healing, which is copied as a whole: all weights in float32 with both their moments
        written = 3 * FLOAT32 * self._pruned_weights(cell) // self.bytes_each if recipe and recipe.kind == "full" else 0
        return states + read + max(pruning.weights_on_host, written)


def reason_for_memory(cell: Cell) -> str:
    """Return the words on why the model of a cell has to be in memory as a whole; empty where it need not."""
    if cell.healing:
        return "is healed, which changes all weights at each step"
    return "comes from a .gguf file, whose weights are unpacked" if cell.model.endswith(".gguf") else ""


def room_of(memory: float | None, slots: int = 1) -> int:
    """Return the bytes of the host's memory that a cell may take: `memory` GiB, or an equal share of all."""
    return bytes_of_host() // slots if memory is None else round(memory * GIB)


def bytes_of_gpus(cell: Cell, gpus: int, slots: int = 1) -> int:
    """Return the bytes of the GPUs of a cell; where slots have unlike GPUs, the least."""
    if ":" in cell.device:
        return torch.cuda.get_device_properties(torch.device(cell.device)).total_memory
    sizes = [torch.cuda.get_device_properties(at).total_memory for at in range(torch.cuda.device_count())]
    groups = max(1, min(slots, len(sizes) // gpus))  # of MIG instances a process sees one alone
    return min(sum(sizes[at * gpus :][:gpus]) for at in range(groups))


def bytes_of_card(cell: Cell, gpus: int, device_memory: float | None = None, slots: int = 1) -> int | None:
    """Return the bytes that a cell may take of its GPU: `device_memory` GiB or all; None on a CPU or several GPUs.

    slots  each has a GPU of its own, and any of them may get the cell
    """
    if not cell.device.startswith("cuda") or gpus > 1:
        return None
    if device_memory is not None:
        return round(device_memory * GIB)
    return bytes_of_gpus(cell, gpus, slots) if torch.cuda.is_available() else None


def needs_of(cell: Cell, memory: float | None, card: int | None = None, *, offload: bool = False) -> MemoryNeeds:
    """Return the memory of a cell, and whether its weights lie in files and the dense model is not timed.

    memory   GiB that it may take of the host's memory; None: what the machine has
    card     bytes as `bytes_of_card` gives them
    offload  whether its states have a folder
    """
    return footprint_of(cell, offload=offload).place(cell, room_of(memory), card=card)


def room_for_states(cell: Cell, memory: float | None, card: int | None = None) -> int:
    """Return the bytes that states may take while a cell in files is scored; arguments as of `needs_of`."""
    return footprint_of(cell).room_for_states(cell, room_of(memory) if card is None else card)


def footprint_of(cell: Cell, *, offload: bool = False) -> Footprint:
    """Return the footprint of cells of one model and dtype; `offload` says whether states have a folder."""
    return Footprint(shape_of(cell.model, cell.trust_remote_code), bytes_of(cell.dtype), PROCESS, offload)


@functools.cache
def shape_of(model: str, trust_remote_code: bool) -> Shape:
    """Return the shape of a model. A process reads it once."""
    return Shape.of(Decoder(pretrained.make_shell(model, trust_remote_code)))


ALONE = (
    "there is no room for the dense model, which is not timed; pruned models are timed alone, beside what the removed "
    "work alone would bring"
)
SURE = 0.5  # share of the estimate beside the weights that is surely needed: tests hold it to at most twice the peak


@dataclass(frozen=True)
class Misfit:
    """Holds the words on a cell that may not fit into the memory or a folder, and whether it surely does not."""

    words: str
    is_sure: bool


def find_misfits(
    cells: Sequence[Cell],
    gpus: int = 1,
    memory: float | None = None,
    device_memory: float | None = None,
    *,
    offload: Path | None = None,
    slots: int = 1,
) -> Iterator[Misfit]:
    """Yield the cells that are larger than the memory of their device, on GPUs the largest first; then a full folder.

    Where the dense model has no room to be timed in, a misfit that says so goes first.

    gpus           of each cell, where cells run on GPUs
    memory         GiB of the host's memory that each may take, where they run on the CPU; None: all of the machine's
    device_memory  GiB of its GPU's memory that each may take, where it has one; None: all of the GPU's
    offload        folder of the states that wait on the host; None: they have none
    slots          the GPUs are divided among them
    """
    has_folder = offload is not None
    room, card, has = room_of(memory), None, "may take"
    if cells and cells[0].device.startswith("cuda"):
        card = bytes_of_card(cells[0], gpus, device_memory, slots)
        room = card or bytes_of_gpus(cells[0], gpus, slots)
        has = "it may take" if device_memory else "the GPU has" if gpus == 1 else f"{gpus} GPUs have"
    placed = [(cell, footprint_of(cell, offload=has_folder).place(cell, room, card)) for cell in cells]
    if any(needs.alone for _, needs in placed):
        yield Misfit(ALONE, is_sure=False)
    for cell, needs in sorted(placed, key=lambda entry: -entry[1].device):
        if needs.device_bytes <= room:
            continue
        whole = footprint_of(cell, offload=has_folder).needs(cell)
        words = f"{cell.label} needs about {to_gib(whole.device_bytes)}"
        if needs.in_files:
            how = "with layers that visit the GPU" if needs.device else "with its weights in files"
            words = f"{words}, or {to_gib(needs.device_bytes)} {how}"
        words = f"{words}, and {has} {to_gib(room)}"
        yield _misfit_on_gpu(cell, needs, words, room, card) if needs.device else _misfit(cell, needs, words, room)
    if offload is not None:
        yield from find_full_folder(cells, offload, slots)


def _misfit(cell: Cell, needs: MemoryNeeds, words: str, room: int) -> Misfit:
    """Return a cell that is larger than the memory of the host on which it runs."""
    footprint = footprint_of(cell)
    if not needs.in_files and footprint.weights > room:
        why = footprint.not_in_files(cell)
        return Misfit(f"{words}: it {why}; leave that out, or give a smaller model", is_sure=True)
    if footprint.process + SURE * (needs.host - footprint.process) > room:
        advice = _with_a_folder(cell, room) or "leave it out"
        return Misfit(f"{words}; {advice}, or give less calibration or fewer --batch-tokens", is_sure=True)
    return Misfit(f"{words}: it may run out of memory", is_sure=False)


def _misfit_on_gpu(cell: Cell, needs: MemoryNeeds, words: str, room: int, card: int | None) -> Misfit:
    """Return a cell that is larger than the memory of its GPUs."""
    footprint = footprint_of(cell)
    least = 0 if needs.in_files else footprint.weights
    if least + SURE * (needs.device - least) <= room:
        return Misfit(f"{words}: it may run out of memory", is_sure=False)
    may_visit = card is None or needs.in_files
    advice = "leave it out" if may_visit else f"it {footprint.not_in_files(cell)}; leave that out"
    return Misfit(f"{words}; {advice}, or give a smaller model, --dtype bfloat16 or less calibration", is_sure=True)


def refuse_misfits(misfits: Iterable[Misfit]) -> None:
    """Print the words on each misfit. Raises UserError with those on the first that surely runs out of memory."""
    for misfit in misfits:
        if misfit.is_sure:
            raise UserError(misfit.words)
        say(misfit.words)


def _with_a_folder(cell: Cell, room: int) -> str:
    """Return the advice to put states that wait into a folder, where the cell fits then; else nothing."""
    needs = footprint_of(cell, offload=True).place(cell, room)
    return f"give --offload DIR, where {to_gib(needs.offloaded)} of states can wait" if needs.host <= room else ""


def find_full_folder(cells: Sequence[Cell], folder: Path, slots: int) -> Iterator[Misfit]:
    """Yield a misfit where a folder has no room for the states of the largest cells that run at once."""
    sizes = [(cell.title, footprint_of(cell, offload=True).offloaded(cell)) for cell in cells]
    largest = sorted(sizes, key=lambda entry: -entry[1])[:slots]
    needed, free = sum(size for _, size in largest), shutil.disk_usage(folder).free
    if needed > free:
        names = " and ".join(name for name, _ in largest)
        words = f"states of {names} take about {to_gib(needed)} of --offload {folder}, which has {to_gib(free)} left"
        yield Misfit(f"{words}; name another folder, or give less calibration", is_sure=True)


def make_pruner(method: str, parameters: Mapping[str, Any]) -> Pruner:
    """Return the pruner of a cell; equal cells share one. Raises ValueError for an unknown method or parameter."""
    return _make_pruner(method, json.dumps(dict(parameters), sort_keys=True, default=str))


@functools.lru_cache(1024)
def _make_pruner(method: str, parameters: str) -> Pruner:
    return methods.make(method, json.loads(parameters))


def to_gib(count: float) -> str:
    """Return bytes in words: '1.6 GiB'."""
    return f"{count / GIB:.1f} GiB"


def bytes_of(dtype: str) -> int:
    """Return the bytes of a number of a dtype by its name in torch."""
    return int(getattr(torch, dtype).itemsize)
