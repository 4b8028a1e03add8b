"""Says how much memory a cell takes on its device and on its host, from shapes, or from records of like cells."""

from __future__ import annotations

from dataclasses import dataclass

import methods
from bench.plan import chain
from bench.plan.cell import Cell
from bench.schedule.shape import Shape

LOGITS = 2**27  # the most of one forward, as bench.evaluation.scoring has it
STATES = 8  # widths that a micro-batch of the calibration holds beside a state for each layer (methods.model)
FLOAT32 = 4


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
    process: int

    def needs(self, cell: Cell, peak: int = 0) -> MemoryNeeds:
        """Return what a cell takes; `peak` is what a like one had on its device, 0 where none is known."""
        weights = self.bytes_each * self.shape.parameters
        on_gpu = cell.device.startswith("cuda")
        model = weights + max(self._pruning(cell), self._scoring(cell), self._healing(cell))
        timed = 2 * weights if chain.is_timed(cell) else 0  # pruned and dense, in a process of their own
        if on_gpu:  # the model is loaded through the host, and waits there while the other process has the card
            host = self.process + weights + (self.process + weights if timed else 0)
            return MemoryNeeds(max(peak or model, timed), host)
        own = peak or self.process + model
        return MemoryNeeds(0, max(own, 2 * self.process + weights + timed if timed else 0))

    def _pruning(self, cell: Cell) -> int:
        """Return the bytes of states, and of gradients where a method takes them."""
        kind, p = methods.load().get(cell.method.partition("+")[0]), cell.protocol
        needs = getattr(kind, "needs", "nothing")
        if "calibration" not in needs and "+" not in cell.method:
            return 0
        every = p.calibration_sequences * p.calibration_length
        tokens = min(every, cell.parameters.get("tokens") or every)
        states = FLOAT32 * tokens * self.shape.width * (self.shape.layers + STATES)
        batch = min(states, p.calibration_memory_mib * 2**20)
        return batch + (FLOAT32 * self.shape.inner if "gradients" in needs else 0)

    def _scoring(self, cell: Cell) -> int:
        """Return the bytes of the logits of one forward, which are made float32."""
        p = cell.protocol
        rows = min(p.batch_tokens, p.windows * p.window or p.batch_tokens) if p.texts or p.tasks else 1
        logits = min(rows * self.shape.vocabulary, LOGITS)
        return logits * (FLOAT32 + (self.bytes_each if self.bytes_each < FLOAT32 else 0))

    def _healing(self, cell: Cell) -> int:
        """Return the bytes of gradients, of Adam's two moments, of activations, and of the dense model for its loss."""
        if (recipe := cell.healing) is None:
            return 0
        shape, tokens = self.shape, recipe.batch * recipe.length
        trained = 3 * FLOAT32 * shape.parameters if recipe.kind == "full" else 0
        activations = FLOAT32 * tokens * (STATES * shape.width * shape.layers + 2 * shape.vocabulary)
        return trained + activations + (self.bytes_each * shape.parameters if recipe.loss == "kl" else 0)
