"""Tells the user what is going on, a line at a time on stderr, so that stdout holds results alone."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Print a line on stderr at once, with the control characters that names of others have written out."""
    print(printable(message), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    r"""Write `text` in one line: control, direction and invisible characters become \n, \x1b or \u202e."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
