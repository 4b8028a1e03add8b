"""Text that is safe to show is wrapped in time that grows with its length alone."""

from __future__ import annotations

import random
import re

import pytest

from reports import text
from reports.text import width_of, wrap


def plainly(line: str, room: int, breaks: str, indent: str) -> list[str]:
    """Wrap by measuring each line anew with every character."""
    lines = [""]
    for piece in re.findall(rf"[^{re.escape(breaks)}]*[{re.escape(breaks)}]|[^{re.escape(breaks)}]+", line):
        if width_of(lines[-1] + piece.rstrip()) > room and lines[-1].strip():
            lines.append(indent)
        for character in piece:
            if width_of(lines[-1] + character) > room and character != " ":
                lines.append(indent)
            lines[-1] += character
    return [one.rstrip() for one in lines]


def test_lines_are_those_of_measuring_each_anew():
    draw = random.Random(0)
    for _ in range(500):
        line = "".join(draw.choices("ab,. 語é\u0301", [5, 5, 2, 1, 4, 2, 1, 1], k=draw.randrange(120)))
        room, breaks, indent = draw.randrange(3, 40), draw.choice([" ", ",", " ,"]), draw.choice(["", " ", "  "])
        assert wrap(line, room, breaks, indent) == plainly(line, room, breaks, indent), (line, room, breaks, indent)


@pytest.mark.parametrize("line", [" " * 20_000, "x" * 20_000, "語 " * 10_000, f"x{' ' * 20_000}y", "é" * 20_000])
def test_each_character_is_measured_a_few_times(line, monkeypatch):
    measured = list[int]()
    monkeypatch.setattr(text, "width_of", lambda one: measured.append(len(one)) or width_of(one))
    wrap(line, 28, indent="  ")
    assert sum(measured) <= 5 * len(line)
