"""A task in a fresh process, whose death, silence or error is an outcome with a reason and never an exception here.

The process is spawned, so that no allocator, no autotuned kernel and no reference of an earlier cell reaches into it.
It asks for what it needs and sends plain values through a pipe. It ignores Ctrl-C, which is for its parent to handle,
and ends when its parent does, however that came about.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any


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
    limit: float,
    hear: Callable[[dict[str, Any]], object],
    give: Callable[[Connection], object] = lambda pipe: None,
) -> str | None:
    """Call target(line, *arguments) in a fresh process; None when it comes to its end, else why it did not.

    limit  seconds of silence after which the process is killed
    hear   gets what the child tells, at once, so that nothing is lost when it dies later
    give   sends what the child asks for
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_begin, args=(target, there, arguments), daemon=True)
    where = "while it started"
    try:
        with _without_interrupts():
            process.start()
        there.close()
        while True:
            if not here.poll(limit):
                return f"silent for {limit:g} s {where}, and ended"
            word, value = here.recv()
            if word == "alive":
                where = value
            elif word == "found":
                hear(value)
            elif word == "give":
                with _killed_after(limit, process):
                    give(here)
            else:
                process.join(10)  # it tidies up behind itself
                return f"{value} {where}" if word == "failed" else None
    except (EOFError, ConnectionError):
        process.join(5)
        return f"{_death(process.exitcode)} {where}"
    except OSError as error:  # of a system without room for another process
        return f"{reason(error)} {where}"
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        here.close()


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
            pipe.send(("failed", reason(error)))


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
    timer = threading.Timer(limit, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the process ended with code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", as the system does when memory runs out," if name == "SIGKILL" else "")
