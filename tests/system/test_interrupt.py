"""Signals that end a command are raised once, in the main thread, and leave all else as it was."""

from __future__ import annotations

import os
import signal
import time

import pytest

from bench.system import interrupt

ENDS = {signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def by_default():
    """Handlers as a program finds them that a terminal has started, and afterwards as they were."""
    before = {number: signal.getsignal(number) for number in interrupt.HANDLERS}
    for number, handler in interrupt.HANDLERS.items():
        signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_ends_what_goes_on_with_the_code_that_shells_expect(number, by_default):
    with (
        pytest.raises(interrupt.EndedBySignal) as ended,
        interrupt.keep_prompt(),
        interrupt.keep_prompt("--out results/of-today"),
    ):
        os.kill(os.getpid(), number)
        time.sleep(60)
    assert interrupt.code_of_signal(ended.value) == ended.value.code == ENDS[number]
    said = f"prunebench: ended by {number.name}; the same command with --out results/of-today goes on where it stopped"
    assert interrupt.message_of_signal(ended.value) == said
    assert {one: signal.getsignal(one) for one in interrupt.HANDLERS} == interrupt.HANDLERS


def test_a_signal_that_a_process_and_its_group_get_is_one(by_default, monkeypatch):
    """As of `timeout`, or of a terminal that is closed."""
    monkeypatch.setattr(interrupt, "AT_ONCE", 60.0)
    tidied = []
    with pytest.raises(interrupt.EndedBySignal) as ended, interrupt.keep_prompt():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                os.kill(os.getpid(), number)
            time.sleep(0.05)
            tidied.append(True)
    assert (ended.value.code, tidied) == (143, [True])


def test_a_signal_that_is_ignored_or_has_a_handler_stays_so(by_default):
    """As below nohup, and in a program that ends in its own way."""
    heard = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    with interrupt.keep_prompt():
        for number in ENDS:
            os.kill(os.getpid(), number)
        assert heard == [True]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
