"""Adapts inference engines to one interface, by which the models of a run are served.

`ByLlamaCpp` serves GGUF files on the CPU. `ByVllm` serves Hugging Face folders of every shape, on what vLLM computes on
in the Python that has it. `ServingEngine` says what an engine must offer.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import shlex
import shutil
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.data import gguf
from bench.data.texts import EvaluationText
from bench.evaluation.scoring import nll_of_windows
from bench.export import engine_check, gguf_file
from bench.export.formats import GGUF, HF
from bench.inference import llama_cpp, llm_compressor, server, vllm_process
from bench.inference.engine_process import EngineFailed
from bench.inference.server import ServerProcess
from bench.inference.vllm_process import EXACT, VllmProcess
from bench.plan.kinds import to_plain
from bench.plan.protocol import COMPRESSED, LLAMA_CPP, QUANTISED, VLLM, ServedProtocol
from bench.records.speed_results import PointTiming
from bench.runs.reproduce import PrunedModel
from bench.speed import timing
from bench.speed.benchmark import is_narrow, summarise_rounds
from bench.speed.timing import ClockOfEngine, Pass, WarmUp, Workload
from bench.speed.workloads import TimedPoint, bytes_of_step
from bench.stats.clusters import ratio_interval
from bench.stats.draws import exp_of_log
from bench.system import environment
from bench.system.memory import give_back
from bench.system.threads import count_usable_cores
from methods.checkpoint import save_load
from methods.checkpoint.save_load import Check
from methods.errors import UserError
from methods.model.decoder import place_of


class ByLlamaCpp:
    """Exports to GGUF, and has llama.cpp compute and time the files with as many threads."""

    name = LLAMA_CPP

    def __init__(self, protocol: ServedProtocol, threads: int) -> None:
        self.protocol, self.threads, self.minutes = protocol, threads, protocol.silence / 60
        version = server.version_of_llama_server if protocol.load else llama_cpp.version_of_package
        self.version = version() if llama_cpp.is_installed() else ""

    def end(self) -> None:
        """Do nothing: each task has had a process of its own."""

    def computes_on(self) -> dict[str, Any]:
        """Return the device, always the CPU."""
        return {"device": "cpu"}

    def require(self, protocol: ServedProtocol) -> None:
        """Raise UserError where llama.cpp is not installed."""
        llama_cpp.require(f"models are served by {self.name}")
        if protocol.load and not self.version:
            raise UserError(
                f"{self.name}'s server is that of {server.LLAMA_SERVER}, which is missing: {llama_cpp.INSTALL}"
            )

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

    def make_server(self, exported: ExportedModel, context: int, slots: int) -> ServerProcess:
        """Return the server of a file, not yet started."""
        words = [json.dumps({"threads": self.threads, "slots": slots, "context": context})]
        silence = self.protocol.silence
        return ServerProcess(self.name, sys.executable, exported.path, words, os.environ, silence=silence)

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


ROUNDED = 0.02  # nats by which the mean of all tokens may differ in other types than float32, which kernels round
COARSE = 1.0  # nats by which the mean may differ in weights of fewer bits: a folder read wrongly is further off
AS_EXACT = 3  # times as far from float64 as this suite's float32 an engine may be, for models that float32 fails
BESIDE_COMPRESSED = "bfloat16"  # dtype of states, embeddings and all else that llmcompressor leaves as it is
ON_A_GPU = {"gpu_memory_utilization": 0.45}  # of the dense and of the pruned model, which lie there side by side


class ByVllm:
    """Exports folders, and has one process of vLLM's hold the dense and the pruned model, and time them in turns."""

    name = VLLM

    def __init__(self, protocol: ServedProtocol, threads: int) -> None:
        self.protocol, self.threads = protocol, threads
        options = vllm_process.parse_options(shlex.split(protocol.engine_args))
        python, silence = protocol.engine_python, protocol.silence
        self.process = VllmProcess(python, options, threads=threads, silence=silence)
        self.version, self._quantiser = "", ""
        self._device: dict[str, Any] = {}
        self._ours: tuple[Callable[[], PrunedModel | None], torch.Tensor] = (lambda: None), torch.empty(0)

    def require(self, protocol: ServedProtocol) -> None:
        """Ask vLLM for its version and device. Raises UserError where the other Python has no vLLM."""
        if not protocol.engine_python:
            raise UserError(f"{self.name} runs in a Python of its own: --engine-python PATH/bin/python")
        try:
            answer = self.process.exchange("describe")
        except EngineFailed as error:
            raise UserError(f"{protocol.engine_python} has no {self.name}: {error}") from None
        self.version, self._device = answer["version"], answer["device"]
        if set(protocol.types) & set(COMPRESSED):
            python = protocol.llmcompressor_python
            try:
                version = llm_compressor.read_version(python, silence=protocol.silence)
            except EngineFailed as error:
                raise UserError(f"{python} has no {llm_compressor.NAME}: {error}") from None
            self._quantiser = f"{llm_compressor.NAME} {version}"

    def end(self) -> None:
        """End the process."""
        self.process.end()

    def computes_on(self) -> dict[str, Any]:
        """Return the device that vLLM has named."""
        return self._device

    def export(self, model: PrunedModel, path: Path, kind: str, name: str) -> ExportedModel:
        """Write a model as a folder.

        Raises UserError where it needs this suite's plugin, and vLLM or llmcompressor cannot have it, and NotServed
        where llmcompressor fails.
        """
        if kind in COMPRESSED:
            return self._export_quantised(model, path, kind)
        dtype, own = getattr(torch, kind), model.model.embed.weight.dtype
        manifest = save_load.save(model.model, path, tokenizer=model.tokenizer, facts=model.facts, dtype=dtype)
        if manifest["loads_with"] != "transformers" and (trouble := self._trouble_of_plugin()):
            shutil.rmtree(path)
            raise UserError(f"{manifest['reason']}, and this vLLM takes no such folders: {trouble}")
        size = _bytes_of_weights(path)
        sizes = itertools.product(self.protocol.batches, self.protocol.decode)
        bytes_by_point = dict[TimedPoint, int]()
        for point in [TimedPoint("decode", batch, tokens) for batch, tokens in sizes]:
            bytes_by_point[point] = bytes_of_step(model.model, point) * dtype.itemsize // own.itemsize
        return ExportedModel(path, HF, kind, size, bytes_by_point.__getitem__)

    def _export_quantised(self, model: PrunedModel, path: Path, kind: str) -> ExportedModel:
        """Write a model as a folder whose linear layers llmcompressor has quantised. Raises UserError and NotServed."""
        whole = path.with_name(f"{path.name}-whole")
        try:
            dtype = getattr(torch, BESIDE_COMPRESSED)
            manifest = save_load.save(model.model, whole, tokenizer=model.tokenizer, facts=model.facts, dtype=dtype)
            if manifest["loads_with"] != "transformers":
                raise UserError(f"{manifest['reason']}, and {llm_compressor.NAME} takes no such folders")
            python, silence = self.protocol.llmcompressor_python, self.protocol.silence
            llm_compressor.quantise(python, whole, path, kind, silence=silence)
        except EngineFailed as error:
            shutil.rmtree(path, ignore_errors=True)
            raise NotServed(error.status, str(error)) from None
        finally:
            shutil.rmtree(whole, ignore_errors=True)
        return ExportedModel(path, HF, kind, _bytes_of_weights(path))

    def _trouble_of_plugin(self) -> str:
        """Return why vLLM cannot be given pruned models of every shape; empty where it can. Raises NotServed."""
        try:
            return str(self.process.exchange("check_plugin")["trouble"])
        except EngineFailed as error:
            raise NotServed(error.status, str(error)) from None

    def quality(self, exported: ExportedModel, model: PrunedModel, text: EvaluationText) -> dict[str, Any]:
        """Return vLLM's perplexity of a text, once its log-probability of each token agrees with this program's."""
        ours = self._nats(model, text)
        try:
            self._load("pruned", exported)
            logs = self.process.exchange("score", name="pruned", sequences=text.ids.tolist())["logs"]
        except EngineFailed as error:
            raise NotServed(error.status, str(error)) from None
        theirs = -torch.tensor(logs, dtype=torch.float64)  # (M, W - 1)
        if exported.type == "float32" and model.model.embed.weight.dtype == torch.float32:
            check = compare_tokens(ours, theirs, lambda: _nats_in_float64(model, text))
        else:
            check = compare_means(ours, theirs, COARSE if exported.type in COMPRESSED else ROUNDED)
        quantiser = {"quantiser": self._quantiser} if exported.type in COMPRESSED else {}
        checks = [[f"{self.name} tokens", check.passed, check.outcome]]
        if not check.passed:
            raise NotServed("error", f"{self.name} tokens: {check.outcome}", {"checks": checks})
        return quantiser | {"checks": checks, "perplexity": perplexity_of_windows(theirs.sum(1).tolist(), text)}

    def _load(self, name: str, exported: ExportedModel) -> None:
        """Have a model held with room for what is asked of it. Raises EngineFailed."""
        protocol = self.protocol
        longest = max(protocol.window, *protocol.prefill, *(tokens + protocol.steps for tokens in protocol.decode))
        on_device = ON_A_GPU if self._device["device"] == "cuda" else {}
        self.process.load(name, exported.path, dtype=_dtype_of_states(exported), max_model_len=longest + 1, **on_device)

    def _nats(self, model: PrunedModel, text: EvaluationText) -> torch.Tensor:
        """Return this program's nats of each token but the first, once for all types. The GPU is then left to vLLM."""
        if self._ours[0]() is not model:
            inner = model.model.model
            self._ours = weakref.ref(model), _nats_of_tokens(inner, text)  # the next model needs the room
            if len(place := place_of(inner)) == 1:
                inner.to("cpu")
                give_back(place)
        return self._ours[1]

    def make_server(self, exported: ExportedModel, context: int, slots: int) -> ServerProcess:
        """Return the server of a folder, not yet started. The process ends, since the server needs its room."""
        self.process.end()
        given = shlex.split(self.protocol.engine_args)
        words = ["--dtype", _dtype_of_states(exported), "--max-model-len", str(context), "--no-enable-prefix-caching"]
        if self._device["device"] == "cuda":
            words += [f"--{name.replace('_', '-')}={value}" for name, value in ON_A_GPU.items()]
        environment = vllm_process.environment_of_vllm(self.threads, self.process.options)
        python, silence = self.protocol.engine_python, self.protocol.silence
        return ServerProcess(self.name, python, exported.path, [*words, *given], environment, silence=silence)

    def speed(
        self, dense: ExportedModel, exported: ExportedModel, points: Sequence[TimedPoint], hear: Callable[[str], object]
    ) -> dict[str, Any]:
        """Return the speed of a model beside that of the dense model. Both are held, and take turns."""
        engine = {"name": self.name, "version": self.version, "arguments": self.protocol.engine_args}
        measured: dict[str, Any] = {"engine": engine | {"threads": self.threads}, "points": []}
        before = environment.state_of_machine()
        try:
            self._load("dense", dense)
            self._load("pruned", exported)
            for point in points:
                measured["points"].append(to_plain(self._time_in_turns(point)))
                hear(_words_of_point(measured["points"][-1]))
        except EngineFailed as error:
            raise NotServed(error.status, str(error), measured) from None
        return measured | {"machine": environment.load_between_states(before, environment.state_of_machine())}

    def _time_in_turns(self, point: TimedPoint) -> PointTiming:
        """Warm both models up at a point and time them in turns. Raises EngineFailed."""
        steps = self.protocol.steps if point.kind == "decode" else 0
        works, warm, clock = dict[str, Workload](), dict[str, WarmUp](), ClockOfEngine()
        for name in ("dense", "pruned"):
            works[name] = Workload(partial(self._time_pass, name, point, steps), lambda: None, max(steps, 1))
            warm[name] = timing.warm_up(works[name], clock, long=self._device["device"] != "cpu")
        passes = timing.passes_per_turn(works, warm, self.protocol.rounds)
        return summarise_rounds(
            point, timing.time_rounds(works, clock, self.protocol.rounds, passes, enough=is_narrow), warm
        )

    def _time_pass(self, name: str, point: TimedPoint, steps: int) -> Pass:
        """Return a pass as vLLM's process has timed it: of a prompt one call. Raises EngineFailed."""
        answer = self.process.exchange("time_pass", name=name, batch=point.batch, tokens=point.tokens, steps=steps)
        ms = answer["ms"][1:] if steps else answer["ms"][:1]
        if not ms:
            raise EngineFailed("error", f"vllm computes {point} in more calls than its tokens; give more --steps")
        return Pass(ms, sum(ms))


def compare_tokens(ours: torch.Tensor, theirs: torch.Tensor, in_float64: Callable[[], torch.Tensor]) -> Check:
    """Return whether nats (M, W - 1) in float32 agree token by token.

    in_float64  gives ours once more, for a model on which float32 alone differs by more than EXACT
    """
    off = (theirs - ours).abs()
    words = f"differ by {off.max():.1e} nats at most and {off.mean():.1e} in the mean, of {off.numel():,} tokens"
    if off.max() <= EXACT or not off.isfinite().all():
        return Check("tokens", bool(off.max() <= EXACT), words)
    exact = in_float64()
    mine, its = float((ours - exact).abs().max()), float((theirs - exact).abs().max())
    return Check(
        "tokens", its <= max(EXACT, AS_EXACT * mine), f"{words}; from float64 by {its:.1e}, and ours {mine:.1e}"
    )


def compare_means(ours: torch.Tensor, theirs: torch.Tensor, allowed: float = ROUNDED) -> Check:
    """Return whether nats (M, W - 1) agree in the mean, as is asked of types that are rounded more than float32."""
    off, apart = (theirs - ours).abs(), float((theirs.mean() - ours.mean()).abs())
    words = f"means differ by {apart:.1e} nats, tokens by {off.max():.1e} at most, of {off.numel():,}"
    return Check("tokens", apart <= allowed, words)


def _dtype_of_states(exported: ExportedModel) -> str:
    """Return the dtype that vLLM computes a folder in."""
    return BESIDE_COMPRESSED if exported.type in COMPRESSED else exported.type


def _bytes_of_weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _nats_of_tokens(model: Any, text: EvaluationText) -> torch.Tensor:
    """Return the nats of each token but the first of a text's windows, (M, W - 1) float64."""
    scored = torch.ones_like(text.ids, dtype=torch.bool)
    scored[:, 0] = False
    return nll_of_windows(model, text.ids, scored, text.ids.shape[1])[:, 1:]


def _nats_in_float64(model: PrunedModel, text: EvaluationText) -> torch.Tensor:
    return _nats_of_tokens(copy.deepcopy(model.model.model).double(), text)


def engine_of_protocol(protocol: ServedProtocol, threads: int | None) -> ServingEngine:
    """Return the engine of a protocol, with as many threads; None: all cores."""
    threads = threads or count_usable_cores()
    if protocol.engine == LLAMA_CPP:
        return ByLlamaCpp(protocol, threads)
    return ByVllm(protocol, threads)


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

    def end(self) -> None:
        """End what still runs."""

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

    def make_server(self, exported: ExportedModel, context: int, slots: int) -> ServerProcess:
        """Return the engine's own server of a model, not yet started.

        context  tokens that a request may have with those that it generates
        slots    requests that wait for an answer at once
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
