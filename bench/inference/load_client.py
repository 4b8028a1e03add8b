"""Sends streamed completions to a server and times their tokens, as vLLM's own benchmark of serving defines the times.

https://docs.vllm.ai/en/latest/benchmarking/cli.html, vllm/benchmarks/serve.py and vllm/benchmarks/lib/

TTFT     time to the first token: from sending a request to the first piece of its answer
latency  from sending to the last piece, there E2EL
TPOT     time per output token behind the first: (latency - TTFT) / (tokens - 1)
ITL      time between two pieces that follow each other; a piece has a token, and several where a server joins them

All requests run in one thread, by asyncio, and each over a connection of its own, whose opening counts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.inference.endpoint import message_of_error
from bench.inference.engine_process import EngineFailed
from bench.inference.server import HOST, ServerProcess

MOST_BYTES = 2**20  # of a refusal, and of a line
DEATH = 1.0  # seconds for which a server may take to end once its connections break
SLACK = 0.05  # seconds that requests begin after the clock, so that none waits for others to be made


@dataclass(frozen=True)
class LoadRequest:
    """Asks for `output_tokens` behind a prompt of token ids, `at` seconds after the first request of its turn."""

    prompt: tuple[int, ...]
    output_tokens: int
    at: float = 0.0


@dataclass(frozen=True)
class RequestTiming:
    """Holds the milliseconds of a request and the tokens of its answer."""

    ttft_ms: float
    latency_ms: float
    itl_ms: tuple[float, ...]
    tokens: int

    @property
    def tpot_ms(self) -> float | None:
        """Return the milliseconds per token behind the first; None for an answer of one token."""
        return (self.latency_ms - self.ttft_ms) / (self.tokens - 1) if self.tokens > 1 else None


def send_all(
    server: ServerProcess, requests: Sequence[LoadRequest], at_once: int, seconds: float
) -> tuple[list[RequestTiming], float]:
    """Return the timings of requests, and the milliseconds from the first sending to the last answer.

    at_once  requests that wait for their answer at most; the next is sent once one has ended
    seconds  that a request may take in all

    Raises EngineFailed for the first request that fails; the others are given up then.
    """
    try:
        return asyncio.run(_send_all(server, requests, at_once, seconds))
    except ExceptionGroup as group:
        failure = group.exceptions[0]
        server.refuse_end(DEATH)
        raise failure from None


async def _send_all(
    server: ServerProcess, requests: Sequence[LoadRequest], at_once: int, seconds: float
) -> tuple[list[RequestTiming], float]:
    waiting = iter(requests)
    timings = list[RequestTiming]()
    start = time.perf_counter() + SLACK

    async def work(mine: Iterator[LoadRequest]) -> None:
        for request in mine:
            await asyncio.sleep(start + request.at - time.perf_counter())
            timings.append(await _send(server, request, seconds))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(at_once, len(requests))):
            tasks.create_task(work(waiting))
    return timings, 1e3 * (time.perf_counter() - start)


async def _send(server: ServerProcess, request: LoadRequest, seconds: float) -> RequestTiming:
    """Return the timing of a request. Raises EngineFailed."""
    try:
        async with asyncio.timeout(seconds):
            return await _time_answer(server, request)
    except TimeoutError:
        raise EngineFailed(
            "timed_out", f"{server.engine}'s server has not answered a request for {seconds} s"
        ) from None
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        words = server.describe_trouble(str(error) or type(error).__name__)
        raise EngineFailed("error", f"{server.engine}'s server breaks off an answer: {words}") from None


async def _time_answer(server: ServerProcess, request: LoadRequest) -> RequestTiming:
    body = {
        "model": server.name,
        "prompt": request.prompt,
        "max_tokens": request.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, server.port, limit=MOST_BYTES)
    try:
        writer.write(_format_request(server, json.dumps(body).encode()))
        stamps, usage = [sent], dict[str, Any]()
        async for event in _read_events(server, reader):
            usage |= event.get("usage") or {}
            if any(choice["text"] or choice.get("finish_reason") is None for choice in event["choices"]):
                stamps.append(time.perf_counter())
    finally:
        writer.close()
    return _judge(server, request, stamps, usage)


def _judge(
    server: ServerProcess, request: LoadRequest, stamps: Sequence[float], usage: dict[str, Any]
) -> RequestTiming:
    """Return the timing of an answer that has ended. Raises EngineFailed for one of other tokens than asked for."""
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if counts != (len(request.prompt), request.output_tokens) or len(stamps) < 2:
        words = f"reads {counts[0]} and writes {counts[1]} tokens where {len(request.prompt)} and "
        raise EngineFailed("error", f"{server.engine}'s server {words}{request.output_tokens} were asked for")
    gaps = [1e3 * (after - before) for before, after in pairwise(stamps)]
    return RequestTiming(gaps[0], sum(gaps), tuple(gaps[1:]), request.output_tokens)


def _format_request(server: ServerProcess, body: bytes) -> bytes:
    lines = (
        "POST /v1/completions HTTP/1.1",
        f"Host: {HOST}:{server.port}",
        f"Authorization: Bearer {server.key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _read_events(server: ServerProcess, reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yield the objects of a stream of events, up to [DONE].

    Raises EngineFailed for a refusal, and ValueError or EOFError for nonsense.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    if not head.startswith("http/1.") or head.split()[1] != "200":
        words = server.describe_trouble(message_of_error(await reader.read(MOST_BYTES)))
        status = " ".join(head.split()[1:2])
        raise EngineFailed("error", f"{server.engine}'s server refuses a request (status {status}): {words}")
    rest = b""
    async for piece in _read_pieces(reader, "transfer-encoding: chunked" in head):
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > MOST_BYTES:
            raise ValueError("a line without an end")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if line[5:].strip() == b"[DONE]":
                return
            event = json.loads(line[5:])
            if "error" in event:
                raise ValueError(message_of_error(line[5:]))
            yield event
    raise EOFError("its stream ends before [DONE]")


async def _read_pieces(reader: asyncio.StreamReader, is_chunked: bool) -> AsyncIterator[bytes]:
    """Yield the body of an answer as it comes, without the sizes of its chunks."""
    while is_chunked and (size := int(await reader.readline(), 16)):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    while not is_chunked and (piece := await reader.read(MOST_BYTES)):
        yield piece
