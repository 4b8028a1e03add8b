"""Serves models by llama.cpp: as GGUF files, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.data import gguf_reader
from bench.data.texts import EvaluationText
from bench.export import engine_check, gguf_file
from bench.export.formats import GGUF
from bench.plan.served import LLAMA_CPP, QUANTISED, ServedProtocol
from bench.run.reproduce import PrunedModel
from bench.served.engine import Exported, NotServed, perplexity
from bench.serving import llama_cpp, llama_cpp_speed
from bench.speed.workloads import TimedPoint


class ByLlamaCpp:
    """Exports to GGUF, and has llama.cpp compute and time the files with as many threads."""

    name = LLAMA_CPP

    def __init__(self, asked: ServedProtocol, threads: int) -> None:
        self.asked, self.threads, self.minutes = asked, threads, asked.silence / 60
        self.version = llama_cpp.version() if llama_cpp.is_installed() else ""

    def computes_on(self) -> dict[str, Any]:
        return {"device": "cpu"}

    def require(self, asked: ServedProtocol) -> None:
        llama_cpp.require(f"models are served by {self.name}")

    def export(self, model: PrunedModel, path: Path, kind: str, name: str) -> Exported:
        file = path.with_name(f"{path.name}.gguf")
        quantised = kind if kind in QUANTISED else None
        dtype = torch.float32 if quantised else getattr(torch, kind)
        multiple = gguf_file.BLOCK if quantised else 1
        try:
            gguf_file.write(model.model, model.tokenizer, file, dtype, name, multiple=multiple, quantised=quantised)
        except gguf_file.NotQuantised as error:
            raise NotServed(error.status, str(error)) from None
        matrices, cached = gguf_reader.read_in_a_step(file)

        def step_bytes(point: TimedPoint) -> int:
            return matrices + point.batch * point.tokens * cached * llama_cpp_speed.KV_BYTES

        return Exported(file, GGUF, kind, file.stat().st_size, step_bytes)

    def quality(self, exported: Exported, model: PrunedModel, text: EvaluationText) -> dict[str, Any]:
        checking = engine_check.check(
            exported.path, model.tokenizer, text.ids, threads=self.threads, minutes=self.minutes
        )
        checks, answer = list[list[Any]](), None
        while True:
            try:
                one = next(checking)
            except StopIteration as end:
                answer = end.value
                break
            checks.append([one.name, one.passed, one.found])
        failed = [f"{name}: {found}" for name, passed, found in checks if not passed]
        if failed or answer is None:
            raise NotServed("error", "; ".join(failed) or "llama.cpp was not asked", {"checks": checks})
        return {"checks": checks, "perplexity": perplexity(answer.nll[1:].tolist(), text)}

    def speed(
        self, dense: Exported, exported: Exported, points: Sequence[TimedPoint], hear: Callable[[str], object]
    ) -> dict[str, Any]:
        found, failure = llama_cpp_speed.time(
            dense.path,
            exported.path,
            points,
            steps=self.asked.steps,
            rounds=self.asked.rounds,
            threads=self.threads,
            minutes=self.minutes,
            hear=lambda news: [hear(_told(point)) for point in news.get("points", ())],
        )
        if failure:
            raise NotServed(failure.status, failure.reason, found)
        return found


def _told(point: dict[str, Any]) -> str:
    """Say what came of a point, for those who wait."""
    what = f"{point['kind']} of {point.get('length', point.get('context'))}, batch {point['batch']}"
    if "speedup" not in point:
        return f"{what}: {point['failed']}"
    each = point["batch"] * (point["length"] if point["kind"] == "prefill" else 1)
    return f"{what}: {1000 * each / point['pruned_ms']:,.1f} tokens/s, {point['speedup']:.2f} times the dense model's"
