"""What a client sends to a server under load, when, and what it takes for an answer."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from stream_server import chunk, event, stream, trickle, write_words

from bench.inference import load_client
from bench.inference.engine_process import EngineFailed
from bench.inference.load_client import LoadRequest, RequestTiming, send_all
from bench.inference.server import ServerProcess


def server_at(port, key):
    """What the client knows of a server that runs already."""
    server = ServerProcess("llama.cpp", sys.executable, Path("none"), [], {}, silence=1)
    server.port, server.key = port, key
    return server


def requests(count, tokens=3, **more):
    return [LoadRequest((5, 6, 7, number), tokens, **more) for number in range(count)]


def send(asked, at_once, seconds=30.0, **details):
    """The timings of requests, and what the server was asked."""
    with stream(key="sesame-17", **details) as (port, handler):
        timings, ms = send_all(server_at(port, "sesame-17"), asked, at_once, seconds)
    return timings, ms, handler


def test_each_answer_is_timed_by_its_pieces_and_its_tokens_are_those_of_the_usage():
    asked = [*requests(3), LoadRequest((1, 2), 1)]
    timings, ms, handler = send(asked, 2)
    assert sorted(each.tokens for each in timings) == [1, 3, 3, 3]
    for timing in timings:
        assert len(timing.itl_ms) == timing.tokens - 1  # the last piece has no token
        assert 0 < timing.ttft_ms <= timing.latency_ms <= ms
        assert timing.latency_ms == pytest.approx(timing.ttft_ms + sum(timing.itl_ms))
    body = next(body for body in handler.requests if body["prompt"] == [1, 2])
    assert body["max_tokens"] == 1 and body["ignore_eos"] is True and body["stream"] is True


def test_the_time_per_token_leaves_the_first_one_out():
    assert RequestTiming(100.0, 160.0, (10.0, 50.0), 4).tpot_ms == pytest.approx(20)
    assert RequestTiming(100.0, 100.0, (), 1).tpot_ms is None


def test_as_many_requests_wait_at_once_as_were_asked_for_and_no_more():
    barrier, waiting, most = Barrier(3, timeout=20), [], []

    def wait(handler, body, send):
        waiting.append(body)
        most.append(len(waiting))
        barrier.wait()
        waiting.pop()
        barrier.wait()  # so that none is sent before the others have left
        write_words(handler, body, send)

    timings, _, _ = send(requests(9), 3, behave=wait)
    assert len(timings) == 9 and max(most) == 3


def test_no_request_is_sent_before_it_arrives_also_while_others_wait():
    times = {}
    met = Barrier(2, timeout=20)

    def note(handler, body, send):
        times[body["prompt"][-1]] = time.perf_counter()
        met.wait()  # the first is answered once the second is there
        write_words(handler, body, send)

    start = time.perf_counter()
    send([LoadRequest((1, 0), 2), LoadRequest((1, 1), 2, at=0.2)], 2, behave=note)
    assert times[1] - start >= 0.2


def say(*pieces):
    """A stream of such pieces, which then ends."""

    def behave(handler, body, send):
        handler.begin()
        send(b"".join(map(chunk, pieces)) + chunk(b""))

    return behave


def refuse(handler, body, send):
    handler._say(400, {"error": {"message": f"too long, said {handler.headers['Authorization']}\nand so on"}})


def answer_raw(text):
    return lambda handler, body, send: send(text)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WORD = {"choices": [{"text": "word", "finish_reason": None}]}
WRONG = {
    "refuses": (refuse, r"server refuses a request \(status 400\): too long, said Bearer \*\*\* and so on$"),
    "no JSON": (say(event(b"<html>")), "breaks off an answer: Expecting value"),
    "no choices": (say(event({"text": "word"})), "breaks off an answer: 'choices'"),
    "a list": (say(event([1])), "breaks off an answer"),
    "an error": (say(event({"error": {"message": "out of cache"}})), "breaks off an answer: out of cache$"),
    "no end": (say(event(WORD)), r"ends before \[DONE\]"),
    "no usage": (say(event(WORD), event(b"[DONE]")), "reads None and writes None tokens where 4 and 3 were asked for"),
    "other tokens": (partial(write_words, extra=1), "reads 4 and writes 4 tokens where 4 and 3"),
    "no chunks": (
        answer_raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nword\r\n"),
        "invalid literal for int",
    ),
    "no HTTP": (answer_raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), r"refuses a request \(status \)"),
    "nothing": (answer_raw(b""), "0 bytes read"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_answer_is_one_line_without_the_key(what):
    behave, line = WRONG[what]
    with pytest.raises(EngineFailed, match=line) as caught:
        send(requests(3), 2, behave=behave)
    assert caught.value.status == "error"
    assert "\n" not in str(caught.value) and "sesame-17" not in str(caught.value)


@pytest.mark.parametrize("behave", [trickle, lambda *_: time.sleep(0.6)])
def test_a_request_has_so_many_seconds_in_all(behave):
    """Also where a byte comes before each time that a silence would be too long."""
    with pytest.raises(EngineFailed, match=r"has not answered a request for 0\.3 s") as caught:
        send(requests(2), 2, seconds=0.3, behave=behave)
    assert caught.value.status == "timed_out"


def test_nobody_there_and_a_line_without_end_are_one_line(monkeypatch):
    with pytest.raises(EngineFailed, match="breaks off an answer: "):
        send_all(server_at(9, "key"), requests(2), 2, 5)
    monkeypatch.setattr(load_client, "MOST_BYTES", 1000)
    with pytest.raises(EngineFailed, match="a line without an end"):
        send(requests(1), 1, behave=say(b"data: " + b"x" * 800, b"x" * 800))
