"""Scores the model of each cell by vLLM, in a process of the Python that has it (bench.inference.vllm_process)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.inference import vllm_process
from bench.inference.engine_process import EngineFailed
from bench.inference.predictor import Ids, NoAnswer, Predicted, Predictor, cut_at_end
from bench.inference.vllm_process import VllmProcess
from bench.plan.address import VllmPython
from bench.plan.cell import ScoringEngine
from bench.plan.protocol import VLLM

NAME = "cell"  # by which the process holds the model


def find_engine(address: VllmPython) -> ScoringEngine:
    """Return the vLLM that a Python has. Raises NoAnswer where it has none, and UserError for wrong flags."""
    process = _make_process(address, threads=1)
    try:
        return _describe(process)
    finally:
        process.end()


@contextmanager
def open_model(address: VllmPython, folder: Path, dtype: str, threads: int) -> Iterator[VllmModel]:
    """Have vLLM hold the model of a folder, and end its process behind the block. Raises NoAnswer."""
    process = _make_process(address, threads)
    try:
        engine = _describe(process)
        try:
            process.load(NAME, folder, dtype=dtype)
        except EngineFailed as reason:
            raise NoAnswer(f"does not load the model: {reason}") from None
        yield VllmModel(process, engine)
    finally:
        process.end()


@dataclass(frozen=True)
class VllmModel(Predictor):
    """Scores by a model that a process holds, as a Backend of bench.evaluation.scoring."""

    process: VllmProcess
    engine: ScoringEngine

    def predict_all(self, sequences: Sequence[Ids], what: str) -> list[Predicted]:
        """Return the predictions of each token but the first of token sequences. Raises NoAnswer."""
        answer = _exchange(self.process, "score", name=NAME, sequences=list(map(list, sequences)))
        predicted = []
        for logs, ranks in zip(answer["logs"], answer["ranks"], strict=True):
            predicted.append([(float(log), rank == 1) for log, rank in zip(logs, ranks, strict=True)])
        return predicted

    def write_behind(
        self, prompts: Sequence[Ids], most: int, until: Sequence[str], has_ended: Callable[[Ids], bool]
    ) -> list[list[int]]:
        """Return the greedy tokens behind each prompt, `most` at most, up to the first with which they have ended."""
        request = {"prompts": list(map(list, prompts)), "most": most, "until": list(until)}
        written = _exchange(self.process, "write", name=NAME, **request)["tokens"]
        return [cut_at_end(tokens, has_ended) for tokens in written]


def _make_process(address: VllmPython, threads: int) -> VllmProcess:
    options = vllm_process.parse_options(shlex.split(address.arguments))
    return VllmProcess(address.python, options, threads=threads, silence=address.seconds)


def _describe(process: VllmProcess) -> ScoringEngine:
    return ScoringEngine(VLLM, str(_exchange(process, "describe")["version"]), "prompt_logprobs")


def _exchange(process: VllmProcess, do: str, **request: Any) -> dict[str, Any]:
    """Return the answer to a request. Raises NoAnswer."""
    try:
        return process.exchange(do, **request)
    except EngineFailed as reason:
        raise NoAnswer(f"gives no answer: {reason}") from None
