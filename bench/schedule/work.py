"""Says how many seconds each stage of a cell takes by what it computes and the rates of the machine.

These are the seconds of an estimate for which there is no record of like work (bench.schedule.estimator). What is
computed counts in multiply-accumulates; where tokens come one by one, reading the weights may take longer. Constants
in seconds were measured on SmolLM2-135M on two cores (docs/results/smollm2-135m, smollm2-135m-healed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bench.evaluation import checks
from bench.healing.text import HELD_OUT
from bench.plan import chain
from bench.plan.cell import Cell
from bench.plan.recipe import Recipe
from bench.schedule import passes
from bench.schedule.shape import Shape
from bench.speed import timing
from bench.speed.workloads import TimedPoint, points, steps
from bench.system.rate import Rates

LOAD = 1.3e-9  # seconds for a byte of weights: 0.7 s for 538 MB
SAVE = 3 * LOAD  # written, hashed, and read again
STARTED = 5.0  # seconds in which the process that times a model comes to its first call
TRAINED = 7.0  # forwards that a token of healing costs: 2,110 s for 100,000 tokens beside 24 s for 8,192 without
TOKENS = {  # of the default tasks' documents, prefixes that choices share counted once; and those that go to the head
    "hellaswag": (162, 116),
    "piqa": (45, 35),
    "winogrande": (26, 11),
    "arc_easy": (32, 12),
    "openbookqa": (20, 11),
    "arc_challenge": (44, 17),
    "boolq": (137, 1),
}
OTHERS = tuple(sum(one[at] for one in TOKENS.values()) / len(TOKENS) for at in (0, 1))  # of any other task's
STAGES = ("load", "prune", "heal", "save", "perplexity", "tasks", "speed", "checks")


@dataclass(frozen=True)
class Amounts:
    """Holds how much a cell is measured on: tokens of its texts, and the number of documents of each task."""

    text_tokens: int
    documents: Mapping[str, int]


@dataclass(frozen=True)
class Cost:
    """Computes the seconds of each stage from a model's sizes, the bytes of a weight and the machine's rates."""

    shape: Shape
    rates: Rates
    bytes_each: int

    def seconds(self, cell: Cell, amounts: Amounts, known: float = 0.0) -> dict[str, float]:
        """Return the seconds of every stage that the cell has.

        known  the ratio up to which what it finds is known from a cell in front of it (bench.schedule.passes)
        """
        kept, p = self.shape.kept(self.shape.share(cell.ratio, cell.ratio_of)), cell.protocol
        found = {"load": (1 + bool(cell.earlier)) * LOAD * self._bytes(1.0)}
        if cell.method != "dense":
            found["prune"] = self._prune(cell, known)
        if cell.healing:
            found["heal"] = self._heal(cell.healing, kept)
        if p.save_dtype and cell.method != "dense":
            found["save"] = SAVE * self._bytes(kept)
        if amounts.text_tokens:
            found["perplexity"] = self._forward(amounts.text_tokens, p.window, kept)
        if amounts.documents:
            found["tasks"] = sum(self._task(name, count, kept) for name, count in amounts.documents.items())
        if chain.is_timed(cell):
            found["speed"] = self._speed(cell, kept)
        if p.checks:
            found["checks"] = self._checks(kept, bool(amounts.text_tokens))
        return found

    def _bytes(self, kept: float) -> float:
        return self.bytes_each * (self.shape.parameters - self.shape.inner * (1 - kept))

    def _forward(self, tokens: float, context: int, kept: float, head: float = 1.0) -> float:
        """Return the seconds of a forward over many tokens, of which a share goes through the head."""
        return (self.shape.body(tokens, context, kept) + head * tokens * self.shape.head) / self.rates.macs

    def _call(self, tokens: float, context: int, kept: float, head: float = 1.0) -> float:
        """Return the seconds of a forward over few tokens, for which all weights are read."""
        return max(self._forward(tokens, context, kept, head), self._bytes(kept) / self.rates.bytes)

    def _prune(self, cell: Cell, known: float) -> float:
        before = self.shape.share(cell.earlier[-1].ratio, cell.ratio_of) if cell.earlier else 0.0
        p = cell.protocol
        ratio, known = (max(0.0, self.shape.share(asked, cell.ratio_of) - before) for asked in (cell.ratio, known))
        try:
            pruner = passes.make_pruner(cell.method, cell.parameters)
        except ValueError:  # of a record of a method that is not loaded
            return 0.0
        length, tokens = p.calibration_length, p.calibration_sequences * p.calibration_length
        work = passes.count_work(pruner, self.shape, ratio, tokens, length, known=known)
        return self.shape.kept(before) * (work.macs / self.rates.macs + work.exact / self.rates.exact)

    def _heal(self, recipe: Recipe, kept: float) -> float:
        trained = recipe.sequences * recipe.length * recipe.passes * TRAINED
        looked_at = HELD_OUT * recipe.length * (recipe.points + 1)
        dense = self._forward(trained / TRAINED, recipe.length, 1.0) if recipe.loss == "kl" else 0.0
        return self._forward(trained + looked_at, recipe.length, kept) + dense

    def _task(self, name: str, documents: int, kept: float) -> float:
        tokens, answered = TOKENS.get(name, OTHERS)
        return self._forward(documents * tokens, round(tokens), kept, answered / tokens)

    def _checks(self, kept: float, text: bool) -> float:
        """Continuations of all prompts in one batch, and the divergence of a few windows."""
        rows = checks.LISTS + len(checks.STARTS) + checks.WINDOWS * text
        shown = self._forward(rows * checks.PROMPT, checks.PROMPT, kept, 1 / checks.PROMPT)
        looked_at = 2 * self._forward(checks.WINDOWS * checks.KL_TOKENS, checks.KL_TOKENS, kept) if text else 0.0
        return shown + checks.STEPS * self._call(rows, checks.PROMPT, kept) + looked_at

    def _speed(self, cell: Cell, kept: float) -> float:
        """A process of its own, and at every point a pass for memory, and both models warmed up and timed in turns."""
        found = STARTED + 2 * LOAD * self._bytes(1.0)
        for point in points(cell.protocol):
            found += sum(self._point(point, cell, share) for share in (1.0, kept))
        return found

    def _point(self, point: TimedPoint, cell: Cell, kept: float) -> float:
        p, calls = cell.protocol, steps(point, cell.protocol)
        if point.kind == "prefill":
            call, reset = self._call(point.batch * point.tokens, point.tokens, kept, 1 / point.tokens), 0.0
        else:
            call = self._call(point.batch, point.tokens, kept)
            reset = self._call(point.batch * point.tokens, point.tokens, kept, 1 / point.tokens)
        share = (calls * call + reset) / (calls * call)  # of time for each second that counts
        least = min(timing.WARM_UP_CALLS * call, timing.WARM_UP_MS / 1e3)
        warm = calls * call + max(least, 2 * calls * call)
        least = max(timing.MIN_CALLS * call, timing.MIN_MS / 1e3)
        turns = p.speed_rounds * math.ceil(least / (p.speed_rounds * calls * call))
        return share * call * calls * (turns + 1) + share * warm


def bytes_of(dtype: str) -> int:
    """Return the bytes of a number of the type that torch calls so."""
    return int(getattr(torch, dtype).itemsize)
