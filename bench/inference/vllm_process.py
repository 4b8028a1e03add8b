"""Runs vLLM in a process of the Python that has it, since it needs other versions than this one has.

The process (bench.inference.vllm_script) is kept: it holds several models and answers one request after the other. It
is ended, with all that it has started, once it says nothing for too long. After any failure the next request starts
another one, which holds no models yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.system import failures
from methods.errors import UserError

EXACT = 1e-3  # nats by which vLLM's log-probability of a token may differ from this suite's, all in float32
CHUNK = 2**16  # bytes that are read at once
KEPT_LETTERS, SHOWN_LETTERS = 20_000, 300  # of what vLLM wrote last, and of the reason that is given
SETTINGS = {  # of the process; those that the user has set are kept
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB for each model on a CPU, otherwise most of the memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines in turns would bind their threads to the same cores
    "VLLM_NO_USAGE_STATS": "1",
}
EAGER = "enforce_eager"
# What reads log-probabilities of a prompt is compiled by g++ otherwise, also where models are not.
UNCOMPILED = {"TORCHDYNAMO_DISABLE": "1"}
ERROR = re.compile(r"(?:^|\s)(\w*(?:Error|Exception): .*)", re.MULTILINE)
CAUSE_ABOVE = "root cause above"  # is in what vLLM raises in place of the error of a process that it has started


class EngineFailed(Exception):
    """Says that the engine gave no answer: `status` of bench.records.served."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


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
        self._process: subprocess.Popen[bytes] | None = None
        self._packages: tempfile.TemporaryDirectory[str] | None = None
        self._kills: int | None = None

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
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        line, written = b"", bytearray()
        try:
            with contextlib.suppress(BrokenPipeError):  # the process has ended, and its last words say why
                self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            line = self._listen(self._process, written)
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
            cause = _cause(_text(written)) if CAUSE_ABOVE in reason else ""
            raise EngineFailed(answer["status"], (cause or reason)[:SHOWN_LETTERS])
        return dict(answer)

    def end(self) -> None:
        """End the process and all processes that it has started. It holds no model then."""
        process, self._process = self._process, None
        self.folders.clear()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        if self._packages is not None:
            self._packages.cleanup()
            self._packages = None

    def _start(self) -> None:
        """Start the process in a group of its own, with the packages of this project alone beside those of vLLM."""
        self._packages = tempfile.TemporaryDirectory(prefix="vllm-")
        for home in failures.OURS:
            (Path(self._packages.name) / home.name).symlink_to(home)
        path = os.pathsep.join(filter(None, [self._packages.name, os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(self.threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        eager = UNCOMPILED if self.options.get(EAGER) else {}
        self._kills = failures.count_kills()
        try:
            self._process = subprocess.Popen(
                [self.python, "-m", "bench.inference.vllm_script"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**SETTINGS, **eager, **os.environ, **own},
                start_new_session=True,
            )
        except OSError as error:
            self.end()
            raise EngineFailed("error", f"{self.python} cannot be run: {error.strerror}") from None

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
        process, kills = self._process, self._kills
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.silence if not line.endswith("\n") else 0)
        code = process.poll()
        self.end()
        last = _cause(written) or " ".join((line + written).split())
        last = last[-SHOWN_LETTERS:]
        if code is None:
            raise EngineFailed("error", f"vllm answers {line.strip()[:SHOWN_LETTERS]!r}, which is no JSON object")
        if code < 0:
            death = failures.failure_of_death(code, "while it ran", kills)
            raise EngineFailed(death.status, f"vllm {death.reason}: {last}")
        raise EngineFailed(failures.status_of_error(RuntimeError(written)), f"vllm ended: {last}")


def _text(written: bytearray) -> str:
    return written.decode("utf-8", "replace")


def _cause(written: str) -> str:
    """Return the last error that vLLM's processes have written and that points to no other; empty without one."""
    errors = ERROR.findall(written)
    return next((error.strip() for error in reversed(errors) if CAUSE_ABOVE not in error), "")
