"""A server of streamed completions on the loopback address, which behaves as a test wants, well or not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

Send = Callable[[bytes], None]


class StreamHandler(BaseHTTPRequestHandler):
    """Writes `max_tokens` words behind each prompt, each in a piece of its own, to whom the key is known to."""

    protocol_version = "HTTP/1.1"
    key = ""
    name = "tiny"
    behave: Callable[[Any, dict[str, Any], Send], None] | None = None
    requests: list[dict[str, Any]]
    lock: Lock

    def do_GET(self) -> None:
        if self._has_key():
            self._say(200, {"data": [{"id": self.name}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.requests.append(body)
        if self._has_key():
            behave = type(self).behave or write_words
            behave(self, body, self.wfile.write)
            self.close_connection = True

    def _has_key(self) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {self.key}"
        if not known:
            self._say(401, {"error": {"message": f"not for {self.headers.get('Authorization')}"}})
        return known

    def _say(self, code: int, answer: Any) -> None:
        sent = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def begin(self) -> None:
        """Send the head of a stream in chunks."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


class QuietServer(ThreadingHTTPServer):
    """Says nothing of a request that ends without an answer."""

    def handle_error(self, *_: object) -> None:
        """Say nothing on stderr."""


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(facts: Any) -> bytes:
    return b"data: " + (facts if isinstance(facts, bytes) else json.dumps(facts).encode()) + b"\n\n"


def write_words(handler: Any, body: dict[str, Any], send: Send, *, extra: int = 0) -> None:
    """Write what was asked for, as llama.cpp does: the last piece has no text, and comes with the usage."""
    handler.begin()
    count = body["max_tokens"] + extra
    for number in range(count):
        text = "" if number == 1 else "word "  # half of a letter, which vLLM holds back
        send(chunk(event({"choices": [{"text": text, "finish_reason": None}]})))
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}
    last = event({"choices": [{"text": "", "finish_reason": "length"}], "usage": usage})
    send(chunk(last[:9]))  # an event may be cut in two
    send(chunk(last[9:]) + chunk(event(b"[DONE]")) + chunk(b""))


def trickle(handler: Any, body: dict[str, Any], send: Send) -> None:
    """Send a byte from time to time, without an end."""
    handler.begin()
    while True:
        send(chunk(b"d"))
        time.sleep(0.02)


@contextmanager
def stream(**details: Any) -> Iterator[tuple[int, Any]]:
    """Serve, and yield the port and the handler's class, whose `requests` holds what it was asked."""
    kind = type("Handler", (StreamHandler,), {"lock": Lock(), "requests": []} | details)
    server = QuietServer(("127.0.0.1", 0), kind)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port, kind
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
