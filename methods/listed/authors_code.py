"""Says how far each method was held against its authors' code, and where it departs from that on purpose.

authors_code.json has what was compared, with which commit, and the largest differences, which the tests write and
check; a departure is a sentence at the head of the method's module.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.listed.cards import source

DATA = Path(__file__).with_name("authors_code.json")


@dataclass(frozen=True)
class Speed:
    """Holds the CPU seconds of the authors' code and of ours for the same work."""

    work: str
    theirs: float
    ours: float

    @property
    def times(self) -> str:
        """Return how many times as fast ours is."""
        return f"{self.theirs / self.ours:.1f}"


@dataclass(frozen=True)
class CodeComparison:
    """Holds how a module was held against code of its method.

    methods         the methods or compensations of the module whose runs were compared
    code            repositories, and the commit of each where it was noted
    by_the_authors  whether it is the authors' own; otherwise it is somebody's port
    compared        what was, in words
    put_in          departures that were undone for the comparison, one sentence each
    runs            runs of the code that the tests repeat
    largest         "scores" and "logits" -> the largest difference of all runs
    speed           both codes' seconds, where they were measured
    """

    methods: tuple[str, ...]
    code: tuple[tuple[str, str | None], ...]
    by_the_authors: bool
    compared: str
    put_in: tuple[str, ...]
    runs: int
    largest: dict[str, float]
    speed: tuple[Speed, ...]

    @property
    def apart(self) -> str:
        """Say how far the runs are apart at most."""
        return " and ".join(f"{kind} by {value:.1e}" for kind, value in self.largest.items())


def checks() -> dict[str, CodeComparison]:
    """Return the check of every module that was held against other code, by the last part of its name."""
    return {
        name: CodeComparison(
            methods=tuple(said["methods"]),
            code=tuple((one["repository"], one["commit"]) for one in said["code"]),
            by_the_authors=said["by_the_authors"],
            compared=said["compared"],
            put_in=tuple(said["put_in"]),
            runs=said["runs"],
            largest={kind: one["difference"] for kind, one in said["largest"].items()},
            speed=tuple(Speed(**one) for one in said["speed"]),
        )
        for name, said in _data()["methods"].items()
    }


def what_was_timed() -> str:
    """Return how the seconds of both codes were measured."""
    return str(_data()["speed"])


def departures(module: str) -> list[str]:
    """Return the departures that the head of a module ("depth.sleb") states, one sentence each."""
    head = ast.get_docstring(ast.parse(source(module))) or ""
    found = re.search(r"^Departures from [\w' ]+\. (.*?)(?:\n\n|\Z)", head, re.MULTILINE | re.DOTALL)
    return re.split(r"(?<=\.) (?=[A-Z0-9`])", " ".join(found[1].split())) if found else []


def _data() -> Any:
    return json.loads(DATA.read_text(encoding="utf-8"))
