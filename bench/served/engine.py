"""Says what an inference engine must offer so that the models of a run are served by it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.data.texts import EvaluationText
from bench.plan.served import ServedProtocol
from bench.run.reproduce import PrunedModel
from bench.speed.workloads import TimedPoint
from bench.stats.clusters import ratio_interval
from bench.stats.draws import exponential


class NotServed(Exception):
    """Says why the engine gives no figures of a model: `status` of bench.records.served, and what was measured."""

    def __init__(self, status: str, reason: str, measured: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.status, self.measured = status, measured or {}


@dataclass(frozen=True)
class Exported:
    """Holds a model on the disk as an engine reads it.

    path        the file or folder
    format      one of bench.export.formats
    type        of its matrices
    bytes       of the weights
    step_bytes  bytes that a step of decode must read at a point: every matrix once, keys and values of the context;
                None where only the engine knows
    """

    path: Path
    format: str
    type: str
    bytes: int
    step_bytes: Callable[[TimedPoint], int] | None = None

    def remove(self) -> None:
        """Remove it from the disk."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink()


class ServingEngine(Protocol):
    """Exports, scores and times models.

    name, version  those of its program
    threads        of the processor
    """

    name: str
    version: str
    threads: int

    def computes_on(self) -> dict[str, Any]:
        """Return `device` of what it computes on, and of GPUs `gpu` and `gpus`, as in a record's environment."""

    def require(self, asked: ServedProtocol) -> None:
        """Raise UserError where the engine is missing or cannot do what is asked."""

    def export(self, model: PrunedModel, path: Path, kind: str, name: str) -> Exported:
        """Write a model with its matrices in `kind` to a new path.

        Raises UserError where no format holds it and, as Unwritable, where the disk takes no file; NotServed where the
        engine itself does not write it.
        """

    def quality(self, exported: Exported, model: PrunedModel, text: EvaluationText) -> dict[str, Any]:
        """Return `checks` and `perplexity` of bench.records.served. Raises NotServed where a check does not pass."""

    def speed(
        self, dense: Exported, exported: Exported, points: Sequence[TimedPoint], hear: Callable[[str], object]
    ) -> dict[str, Any]:
        """Return `engine`, `memory`, `points` and `machine` of bench.records.served. Raises NotServed.

        hear  is told each point once it is timed
        """


def perplexity(nll: list[float], text: EvaluationText) -> dict[str, Any]:
    """Return the figures of a text from the nats of each of its windows, of which the first token is not scored.

    An interval whose end is too large for a number is left out. Raises NotServed where the perplexity is no finite one.
    """
    M, W = text.ids.shape
    tokens = M * (W - 1)
    mean = exponential(sum(nll) / tokens)
    if not math.isfinite(mean):
        raise NotServed("error", f"the engine's perplexity is {mean:g}, which is no finite number")
    found = {
        "text": text.text,
        "sha256": text.sha256,
        "windows": M,
        "drawn": text.drawn,
        "window": W,
        "tokens": tokens,
        "nll": nll,
        "perplexity": mean,
    }
    low, high = ratio_interval(nll, [W - 1] * M, in_a_row=not text.drawn)
    with suppress(OverflowError):
        found |= {"perplexity_low": math.exp(low), "perplexity_high": math.exp(high)}
    return found
