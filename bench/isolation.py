"""A task in a fresh process, whose death, silence or error is an outcome with a reason and never an exception here.

The process is spawned, so that no allocator, no autotuned kernel and no reference of an earlier cell reaches into it.
It asks for what it needs and sends plain values through a pipe. It ignores Ctrl-C, which is for its parent to handle,
and ends when its parent does, however that came about. It may start a process of its own in the same way.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

LOOK, LOOK_AT_MEMORY = 1.0, 0.25  # seconds between two looks at the clock, and at the memory where that is limited


@dataclass(frozen=True)
class Limits:
    """What a process may take before it is killed.

    silence  seconds without a word
    seconds  of its whole life
    memory   resident bytes, with the processes that it starts
    """

    silence: float = math.inf
    seconds: float = math.inf
    memory: float = math.inf


@dataclass(frozen=True)
class Failure:
    """Why a process did not come to its end. status: "error", "out_of_memory", "crashed" or "timed_out"."""

    status: str
    reason: str


class Line:
    """The child's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def ask(self) -> Connection:
        """The pipe, from which the parent's gift can be read."""
        self.pipe.send(("give", None))
        return self.pipe

    def alive(self, where: str) -> None:
        """A sign of life; `where` tells what is about to be done."""
        self.pipe.send(("alive", where))

    def tell(self, found: dict[str, Any]) -> None:
        self.pipe.send(("found", found))


def run(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    limits: Limits,
    hear: Callable[[dict[str, Any]], object],
    give: Callable[[Connection], object] = lambda pipe: None,
) -> Failure | None:
    """Call target(line, *arguments) in a fresh process; None when it comes to its end, else why it did not.

    hear   gets what the child tells, at once, so that nothing is lost when it dies later
    give   sends what the child asks for
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    # not a daemon, which could start no process itself; `_follow_parent` ends it where its parent cannot
    process = context.Process(target=_begin, args=(target, there, arguments), daemon=False)
    where, began = "while it started", time.monotonic()
    try:
        with _without_interrupts():
            process.start()
        there.close()
        while True:
            if overstepped := _wait(here, process, limits, began):
                return Failure(overstepped.status, f"{overstepped.reason} {where}, and ended")
            word, value = here.recv()
            if word == "alive":
                where = value
            elif word == "found":
                hear(value)
            elif word == "give":
                with _killed_after(limits.silence, process):
                    give(here)
            else:
                process.join(10)  # it tidies up behind itself
                return Failure(value[0], f"{value[1]} {where}") if word == "failed" else None
    except (EOFError, ConnectionError):
        process.join(5)
        return _death(process.exitcode, where)
    except OSError as error:  # of a system without room for another process
        return Failure("error", f"{reason(error)} {where}")
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        here.close()


def _wait(here: Connection, process: BaseProcess, limits: Limits, began: float) -> Failure | None:
    """Wait for a word of the child; which limit it has overstepped instead, if it has."""
    asked = time.monotonic()
    pause = LOOK if limits.memory == math.inf else LOOK_AT_MEMORY
    while True:
        now = time.monotonic()
        if now - began > limits.seconds:
            return Failure("timed_out", f"took longer than {limits.seconds / 60:g} min")
        if now - asked > limits.silence:
            return Failure("timed_out", f"silent for {limits.silence:g} s")
        if limits.memory < math.inf and resident_bytes(process.pid) > limits.memory:
            return Failure("out_of_memory", f"used more than {limits.memory / 2**20:g} MiB")
        if here.poll(pause):
            return None


def resident_bytes(pid: int | None) -> int:
    """Memory that a process and those that it has started have in the machine now; 0 when it is gone."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def is_out_of_memory(error: BaseException) -> bool:
    """By name, since this module does without torch; the CPU's allocator raises an ordinary error."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def reason(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"out of memory ({text})" if is_out_of_memory(error) else text


def _begin(target: Callable[..., None], pipe: Connection, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        target(Line(pipe), *arguments)
        pipe.send(("done", None))
    except Exception as error:
        with contextlib.suppress(OSError):  # of a parent that is gone
            pipe.send(("failed", ("out_of_memory" if is_out_of_memory(error) else "error", reason(error))))


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started within inherits the mask and so never sees Ctrl-C."""
    resource_tracker.ensure_running()  # or the start of the process would start it, and take the mask off
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _killed_after(limit: float, process: BaseProcess) -> Iterator[None]:
    """Sending to a process that does not listen would never end."""
    timer = threading.Timer(min(limit, threading.TIMEOUT_MAX), process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _death(code: int | None, where: str) -> Failure:
    if code is None or code >= 0:
        return Failure("crashed", f"the process ended with code {code} {where}")
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return Failure("out_of_memory", f"killed by {name}, as the system does when memory runs out, {where}")
    return Failure("crashed", f"killed by {name} {where}")
