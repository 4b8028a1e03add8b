"""Whoever has to be alone is, and nobody waits for ever."""

from __future__ import annotations

import random
import threading
import time

from bench.system.worker import Gate


def test_a_crowd_is_alone_one_at_a_time_while_nobody_works():
    """Six threads come and go at random; each passes the gate in some of its rounds, and one in four ends before it."""
    gate, guard, draw = Gate(), threading.Lock(), random.Random(0)
    working, seen, passed = set[int](), list[set[int]](), list[int]()
    pauses = {who: [draw.random() / 100 for _ in range(20)] for who in range(6)}
    leaves = {who: [draw.random() < 0.25 for _ in range(20)] for who in range(6)}

    def rounds(who: int) -> None:
        for pause, leave in zip(pauses[who], leaves[who], strict=True):
            while gate.is_closed:
                time.sleep(0.001)
            gate.start(who)
            with guard:
                working.add(who)
            time.sleep(pause)
            with guard:
                working.discard(who)
            if not leave:
                with gate.alone(who):
                    with guard:
                        seen.append(set(working))
                        working.add(who)
                    time.sleep(0.001)
                    with guard:
                        seen.append(working - {who})
                        working.discard(who)
                        passed.append(who)
            gate.end(who)

    threads = [threading.Thread(target=rounds, args=(who,), daemon=True) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(passed) == sum(not leave for one in leaves.values() for leave in one)
    assert seen.count(set()) == len(seen)
    assert not gate.is_closed


def test_an_open_gate_lets_everybody_through():
    gate, through = Gate(), threading.Event()
    gate.start(0)
    gate.start(1)

    def passes() -> None:
        with gate.alone(0):
            through.set()

    thread = threading.Thread(target=passes, daemon=True)
    thread.start()
    assert not through.wait(0.2)
    assert gate.is_closed
    gate.open()
    assert through.wait(10)
    thread.join(10)
    assert not thread.is_alive()


def test_who_has_been_alone_goes_on_once_all_who_wait_have_been():
    gate, events = Gate(), list[tuple[str, int]]()
    gate.start(0)
    gate.start(1)

    def passes(who: int) -> None:
        with gate.alone(who):
            events.append(("alone", who))
        events.append(("on", who))
        gate.end(who)

    threads = [threading.Thread(target=passes, args=(who,), daemon=True) for who in range(2)]
    threads[0].start()
    while not gate.is_closed:
        time.sleep(0.001)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert events[:2] == [("alone", 0), ("alone", 1)]
    assert sorted(events[2:]) == [("on", 0), ("on", 1)]
