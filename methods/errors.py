"""The exceptions of the project, and how they become one line of text."""

from __future__ import annotations

import re

LONG = 200  # characters of a word or a quoted text from which on a message shows its two ends alone, 50 of each


class UserError(Exception):
    """Is raised for a mistake of the user: the program prints it as one line on stderr and exits with code 2.

    The message says what is wrong, what would be right, and where to look. `to_one_line` shortens the user's input in
    it.
    """

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(to_one_line(str(message)), *more)


class Unwritable(UserError):
    """Is raised where the disk is full or takes no files; nothing half-written is left."""


class NoRoom(Exception):
    """Is raised where a folder takes no more of the states that wait in it: an outcome of the cell, not a failure."""


class Unsupported(Exception):
    """Is raised where a method cannot serve a model's structure: an outcome with its reason, not a failure."""


class OutOfReach(ValueError):
    """Is raised for a ratio beyond what a method can remove from a model: the user's mistake."""


class WrongDecisions(UserError):
    """Is raised where a method's decisions differ from what it removed: a mistake of the method's author."""


class CheckpointError(UserError, ValueError):
    """Is raised where a model's folder cannot be written, or does not match its own description."""


def to_one_line(message: str) -> str:
    r"""Return a message in one line that a terminal can show: long words without their middle, escapes as \x1b."""
    line = " ".join(message.split())
    long = rf"(?<![\w'])'[^']{{{LONG},}}'(?!\w)|\S{{{LONG},}}"
    line = re.sub(long, lambda match: f"{match[0][:50]}…{match[0][-50:]}", line)
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def first_line_of(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type where the message is empty."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]
