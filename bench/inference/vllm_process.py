"""Runs vLLM in a process of the Python that has it, since it needs other versions than this one has.

The process (bench.inference.vllm_script) is kept: it holds several models and answers one request after the other. It
is ended, with all that it has started, once it says nothing for too long. After any failure the next request starts
another one, which holds no models yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.inference.engine_process import (
    CAUSE_ABOVE,
    KEPT_LETTERS,
    SHOWN_LETTERS,
    EngineFailed,
    EngineProcess,
    find_cause,
)
from methods.errors import UserError

EXACT = 1e-3  # nats by which vLLM's log-probability of a token may differ from this suite's, all in float32
CHUNK = 2**16  # bytes that are read at once
SETTINGS = {  # of the process; those that the user has set are kept
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB for each model on a CPU, otherwise most of the memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines in turns would bind their threads to the same cores
    "VLLM_NO_USAGE_STATS": "1",
}
EAGER = "enforce_eager"
# What reads log-probabilities of a prompt is compiled by g++ otherwise, also where models are not.
UNCOMPILED = {"TORCHDYNAMO_DISABLE": "1"}


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Return flags as arguments of vllm.LLM: --name value or --name=value, --enforce-eager is True, --no-name False.

    Raises UserError for a word that belongs to no such flag, as short ones do not.
    """
    options: dict[str, Any] = {}
    waiting = ""  # the flag whose value may be the next word
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            off = name.startswith("no_") and not equals
            waiting = "" if equals or off else name
            options[name[3:] if off else name] = _value(value) if equals else not off
        elif waiting:
            options[waiting], waiting = _value(word), ""
        else:
            raise UserError(f"--engine-args: {word!r} belongs to no flag; write --name value, with names in full")
    return options


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def environment_of_vllm(threads: int, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of a process of vLLM's: what this one has goes before what is usual.

    options  arguments of vllm.LLM
    """
    eager = UNCOMPILED if options.get(EAGER) else {}
    return {**SETTINGS, **eager, **os.environ, "OMP_NUM_THREADS": str(threads)}


class VllmProcess:
    """Keeps the process, and says which models it holds.

    python   the interpreter that has vLLM
    options  arguments of vllm.LLM for every model
    threads  of the processor
    silence  seconds without a word after which the process is ended
    """

    def __init__(self, python: str, options: Mapping[str, Any], *, threads: int, silence: int) -> None:
        self.python, self.options, self.threads, self.silence = python, dict(options), threads, silence
        self.folders: dict[str, tuple[Path, dict[str, Any]]] = {}
        self._process: EngineProcess | None = None

    def load(self, name: str, folder: Path, **options: Any) -> None:
        """Have a folder held as `name`, in the place of what had that name. Raises EngineFailed.

        options  more arguments of vllm.LLM; those of every model go before them
        """
        mine = options | self.options
        if self.folders.get(name) != (folder, mine):
            self.folders.pop(name, None)
            self.exchange("load", name=name, folder=str(folder), options=mine)
            self.folders[name] = folder, mine

    def exchange(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a request, as bench.inference.vllm_script describes it. Raises EngineFailed."""
        if self._process is None:
            self._process = self._start()
        running = self._process.process
        assert running.stdin is not None
        line, written = b"", bytearray()
        try:
            with contextlib.suppress(BrokenPipeError):  # the process has ended, and its last words say why
                running.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            line = self._listen(running, written)
            answer = json.loads(line)
            reason = str(answer.get("reason", ""))
        except TimeoutError:
            self.end()
            raise EngineFailed("timed_out", f"vllm said nothing for {self.silence} s, and was ended") from None
        except (ValueError, AttributeError):  # no JSON, or no object
            self._explain_end(line.decode("utf-8", "replace"), _text(written))
        except BaseException:
            self.end()
            raise
        if reason:
            self.end()
            cause = find_cause(_text(written)) if CAUSE_ABOVE in reason else ""
            raise EngineFailed(answer["status"], (cause or reason)[:SHOWN_LETTERS])
        return dict(answer)

    def end(self) -> None:
        """End the process and all processes that it has started. It holds no model then."""
        process, self._process = self._process, None
        self.folders.clear()
        if process is not None:
            process.end()

    def _start(self) -> EngineProcess:
        environment = environment_of_vllm(self.threads, self.options) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        return EngineProcess(self.python, ["-m", "bench.inference.vllm_script"], environment)

    def _listen(self, process: subprocess.Popen[bytes], written: bytearray) -> bytes:
        """Return the line that a process answers, and less where it ends. Raises TimeoutError.

        written  gets what it writes meanwhile, the last letters of it
        """
        line = bytearray()
        with selectors.DefaultSelector() as streams:
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                streams.register(stream, selectors.EVENT_READ)
            while streams.get_map() and not line.endswith(b"\n"):
                if not (ready := streams.select(self.silence)):
                    raise TimeoutError
                for key, _ in ready:
                    words = os.read(key.fd, CHUNK)
                    if not words:
                        streams.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        line += words
                    else:
                        written += words
                        del written[:-KEPT_LETTERS]
        return bytes(line)

    def _explain_end(self, line: str, written: str) -> NoReturn:
        """Raise EngineFailed for a process that ended, or that answers nonsense."""
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.process.wait(self.silence if not line.endswith("\n") else 0)
        code = process.process.poll()
        self.end()
        if code is None:
            raise EngineFailed("error", f"vllm answers {line.strip()[:SHOWN_LETTERS]!r}, which is no JSON object")
        last = find_cause(written) or " ".join((line + written).split())
        raise process.failure_of_end(code, written, last[-SHOWN_LETTERS:], "vllm")


def _text(written: bytearray) -> str:
    return written.decode("utf-8", "replace")
