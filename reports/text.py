"""Text that is safe to show: escaped for Markdown, and measured and wrapped by the columns that it takes up."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from methods.console import to_printable

__all__ = ["escape_markdown", "names_of_files", "shorten", "to_printable", "width_of", "wrap"]


def names_of_files(texts: Iterable[str]) -> list[str]:
    """Return for each text the name of a file without its ending. All names differ, and none leads into a folder."""
    names: dict[str, None] = {}
    for text in texts:
        stem = name = re.sub(r"[^\w.+-]+", "-", text).lstrip(".") or "-"
        number = 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names[name] = None
    return list(names)


def escape_markdown(text: str) -> str:
    """Return `text` such that Markdown, and HTML within it, shows it unchanged, in a table cell too."""
    text = to_printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # within a word it means nothing


def width_of(text: str) -> int:
    """Return the columns of a terminal that `text` takes up: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def shorten(text: str, room: int) -> str:
    """Return `text`, without its middle if it is wider than `room` columns."""
    return text if width_of(text) <= room else f"{text[: room // 2]}…{text[-room // 2 + 1 :]}"


def wrap(text: str, room: int, breaks: str = " ", indent: str = "") -> list[str]:
    """Return lines of at most `room` columns, broken behind the characters `breaks`, or anywhere if that is not enough.

    Lines after the first start with `indent`.
    """
    lines, line, width, filled = list[str](), list[str](), 0, False

    def go_on() -> tuple[list[str], int, bool]:
        lines.append("".join(line))
        return list(indent), width_of(indent), bool(indent.strip())

    for piece in re.findall(rf"[^{re.escape(breaks)}]*[{re.escape(breaks)}]|[^{re.escape(breaks)}]+", text):
        if filled and width + width_of(piece.rstrip()) > room:
            line, width, filled = go_on()
        for character in piece:
            if character != " " and width + width_of(character) > room:
                line, width, filled = go_on()
            line.append(character)
            width, filled = width + width_of(character), filled or not character.isspace()
    go_on()
    return [line.rstrip() for line in lines]
