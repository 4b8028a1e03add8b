"""Computes the memory that pruning takes beside the dense model, from what a method and its compensation hold.

The sizes are those of methods.base.Holds: multiples of sizes that every model has. Tests hold the sums to peaks that
were counted on an emulated GPU, to between 0.7 and 2 times of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.schedule.shape import Shape
from methods.base import Holds, Pruner
from methods.compensation.base import CompensatedPruner

FLOAT32, FLOAT64 = 4, 8  # bytes
LOGIT_TOKENS = 128  # tokens whose logits are a unit of Holds
STEP = 1.15  # times the numbers that a layer computes of a token: so many are held at once


@dataclass(frozen=True)
class PruningMemory:
    """Computes bytes from a pruner and the sizes of model, ratio and calibration.

    b                  bytes of a number
    ratio              of the dense model's parameters to remove
    sequences, length  of the calibration
    memory             bytes that the states of a micro-batch may take
    on_gpu             whether it prunes on a GPU, so that data parked on the host take none of its memory
    in_files           whether the weights lie in files, so that they take no memory
    in_folder          whether states that wait for a later layer lie in a folder
    """

    pruner: Pruner
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
    def device_bytes(self) -> int:
        """Return the bytes that pruning takes of its device beside the dense weights, its compensation included."""
        most = max(part.bytes for part in self.parts)
        return round(most + (0 if self.on_gpu else self._dense_layers))

    @property
    def waiting(self) -> int:
        """Return the bytes of states that wait for a later layer, as a folder for them needs room for."""
        return round(max(sum(part.waiting.values()) for part in self.parts))

    @property
    def parked(self) -> int:
        """Return the bytes of states that wait on the host beside a GPU."""
        return round(max(part.parked for part in self.parts))

    @property
    def weights_on_host(self) -> int:
        """Return the bytes of weights that pruning on a GPU keeps on the host."""
        kept = max(part.holds.hosted + part.holds.models for part in self.parts)
        return round(kept * self.pruned_layers + self._dense_layers)

    @property
    def parts(self) -> list[HeldPart]:
        """Return the part of the method, then that of the compensation, which runs when the method has ended."""
        method, tokens = self.pruner.alone, self.sequences * self.length
        read = 0 if method.looks_at == "nothing" else method.tokens_read(tokens)
        parts = [HeldPart(method.holds, read, self)]
        if isinstance(self.pruner, CompensatedPruner):
            parts.append(HeldPart(self.pruner.compensation.holds, tokens, self))
        return parts

    @property
    def _dense_layers(self) -> float:
        """Return the bytes of dense layers that wait on the host, for a compensation that goes layer by layer."""
        by_layer = isinstance(self.pruner, CompensatedPruner) and self.pruner.compensation.by_layer
        return self.b * self.shape.inner if by_layer and not self.in_files else 0.0

    @property
    def pruned_layers(self) -> float:
        """Return the bytes of the layers that are left."""
        return self.b * self.shape.inner * self.shape.kept(self.ratio)

    @property
    def values_of_a_token(self) -> int:
        """Return the count of numbers that a layer computes of a token."""
        return 8 * self.shape.width + 4 * self.shape.mlp

    @property
    def micro_batch(self) -> int:
        """Return the tokens of a micro-batch, as methods.model.calibration makes it."""
        rows = max(1, self.memory // (self.b * self.values_of_a_token * self.length))
        return self.length * min(self.sequences, rows)


@dataclass(frozen=True)
class HeldPart:
    """Computes the bytes that a method holds, or the compensation that follows it.

    tokens  that it holds states of; 0 where it reads none
    """

    holds: Holds
    tokens: int
    amount: PruningMemory

    @property
    def waiting(self) -> dict[str, float]:
        """Return the bytes of states that wait for a later layer, by the name of their field in Holds."""
        of_one = self.amount.b * self.tokens * self.amount.shape.width
        every = self.holds.all_layers * (self.amount.shape.layers + 1)
        return {"states": self.holds.states * of_one, "all_layers": every * of_one}

    @property
    def parked(self) -> float:
        """Return the bytes of states that wait on the host, beside a GPU."""
        size = self.waiting.get(self.holds.parks, 0.0)
        return size if self.amount.on_gpu and size > self.amount.memory else 0.0

    @property
    def bytes(self) -> float:
        """Return the bytes on the device that it prunes on: of the GPU, or of the host."""
        amount, shape, holds = self.amount, self.amount.shape, self.holds
        waiting = dict.fromkeys(self.waiting, 0.0) if amount.in_folder else self.waiting
        if self.parked:
            waiting = waiting | {holds.parks: 0.0}
        of_a_token = STEP * amount.b * amount.values_of_a_token
        steps = holds.steps * min(amount.micro_batch, self.tokens) * of_a_token
        logits = holds.logits * FLOAT32 * min(self.tokens, LOGIT_TOKENS) * shape.vocabulary
        swept = waiting["all_layers"] + max(steps, logits) + holds.layers * FLOAT32 * shape.layer
        solved = holds.squares * FLOAT64 * max(shape.width, shape.mlp) ** 2
        copies = holds.models + (0.0 if amount.in_files else holds.copies) + (0.0 if amount.on_gpu else holds.hosted)
        return waiting["states"] + max(swept, solved) + copies * amount.pruned_layers
