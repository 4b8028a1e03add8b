"""Runs vLLM and SGLang by the Python that they are installed in, since they need other versions than this one has.

Each turn is a process of the engine's own benchmark: it loads the model, warms up, measures and ends.

vllm     `vllm bench latency` measures the prompt with one token, and with 1 + steps all of them; the difference over
         the steps is a step's
sglang   `sglang.bench_one_batch` measures the prompt and the median step apart

Neither has been run. The benchmarks' arguments, and the names in what they write, were read in the sources of vLLM
(commit 00cae075) and SGLang (00944150); the scripts of likelihoods have been held against no version.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.plan.protocol import SGLANG, VLLM
from bench.speed.workloads import TimedPoint
from bench.system import failures

ITERATIONS, WARM_UP = 5, 3  # of a turn of vLLM's; SGLang's warms up by itself
CHUNK = 2**16  # bytes that are read at once
SHOWN_LETTERS = 300  # letters of what an engine said last
SCRIPTS = {VLLM: "vllm_likelihood.py", SGLANG: "sglang_likelihood.py"}


DEVICE = """
import json, torch
count = torch.cuda.device_count()
print(json.dumps([torch.cuda.get_device_name(0) if count else "", count]))
"""


class EngineFailed(Exception):
    """Says that a process of the engine ended without an answer: `status` of bench.records.served."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class OtherPython:
    """Names an engine, the Python that has it, arguments for its processes, and how long they may be silent."""

    engine: str
    python: str
    arguments: str
    silence: int

    def version(self) -> str:
        """Return the engine's version. Raises EngineFailed where that Python does not have it."""
        program = f"import importlib.metadata as m; print(m.version({self.engine!r}))"
        return self._answer(program)

    def device(self) -> dict[str, Any]:
        """Return the device of the other Python's torch, by the names of an environment. Raises EngineFailed."""
        answer = self._answer(DEVICE)
        try:
            name, count = json.loads(answer)
        except ValueError:
            raise EngineFailed("error", f"{self.python} names no device: {answer[-SHOWN_LETTERS:]}") from None
        return {"device": "cuda", "gpu": name, "gpus": count} if count else {"device": "cpu"}

    def _answer(self, program: str) -> str:
        """Return the last line that a program in the other Python prints, behind the lines of its packages."""
        return (self._run([self.python, "-c", program]).strip().splitlines() or [""])[-1]

    def likelihoods(self, model: Path, dtype: str, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the nats of each sequence of token ids, without its first token. Raises EngineFailed."""
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            questions, answers = Path(folder) / "asked.json", Path(folder) / "told.json"
            questions.write_text(json.dumps([list(map(int, ids)) for ids in sequences]), encoding="utf-8")
            script = Path(__file__).with_name(SCRIPTS[self.engine])
            self._run([self.python, str(script), str(model), str(questions), str(answers), *self._more(dtype)])
            scores = [float(nats) for nats in self._read(answers)]
        if len(scores) != len(sequences):
            raise EngineFailed("error", f"{self.engine} scored {len(scores)} of {len(sequences)} sequences")
        return scores

    def time_turn(
        self, model: Path, dtype: str, points: Sequence[TimedPoint], steps: int
    ) -> dict[TimedPoint, list[float]]:
        """Time each point once, and return the milliseconds of its calls, of decode by step. Raises EngineFailed."""
        time_point = self._vllm if self.engine == VLLM else self._sglang
        return {point: time_point(model, dtype, point, steps) for point in points}

    def _vllm(self, model: Path, dtype: str, point: TimedPoint, steps: int) -> list[float]:
        first = self._latencies(model, dtype, point, 1)
        if point.kind == "prefill":
            return first
        whole, start = self._latencies(model, dtype, point, 1 + steps), median(first)
        each = [(ms - start) / steps for ms in whole]
        if min(each) <= 0:
            raise EngineFailed("error", f"{1 + steps} tokens took vllm no longer than one; give more --steps")
        return each

    def _latencies(self, model: Path, dtype: str, point: TimedPoint, tokens: int) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            file = Path(folder) / "told.json"
            sizes = {"input-len": point.tokens, "output-len": tokens, "batch-size": point.batch}
            how = {"num-iters-warmup": WARM_UP, "num-iters": ITERATIONS, "output-json": file}
            flags = self._flags(model, dtype, sizes | how)
            self._run([self.python, "-m", "vllm.entrypoints.cli.main", "bench", "latency", *flags])
            return [1e3 * seconds for seconds in self._read(file)["latencies"]]

    def _sglang(self, model: Path, dtype: str, point: TimedPoint, steps: int) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            file = Path(folder) / "told.jsonl"
            sizes = {"batch-size": point.batch, "input-len": point.tokens, "output-len": 1 + steps}
            flags = self._flags(model, dtype, sizes | {"result-filename": file})
            self._run([self.python, "-m", "sglang.bench_one_batch", *flags])
            answer = self._read(file)
            return [1e3 * answer["prefill_latency" if point.kind == "prefill" else "median_decode_latency"]]

    def _flags(self, model: Path, dtype: str, values: dict[str, Any]) -> list[str]:
        name = "--model" if self.engine == VLLM else "--model-path"
        given = [word for flag, value in values.items() for word in (f"--{flag}", str(value))]
        return [name, str(model), *given, *self._more(dtype)]

    def _more(self, dtype: str) -> list[str]:
        """Return the arguments of every process of the engine."""
        return ["--dtype", dtype, *shlex.split(self.arguments)]

    def _read(self, file: Path) -> Any:
        """Read what the engine has written; of several lines the last."""
        try:
            text = file.read_text(encoding="utf-8")
            return json.loads(text.splitlines()[-1] if file.suffix == ".jsonl" else text)
        except (OSError, ValueError, IndexError) as error:
            raise EngineFailed("error", f"{self.engine} wrote no result: {error}") from None

    def _run(self, command: Sequence[str]) -> str:
        """Run a command of the engine in a process group of its own, which ends with it, and return its output.

        It is ended once it has written nothing, to its output or to its errors, for as long as it may be silent.
        """
        kills = failures.count_kills()
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        except OSError as error:
            raise EngineFailed("error", f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            output, written = self._listen(process)
            process.wait(self.silence)
        except (TimeoutError, subprocess.TimeoutExpired):
            reason = f"{self.engine} said nothing for {self.silence} s, and was ended"
            raise EngineFailed("timed_out", reason) from None
        finally:
            _end_all_of(process)
        last = " ".join(written.split())[-SHOWN_LETTERS:]
        if process.returncode < 0:
            death = failures.failure_of_death(process.returncode, "while it ran", kills)
            raise EngineFailed(death.status, f"{self.engine} {death.reason}: {last}")
        if process.returncode:
            raise EngineFailed(failures.status_of_error(RuntimeError(written)), f"{self.engine} ended: {last}")
        return output

    def _listen(self, process: subprocess.Popen[bytes]) -> tuple[str, str]:
        """Return what a process writes until it ends: its output alone, and with its errors. Raises TimeoutError."""
        output, written = bytearray(), bytearray()
        with selectors.DefaultSelector() as streams:
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                streams.register(stream, selectors.EVENT_READ)
            while streams.get_map():
                if not (ready := streams.select(self.silence)):
                    raise TimeoutError
                for key, _ in ready:
                    words = os.read(key.fd, CHUNK)
                    written += words
                    if key.fileobj is process.stdout:
                        output += words
                    if not words:
                        streams.unregister(key.fileobj)
        return output.decode("utf-8", "replace"), written.decode("utf-8", "replace")


def _end_all_of(process: subprocess.Popen[bytes]) -> None:
    """End a process and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
