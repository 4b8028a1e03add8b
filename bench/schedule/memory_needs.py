"""Says how much memory a cell takes on its device and on its host, from shapes, or from records of like cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import methods
from bench.data import pretrained
from bench.healing import training
from bench.plan import chain
from bench.plan.cell import Cell
from bench.schedule.pruning_memory import FLOAT32, PruningMemory, added
from bench.schedule.shape import Shape
from bench.schedule.work import bytes_of
from bench.system.console import say
from methods.errors import UserError
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

LOGITS = 2**27  # the most of one forward, as bench.evaluation.scoring has it
GIB = 2**30
SURE = 0.5  # of what a cell takes beside its weights by these formulas, which tests hold to within a factor of 1.5


@dataclass(frozen=True)
class MemoryNeeds:
    """Holds bytes; on a CPU the host's memory is the device's, and `device` is 0."""

    device: int
    host: int


@dataclass(frozen=True)
class Footprint:
    """Computes the memory of cells of one model.

    bytes_each  of a weight
    process     of a process that has imported everything and read its texts, without a model
    """

    shape: Shape
    bytes_each: int
    process: int = 0

    @property
    def weights(self) -> int:
        """Return the bytes of the dense model."""
        return self.bytes_each * self.shape.parameters

    def needs(self, cell: Cell, peak: int = 0) -> MemoryNeeds:
        """Return what a cell takes; `peak` is what a like one had on its device, 0 where none is known."""
        stages, timed = self.stages(cell), chain.is_timed(cell)
        model = max(bytes_ for stage, bytes_ in stages.items() if stage != "speed")
        if cell.device.startswith("cuda"):  # the model waits on the host while another process has the card
            host = self.process + self.weights + self._parked(cell) + (self.process + self.weights if timed else 0)
            return MemoryNeeds(max(peak or model, stages.get("speed", 0)), host)
        own = peak or self.process + model + self._parked(cell)
        return MemoryNeeds(0, max(own, 2 * self.process + 3 * self.weights if timed else 0))

    def stages(self, cell: Cell) -> dict[str, int]:
        """Return the bytes on the device of each stage that has any, by the names of its seconds, the model included.

        In `speed` one of both models lies on the device at a time where both do not fit.
        """
        left = round(self.weights * (1 - self.shape.share(cell.ratio, cell.ratio_of)))
        found = {"load": self.weights, "perplexity": left + self._scoring(cell)}
        if cell.method != "dense":
            found["prune"] = self.weights + self._pruning(cell) + self._kept_head(cell)
        if cell.healing:
            found["heal"] = self._healing(cell, left)
        if chain.is_timed(cell):
            found["speed"] = self.weights + self._timed(cell)
        return found

    def _pruning(self, cell: Cell) -> int:
        p, name = cell.protocol, cell.method.partition("+")[0]
        asked = PruningMemory(
            self.shape,
            self.bytes_each,
            self.shape.share(cell.ratio, cell.ratio_of),
            p.calibration_sequences,
            p.calibration_length,
            p.calibration_memory_mib * 2**20 or Calibration.memory,  # of what is free a share is taken, and not needed
            cell.parameters,
            on_gpu=cell.device.startswith("cuda"),
        )
        return added(cell.method, methods.load().get(name), asked)

    def _scoring(self, cell: Cell) -> int:
        """Return the bytes of one forward and of its logits, which are made float32."""
        p, shape = cell.protocol, self.shape
        rows = min(p.batch_tokens, p.windows * p.window or p.batch_tokens) if p.texts or p.tasks else 1
        logits = min(rows * shape.vocabulary, LOGITS)
        each = FLOAT32 + (self.bytes_each if self.bytes_each < FLOAT32 else 0)
        return logits * each + self.bytes_each * rows * (8 * shape.width + 4 * shape.mlp + shape.layers * shape.keys)

    def _timed(self, cell: Cell) -> int:
        """Return the bytes of the largest batch, in its prompt's forward and in the cache."""
        p, shape = cell.protocol, self.shape
        tokens = max(p.batches) * (max((*p.prefill, *p.decode)) + p.decode_steps)
        return self.bytes_each * tokens * (8 * shape.width + 4 * shape.mlp + shape.layers * shape.keys)

    def _healing(self, cell: Cell, left: int) -> int:
        """Return the bytes of the model, of what is trained with its gradients and moments, and of one micro-batch."""
        assert cell.healing is not None
        recipe, shape, b = cell.healing, self.shape, self.bytes_each
        most = training.LOGITS if cell.device.startswith("cuda") else training.LOGITS_ON_CPU
        tokens = recipe.length * max(1, min(recipe.batch, most // (shape.vocabulary * recipe.length)))
        kept = shape.kept(shape.share(cell.ratio, cell.ratio_of))
        layers, D, I = shape.layers * kept, shape.width, shape.mlp
        adapters = layers * recipe.rank * (7 * D + 3 * I + 2 * shape.heads + shape.keys)
        trained = left + 4 * FLOAT32 * adapters if recipe.kind == "lora" else 4 * FLOAT32 * left / b
        cast = FLOAT32 * (6 * D + I) if recipe.kind == "lora" and b < FLOAT32 else 0  # for adapters, which are float32
        logits = 3 * FLOAT32 + (b if b < FLOAT32 else 0)
        passed = tokens * (layers * (b * (10 * D + 4 * I) + cast) + shape.vocabulary * logits)
        dense = tokens * shape.vocabulary * 3 * FLOAT32 if recipe.loss == "kl" else 0
        return round(trained + passed + dense + self._kept_head(cell))

    def _kept_head(self, cell: Cell) -> int:
        """Return the bytes of the dense model's head, which stays for its predictions."""
        kept = cell.healing is not None and cell.healing.loss == "kl"
        return self.bytes_each * self.shape.head if kept else 0

    def _parked(self, cell: Cell) -> int:
        """Return the bytes on the host of what waits there: states, and beside a GPU dense layers."""
        p, width, recipe = cell.protocol, self.shape.width, cell.healing
        states = FLOAT32 * p.calibration_sequences * p.calibration_length * width if cell.method == "slicegpt" else 0
        read = self.bytes_each * recipe.sequences * recipe.length * width if recipe and recipe.loss == "kl" else 0
        layers = cell.device.startswith("cuda") and cell.method.endswith(("+refit", "+reinitialize"))
        return states + read + (self.bytes_each * self.shape.inner if layers else 0)


def refuse_misfits(cells: Sequence[Cell], gpus: int = 1) -> None:
    """Raise UserError where one of the cells surely needs more memory than its GPUs have, and name those that may."""
    if not cells or not cells[0].device.startswith("cuda"):
        return
    shape = Shape.of(Decoder(pretrained.shell(cells[0].model, cells[0].trust_remote_code)))
    footprint = Footprint(shape, bytes_of(cells[0].dtype))
    there = gpus * torch.cuda.get_device_properties(torch.device(cells[0].device)).total_memory
    card = "the GPU has" if gpus == 1 else f"{gpus} GPUs have"
    needed = {cell.label: footprint.needs(cell).device for cell in cells}
    for label, most in sorted(needed.items(), key=lambda pair: -pair[1]):
        if most <= there:
            break
        words = f"{label} needs about {most / GIB:.1f} GiB, and {card} {there / GIB:.1f} GiB"
        if footprint.weights + SURE * (most - footprint.weights) > there:
            raise UserError(f"{words}; leave it out, or give a smaller model, --dtype bfloat16 or less calibration")
        say(f"{words}: it may run out of memory")
