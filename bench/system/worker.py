"""Runs a task in another process. Its death, silence or error is an outcome with a reason, and no exception here.

The process is spawned, so that it shares nothing with this one but what it is sent. Where modules are named that it
needs, it is forked from a server that is spawned once and does nothing but import them. That holds as long as this
process has the environment that it had then, since modules read it when they are imported. The process asks for what it
needs and sends plain values through a pipe. It ignores Ctrl-C, SIGTERM and SIGHUP, which its parent handles, and ends
when its parent does, however that came about. It may start a process of its own in the same way.

A `Gate` lets processes that run at once do one thing each alone, while the others wait. Every process that works is
`start`ed. The first one that comes to the gate waits until all others have come too, or have ended. Then one after the
other does its thing, and all leave together. Nobody waits in the middle of other work, so that what a process measures
of its own work has no pause in it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from tqdm import tqdm

from bench.system import failures, interrupt
from bench.system.failures import Failure
from bench.system.memory import anonymous_bytes_with_children

STARTING = "while it started"
LOOK, LOOK_AT_MEMORY = 1.0, 0.25  # seconds between two looks at the clock, and at the memory where that is limited
_environment_of_server = functools.cache(lambda: dict(os.environ))  # first called when the server starts
SPAWNING = threading.Lock()  # a process starts after the other: what is hidden from one of them is this whole process's


@dataclass(frozen=True)
class Limits:
    """Bounds what a process may take before it is killed.

    silence  seconds without a word
    seconds  of the task, with the start of its process where it is the first
    memory   bytes that lie in no file (bench.system.memory), with the processes that it starts
    """

    silence: float = math.inf
    seconds: float = math.inf
    memory: float = math.inf


class Channel:
    """Talks to the parent from the child. A task leaves in `cache` what the next one in its process may need."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.cache: dict[Any, Any] = {}

    def ask(self) -> Connection:
        """Ask the parent for its data, and return the pipe from which they can be read."""
        self.pipe.send(("give", None))
        return self.pipe

    def alive(self, where: str) -> None:
        """Give a sign of life; `where` tells what is about to be done."""
        self.pipe.send(("alive", where))

    def send(self, message: dict[str, Any]) -> None:
        """Send values to the parent."""
        self.pipe.send(("found", message))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process of the parent works, and be the only one within (bench.system.worker)."""
        self.pipe.send(("alone", None))
        self.pipe.recv()
        yield
        self.pipe.send(("together", None))
        self.pipe.recv()


class Worker:
    """Keeps a process that does one task after the other. After a failure, or `stop`, the next task gets a new one.

    environment  variables that its processes have beside those of this one; a process that is forked gets them after
                 its imports, so that nothing may read them there
    imported     modules that are imported before its processes begin, on Linux. They are those of this process's first
                 such worker. Importing them must do nothing that a fork breaks, such as starting threads
    """

    def __init__(self, environment: Mapping[str, str] | None = None, imported: Sequence[str] = ()) -> None:
        self._environment, self._imported = dict(environment or {}), list(imported)
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._waits = False  # for its first task

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop() if kind is None else self.end()

    def run(
        self,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        *,
        limits: Limits,
        hear: Callable[[dict[str, Any]], object],
        give: Callable[[Connection], object] = lambda pipe: None,
        alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> Failure | None:
        """Call target(line, *arguments) in the process; return None when it finishes, else why it did not.

        limits  of this task; a process's start counts with its first one
        hear    gets each message of the child at once, so that nothing is lost when it dies later
        give    sends what the child asks for
        alone   is entered while the child has to be the only one that works; waiting for it counts for no limit
        """
        began, done = time.monotonic(), False
        try:
            process, connection = self._start_process()
            self._waits = False
            task = target, arguments
            failure = _attend(process, connection, task, limits, began=began, hear=hear, give=give, alone=alone)
            done = failure is None
            return failure
        except OSError as error:  # the system has no room for another process
            return Failure("error", f"{failures.reason_of_error(error)} {STARTING}")
        except NoServer:
            return Failure("crashed", f"the process from which others are forked was killed {STARTING}, twice")
        finally:
            if not done:
                self._kill()

    def begin(self, modules: Sequence[str] = ()) -> None:
        """Start the process before its first task, and have it import modules. Where it cannot, that task says so."""
        with contextlib.suppress(OSError, NoServer):
            self._start_process(modules)
            self._waits = True

    def stop(self) -> None:
        """Let the process finish, if there is one. A process without a task so far has nothing to finish."""
        if self._pipe and self._process and not self._waits:
            self._pipe.close()
            self._process.join(10)  # it tidies up behind itself
        self._kill()

    def kill(self) -> None:
        """End the process at once, from any thread. A `run` that waits for it then returns a failure."""
        if (process := self._process) is not None and process.pid is not None:
            interrupt.end_children(process.pid)
            process.kill()

    def end(self) -> None:
        """End the process at once, and all processes that it has started."""
        self._kill()

    @property
    def is_starting(self) -> bool:
        """Say whether the process is about to start."""
        return self._process is not None and self._process.pid is None

    def _start_process(self, modules: Sequence[str] = ()) -> tuple[BaseProcess, Connection]:
        if self._process is None or self._pipe is None or not self._process.is_alive():
            self._kill()
            served = bool(self._imported) and sys.platform == "linux"
            served = served and dict(os.environ) == _environment_of_server()
            context: Any = multiprocessing.get_context("forkserver" if served else "spawn")
            if served:
                context.set_forkserver_preload(self._imported)
            self._pipe, child_end = context.Pipe()
            with child_end, SPAWNING, _without_interrupts(), _without_main():
                self._process = self._fork(context, (child_end, self._environment, modules))
        return self._process, self._pipe

    def _fork(self, context: Any, arguments: tuple[Any, ...]) -> BaseProcess:
        """Start a process, once more where the server is killed meanwhile. Raises NoServer where the second is too.

        It is no daemon, which could start no process itself; `_follow_parent` ends it where its parent cannot.
        """
        for _ in range(2):
            self._process = process = context.Process(target=_serve, args=arguments, daemon=False)
            with contextlib.suppress(EOFError, ConnectionError):
                process.start()
                return process
            _wait_for_end_of_server()  # otherwise it would count as alive
        self._process = None
        raise NoServer

    def _kill(self) -> None:
        if self._process is not None and self._process.pid is not None:
            if self._process.is_alive():
                interrupt.end_children(self._process.pid)
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None
        self._waits = False


class NoServer(Exception):
    """Is raised where the process that forks others is killed each time."""


def end_server() -> None:
    """Kill the process that forks others, if there is one. A thread that waits for a fork gets an error.

    Nobody can tell any more whether the processes that it forked are alive.
    """
    if (pid := _server()) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _server() -> int | None:
    return getattr(forkserver._forkserver, "_forkserver_pid", None)


def _wait_for_end_of_server() -> None:
    """Wait for at most LOOK seconds until the server has ended. Its exit code stays for who started it."""
    until = time.monotonic() + LOOK
    with contextlib.suppress(ChildProcessError):
        while (pid := _server()) is not None and time.monotonic() < until:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return
            time.sleep(0.01)


def begin_server(imported: Sequence[str]) -> None:
    """Start the server that imports modules and forks processes, and wait for nothing."""
    if sys.platform == "linux":
        _environment_of_server()
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(imported))
        with SPAWNING, _without_interrupts(), _without_main():
            forkserver.ensure_running()


def run(
    target: Callable[..., None], arguments: tuple[Any, ...], *, imported: Sequence[str] = (), **how: Any
) -> Failure | None:
    """Run a single task in a fresh process in which modules are `imported`; `how` has the keywords of Worker.run."""
    with Worker(imported=imported) as worker:
        return worker.run(target, arguments, **how)


def _attend(
    process: BaseProcess,
    pipe: Connection,
    task: tuple[Callable[..., None], tuple[Any, ...]],
    limits: Limits,
    *,
    began: float,
    hear: Callable[[dict[str, Any]], object],
    give: Callable[[Connection], object],
    alone: Callable[[], contextlib.AbstractContextManager[None]],
) -> Failure | None:
    """Send a task, and listen until it finishes or exceeds a limit."""
    where, kills, deaf = STARTING, failures.count_kills(), list[float]()
    with contextlib.ExitStack() as others_wait:
        try:
            with _killed_after(min(limits.silence, limits.seconds), process, deaf):
                pipe.send(task)
            while True:
                if overstepped := _wait(pipe, process, limits, began):
                    return Failure(overstepped.status, f"{overstepped.reason} {where}, and ended")
                with _killed_after(limits.silence, process, deaf):
                    word, value = _receive(pipe)
                if word == "alive":
                    where = value
                elif word == "found":
                    hear(value)
                elif word == "give":
                    with _killed_after(limits.silence, process, deaf):
                        give(pipe)
                elif word in ("alone", "together"):
                    began += _hold_others(word, others_wait, alone)
                    pipe.send(None)
                elif word == "failed":
                    process.join(10)  # it tidies up behind itself
                    return Failure(value[0], f"{value[1]} {where}")
                else:
                    return None
        except (EOFError, ConnectionError):
            process.join(5)
            if deaf:
                reason = f"left a message half read or half written for {deaf[0]:g} s {where}, and ended"
                return Failure("timed_out", reason)
            return failures.failure_of_death(process.exitcode, where, kills)


def _hold_others(
    word: str, others_wait: contextlib.ExitStack, alone: Callable[[], contextlib.AbstractContextManager[None]]
) -> float:
    """Make the other workers wait for "alone", and let them go on for "together"; return the seconds that this took."""
    came = time.monotonic()
    if word == "alone":
        others_wait.enter_context(alone())
    else:
        others_wait.close()
    return time.monotonic() - came


def _receive(pipe: Connection) -> tuple[str, Any]:
    """Return a message of the child. Raises EOFError where it has ended, also in the middle of one."""
    try:
        word, value = pipe.recv()
    except OSError as error:
        raise EOFError from error
    return word, value


def _wait(pipe: Connection, process: BaseProcess, limits: Limits, began: float) -> Failure | None:
    """Wait for a message of the child; return the limit that it has exceeded instead, if any."""
    start = time.monotonic()
    pause = LOOK if limits.memory == math.inf else LOOK_AT_MEMORY
    while True:
        now = time.monotonic()
        if now - began > limits.seconds:
            return Failure("timed_out", f"took longer than {limits.seconds / 60:g} min")
        if now - start > limits.silence:
            return Failure("timed_out", f"silent for {limits.silence:g} s")
        if limits.memory < math.inf and anonymous_bytes_with_children(process.pid) > limits.memory:
            return Failure("out_of_memory", f"used more than {limits.memory / 2**20:g} MiB")
        if pipe.poll(pause):
            return None


def _serve(pipe: Connection, environment: dict[str, str], modules: Sequence[str]) -> None:
    """Import modules, then do the tasks that come through the pipe until it is closed, or until something fails."""
    os.environ.update(environment)
    threading.Thread(target=_follow_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that the tracker misses of a process that is killed
    line = Channel(pipe)
    with contextlib.suppress(Exception):  # the task that needs them raises it again
        for name in modules:
            importlib.import_module(name)
    with contextlib.suppress(EOFError, OSError):  # the parent needs nothing more, or has ended
        while True:
            task = pipe.recv_bytes()
            try:
                target, arguments = pickle.loads(task)  # this imports the modules of what it names
                target(line, *arguments)
            except Exception as error:
                pipe.send(("failed", (failures.status_of_error(error), failures.reason_of_error(error))))
                return
            pipe.send(("done", None))


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C, SIGTERM and SIGHUP for a process that is started within, which inherits the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupt.HANDLERS)
    resource_tracker.ensure_running()  # or the start of the process would start it, and take part of the mask off
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupt.HANDLERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program's main module from a process that is started within, which would import it once more.

    A script that calls `bench.run` would then run again there, and text from standard input could not be found.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _killed_after(limit: float, process: BaseProcess, deaf: list[float]) -> Iterator[None]:
    """Kill the process after `limit` seconds, and add them to `deaf`.

    Sending to a process that does not listen would never end, nor would reading from one that stops in a message.
    """
    if limit == math.inf:
        yield
        return

    def end() -> None:
        deaf.append(limit)
        process.kill()

    timer = threading.Timer(min(limit, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Gate:
    """Keeps who works, who waits to be alone, and who has been."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = set[int]()
        self._waiting = list[int]()
        self._been = set[int]()
        self._alone: int | None = None
        self._open = False  # for good: nobody waits any more

    @property
    def is_closed(self) -> bool:
        """Say whether somebody waits, so that nobody should start."""
        with self._changed:
            return bool(self._waiting or self._been or self._alone is not None)

    def start(self, who: int) -> None:
        """Note that worker `who` has begun to work."""
        with self._changed:
            self._working.add(who)

    def end(self, who: int) -> None:
        """Note that somebody works no more, inside the gate or outside."""
        with self._changed:
            self._working.discard(who)
            self._been.discard(who)
            if self._alone == who:
                self._alone = None
            self._let_go()

    def open(self) -> None:
        """Let everybody through from now on, since all are about to be killed."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    @contextmanager
    def alone(self, who: int) -> Iterator[None]:
        """Wait until all others wait too, be alone within, and wait until all who came meanwhile have been alone."""
        with self._changed:
            self._waiting.append(who)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open or self._is_next(who))
            self._waiting.remove(who)
            self._alone = who
        try:
            yield
        finally:
            with self._changed:
                self._alone = None
                self._been.add(who)
                self._let_go()
                self._changed.wait_for(lambda: self._open or who not in self._been)

    def _is_next(self, who: int) -> bool:
        all_here = self._working == {*self._waiting, *self._been}
        return self._alone is None and self._waiting[0] == who and all_here

    def _let_go(self) -> None:
        """Let those who have been alone leave, where nobody is alone or waits to be."""
        if not self._waiting and self._alone is None:
            self._been.clear()
        self._changed.notify_all()
