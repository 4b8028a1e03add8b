"""Adapts inference engines to one interface, by which the models of a run are served.

`ByLlamaCpp` serves GGUF files on the CPU. `ByOtherPython` serves Hugging Face folders of a stock shape by vLLM or
SGLang, in the Python that has them. `ServingEngine` says what an engine must offer.

Layers of sizes of their own are refused by the latter. vLLM itself serves them by the plugin
(bench.inference.vllm_plugin), which no row has been measured with.

vLLM and SGLang serve the dense and the pruned model in turns, whole processes each, since the engine fills a GPU with
one. This has not been run: there was no such engine, and its tests have a recorded one.
"""

from __future__ import annotations

import math
import shutil
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.data import gguf
from bench.data.texts import EvaluationText
from bench.evaluation.scoring import nll_of_windows
from bench.export import engine_check, gguf_file
from bench.export.formats import GGUF, HF
from bench.inference import llama_cpp
from bench.inference.other_python import EngineFailed, OtherPython
from bench.plan.kinds import to_plain
from bench.plan.protocol import LLAMA_CPP, QUANTISED, ServedProtocol
from bench.runs.reproduce import PrunedModel
from bench.speed.benchmark import summarise_rounds
from bench.speed.timing import Pass, WarmUp
from bench.speed.workloads import TimedPoint
from bench.stats.clusters import ratio_interval
from bench.stats.draws import exp_of_log
from bench.system.memory import give_back
from bench.system.threads import count_usable_cores
from methods.checkpoint import save_load
from methods.checkpoint.pruned_config import Uneven, describe
from methods.checkpoint.transformers_compat import config_of_uniform
from methods.errors import UserError
from methods.model.decoder import place_of


class ByLlamaCpp:
    """Exports to GGUF, and has llama.cpp compute and time the files with as many threads."""

    name = LLAMA_CPP

    def __init__(self, protocol: ServedProtocol, threads: int) -> None:
        self.protocol, self.threads, self.minutes = protocol, threads, protocol.silence / 60
        self.version = llama_cpp.version_of_package() if llama_cpp.is_installed() else ""

    def computes_on(self) -> dict[str, Any]:
        """Return the device, always the CPU."""
        return {"device": "cpu"}

    def require(self, protocol: ServedProtocol) -> None:
        """Raise UserError where llama.cpp is not installed."""
        llama_cpp.require(f"models are served by {self.name}")

    def export(self, model: PrunedModel, path: Path, kind: str, name: str) -> ExportedModel:
        """Write a model as a GGUF file. Raises NotServed where the format does not hold it."""
        file = path.with_name(f"{path.name}.gguf")
        quantised = kind if kind in QUANTISED else None
        dtype = torch.float32 if quantised else getattr(torch, kind)
        multiple = gguf_file.BLOCK if quantised else 1
        try:
            gguf_file.write_gguf(
                model.model, model.tokenizer, file, dtype, name, multiple=multiple, quantised=quantised
            )
        except gguf_file.NotQuantised as error:
            raise NotServed(error.status, str(error)) from None
        matrices, cached = gguf.bytes_per_step(file)

        def step_bytes(point: TimedPoint) -> int:
            return matrices + point.batch * point.tokens * cached * llama_cpp.KV_BYTES

        return ExportedModel(file, GGUF, kind, file.stat().st_size, step_bytes)

    def quality(self, exported: ExportedModel, model: PrunedModel, text: EvaluationText) -> dict[str, Any]:
        """Return llama.cpp's checks of a file, and its perplexity where it computed one."""
        checking = engine_check.check_gguf(
            exported.path, model.tokenizer, text.ids, threads=self.threads, minutes=self.minutes
        )
        checks, answer = list[list[Any]](), None
        while True:
            try:
                check = next(checking)
            except StopIteration as end:
                answer = end.value
                break
            checks.append([check.name, check.passed, check.outcome])
        failed = [f"{name}: {outcome}" for name, passed, outcome in checks if not passed]
        if failed or answer is None:
            raise NotServed("error", "; ".join(failed) or "llama.cpp was not asked", {"checks": checks})
        return {"checks": checks, "perplexity": perplexity_of_windows(answer.nll[1:].tolist(), text)}

    def speed(
        self, dense: ExportedModel, exported: ExportedModel, points: Sequence[TimedPoint], hear: Callable[[str], object]
    ) -> dict[str, Any]:
        """Return the speed of a file beside that of the dense model."""
        speed, failure = llama_cpp.time_files(
            dense.path,
            exported.path,
            points,
            steps=self.protocol.steps,
            rounds=self.protocol.rounds,
            threads=self.threads,
            minutes=self.minutes,
            hear=lambda news: [hear(_words_of_point(point)) for point in news.get("points", ())],
        )
        if failure:
            raise NotServed(failure.status, failure.reason, speed)
        return speed


def _words_of_point(point: dict[str, Any]) -> str:
    """Return what came of a point in words, for the user."""
    what = f"{point['kind']} of {point.get('length', point.get('context'))}, batch {point['batch']}"
    if "speedup" not in point:
        return f"{what}: {point['failed']}"
    each = point["batch"] * (point["length"] if point["kind"] == "prefill" else 1)
    return f"{what}: {1000 * each / point['pruned_ms']:,.1f} tokens/s, {point['speedup']:.2f} times the dense model's"


AGREES = 0.05  # share by which an engine's perplexity may differ, since its kernels round in another way


class ByOtherPython:
    """Exports folders, and has an engine's own benchmark time them."""

    def __init__(self, protocol: ServedProtocol, threads: int) -> None:
        self.protocol, self.threads = protocol, threads
        self.name: str = protocol.engine
        self.program = OtherPython(protocol.engine, protocol.engine_python, protocol.engine_args, protocol.silence)
        self.version = ""
        self._device: dict[str, Any] = {}
        self._ours: tuple[Callable[[], PrunedModel | None], float] = (lambda: None), math.nan

    def require(self, protocol: ServedProtocol) -> None:
        """Ask the other Python for its version and device. Raises UserError where it has no such engine."""
        if not protocol.engine_python:
            raise UserError(f"{self.name} runs in a Python of its own: --engine-python PATH/bin/python")
        try:
            self.version, self._device = self.program.version(), self.program.device()
        except EngineFailed as error:
            raise UserError(f"{protocol.engine_python} has no {self.name}: {error}") from None

    def computes_on(self) -> dict[str, Any]:
        """Return the device that the other Python has named."""
        return self._device

    def export(self, model: PrunedModel, path: Path, kind: str, name: str) -> ExportedModel:
        """Write a model as a folder for stock transformers. Raises NotServed where no stock class holds it."""
        try:
            config_of_uniform(model.model, describe(model.model))
        except Uneven as error:
            raise self._not_stock(error) from None
        dtype = getattr(torch, kind)
        manifest = save_load.save(model.model, path, tokenizer=model.tokenizer, facts=model.facts, dtype=dtype)
        if manifest["loads_with"] != "transformers":  # the stock class was tried and does not load it
            shutil.rmtree(path)
            raise self._not_stock(manifest["reason"])
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return ExportedModel(path, HF, kind, size)

    def _not_stock(self, reason: object) -> UserError:
        return UserError(f"{self.name} is given folders that transformers alone loads, and {reason}")

    def quality(self, exported: ExportedModel, model: PrunedModel, text: EvaluationText) -> dict[str, Any]:
        """Return the engine's perplexity of a text, checked against that of this program."""
        ours = self._perplexity(model, text)
        try:
            nll = self.program.likelihoods(exported.path, exported.type, text.ids.tolist())
        except EngineFailed as error:
            raise NotServed(error.status, str(error)) from None
        figures = perplexity_of_windows(nll, text)
        share = figures["perplexity"] / ours - 1
        count, length = text.ids.shape
        which = f"the {count} windows of {length:,} tokens that the run measured ({figures['tokens']:,} scored)"
        figure = f"{figures['perplexity']:.5g}, and transformers has {ours:.5g}, on {which}"
        agrees = abs(share) <= AGREES  # not so of a share that is no number
        checks = [[f"{self.name} perplexity", agrees, figure]]
        if not agrees:
            raise NotServed("error", f"{self.name} perplexity: {figure}", {"checks": checks})
        return {"checks": checks, "perplexity": figures}

    def _perplexity(self, model: PrunedModel, text: EvaluationText) -> float:
        """Return the perplexity by transformers, once for all types of a model. The GPU is then left to the engine."""
        if self._ours[0]() is not model:
            inner, scored = model.model.model, torch.ones_like(text.ids, dtype=torch.bool)
            scored[:, 0] = False
            nats = float(nll_of_windows(inner, text.ids, scored, text.ids.shape[1]).sum())
            self._ours = weakref.ref(model), exp_of_log(nats / int(scored.sum()))  # the next model needs the room
            if len(place := place_of(inner)) == 1:
                inner.to("cpu")
                give_back(place)
        return self._ours[1]

    def speed(
        self, dense: ExportedModel, exported: ExportedModel, points: Sequence[TimedPoint], hear: Callable[[str], object]
    ) -> dict[str, Any]:
        """Return the speed of a model beside that of the dense model, each timed in turns."""
        models = {"dense": dense, "pruned": exported}
        turns: dict[TimedPoint, dict[str, list[list[Pass]]]] = {}
        for point in points:
            turns[point] = {name: [] for name in models}
        engine = {"name": self.name, "version": self.version, "arguments": self.protocol.engine_args}
        try:
            for number in range(self.protocol.rounds):
                for name in models if number % 2 == 0 else reversed(models):
                    served = models[name]
                    turn = self.program.time_turn(served.path, served.type, points, self.protocol.steps)
                    for point, ms in turn.items():
                        turns[point][name].append([Pass(ms, sum(ms))])
                hear(f"round {number + 1} of {self.protocol.rounds}")
        except EngineFailed as error:
            raise NotServed(error.status, str(error), {"engine": engine}) from None
        warm = {name: WarmUp(0, True, 0.0) for name in models}  # each process warms up by itself
        return {"engine": engine, "points": [to_plain(summarise_rounds(each, turns[each], warm)) for each in points]}


def engine_of_protocol(protocol: ServedProtocol, threads: int | None) -> ServingEngine:
    """Return the engine of a protocol, with as many threads; None: all cores."""
    threads = threads or count_usable_cores()
    if protocol.engine == LLAMA_CPP:
        return ByLlamaCpp(protocol, threads)
    return ByOtherPython(protocol, threads)


class NotServed(Exception):
    """Says why the engine gives no figures of a model: `status` of bench.records.served, and what was measured."""

    def __init__(self, status: str, reason: str, measured: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.status, self.measured = status, measured or {}


@dataclass(frozen=True)
class ExportedModel:
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

    name, version  of the engine's program
    threads        of the processor
    """

    name: str
    version: str
    threads: int

    def computes_on(self) -> dict[str, Any]:
        """Return `device` of the engine, and of GPUs `gpu` and `gpus`, as in a record's environment."""

    def require(self, protocol: ServedProtocol) -> None:
        """Raise UserError where the engine is missing or cannot do what the protocol says."""

    def export(self, model: PrunedModel, path: Path, kind: str, name: str) -> ExportedModel:
        """Write a model with its matrices in `kind` to a new path.

        Raises UserError where no format holds it and, as Unwritable, where the disk takes no file; NotServed where the
        engine itself does not write it.
        """

    def quality(self, exported: ExportedModel, model: PrunedModel, text: EvaluationText) -> dict[str, Any]:
        """Return `checks` and `perplexity` of bench.records.served. Raises NotServed where a check does not pass."""

    def speed(
        self, dense: ExportedModel, exported: ExportedModel, points: Sequence[TimedPoint], hear: Callable[[str], object]
    ) -> dict[str, Any]:
        """Return `engine`, `memory`, `points` and `machine` of bench.records.served. Raises NotServed.

        hear  gets a line on each point once it is timed
        """


def perplexity_of_windows(nll: list[float], text: EvaluationText) -> dict[str, Any]:
    """Return the figures of a text from the nats of each of its windows, whose first token is not scored.

    An interval whose end is too large for a number is left out. Raises NotServed where the perplexity is not finite.
    """
    M, W = text.ids.shape
    tokens = M * (W - 1)
    mean = exp_of_log(sum(nll) / tokens)
    if not math.isfinite(mean):
        raise NotServed("error", f"the engine's perplexity is {mean:g}, which is no finite number")
    figures = {
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
        figures |= {"perplexity_low": math.exp(low), "perplexity_high": math.exp(high)}
    return figures
