"""Inputs that are wrong in any way, and what has to hold of every one of them.

`wild_json` and `damages` make inputs of sound ones. `watched` runs a command on one and holds it to this: no exception
leaves it; a refusal is one line on stderr, exit code 2, and leaves the folder as it was; it ends within SECONDS of
processor time and asks for less than ROOM of memory.

How many inputs there are is said by the profile of Hypothesis (tests/conftest.py), of which each test takes a share.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
from hypothesis import settings
from hypothesis import strategies as st
from mutated_records import mutated, replacements

from bench.cli.main import main
from bench.runs.store import LOCK
from methods.errors import UserError

SECONDS, ROOM = 5.0, 2**30
CODES = (0, 1, 2, 3, 4)  # exit codes that a command may end with
NESTED, DIGITS, KEY = "<nested>", "<digits>", "<key>"  # stand for what json.dumps does not write
DEPTH = 20_000

WORDS = [
    "größe 💡",
    "\u202e",
    "\x1b[31m",
    "\x00",
    "\ud800",
    "a\nb",
    "<b>&amp;",
    "../../x",
    "%s{0}",
    "x" * 3000,
    " ",
    "-",
    "'",
]
NUMBERS: list[float] = [float("nan"), float("inf"), float("-inf"), -0.0, 1e-320, 2**31, 2**63, -(2**63) - 1, 1.5, -1]
BESIDE = [NESTED, DIGITS, *WORDS, *NUMBERS]


def share(of: float) -> settings:
    """Settings of a test that takes this share of the inputs of the profile."""
    return settings(max_examples=max(1, round(of * settings.default.max_examples)))


# Inputs


def offered(value: Any) -> list[Any]:
    """What may stand in place of a value: all that a record may have there, and words and numbers that are hard."""
    return [*replacements(value), *BESIDE]


@st.composite
def wild_json(draw: st.DrawFn, sound: st.SearchStrategy[Any]) -> str:
    """The text of one of the sound values with up to three places changed, at times with a key twice."""
    plain, choose = draw(sound), draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(0, 3))):
        if plain:
            plain = mutated(plain, choose, offered)[0]
    text = json.dumps(plain).replace(f'"{NESTED}"', "[" * DEPTH + "]" * DEPTH).replace(f'"{DIGITS}"', "9" * 5000)
    return twice(text, choose) if draw(st.integers(0, 7)) == 7 else text


def twice(text: str, choose: random.Random) -> str:
    """The text of JSON with another value of one of its keys in front of it."""
    keys = [
        number for number, character in enumerate(text) if character == "{" and text[number + 1 : number + 2] == '"'
    ]
    if not keys:
        return text
    start = choose.choice(keys) + 1
    name = text[start : text.index('"', start + 1) + 1]
    return f"{text[:start]}{name}: {choose.choice(['null', '[]', '-1', '0.5'])}, {text[start:]}"


Damage = tuple[str, int, int]  # what, where, how much


def damages(most: int = 3) -> st.SearchStrategy[list[Damage]]:
    """Up to so many changes of a file's bytes, near its start or, by negative places, near its end."""
    where = st.one_of(st.integers(0, 64), st.integers(0, 8192), st.integers(-512, -1))
    kinds = st.sampled_from(["cut", "flip", "set", "insert", "delete", "repeat"])
    return st.lists(st.tuples(kinds, where, st.integers(0, 255)), min_size=1, max_size=most)


def damaged(data: bytes, changes: Collection[Damage]) -> bytes:
    """The bytes of a file behind some changes."""
    for kind, where, much in changes:
        at = where % len(data) if data else 0
        data = {
            "cut": data[:at],
            "flip": data[:at] + bytes([data[at] ^ (much or 1)] if data else []) + data[at + 1 :],
            "set": data[:at] + bytes([much]) * 8 + data[at + 8 :],
            "insert": data[:at] + bytes([much]) * (1 + much % 9) + data[at:],
            "delete": data[:at] + data[at + 1 + much :],
            "repeat": data[:at] + data[at : at + much] + data[at:],
        }[kind]
    return data


# What has to hold


class Hang(BaseException):
    """Is raised in what takes too long; no handler of errors takes it."""


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Raise Hang in what takes more than so much processor time, and give no more memory than ROOM."""

    def hang(_: int, frame: FrameType | None) -> NoReturn:
        raise Hang(f"no end after {seconds} s, in {frame}")

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with no_more_memory():
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def no_more_memory() -> Iterator[None]:
    """Let what is inside have ROOM more of anonymous memory and no more, where the system counts that (Linux)."""
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def held(folder: Path) -> dict[str, tuple[int, int]]:
    """What a folder holds but locks, which stay: size and time of the last change of every file, by its path."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.name != LOCK):
        facts = path.lstat()
        found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (facts.st_size, facts.st_mtime_ns)
    return found


def watched(arguments: list[str], folder: Path, *, writes: bool = False, seconds: float = SECONDS) -> Said:
    """Run a command in a folder, and hold it to what has to hold; `writes`: whether it may, where it is not refused."""
    before = held(folder)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace")]
    out, err = streams
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bounded(seconds):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code  # --help and --version end so
    for stream in streams:
        stream.flush()
    printed, told = (stream.buffer.getvalue().decode() for stream in streams)
    assert code in CODES
    assert "Traceback" not in told
    if code == 2:
        assert printed == ""
        assert [line for line in told.splitlines() if line.startswith("prunebench: ")] == told.splitlines()[-1:]
    if code == 2 or not writes:
        assert held(folder) == before
    return Said(code, printed, told)


def refused_or_done(call: Callable[[], Any], folder: Path, *taken: type[Exception]) -> str | None:
    """Call what reads a file, and return what it says of it; None where it takes it.

    taken  errors that callers of it turn into one line, beside UserError
    """
    before = held(folder)
    try:
        with bounded(), contextlib.redirect_stderr(io.StringIO()):
            call()
    except (UserError, *taken) as error:
        return str(error)
    finally:
        assert held(folder) == before
    return None


@contextlib.contextmanager
def scratch(tmp_path_factory: Any, name: str) -> Iterator[Path]:
    """An empty folder for one input."""
    folder = tmp_path_factory.mktemp(name)
    try:
        yield folder
    finally:
        for root, folders, files in os.walk(folder, topdown=False):
            for file in files:
                Path(root, file).unlink()
            for inner in folders:
                Path(root, inner).rmdir()
        folder.rmdir()
