"""Tells the user what is going on, a line at a time on stderr, so that stdout holds results alone."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Print a line on stderr at once."""
    print(message, file=sys.stderr, flush=True)
