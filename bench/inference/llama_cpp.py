"""Computes with llama.cpp the contents of a GGUF file, and times two files, in a process of its own that may crash.

The engine comes with the extra `prunebench[llama]`, whose package brings llama.cpp's C library and its declarations
(cffi). `compute` runs a file on the CPU, with keys and values kept in float32.

`time_files` times two files beside each other, both in one process and in turns, as bench.speed times models.

prefill  llama_decode of whole prompts on an empty cache; the last position of each has logits
decode   llama_decode of one token for each sequence behind `tokens` of context, to which each pass returns

There, keys and values are in float16 and the other settings are the engine's own, since it is used that way. The
pruned file is loaded first, and its memory is measured while it is alone. Token ids are random and the same for both.

Letters: B = sequences, T = tokens of one, V = vocabulary.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.plan.kinds import to_plain
from bench.records.speed_results import PointTiming
from bench.speed import timing
from bench.speed.benchmark import is_narrow, summarise_rounds
from bench.speed.timing import WallClock, Workload
from bench.speed.workloads import TimedPoint
from bench.system import environment, worker
from bench.system.failures import Failure, reason_of_error
from bench.system.memory import resident_bytes_of_process
from methods.errors import UserError

PACKAGE = "llama_cpp_py_sync"
INSTALL = "pip install 'prunebench[llama]'"
FILE_TYPES = {"q8_0": 7, "q4_0": 2}  # llama.cpp's numbers of the ways to quantise a file (llama_ftype)
WITHOUT_TRACES = {"GGML_NO_BACKTRACE": "1"}  # of an assertion that fails, since its message says enough
MINUTES = 10.0  # without a word after which an engine counts as hanging
F32 = 0  # llama.cpp's number of the type (ggml_type)
CELLS = 256  # positions of a cache come in as many, for which there are kernels


@dataclass(frozen=True)
class EngineAnswer:
    """Holds what the engine computes from a file.

    tokens  of the text, by the file's own tokenizer
    logits  (T, V) of the first sequence, in float32
    nll     (B,) the negative log-likelihood of each sequence in nats, all tokens but its first
    """

    tokens: list[int]
    logits: np.ndarray
    nll: np.ndarray


def is_installed() -> bool:
    """Say whether the engine's package is installed, without importing it."""
    return importlib.util.find_spec(PACKAGE) is not None


def version_of_package() -> str:
    """Return the version of the engine's package, without importing it."""
    return importlib.metadata.version(PACKAGE.replace("_", "-"))


def require(what: str) -> None:
    """Raise UserError, which begins with `what` needs the engine, where that is not installed."""
    if not is_installed():
        raise UserError(f"{what}, which is not installed: {INSTALL}")


def compute(
    file: Path, sequences: Sequence[Sequence[int]], text: str, *, threads: int, minutes: float = MINUTES
) -> EngineAnswer | Failure:
    """Return the engine's tokens of `text` and its results on `sequences` of token ids, each from position 0.

    minutes  without a message, of which each sequence sends one, after which the process is ended

    A mistake of the engine, also a crash or a hang, is a Failure and no exception.
    """
    answer: dict[str, Any] = {}
    rows = [list(map(int, ids)) for ids in sequences]
    task = {"file": str(file), "sequences": rows, "text": text, "threads": threads}
    return run_alone(_compute, task, minutes, answer.update) or EngineAnswer(**answer)


def quantise(source: Path, target: Path, kind: str, *, threads: int, minutes: float = MINUTES) -> Failure | None:
    """Have the engine write the GGUF file `source` to `target` with its matrices in `kind`, one of FILE_TYPES.

    Embedding and head are quantised like all others. Returns a Failure where the engine does not finish.
    """
    task = {"source": str(source), "target": str(target), "kind": FILE_TYPES[kind], "threads": threads}
    return run_alone(_quantise, task, minutes, lambda news: None)


def run_alone(
    target: Any, task: dict[str, Any], minutes: float, hear: Callable[[dict[str, Any]], object]
) -> Failure | None:
    """Run a task in a process of its own, whose messages go to `hear`. Its failure holds what the engine asserts."""
    limits = worker.Limits(silence=60 * minutes)
    with (
        tempfile.TemporaryDirectory(prefix="llama-cpp-") as folder,
        worker.Worker(WITHOUT_TRACES, imported=(__name__,)) as own,
    ):
        complaints = Path(folder) / "stderr"
        failure = own.run(target, (task, str(complaints)), limits=limits, hear=hear)
        if failure is None:
            return None
        lines = complaints.read_text(encoding="utf-8", errors="replace").splitlines() if complaints.exists() else []
        asserted = [line.rpartition("/")[2] for line in lines if "GGML_ASSERT" in line]
        return dataclasses.replace(failure, reason="; ".join([failure.reason, *asserted[:1]]))


class Library:
    """Speaks to llama.cpp's C library in this process, which ends where an assertion of the library fails.

    described  {name, version, commit, system: the processor's instructions that it uses}
    ubatch     tokens that it computes together at most, its own setting
    """

    def __init__(self, complaints: str) -> None:
        """Load the library and keep it silent. What it still writes goes into the file `complaints`."""
        import llama_cpp_py_sync
        from llama_cpp_py_sync import _cffi_bindings

        os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT), 2)
        self.ffi, self.c = _cffi_bindings.get_ffi(), _cffi_bindings.get_lib()
        self._silent = self.ffi.callback(
            "void(enum ggml_log_level, const char *, void *)", lambda level, words, data: None
        )
        self.c.llama_log_set(self._silent, self.ffi.NULL)
        self.c.llama_backend_init()
        self.described = {
            "name": "llama.cpp",
            "version": llama_cpp_py_sync.__version__,
            "commit": llama_cpp_py_sync.__llama_cpp_commit__,
            "system": self.ffi.string(self.c.llama_print_system_info()).decode().strip(" |"),
        }
        self.ubatch = int(self.c.llama_context_default_params().n_ubatch)

    def load(self, file: str) -> Any:
        """Return the model in a GGUF file, on the CPU. Raises ValueError where the engine cannot read it."""
        options = self.c.llama_model_default_params()
        options.n_gpu_layers = 0
        model = self.c.llama_model_load_from_file(file.encode(), options)
        if model == self.ffi.NULL:
            raise ValueError("llama.cpp cannot read the file")
        return model

    def vocabulary(self, model: Any) -> int:
        """Return the number of tokens that a model knows."""
        return int(self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(model)))

    def context(self, model: Any, *, length: int, sequences: int, threads: int, exact: bool = False) -> Any:
        """Return a context for a number of sequences of `length` tokens, which may all come in one batch.

        exact  keeps keys, values and queries in float32, and computes a whole batch together

        Raises ValueError where the engine has no such room.
        """
        options = self.c.llama_context_default_params()
        options.n_seq_max = sequences
        options.n_ctx = options.n_batch = sequences * (length if exact else -(-length // CELLS) * CELLS)
        options.n_threads = options.n_threads_batch = threads
        if exact:
            options.n_ubatch, options.type_k, options.type_v = options.n_batch, F32, F32
            options.flash_attn_type = 0  # flash attention would round queries to float16
        context = self.c.llama_init_from_model(model, options)
        if context == self.ffi.NULL:
            raise ValueError("llama.cpp makes no context for the file")
        return context

    def batch(self, rows: Sequence[Sequence[int]], start: int, *, every: bool = False) -> Any:
        """Return a batch of token ids (sequences, T) from position `start` on. `drop` frees it.

        every  whether logits are wanted of every position, and not of each sequence's last one alone
        """
        T = len(rows[0])
        batch = self.c.llama_batch_init(len(rows) * T, 0, 1)
        batch.n_tokens = len(rows) * T
        for sequence, ids in enumerate(rows):
            for position, token in enumerate(ids):
                at = sequence * T + position
                batch.token[at], batch.pos[at] = token, start + position
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = every or position == T - 1
        return batch

    def decode(self, context: Any, batch: Any) -> None:
        """Compute a batch and wait for it. Raises ValueError where the engine does not."""
        if answer := self.c.llama_decode(context, batch):
            raise ValueError(f"llama.cpp computes nothing of the file: llama_decode answers {answer}")
        self.c.llama_synchronize(context)

    def logits(self, context: Any, T: int, V: int) -> np.ndarray:
        """Return the logits of T positions of the last batch, (T, V), which the next call overwrites."""
        values = self.ffi.buffer(self.c.llama_get_logits(context), 4 * T * V)
        return np.frombuffer(values, np.float32).reshape(T, V)

    def tokenize(self, model: Any, text: str) -> list[int]:
        """Return the ids of a text by the tokenizer of the file, with the special tokens that it puts in front."""
        words = text.encode()
        room = len(words) + 8
        ids = self.ffi.new("llama_token[]", room)
        count = self.c.llama_tokenize(self.c.llama_model_get_vocab(model), words, len(words), ids, room, True, False)
        return list(ids[0 : max(count, 0)])

    def forget(self, context: Any) -> None:
        """Empty the cache."""
        self.c.llama_memory_clear(self.c.llama_get_memory(context), True)

    def cut(self, context: Any, sequences: int, length: int) -> bool:
        """Remove from the cache of each sequence all behind `length` tokens; return whether the engine can."""
        memory = self.c.llama_get_memory(context)
        return all(self.c.llama_memory_seq_rm(memory, sequence, length, -1) for sequence in range(sequences))

    def free_batch(self, batch: Any) -> None:
        """Free the memory of a batch."""
        self.c.llama_batch_free(batch)

    def free_context(self, context: Any) -> None:
        """Free the memory of a context."""
        self.c.llama_free(context)


def _compute(line: worker.Channel, task: dict[str, Any], complaints: str) -> None:
    """Send, in the engine's process, its tokens of a text, its logits and the likelihood of each sequence."""
    engine, sequences = Library(complaints), task["sequences"]
    line.alive("while llama.cpp read the file")
    model = engine.load(task["file"])
    line.send({"tokens": engine.tokenize(model, task["text"])})
    context = engine.context(model, length=max(map(len, sequences)), sequences=1, threads=task["threads"], exact=True)
    V, nll = engine.vocabulary(model), list[float]()
    for number, ids in enumerate(sequences):
        line.alive(f"while llama.cpp computed sequence {number}")
        engine.forget(context)
        batch = engine.batch([ids], 0, every=True)
        engine.decode(context, batch)
        engine.free_batch(batch)
        logits = engine.logits(context, len(ids), V)
        if number == 0:
            line.send({"logits": logits.copy()})
        nll.append(_nll(logits, np.array(ids)))
    line.send({"nll": np.array(nll)})


def _nll(logits: np.ndarray, ids: np.ndarray) -> float:
    """Return the negative log-likelihood of all tokens but the first, (T, V) and (T,), in nats."""
    rows = logits[:-1].astype(np.float64)
    most = rows.max(-1)
    normaliser = most + np.log(np.exp(rows - most[:, None]).sum(-1))
    return float((normaliser - rows[np.arange(len(rows)), ids[1:]]).sum())


def _quantise(line: worker.Channel, task: dict[str, Any], complaints: str) -> None:
    """Quantise a file in the engine's process."""
    engine = Library(complaints)
    line.alive("while llama.cpp quantised the file")
    options = engine.ffi.new("llama_model_quantize_params *", engine.c.llama_model_quantize_default_params())
    options.nthread, options.ftype, options.pure = task["threads"], task["kind"], True
    if engine.c.llama_model_quantize(task["source"].encode(), task["target"].encode(), options):
        raise ValueError("llama.cpp does not quantise the file")


KV_BYTES = 2  # of a number in the cache


def time_files(
    dense: Path,
    pruned: Path,
    points: Sequence[TimedPoint],
    *,
    steps: int,
    rounds: int,
    threads: int,
    minutes: float = MINUTES,
    hear: Callable[[dict[str, Any]], object] = lambda news: None,
) -> tuple[dict[str, Any], Failure | None]:
    """Time both files at every point; return engine, memory, points and machine of bench.records.served, and a failure.

    steps    tokens for each sequence in a pass of decode
    rounds   of dense against pruned, half of them where these are enough, as in bench.speed
    minutes  without a message after which the engine is ended
    hear     is given each piece as it comes

    Pieces that came before a Failure stand.
    """
    speed: dict[str, Any] = {"points": []}

    def merge(news: dict[str, Any]) -> None:
        hear(news)
        speed["points"] += news.pop("points", [])
        speed.update(news)

    task = {"dense": str(dense), "pruned": str(pruned), "points": list(points), "steps": steps, "rounds": rounds}
    failure = run_alone(_time, task | {"threads": threads}, minutes, merge)
    return speed, failure


def _time(line: worker.Channel, task: dict[str, Any], complaints: str) -> None:
    """Do the whole work of `time_files` in the engine's process."""
    engine = Library(complaints)
    line.send({"engine": engine.described | {"threads": task["threads"], "cache": "float16", "ubatch": engine.ubatch}})
    before, resident = environment.state_of_machine(), resident_bytes_of_process()
    line.alive("while llama.cpp read the pruned file")
    files = {"pruned": engine.load(task["pruned"])}
    weighed: dict[str, Any] = {"resident_before_bytes": resident, "points": []}
    for point in task["points"]:
        line.alive(f"while it measured the memory of {point}")
        try:
            memory = point.memory(resident_bytes=_resident_at(engine, files["pruned"], point, task))
        except ValueError as error:  # the engine's own word on this point
            memory = point.memory(failed=reason_of_error(error))
        weighed["points"].append(to_plain(memory))
    line.send({"memory": weighed})
    line.alive("while llama.cpp read the dense file")
    files = {"dense": engine.load(task["dense"]), **files}
    for point in task["points"]:
        try:
            timed = _in_turns(line, engine, files, point, task)
        except ValueError as error:  # the engine's own word on this point
            timed = point.timing(failed=reason_of_error(error))
        line.send({"points": [to_plain(timed)]})
    line.send({"machine": environment.load_between_states(before, environment.state_of_machine())})


def _resident_at(engine: Library, file: Any, point: TimedPoint, task: dict[str, Any]) -> int | None:
    """Return the bytes that the process has resident once a point was computed. Raises ValueError as the engine."""
    run = TimedFile(engine, file, point, task["steps"], task["threads"])
    try:
        _once(run.workload)
        return resident_bytes_of_process()
    finally:
        run.close()


def _once(work: Workload) -> None:
    work.reset()
    for _ in range(work.steps):
        work.step()


def _in_turns(
    line: worker.Channel, engine: Library, files: dict[str, Any], point: TimedPoint, task: dict[str, Any]
) -> PointTiming:
    """Warm both files up at a point, time them in turns, and return the timing."""
    runs = {name: TimedFile(engine, model, point, task["steps"], task["threads"]) for name, model in files.items()}
    works, clock = {name: run.workload for name, run in runs.items()}, WallClock()
    try:
        warm = {}
        for name, work in works.items():
            line.alive(f"while it warmed up the {name} file, {point}")
            warm[name] = timing.warm_up(work, clock)
        passes = timing.passes_per_turn(works, warm, task["rounds"])
        turns = timing.time_rounds(
            works, clock, task["rounds"], passes, lambda: line.alive(f"while it timed {point}"), enough=is_narrow
        )
        return summarise_rounds(point, turns, warm)
    finally:
        for run in runs.values():
            run.close()


class TimedFile:
    """Holds a context of the engine for one file and point, and makes its workload of `ids` (batch, tokens)."""

    def __init__(self, engine: Library, model: Any, point: TimedPoint, steps: int, threads: int) -> None:
        self.engine, self.point, self.depth = engine, point, point.tokens
        count = steps if point.kind == "decode" else 0
        length = point.tokens + count
        self.context = engine.context(model, length=length, sequences=point.batch, threads=threads)
        draw, V = random.Random(0), engine.vocabulary(model)
        self.ids: list[list[int]] = []
        for _ in range(point.batch):
            self.ids.append([draw.randrange(V) for _ in range(length)])
        self.prompt = engine.batch([row[: self.depth] for row in self.ids], 0)
        self.steps = []
        for at in range(self.depth, length):
            self.steps.append(engine.batch([row[at : at + 1] for row in self.ids], at))
        self.at, self.filled = 0, False

    @property
    def workload(self) -> Workload:
        """Return the calls of the engine that are timed."""
        if self.point.kind == "prefill":
            return Workload(lambda: self.engine.decode(self.context, self.prompt), self._empty)
        return Workload(self._step, self._rewind, len(self.steps))

    def _empty(self) -> None:
        self.engine.forget(self.context)

    def _rewind(self) -> None:
        """Bring the cache back to the prompt: cut behind it, or fill it anew where the engine cannot cut."""
        self.at = 0
        if not (self.filled and self.engine.cut(self.context, self.point.batch, self.depth)):
            self._empty()
            self.engine.decode(self.context, self.prompt)
            self.filled = True

    def _step(self) -> None:
        self.engine.decode(self.context, self.steps[self.at])
        self.at += 1

    def close(self) -> None:
        """Free the memory that the engine holds of the file."""
        for batch in (self.prompt, *self.steps):
            self.engine.free_batch(batch)
        self.engine.free_context(self.context)
