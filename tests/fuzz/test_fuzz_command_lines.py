"""Command lines of any flags with any values: each is done, or refused in one line before any work."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from fuzzing import share, watched
from hypothesis import example, given
from hypothesis import strategies as st
from made_records import DENSE, LACO

from bench.cli.main import _parser
from bench.records import packed_run

CUT_OFF = ("doctor", "speed", "latency-table", "serve-speed", "similarity", "fetch", "serve", "cell")  # begin work
WRITE = ("pack", "merge", "baseline", "export", "report", "gate", "history")
WORDS = [
    "",
    "-",
    "0",
    "1",
    "-1",
    "0.3",
    "1e400",
    "nan",
    "9" * 400,
    "1,2",
    ",",
    "=",
    "a=b",
    "größe 💡",
    "\u202e",
    "\x1b[31m",
]
WORDS += [
    "laco",
    "laco:C=3",
    "laco+ghost",
    "dense",
    "all",
    "drop:layers=1-",
    "flap:",
    "+",
    "none",
    "auto",
    "cuda",
    "meta",
]
WORDS += ["RUN", "RUN/laco", "PACKED", "EMPTY", "words.txt", "binary", "spec.yaml", "nowhere/x", "NEW", "macs=0.5"]
WORDS += ["smollm2-135m", "x" * 300, "a\nb", "%s", "{0}", "..", "perplexity_wiki", "laco=dense", "\udcff", "\x00"]
SAFE = ["run", "report", "show", "compare", "gate", "list", "history", "baseline", "pack", "merge", "export", "verify"]


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command by its name."""
    (found,) = [action.choices for action in _parser("prunebench")._actions if isinstance(action.choices, dict)]
    return dict(found)


PARSERS = commands()


def shown(action: argparse.Action) -> list[str]:
    """Values that a flag may be given: its own, where they are few, and any word."""
    return [*map(str, action.choices or ()), *WORDS]


@st.composite
def lines(draw: st.DrawFn, names: list[str]) -> list[str]:
    """A command with its positional arguments, some of its flags and at times one too many."""
    name = draw(st.sampled_from(names))
    arguments = [name, *(["accept"] if name == "baseline" else [])]
    parser = PARSERS[name]
    if name == "baseline":
        parser = parser._subparsers._group_actions[0].choices["accept"]  # type: ignore[union-attr]
    actions = [action for action in parser._actions if action.dest not in ("help", "plan")]
    for action in actions:
        if not action.option_strings and not isinstance(action.choices, dict):
            arguments += draw(st.lists(st.sampled_from(shown(action)), min_size=0 if action.nargs else 1, max_size=2))
    flags = [
        action for action in actions if action.option_strings and action.dest not in ("trust-remote-code", "tasks")
    ]
    for action in draw(st.lists(st.sampled_from(flags), max_size=5)) if flags else []:
        arguments.append(draw(st.sampled_from(action.option_strings)))
        if action.nargs != 0 or draw(st.integers(0, 15)) == 15:
            arguments.append(draw(st.sampled_from(shown(action))))
    return [*arguments, "--no-confirm"] if name == "gate" else arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs, texts and a spec, in which commands are given."""
    folder = tmp_path_factory.mktemp("place")
    for run in ("RUN", "PACKED"):
        for key, record in {"dense": DENSE, "laco": LACO}.items():
            path = folder / run / "cells" / f"{key}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(record)))
    packed_run.pack(folder / "PACKED", folder / "PACKED")
    (folder / "EMPTY").mkdir()
    (folder / "words.txt").write_text("\n\n".join("w1 w2 w3 w4 w5 w6 w7 w8 " * 8 for _ in range(20)))
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "spec.yaml").write_text("methods: laco\nratio: 0.2\n")
    return folder


def given_there(arguments: list[str], place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give a command in a copy of the place."""
    folder = tmp_path_factory.mktemp("there")
    try:
        shutil.copytree(place, folder, dirs_exist_ok=True)
        watched(arguments, folder, writes=arguments[0] in WRITE)
    finally:
        shutil.rmtree(folder)


def planning(model_folder: Path) -> list[str]:
    """What keeps a plan small, and itself from work."""
    tiny = ["--model", str(model_folder), "--texts", "words.txt", "--calibration", "words.txt", "--tasks", "none"]
    return [*tiny, "--window", "32", "--windows", "2", "--plan"]


@share(0.08)
@given(line=lines([name for name in SAFE if name != "run"]))
@example(line=["list", "methods", "--verbose"])
@example(line=["show", "x" * 300, "laco"])
@example(line=["gate", "RUN", "--baseline", "RUN", "--no-confirm", "--out", "EMPTY"])
def test_commands_that_read_records(line, place, tmp_path_factory):
    given_there(line, place, tmp_path_factory)


@share(0.06)
@given(line=lines(["run"]), first=st.booleans())
@example(line=["run", "--methods", "laco", "--ratio", "0.2", "--device", "meta"], first=True)
def test_plans_of_runs(line, first, place, model_folder, tmp_path_factory):
    small = planning(model_folder)
    line = ["run", *small, *line[1:]] if first else [*line, *small]
    given_there(line, place, tmp_path_factory)


def refusable() -> Iterator[str]:
    """Commands that begin work, which here only their parsers see."""
    yield from (name for name in CUT_OFF if name in PARSERS)


@share(0.02)
@given(line=lines(list(refusable())))
def test_commands_that_begin_work_lack_what_they_need(line, place, tmp_path_factory):
    """With a flag that there is not, everything in front of it is parsed and nothing is done."""
    given_there([*line, "--no-such-flag"], place, tmp_path_factory)
