"""Says how much memory pruning takes beside the dense model, from what the method and its compensation say they hold.

The sizes are those of methods.base.Holds: multiples of sizes that every model has. Tests hold the sums to peaks that
were counted on an emulated GPU, to between 0.7 and 2 times of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.schedule.pruned_amount import FLOAT32, FLOAT64, PruningMemory
from methods.base import Holds, Pruner
from methods.compensation.base import CompensatedPruner

LOGITS = 128  # tokens whose logits are a unit of Holds
STEP = 1.15  # of the numbers that a layer computes of a token, which are held at once


@dataclass(frozen=True)
class HeldPart:
    """Computes the bytes that a method holds, or the compensation that follows it.

    tokens  whose states it holds; 0 where it looks at none
    """

    holds: Holds
    tokens: int
    amount: PruningMemory

    @property
    def waiting(self) -> dict[str, float]:
        """Return the bytes of states that wait for a later layer, by the name of their unit."""
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
        """Return the bytes where it prunes: on the GPU, or in the host's memory."""
        amount, shape, holds = self.amount, self.amount.shape, self.holds
        waiting = dict.fromkeys(self.waiting, 0.0) if amount.in_folder else self.waiting
        if self.parked:
            waiting = waiting | {holds.parks: 0.0}
        of_a_token = STEP * amount.b * amount.values_of_a_token
        steps = holds.steps * min(amount.micro_batch, self.tokens) * of_a_token
        logits = holds.logits * FLOAT32 * min(self.tokens, LOGITS) * shape.vocabulary
        swept = waiting["all_layers"] + max(steps, logits) + holds.layers * FLOAT32 * shape.layer
        solved = holds.squares * FLOAT64 * max(shape.width, shape.mlp) ** 2
        copies = holds.models + (0.0 if amount.in_files else holds.copies) + (0.0 if amount.on_gpu else holds.hosted)
        return waiting["states"] + max(swept, solved) + copies * amount.left


def parts_of(pruner: Pruner, amount: PruningMemory) -> Iterator[HeldPart]:
    """Yield what the method holds, and what the compensation holds when the method has ended."""
    method = pruner.alone
    tokens = 0 if method.looks_at == "nothing" else method.tokens_read(amount.tokens)
    yield HeldPart(method.holds, tokens, amount)
    if isinstance(pruner, CompensatedPruner):
        yield HeldPart(pruner.compensation.holds, amount.tokens, amount)


def bytes_beside_weights(pruner: Pruner, amount: PruningMemory) -> int:
    """Return the bytes that pruning takes beside the dense weights, its compensation included."""
    held = max(part.bytes for part in parts_of(pruner, amount))
    return round(held + (0 if amount.on_gpu else _dense_layers(pruner, amount)))


def bytes_offloaded(pruner: Pruner, amount: PruningMemory) -> int:
    """Return the bytes of states that wait while a method prunes, which a folder has to have room for."""
    return round(max(sum(part.waiting.values()) for part in parts_of(pruner, amount)))


def bytes_parked(pruner: Pruner, amount: PruningMemory) -> int:
    """Return the bytes of states that wait on the host beside a GPU."""
    return round(max(part.parked for part in parts_of(pruner, amount)))


def bytes_on_the_host(pruner: Pruner, amount: PruningMemory) -> int:
    """Return the bytes of weights that pruning on a GPU keeps on the host."""
    kept = max(part.holds.hosted + part.holds.models for part in parts_of(pruner, amount))
    return round(kept * amount.left + _dense_layers(pruner, amount))


def _dense_layers(pruner: Pruner, amount: PruningMemory) -> float:
    """Return the bytes of the dense layers that wait on the host for a compensation that needs one after the other."""
    waits = isinstance(pruner, CompensatedPruner) and pruner.compensation.by_layer and not amount.in_files
    return amount.b * amount.shape.inner if waits else 0.0
