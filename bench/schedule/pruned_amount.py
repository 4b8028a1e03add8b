"""Says what is pruned and on what, for which a method's `holds` gives the memory (bench.schedule.pruning_memory)."""

from __future__ import annotations

from dataclasses import dataclass

from bench.schedule.shape import Shape

FLOAT32, FLOAT64 = 4, 8


@dataclass(frozen=True)
class PruningMemory:
    """Says what is pruned, and on what.

    b       bytes of a number
    ratio   to remove of the dense model
    sequences, length, memory   of the calibration, and the bytes that its states may take
    on_gpu  whether what a method parks on the host lies in another memory
    in_files  whether the weights lie in files, so that they take none
    in_folder  whether states that wait for a later layer lie in a folder
    """

    shape: Shape
    b: int
    ratio: float
    sequences: int
    length: int
    memory: int
    on_gpu: bool = True
    in_files: bool = False
    in_folder: bool = False

    @property
    def tokens(self) -> int:
        """Return the tokens of the calibration."""
        return self.sequences * self.length

    @property
    def left(self) -> float:
        """Return the bytes of the layers that are left."""
        return self.b * self.shape.inner * self.shape.kept(self.ratio)

    @property
    def values_of_a_token(self) -> int:
        """Return how many numbers a layer computes of a token."""
        return 8 * self.shape.width + 4 * self.shape.mlp

    @property
    def micro_batch(self) -> int:
        """Return the tokens of a micro-batch, as methods.model.calibration makes it."""
        rows = max(1, self.memory // (self.b * self.values_of_a_token * self.length))
        return self.length * min(self.sequences, rows)
