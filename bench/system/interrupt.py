"""Makes Ctrl-C end a command within seconds, and a second one at once, whatever library call it meets.

Python handles a signal between two steps of its own, so that one long call into a library (a decomposition, a product
of large matrices) would put it off. A thread therefore hears of the signal too, and ends the process when the orderly
way takes too long. Files are renamed into place whole, and a process of its own ends with its parent, so that nothing
is lost by it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 3.0  # seconds for the orderly way
INTERRUPTED = 130


def message(more: str = "") -> str:
    """Say what goes on from an interrupted command: itself, with `more` behind it."""
    return f"prunebench: interrupted; the same command{more and f' with {more}'} goes on where it stopped"


@contextmanager
def prompt(more: str = "") -> Iterator[None]:
    """Make Ctrl-C take at most GRACE seconds within. Whoever catches the interrupt behind goes on, as a notebook does.

    more  what the same command needs to go on, as the folder whose name is of today; the interrupt has it with it

    Is in nobody's way outside of the main thread, which is the only one that signals reach.
    """
    try:
        with _listened_for(more):
            yield
    except KeyboardInterrupt as interrupted:
        if more and not interrupted.args:
            interrupted.args = (more,)
        raise


@contextmanager
def _listened_for(more: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard, more), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(told)  # which ends the thread


def end_soon() -> None:
    """End the process in GRACE seconds, whatever its orderly end still waits for."""
    timer = threading.Timer(GRACE, os._exit, (INTERRUPTED,))
    timer.daemon = True
    timer.start()


def _listen(heard: int, more: str) -> None:
    """End the process GRACE seconds after a first interrupt, at once after a second; return when the pipe is closed."""
    interrupted = False
    while True:
        ready, _, _ = select.select([heard], [], [], GRACE if interrupted else None)
        signals = os.read(heard, 64) if ready else b""
        if ready and not signals:
            os.close(heard)
            return
        count = signals.count(signal.SIGINT)
        if (interrupted and (not ready or count)) or count > 1:
            if not ready:
                os.write(2, f"{message(more)}\n".encode())
            os._exit(INTERRUPTED)
        interrupted = interrupted or count > 0
