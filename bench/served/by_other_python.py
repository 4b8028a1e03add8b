"""Serves models by vLLM or SGLang, in the Python that has them: as Hugging Face folders of a stock shape.

Layers of sizes of their own are refused. Both engines know them as Nemotron-NAS, whose configuration they load by a
class that comes as code with NVIDIA's models and with no folder of this suite (bench.export.nemotron_nas).

Dense and pruned model are served in turns, whole processes each, since the engine fills a GPU with one. It has not been
run: there was no such engine, and its tests have a recorded one.
"""

from __future__ import annotations

import math
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.data.texts import EvaluationText
from bench.evaluation.scoring import window_nll
from bench.export.formats import HF
from bench.plan.served import ServedProtocol
from bench.run.reproduce import PrunedModel
from bench.served.engine import Exported, NotServed, perplexity
from bench.serving.other_python import EngineFailed, OtherPython
from bench.speed.summary import summary
from bench.speed.timing import Pass, WarmUp
from bench.speed.workloads import TimedPoint
from bench.stats.draws import exponential
from bench.system.memory import give_back
from methods.checkpoint import save_load
from methods.checkpoint.pruned_config import describe
from methods.checkpoint.stock import Uneven
from methods.checkpoint.transformers_compat import uniform_config
from methods.errors import UserError
from methods.model.spread import place_of

AGREES = 0.05  # by which share an engine's perplexity may differ, whose kernels round otherwise


class ByOtherPython:
    """Exports folders, and has an engine's own benchmark time them."""

    def __init__(self, asked: ServedProtocol, threads: int) -> None:
        self.asked, self.threads = asked, threads
        self.name: str = asked.engine
        self.other = OtherPython(asked.engine, asked.engine_python, asked.engine_args, asked.silence)
        self.version = ""
        self._device: dict[str, Any] = {}
        self._ours: tuple[Callable[[], PrunedModel | None], float] = (lambda: None), math.nan

    def require(self, asked: ServedProtocol) -> None:
        if not asked.engine_python:
            raise UserError(f"{self.name} runs in a Python of its own: --engine-python PATH/bin/python")
        try:
            self.version, self._device = self.other.version(), self.other.device()
        except EngineFailed as error:
            raise UserError(f"{asked.engine_python} has no {self.name}: {error}") from None

    def computes_on(self) -> dict[str, Any]:
        return self._device

    def export(self, model: PrunedModel, path: Path, kind: str, name: str) -> Exported:
        try:
            uniform_config(model.model, describe(model.model))
        except Uneven as error:
            raise self._not_stock(error) from None
        dtype = getattr(torch, kind)
        manifest = save_load.save(model.model, path, tokenizer=model.tokenizer, facts=model.facts, dtype=dtype)
        if manifest["loads_with"] != "transformers":  # as it turns out where the stock class is tried
            shutil.rmtree(path)
            raise self._not_stock(manifest["reason"])
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return Exported(path, HF, kind, size)

    def _not_stock(self, reason: object) -> UserError:
        return UserError(
            f"{self.name} loads folders that transformers alone loads, and {reason}; it has no configuration class for "
            "Nemotron-NAS, which holds layers of sizes of their own"
        )

    def quality(self, exported: Exported, model: PrunedModel, text: EvaluationText) -> dict[str, Any]:
        ours = self._perplexity(model, text)
        try:
            nll = self.other.likelihoods(exported.path, exported.type, text.ids.tolist())
        except EngineFailed as error:
            raise NotServed(error.status, str(error)) from None
        found = perplexity(nll, text)
        share = found["perplexity"] / ours - 1
        count, length = text.ids.shape
        which = f"the {count} windows of {length:,} tokens that the run measured ({found['tokens']:,} scored)"
        said = f"{found['perplexity']:.5g}, and transformers has {ours:.5g}, on {which}"
        agrees = abs(share) <= AGREES  # not so of a share that is no number
        checks = [[f"{self.name} perplexity", agrees, said]]
        if not agrees:
            raise NotServed("error", f"{self.name} perplexity: {said}", {"checks": checks})
        return {"checks": checks, "perplexity": found}

    def _perplexity(self, model: PrunedModel, text: EvaluationText) -> float:
        """Return what transformers has, once for all types of a model, which then leaves its GPU to the engine."""
        if self._ours[0]() is not model:
            inner, scored = model.model.model, torch.ones_like(text.ids, dtype=torch.bool)
            scored[:, 0] = False
            nats = float(window_nll(inner, text.ids, scored, text.ids.shape[1]).sum())
            self._ours = weakref.ref(model), exponential(nats / int(scored.sum()))  # the next model needs the room
            if len(place := place_of(inner)) == 1:
                inner.to("cpu")
                give_back(place)
        return self._ours[1]

    def speed(
        self, dense: Exported, exported: Exported, points: Sequence[TimedPoint], hear: Callable[[str], object]
    ) -> dict[str, Any]:
        models = {"dense": dense, "pruned": exported}
        turns: dict[str, dict[TimedPoint, list[list[Pass]]]] = {
            name: {point: [] for point in points} for name in models
        }
        engine = {"name": self.name, "version": self.version, "arguments": self.asked.engine_args}
        try:
            for number in range(self.asked.rounds):
                for name in models if number % 2 == 0 else reversed(models):
                    one = models[name]
                    found = self.other.turn(one.path, one.type, points, self.asked.steps)
                    for point, ms in found.items():
                        turns[name][point].append([Pass(ms, sum(ms))])
                hear(f"round {number + 1} of {self.asked.rounds}")
        except EngineFailed as error:
            raise NotServed(error.status, str(error), {"engine": engine}) from None
        warm = {name: WarmUp(0, True, 0.0) for name in models}  # each process warms up by itself
        return {
            "engine": engine,
            "points": [point.named | summary({name: turns[name][point] for name in models}, warm) for point in points],
        }
