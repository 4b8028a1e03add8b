"""Runs the OpenAI-compatible server of an engine on this machine: vLLM's own, or llama.cpp's own by `xllamacpp`.

A server listens on a free port of the loopback address. It answers only who knows its key, which is drawn for it and
handed over by its environment, so that no record, log or list of processes has it. It is ended with all that it has
started, also where this process is killed (bench.inference.server_script).
"""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.inference.engine_process import KEPT_LETTERS, SHOWN_LETTERS, EngineFailed, EngineProcess, find_cause
from bench.inference.server_script import KEY
from bench.plan.protocol import VLLM
from methods.errors import to_one_line

HOST = "127.0.0.1"
LLAMA_SERVER = "xllamacpp"
POLL, ANSWER = 0.2, 5.0  # seconds between two looks at a server that starts, and for which one look waits
COMPLAINT = re.compile(r"^[\d.]+ E +\w+ +[\w()]+: (.*)", re.MULTILINE)  # an error in the log of llama.cpp


def version_of_llama_server() -> str:
    """Return the version of the package with llama.cpp's server, without importing it; empty without one."""
    return importlib.metadata.version(LLAMA_SERVER) if importlib.util.find_spec(LLAMA_SERVER) else ""


class ServerProcess:
    """Keeps a server while its block is open: `port`, `key` and the `name` of its one model are drawn for it.

    engine       llama.cpp or vllm
    python       the interpreter that has it
    place        the model's file or folder
    words        of the server, as bench.inference.server_script takes them
    environment  of the server, beside the key
    silence      seconds without a word after which a server that starts counts as hanging

    To open the block raises EngineFailed where the server does not load the model.
    """

    def __init__(
        self,
        engine: str,
        python: str,
        place: Path,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        silence: float,
    ) -> None:
        self.engine, self.python, self.place, self.words, self.silence = engine, python, place, words, silence
        self.environment = environment
        self.key, self.name = secrets.token_hex(16), f"model-{secrets.token_hex(4)}"
        self.port = _find_free_port()
        self._process: EngineProcess | None = None

    def __enter__(self) -> ServerProcess:
        """Start the server, and return once it has loaded the model."""
        try:
            self._start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the server."""
        self.end()

    def _start(self) -> None:
        about = [self.engine, HOST, str(self.port), self.name, str(self.place)]
        command = ["-m", "bench.inference.server_script", *about, *self.words]
        self._process = EngineProcess(self.python, command, {**self.environment, KEY: self.key}, is_logged=True)
        log = self._process.log
        written, since = -1, time.monotonic()
        while not self._has_loaded():
            self.refuse_end()
            if (size := log.stat().st_size) != written:
                written, since = size, time.monotonic()
            if time.monotonic() - since > self.silence:
                raise EngineFailed("timed_out", f"{self.engine} said nothing for {self.silence} s, and was ended")
            time.sleep(POLL)

    def _has_loaded(self) -> bool:
        """Say whether the server lists its model; another one that may have the port does not know the name."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ANSWER)
        try:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {self.key}"})
            answer: Any = json.loads(connection.getresponse().read())
            return any(model["id"] == self.name for model in answer["data"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return False
        finally:
            connection.close()

    def refuse_end(self, seconds: float = 0) -> None:
        """Raise EngineFailed, with the reason, where the server has ended, or ends within some seconds."""
        process = self._process
        if process is None:
            return
        try:
            code = process.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        written = self.hide_secrets(process.log.read_bytes()[-KEPT_LETTERS:].decode("utf-8", "replace"))
        self.end()
        complaint = COMPLAINT.search(written) if self.engine != VLLM else None
        cause = complaint.group(1) if complaint else find_cause(written)
        reason = cause or (" ".join(written.split()) if code >= 0 else "its log has no error")
        raise process.failure_of_end(code, written, reason[-SHOWN_LETTERS:], f"{self.engine}'s server")

    def hide_secrets(self, words: str) -> str:
        """Return words without the key."""
        return words.replace(self.key, "***")

    def describe_trouble(self, words: str) -> str:
        """Return what went wrong with a server in one line, without its key."""
        return to_one_line(self.hide_secrets(words))[:SHOWN_LETTERS]

    def end(self) -> None:
        """End the server and all that it has started."""
        process, self._process = self._process, None
        if process is not None:
            process.end()


def _find_free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket() as own:
        own.bind((HOST, 0))
        return int(own.getsockname()[1])
