"""Lets processes that run at once do one thing each alone: the others wait where they come to the same thing.

Every process that works is `started`. The first one that comes to the gate waits there until all others have come too,
or have ended; then one after the other does its thing, and all leave together. Nobody waits for it in the middle of
other work, so that what a process measures of its own work has no pause in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


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

    def started(self, who: int) -> None:
        """Note that somebody works."""
        with self._changed:
            self._working.add(who)

    def ended(self, who: int) -> None:
        """Note that somebody works no more, wherever that was."""
        with self._changed:
            self._working.discard(who)
            self._been.discard(who)
            if self._alone == who:
                self._alone = None
            self._let_go()

    def open(self) -> None:
        """Let everybody through from now on, as where all are about to be killed."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    @contextmanager
    def alone(self, who: int) -> Iterator[None]:
        """Wait until all others wait too, be alone within, and wait until all have been who came meanwhile."""
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
        """Let all leave who have been alone, where nobody is or waits to be."""
        if not self._waiting and self._alone is None:
            self._been.clear()
        self._changed.notify_all()
