"""Computes with llama.cpp what a GGUF file holds, in a process of its own that may crash or hang.

The engine comes with the extra `prunebench[llama]`, whose package brings llama.cpp's C library and its declarations
(cffi). The file is computed on the CPU, with keys and values kept in float32.

Letters: B = sequences, T = tokens of one, V = vocabulary.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.system import worker
from bench.system.failures import Failure
from methods.errors import UserError

PACKAGE = "llama_cpp_py_sync"
INSTALL = "pip install 'prunebench[llama]'"
FILE_TYPES = {"q8_0": 7, "q4_0": 2}  # llama.cpp's numbers of the ways to quantise a file (llama_ftype)
MINUTES = 10.0  # without a word after which an engine counts as hanging
F32 = 0  # llama.cpp's number of the type (ggml_type)


@dataclass(frozen=True)
class EngineAnswer:
    """Holds what the engine made of a file.

    tokens  of the text that it was given, by its own tokenizer
    logits  (T, V) of the first sequence, in float32
    nll     (B,) the negative log-likelihood of each sequence in nats, all tokens but its first
    """

    tokens: list[int]
    logits: np.ndarray
    nll: np.ndarray


def is_installed() -> bool:
    """Say whether the engine's package is here, without importing it."""
    return importlib.util.find_spec(PACKAGE) is not None


def require(what: str) -> None:
    """Raise UserError, which begins with `what` needs the engine, where that is not installed."""
    if not is_installed():
        raise UserError(f"{what}, which is not installed: {INSTALL}")


def compute(
    file: Path, sequences: Sequence[Sequence[int]], text: str, *, threads: int, minutes: float = MINUTES
) -> EngineAnswer | Failure:
    """Return the engine's tokens of `text` and what it computes on `sequences` of token ids, each from position 0.

    minutes  without a word, which comes with each sequence, after which its process is ended

    What goes wrong in the engine, a crash or a hang too, is a Failure and no exception.
    """
    found: dict[str, Any] = {}
    rows = [list(map(int, ids)) for ids in sequences]
    task = {"file": str(file), "sequences": rows, "text": text, "threads": threads}
    return run_alone(_compute, task, minutes, found) or EngineAnswer(**found)


def quantise(source: Path, target: Path, kind: str, *, threads: int, minutes: float = MINUTES) -> Failure | None:
    """Write the GGUF file `source` to `target` with its matrices in `kind`, one of FILE_TYPES, by the engine itself.

    Embedding and head are quantised like all others. Returns a Failure where the engine does not finish.
    """
    task = {"source": str(source), "target": str(target), "kind": FILE_TYPES[kind], "threads": threads}
    return run_alone(_quantise, task, minutes, {})


def run_alone(target: Any, task: dict[str, Any], minutes: float, found: dict[str, Any]) -> Failure | None:
    """Run a task in a process of its own, and add to its failure what the engine has asserted in vain."""
    limits = worker.Limits(silence=60 * minutes)
    with tempfile.TemporaryDirectory(prefix="llama-cpp-") as folder, worker.Worker({"GGML_NO_BACKTRACE": "1"}) as own:
        complaints = Path(folder) / "stderr"
        failure = own.run(target, (task, str(complaints)), limits=limits, hear=found.update)
        if failure is None:
            return None
        said = complaints.read_text(encoding="utf-8", errors="replace").splitlines() if complaints.exists() else []
        asserted = [line.rpartition("/")[2] for line in said if "GGML_ASSERT" in line]
        return dataclasses.replace(failure, reason="; ".join([failure.reason, *asserted[:1]]))


def _library(complaints: str) -> tuple[Any, Any, Any]:
    """Return the C library, its declarations, and what keeps it silent as long as that is held.

    What it writes past that goes into the file `complaints`.
    """
    from llama_cpp_py_sync import _cffi_bindings

    os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT), 2)
    ffi, library = _cffi_bindings.get_ffi(), _cffi_bindings.get_lib()
    silent = ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda level, words, data: None)
    library.llama_log_set(silent, ffi.NULL)
    library.llama_backend_init()
    return library, ffi, silent


def _compute(line: worker.Line, task: dict[str, Any], complaints: str) -> None:
    """Tell, in the engine's process, its tokens of a text, its logits and the likelihood of each sequence."""
    library, ffi, _silent = _library(complaints)
    line.alive("while llama.cpp read the file")
    options = library.llama_model_default_params()
    options.n_gpu_layers = 0
    model = library.llama_model_load_from_file(task["file"].encode(), options)
    if model == ffi.NULL:
        raise ValueError("llama.cpp cannot read the file")
    vocabulary, sequences = library.llama_model_get_vocab(model), task["sequences"]
    line.tell({"tokens": _tokens(library, ffi, vocabulary, task["text"])})
    options = library.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = max(map(len, sequences))
    options.n_threads = options.n_threads_batch = task["threads"]
    options.type_k = options.type_v = F32
    options.flash_attn_type = 0  # which would round queries to float16
    context = library.llama_init_from_model(model, options)
    if context == ffi.NULL:
        raise ValueError("llama.cpp makes no context for the file")
    V, nll = library.llama_vocab_n_tokens(vocabulary), list[float]()
    for number, ids in enumerate(sequences):
        line.alive(f"while llama.cpp computed sequence {number}")
        logits = _logits(library, ffi, context, ids, V)
        if number == 0:
            line.tell({"logits": logits.copy()})
        nll.append(_nll(logits, np.array(ids)))
    line.tell({"nll": np.array(nll)})


def _tokens(library: Any, ffi: Any, vocabulary: Any, text: str) -> list[int]:
    words = text.encode()
    room = len(words) + 8
    ids = ffi.new("llama_token[]", room)
    count = library.llama_tokenize(vocabulary, words, len(words), ids, room, True, False)
    return list(ids[0 : max(count, 0)])


def _logits(library: Any, ffi: Any, context: Any, ids: list[int], V: int) -> np.ndarray:
    """Return the logits of all positions, (T, V), which the next call overwrites."""
    library.llama_memory_clear(library.llama_get_memory(context), True)
    T = len(ids)
    batch = library.llama_batch_init(T, 0, 1)
    batch.n_tokens = T
    for position, token in enumerate(ids):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
    answer = library.llama_decode(context, batch)
    library.llama_batch_free(batch)
    if answer:
        raise ValueError(f"llama.cpp computes nothing of the file: llama_decode answers {answer}")
    return np.frombuffer(ffi.buffer(library.llama_get_logits(context), 4 * T * V), np.float32).reshape(T, V)


def _nll(logits: np.ndarray, ids: np.ndarray) -> float:
    """Return the negative log-likelihood of all tokens but the first, (T, V) and (T,), in nats."""
    rows = logits[:-1].astype(np.float64)
    most = rows.max(-1)
    normaliser = most + np.log(np.exp(rows - most[:, None]).sum(-1))
    return float((normaliser - rows[np.arange(len(rows)), ids[1:]]).sum())


def _quantise(line: worker.Line, task: dict[str, Any], complaints: str) -> None:
    """Quantise a file in the engine's process."""
    library, ffi, _silent = _library(complaints)
    line.alive("while llama.cpp quantised the file")
    options = ffi.new("llama_model_quantize_params *", library.llama_model_quantize_default_params())
    options.nthread, options.ftype, options.pure = task["threads"], task["kind"], True
    if library.llama_model_quantize(task["source"].encode(), task["target"].encode(), options):
        raise ValueError("llama.cpp does not quantise the file")
