"""An OpenAI-compatible server on the loopback address over a tiny model, as vLLM's or one that repeats prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from threading import Lock, Thread
from typing import Any

import torch
from stream_server import QuietServer


class CompletionsHandler(BaseHTTPRequestHandler):
    """Answers completions of token ids; `way` is how it gives log-probabilities of a prompt."""

    model: Any
    tokenizer: Any
    way = "prompt_logprobs"
    version: str | None = "0.32.0"
    models: tuple[str, ...] = ("tiny",)
    key = ""
    longest: int | None = 2048
    elsewhere = ""  # an address to which it redirects
    busy = 0  # requests that are answered with 503 first
    replies: Any = None  # makes another reply of a right one
    lock: Lock
    requests: list[Any]

    def do_GET(self) -> None:
        if self.elsewhere:
            self.send_response(302)
            self.send_header("Location", self.elsewhere)
            self.end_headers()
        elif self.path == "/version" and self.version:
            self._say(200, {"version": self.version})
        elif self.path == "/v1/models" and self._has_key():
            listed = [{"id": name, "owned_by": "vllm", "max_model_len": self.longest} for name in self.models]
            self._say(200, {"data": listed})
        else:
            self._say(404 if self._has_key() else 401, {"error": f"not for {self.headers.get('Authorization')}"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            kind = type(self)
            self.requests.append(body)
            busy, kind.busy = self.busy, max(0, self.busy - 1)
            choice = {} if busy else self._choice(body)
        if busy or not self._has_key():
            self._say(503 if busy else 401, {"error": {"message": f"not for {self.headers.get('Authorization')}"}})
        elif self.way == "none" and body.get("echo"):
            self._say(400, {"error": {"message": f"Only no echo is supported, {self.headers.get('Authorization')}"}})
        else:
            reply = {"choices": [choice]}
            replies = type(self).replies  # of the class: it takes no self
            self._say(200, replies(reply) if replies else reply)

    def _has_key(self) -> bool:
        return self.headers.get("Authorization") == (f"Bearer {self.key}" if self.key else None)

    @torch.no_grad()
    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = torch.tensor([body["prompt"]])
        logarithms = self.model(ids).logits[0].double().log_softmax(-1)
        own = logarithms[:-1].gather(1, ids[0, 1:, None])[:, 0]
        ranks = 1 + (logarithms[:-1] > own[:, None]).sum(1)
        if self.way == "prompt_logprobs" and "prompt_logprobs" in body:
            entries = zip(body["prompt"][1:], own.tolist(), ranks.tolist(), strict=True)
            told = [None, *({str(token): {"logprob": value, "rank": rank}} for token, value, rank in entries)]
            return {"text": "", "prompt_logprobs": told}
        if self.way == "echo" and body.get("echo"):
            best = logarithms[:-1].max(1).values.tolist()
            values = [None, *own.tolist(), -1.0]
            return {
                "logprobs": {"token_logprobs": values, "top_logprobs": [None, *({"w": value} for value in best), {}]}
            }
        return self._written(ids, body)

    def _written(self, ids: torch.Tensor, body: dict[str, Any]) -> dict[str, Any]:
        most = body["max_tokens"]
        new = self.model.generate(ids, max_new_tokens=most, do_sample=False)[0, ids.shape[1] :].tolist()
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return {"text": text} | ({"token_ids": new} if body.get("return_token_ids") and self.way != "echo" else {})

    def _say(self, code: int, answer: Any) -> None:
        sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@contextmanager
def serve_completions(model: Any, tokenizer: Any, **details: Any) -> Iterator[tuple[str, Any]]:
    """Serve a model, and yield the address and the handler's class, whose `requests` holds what it was asked."""
    fields = {"model": model, "tokenizer": tokenizer, "lock": Lock(), "requests": []} | details
    kind = type("Handler", (CompletionsHandler,), fields)
    server = QuietServer(("127.0.0.1", 0), kind)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kind
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
