"""Shows the user messages and progress bars on stderr, so that stdout holds results alone.

A message is one line. A bar is shown for work of more than two seconds, and never where the environment has
TQDM_DISABLE.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar


def say(message: str) -> None:
    """Print a line on stderr at once, with control characters written out."""
    print(to_printable(message), file=sys.stderr, flush=True)


def to_printable(text: str) -> str:
    r"""Write `text` in one line: control, direction and invisible characters become \n, \x1b or \u202e."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


T = TypeVar("T")


def make_bar(total: int | None, what: str, unit: str, done: int = 0) -> Any:
    """Return a progress bar that is redrawn every 0.2 s, or every 20 s where stderr is no terminal.

    total  units at the end; None where it is not known before
    done   units at the start
    """
    from tqdm import tqdm  # here, since --help and list show no bar

    quiet = {"disable": True} if os.environ.get("TQDM_DISABLE") else {}  # tqdm itself reads it when it is imported
    every = 0.2 if sys.stderr.isatty() else 20
    return tqdm(total=total, desc=what, unit=unit, initial=done, delay=2, leave=False, mininterval=every, **quiet)


def show_progress(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, with a bar of how many are done.

    total  number of items where they have no length; None where it is not known
    """
    with make_bar(len(items) if isinstance(items, Sized) else total, what, unit) as bar:
        for item in items:
            yield item
            bar.update()
