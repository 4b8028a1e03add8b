"""Makes Ctrl-C, SIGTERM and SIGHUP end a command within seconds, and a second one at once, whatever call it meets.

SIGTERM is what a scheduler sends before it kills, and SIGHUP what a terminal sends that is closed; one that is ignored
from the start, as nohup has it, stays ignored. Each is raised in the main thread: what the command holds is given back
on the way out. Python handles a signal between two steps of its own, so that one long call into a library (a
decomposition, a product of large matrices) would put it off. A thread therefore hears of the signal too, and ends the
process when the orderly way takes too long. Files are renamed into place whole, so that nothing is lost by it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 3.0  # seconds for the orderly way
AT_ONCE = 0.25  # seconds within which signals are one, as of a process and of the group that it is in
INTERRUPTED = 130
HANDLERS = {signal.SIGINT: signal.default_int_handler} | {  # handlers that are replaced; others belong to the program
    getattr(signal, name): signal.SIG_DFL for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
}
CODES = {128 + number for number in HANDLERS}  # exit codes of what was ended so

Leave = Callable[[], object]


class EndedBySignal(SystemExit):
    """Is raised for a signal that ends the process. Its exit code is what shells expect: 128 and the signal's number.

    args  the code, and what the same command needs to go on, if anything
    """

    code: int


def code_of_signal(ended: BaseException) -> int:
    """Return the exit code of a command that KeyboardInterrupt or EndedBySignal has ended."""
    return ended.code if isinstance(ended, EndedBySignal) else INTERRUPTED


def message_of_signal(ended: BaseException) -> str:
    """Return how to go on from a command that KeyboardInterrupt or EndedBySignal has ended."""
    more = ended.args[1:] if isinstance(ended, EndedBySignal) else ended.args
    return _message(code_of_signal(ended), *more)


def _message(code: int, more: str = "") -> str:
    how = "interrupted" if code == INTERRUPTED else f"ended by {signal.Signals(code - 128).name}"
    return f"prunebench: {how}; the same command{more and f' with {more}'} goes on where it stopped"


@contextmanager
def keep_prompt(more: str = "", leave: Leave | None = None) -> Iterator[None]:
    """Make an interrupt take at most GRACE seconds within. The caller may catch it and go on, as a notebook does.

    more   what the same command needs to go on, such as a folder whose name holds the date; the interrupt carries it
    leave  tidies up, in another thread, where the orderly way takes too long; None: nothing is to be done

    Does nothing outside of the main thread, since signals reach no other. Raises EndedBySignal for SIGTERM and SIGHUP.
    """
    try:
        with _listen_for_signals(more, leave):
            yield
    except KeyboardInterrupt as interrupted:
        if more and not interrupted.args:
            interrupted.args = (more,)
        raise
    except EndedBySignal as ended:
        if more and len(ended.args) == 1:
            ended.args = (*ended.args, more)
        raise


@contextmanager
def _listen_for_signals(more: str, leave: Leave | None) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    read_end, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    with _raise_signals() as handled:
        threading.Thread(target=_listen, args=(read_end, handled, more, leave), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(wakeup)  # this ends the thread


@contextmanager
def _raise_signals() -> Iterator[frozenset[int]]:
    """Raise the first signal that comes within, and no further one; yield the signals that this module handles."""
    first = list[int]()

    def handle(number: int, _: FrameType | None) -> None:
        if first:  # on the way out
            return
        first.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise EndedBySignal(128 + number)

    own = [number for number, handler in HANDLERS.items() if signal.getsignal(number) == handler]
    for number in own:
        signal.signal(number, handle)
    try:
        ours = (number for number in HANDLERS if getattr(signal.getsignal(number), "__module__", "") == __name__)
        yield frozenset(map(int, ours))
    finally:
        for number in own:
            if signal.getsignal(number) == handle:
                signal.signal(number, HANDLERS[number])


def end_soon(code: int = INTERRUPTED) -> None:
    """End the children of this process, and the process in GRACE seconds, whatever its orderly end still waits for."""
    _end_processes()
    timer = threading.Timer(GRACE, os._exit, (code,))
    timer.daemon = True
    timer.start()


def end_children(pid: int) -> None:
    """Kill the processes that a process has started, and their children."""
    import psutil  # here, since a command that starts no process needs none of it

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()


def _end_processes() -> None:
    """Kill the processes of multiprocessing and their children. Commands that run beside, such as scancel, go on."""
    from multiprocessing import forkserver  # here, since a command that starts no process needs none of it

    server = getattr(forkserver._forkserver, "_forkserver_pid", None)
    for pid in (*(each.pid for each in multiprocessing.active_children()), server):
        if pid is not None:
            end_children(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _listen(read_end: int, handled: frozenset[int], more: str, leave: Leave | None) -> None:
    """End the process GRACE seconds after a first signal, at once after a second; return when the pipe is closed."""
    first, since = 0, 0.0
    while True:
        seconds = max(0.0, since + GRACE - time.monotonic()) if first else None
        ready, _, _ = select.select([read_end], [], [], seconds)
        signals = os.read(read_end, 64) if ready else b""
        if ready and not signals:
            os.close(read_end)
            return
        came = [number for number in signals if number in handled]
        if first and (not ready or (came and time.monotonic() - since > AT_ONCE)):
            _end_processes()
            if leave is not None:
                with contextlib.suppress(Exception):
                    leave()
            if not ready:
                os.write(2, f"{_message(128 + first, more)}\n".encode())
            os._exit(128 + first)
        if came and not first:
            first, since = came[0], time.monotonic()
