"""Says what is pruned and on what, from which formulas tell how much memory that takes (bench.schedule.pruning_memory).

Letters: b = bytes of a number of the model, D = residual width, I = MLP width, N = calibration tokens, s = tokens of a
micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    weight  by which bytes of states that wait for a later layer count: 1 in memory, 0 where they have a folder
    """

    shape: Shape
    b: int
    ratio: float
    sequences: int
    length: int
    memory: int
    parameters: Mapping[str, Any]
    on_gpu: bool = True
    in_files: bool = False
    weight: float = 1.0

    @property
    def N(self) -> int:
        """Return the calibration tokens that the method reads."""
        every = self.sequences * self.length
        return min(every, self.parameters.get("tokens") or every)

    @property
    def layer(self) -> float:
        """Return the bytes of a layer."""
        return self.b * self.shape.layer

    @property
    def matrix(self) -> int:
        """Return the numbers of the largest matrix of a layer."""
        return self.shape.width * self.shape.mlp

    def s(self, values: int) -> int:
        """Return the tokens of a micro-batch of so many values each, as methods.model.calibration makes it."""
        return self.length * min(self.sequences, max(1, self.memory // (self.b * values * self.length)))

    def waits(self, in_files: float, in_memory: float | None = None) -> float:
        """Return the bytes that states which wait have in files, or in memory where those that are used count apart."""
        return self.weight * (in_files if in_memory is None or self.weight != 1 else in_memory)

    def between_layers(self, tokens: int) -> float:
        """Return the bytes of the states of so many tokens between all layers, which a GPU parks on the host."""
        parked = self.on_gpu and self.weight == 1
        return 0.0 if parked else self.waits(self.b * tokens * self.shape.width * (self.shape.layers + 1))

    def fits(self, inputs: float, outputs: int) -> float:
        """Return the bytes of a fit of `inputs` columns: its sums and their factor, and two right-hand sides."""
        return FLOAT64 * (2 * inputs**2 + 2 * inputs * outputs)
