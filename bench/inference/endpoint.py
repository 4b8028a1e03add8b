"""Scores by an OpenAI-compatible server: log-likelihoods of prompts that are token ids, and greedy text behind them.

`connect` asks a server for its models, its version and the log-probabilities of a prompt of four tokens. The last are
given in one of two ways:

prompt_logprobs  of vLLM: for each token its id, its log-probability and its rank
echo             with logprobs, of OpenAI's first interface: the prompt comes back, each token beside the likeliest one

A server that gives neither, such as llama.cpp's own, is refused. Each request holds one prompt and generates a token,
since some servers take 0 tokens for any number. The context is read for every answer anew, also by servers that keep
prefixes: those do not keep what log-probabilities of a prompt stand on.

What a server does wrong is `NoAnswer`, whose words name neither its address nor the key.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from bench.inference.predictor import Ids, NoAnswer, Predicted, Predictor, cut_at_end
from bench.plan.address import KEY, ServerAddress
from bench.plan.cell import ScoringEngine
from methods import console
from methods.errors import UserError, to_one_line

PAUSES = (1.0, 2.0, 4.0)  # seconds before a request is tried again
MOST_BYTES = 2**26  # of an answer
STOPS = 4  # stop strings of a request, since OpenAI takes no more; the others are looked for here
LETTERS = 200  # of what a server says
PROBE = (3, 4, 5, 6)  # tokens that every vocabulary has
VERSIONS = {"version": "version", "get_server_info": "version", "props": "build_info"}  # of vLLM, SGLang, llama.cpp


def connect(address: ServerAddress, tokenizer: Any = None) -> Endpoint:
    """Return the server behind an address. Raises NoAnswer where it cannot score, and UserError for a wrong key."""
    server = _Server(address.url, _read_key(), address.seconds)
    name, facts = _find_model(server, address.model)
    probe = {"model": name, "max_tokens": 1, "temperature": 0}
    refusals = []
    for way, (asking, read) in WAYS.items():
        try:
            read(server.complete({**probe, **asking, "prompt": list(PROBE)}), PROBE)
        except NoAnswer as reason:
            refusals.append(str(reason))
            continue
        engine = ScoringEngine(str(facts.get("owned_by") or "unknown")[:LETTERS], _find_version(server), way)
        longest = facts.get("max_model_len")
        longest = longest if isinstance(longest, int) else None
        return Endpoint(server, name, engine, longest, address.requests, tokenizer)
    raise NoAnswer(f"gives no log-probabilities of a prompt, by {' and by '.join(WAYS)}: it {'; '.join(refusals)}")


def _read_key() -> str:
    """Return the key for the server; empty where there is none. Raises UserError for one that no header can hold."""
    key = os.environ.get(KEY, "")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the variable {KEY} holds no key: a key is letters, digits and signs, without spaces")
    return key


def _find_model(server: _Server, name: str) -> tuple[str, Mapping[str, Any]]:
    """Return the name of a model, by default of the only one, and what the server says of it."""
    models = server.get("v1/models").get("data")
    if not isinstance(models, list) or not all(isinstance(each, dict) and "id" in each for each in models):
        raise NoAnswer("lists no models at /v1/models")
    by_name = {str(each["id"]): each for each in models}
    names = to_one_line(", ".join(by_name))[:LETTERS] or "none"
    if name and name not in by_name:
        raise NoAnswer(f"has no model {name!r}; it has {names}")
    if not name and len(by_name) != 1:
        raise NoAnswer(f"has {len(by_name)} models, {names}; name one with --endpoint-model")
    name = name or next(iter(by_name))
    return name, by_name[name]


def _find_version(server: _Server) -> str:
    """Return the version that a server reports of itself; empty where it does not."""
    for path, field in VERSIONS.items():
        with suppress(NoAnswer):
            if version := server.get(path).get(field):
                return str(version)[:LETTERS]
    return ""


@dataclass(frozen=True)
class Endpoint(Predictor):
    """Scores by a server, as a Backend of bench.evaluation.scoring.

    engine    of the server, which inputs of cells name
    longest   the most tokens that a request may have with those that it generates; None: the server does not say
    requests  that wait for an answer at once
    tokenizer of the model, for servers that write texts and give no ids; None: nothing is written
    """

    server: _Server
    model: str
    engine: ScoringEngine
    longest: int | None
    requests: int
    tokenizer: Any

    def write_behind(
        self, prompts: Sequence[Ids], most: int, until: Sequence[str], has_ended: Callable[[Ids], bool]
    ) -> list[list[int]]:
        """Return the greedy tokens behind each prompt, `most` at most, up to the first with which they have ended.

        The server may end earlier, by one of the stop strings `until`.
        """
        for prompt in prompts:
            self.refuse_longer(len(prompt) + most)
        body = {"max_tokens": most, "stop": list(until[:STOPS]), "return_token_ids": True}
        choices = self._answer_all([{**body, "prompt": list(prompt)} for prompt in prompts], "writing")
        return [cut_at_end(self._read_ids(choice)[:most], has_ended) for choice in choices]

    def refuse_longer(self, tokens: int) -> None:
        """Raise NoAnswer for a request of more tokens than the server takes, since it would be cut or refused."""
        if self.longest is not None and tokens > self.longest:
            raise NoAnswer(f"takes {self.longest:,} tokens, and a request has {tokens:,} with those that it generates")

    def predict_all(self, sequences: Sequence[Ids], what: str) -> list[Predicted]:
        """Return the predictions of each token but the first of token sequences."""
        asking, read = WAYS[self.engine.way]
        for ids in sequences:
            self.refuse_longer(len(ids) + 1)
        choices = self._answer_all([{"max_tokens": 1, **asking, "prompt": list(ids)} for ids in sequences], what)
        return [read(choice, ids) for choice, ids in zip(choices, sequences, strict=True)]

    def _read_ids(self, choice: Mapping[str, Any]) -> list[int]:
        """Return the tokens that the server has written, by their ids or else by their text."""
        ids, text = choice.get("token_ids"), choice.get("text")
        if isinstance(ids, list) and all(isinstance(each, int) for each in ids):
            return ids
        if not isinstance(text, str):
            raise NoAnswer("answers without a text")
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _answer_all(self, bodies: Sequence[Mapping[str, Any]], what: str) -> list[Any]:
        """Return the server's choice for each request, in their order. Several requests wait at once.

        Threads are daemons, so that a program that is ended does not wait for a server that hangs.
        """
        waiting, ended = SimpleQueue[int](), SimpleQueue[tuple[int, Any]]()
        for number in range(len(bodies)):
            waiting.put(number)

        def work() -> None:
            with suppress(Empty):
                while True:
                    number = waiting.get_nowait()
                    body = {"model": self.model, "temperature": 0, **bodies[number]}
                    try:
                        ended.put((number, self.server.complete(body)))
                    except Exception as error:
                        ended.put((number, error))

        for _ in range(min(self.requests, len(bodies))):
            Thread(target=work, daemon=True).start()
        choices: list[Any] = [None] * len(bodies)
        with console.make_bar(len(bodies), what, "request") as bar:
            for _ in bodies:
                number, choice = ended.get()
                if isinstance(choice, Exception):
                    with suppress(Empty):
                        while True:
                            waiting.get_nowait()
                    raise choice
                choices[number] = choice
                bar.update()
        return choices


def _read_prompt_logprobs(choice: Mapping[str, Any], ids: Ids) -> Predicted:
    """Return what vLLM predicts of each token but the first."""
    entries = choice.get("prompt_logprobs")
    if not isinstance(entries, list):
        raise NoAnswer("answers without prompt_logprobs")
    try:
        own = [entry[str(token)] for entry, token in zip(entries[1:], ids[1:], strict=True)]
        return [(_read_logarithm(entry["logprob"]), int(entry["rank"]) == 1) for entry in own]
    except (LookupError, TypeError, ValueError):
        raise NoAnswer("answers with the log-probabilities of other tokens than it was given") from None


def _read_echo(choice: Mapping[str, Any], ids: Ids) -> Predicted:
    """Return what a server that repeats the prompt predicts of each token but the first."""
    try:
        logprobs = choice["logprobs"]
        values = list(map(_read_logarithm, logprobs["token_logprobs"][1 : len(ids)]))
        highest = [max(map(float, likeliest.values())) for likeliest in logprobs["top_logprobs"][1 : len(ids)]]
        pairs = list(zip(values, highest, range(1, len(ids)), strict=True))
    except (LookupError, TypeError, ValueError, AttributeError):
        raise NoAnswer("answers without the log-probabilities of the prompt") from None
    return [(value, value >= most) for value, most, _ in pairs]


def _read_logarithm(value: Any) -> float:
    """Return a log-probability. Raises ValueError for what is none."""
    number = float(value)
    if math.isnan(number) or number > 1e-3:  # rounding
        raise ValueError
    return number


WAYS: dict[str, tuple[dict[str, Any], Callable[[Mapping[str, Any], Ids], Predicted]]] = {
    "prompt_logprobs": ({"prompt_logprobs": 0}, _read_prompt_logprobs),
    "echo": ({"echo": True, "logprobs": 1}, _read_echo),
}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, since the key would go along."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Server:
    """Sends requests to a server, and says in one line what it does wrong."""

    def __init__(self, url: str, key: str, seconds: int) -> None:
        self.url, self.key, self.seconds = url, key, seconds
        self.opener = urllib.request.build_opener(_NoRedirects)

    def get(self, path: str) -> dict[str, Any]:
        """Return the object at a path, which is asked for once."""
        try:
            return self._ask(path, None)
        except (OSError, http.client.HTTPException) as error:  # HTTPError and URLError are OSErrors
            raise NoAnswer(f"gives no answer: {self._words_of(error)}") from None

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the first choice of a completion. What may pass, such as a full queue, is tried again."""
        data = json.dumps(body).encode()
        for pause in PAUSES:
            with suppress(OSError, http.client.HTTPException):
                return _first_choice(self._ask("v1/completions", data))
            time.sleep(pause)
        try:
            return _first_choice(self._ask("v1/completions", data))
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"gives no answer, {len(PAUSES) + 1} times: {self._words_of(error)}") from None

    def _ask(self, path: str, data: bytes | None) -> dict[str, Any]:
        """Return the object that a server answers. Raises OSError or HTTPException for what may pass."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        try:
            with self.opener.open(request, timeout=self.seconds) as response:
                text = response.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._judge(error, path) from None
        except TimeoutError:
            raise NoAnswer(f"says nothing for {self.seconds} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise NoAnswer(f"says nothing for {self.seconds} s") from None
            raise
        try:
            answer = json.loads(text) if len(text) <= MOST_BYTES else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise NoAnswer(f"answers at /{path} with what is no JSON object")
        return answer

    def _judge(self, error: urllib.error.HTTPError, path: str) -> Exception:
        """Return what a refusal is: the error itself where it may pass, else NoAnswer."""
        if error.code == 429 or error.code >= 500:
            return error
        if error.code in (401, 403):
            key = "the key of" if self.key else "a request without a key, which is read from"
            return NoAnswer(f"refuses {key} {KEY} (status {error.code})")
        if 300 <= error.code < 400:
            return NoAnswer(f"sends to another address (status {error.code}); give that one")
        if error.code == 404:
            return NoAnswer(f"has nothing at /{path}")
        with suppress(OSError, http.client.HTTPException):
            return NoAnswer(
                f"refuses a request (status {error.code}): {self._words_of(message_of_error(error.read(2**16)))}"
            )
        return NoAnswer(f"refuses a request (status {error.code})")

    def _words_of(self, reason: Any) -> str:
        """Return what went wrong in one line, without the key."""
        text = str(getattr(reason, "reason", None) or reason) or type(reason).__name__
        text = text.replace(self.key, "***") if self.key else text
        return to_one_line(text)[:LETTERS]


def _first_choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first choice of a completion."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise NoAnswer("answers a completion without choices")
    return choices[0]


def message_of_error(body: bytes) -> str:
    """Return the message of an error as OpenAI writes it, or all of another one."""
    text = body.decode(errors="replace")
    with suppress(ValueError, LookupError, TypeError):
        answer = json.loads(text)
        return str(answer["error"]["message"] if isinstance(answer["error"], dict) else answer["error"])
    return text
