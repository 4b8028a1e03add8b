"""Command lines of any flags with any values: each is done, or refused in one line before any work."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from fuzzing import Said, share, watched
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
            path.write_text(json.dumps(record.plain()))
    packed_run.pack_run(folder / "PACKED", folder / "PACKED")
    (folder / "EMPTY").mkdir()
    (folder / "words.txt").write_text("\n\n".join("w1 w2 w3 w4 w5 w6 w7 w8 " * 8 for _ in range(20)))
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "spec.yaml").write_text("methods: laco\nratio: 0.2\n")
    return folder


def given_there(arguments: list[str], place: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Give a command in a copy of the place, and return what it said."""
    folder = tmp_path_factory.mktemp("there")
    try:
        shutil.copytree(place, folder, dirs_exist_ok=True)
        return watched(arguments, folder, writes=bool(arguments) and arguments[0] in WRITE)
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


LONG = 1500  # characters of a line that refuses; the longest ones list every method
METHODS = ["lacoo", "x" * 5000, "laco+" + "x" * 5000, "laco:" + "x" * 5000 + "=1", "laco:C=" + "x" * 5000]
METHODS += [
    "laco:C=3,C=4",
    "laco:C=3,C=3",
    "laco:C=3,T=0.5,C=3",
    "laco::",
    "laco:C",
    "laco:C=",
    "=",
    ":",
    "C=3",
]
METHODS += [
    "",
    ",",
    "none",
    "laco:X=1",
    "la\x1b[31mco",
    "laco\u202e",
    "laco\x00",
    "laco+",
    "laco+gost",
    "laco+ghost+ghost",
    "x y",
]
COMBINATIONS = [
    "run --methods laco --ratio 0.2 --budget macs=0.8",
    "run --methods laco --budget macs=0.8,kv=0.5",
    "run --methods laco --budget macs=0.8 --ratio-of decoder",
    "run --methods laco --ratio 0.2 --slots 2 --no-isolate",
    "run --methods laco --ratio 0.2 --cell-minutes 3 --no-isolate",
    "run --methods laco --ratio 0.2 --heal-tokens 4096",
    "run --methods laco --ratio 0.2 --heal full --heal-rank 8",
    "run --methods laco --ratio 0.2 --latency-table words.txt",
    "run --methods laco --ratio 0.2 --engine ray --threads auto",
    "run --methods laco --ratio 0.2 --stride 99 --window 32",
    "run --methods laco --set slicegpt.x=3 --ratio 0.2",
    "run --ratio 0.2",
    "report RUN --out NEW --view cost",
    "report RUN --out NEW --format csv",
    "report RUN --standalone",
    "report RUN --against laco --reference laco",
    "export RUN laco",
    "export RUN laco --to NEW --public",
    "export RUN laco --to NEW --format gguf --push a/b",
    "export RUN laco --to NEW --format gguf --shard-mb 3",
    "export RUN laco --to NEW --multiple 3",
    "export RUN laco --to NEW --save-dtype q8_0",
    "export RUN laco --to NEW --lm-eval-json --format gguf",
    "export RUN laco --to NEW --lm-eval-json --every-eval-ever",
    "fetch --accept-terms",
    "verify nowhere.gguf",
    "verify nowhere",
]


def positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments without a flag that a command must have."""
    return [action for action in parser._actions if not action.option_strings and action.nargs not in ("*", "?")]


@st.composite
def misspelt(draw: st.DrawFn, word: str, known: list[str]) -> str:
    """A word that is near one and is none of those that are known."""
    at, change = draw(st.integers(2, len(word) - 1)), draw(st.sampled_from(["drop", "double", "swap", "other", "much"]))
    wrong = {
        "drop": word[:at] + word[at + 1 :],
        "double": word[:at] + word[at] + word[at:],
        "swap": word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :],
        "other": word[:at] + draw(st.sampled_from("qß\x1b\x00💡")) + word[at + 1 :],
        "much": word[:at] + word[at] * 5000 + word[at:],
    }[change]
    return wrong if wrong not in known else f"{wrong}q"


@st.composite
def mistakes(draw: st.DrawFn) -> list[str]:
    """A command line with one thing wrong for certain, of any command."""
    kind = draw(st.sampled_from(["command", "flag", "no command", "nothing", "nowhere", "methods", "combination"]))
    name = draw(st.sampled_from(sorted(PARSERS)))
    given, parser = draw(lines([name])), PARSERS[name]
    flags = list(parser._option_string_actions)
    if kind == "command":
        return [draw(misspelt(name, sorted(PARSERS))), *given[1:]]
    if kind == "flag":
        return [*given, draw(misspelt(draw(st.sampled_from([one for one in flags if len(one) > 2])), flags))]
    if kind == "no command":
        return [draw(misspelt("--methods", ["--version"])), *given[1:]]
    if kind == "methods":
        return ["run", "--methods", draw(st.sampled_from(METHODS)), "--ratio", "0.2", "--tasks", "none", "--plan"]
    if kind == "combination" or not positionals(parser):
        return draw(st.sampled_from(COMBINATIONS)).split()
    words = ["nowhere"] * len(positionals(parser)) if kind == "nowhere" else []
    required = [[one.option_strings[0], "PACKED"] for one in parser._actions if one.option_strings and one.required]
    return [name, *words, *(chain(*required) if words else ())]


@share(0.04)
@given(line=mistakes())
@example(line=["--method", "laco"])
@example(line=["rnu"])
@example(line=["list"])
@example(line=[])
def test_what_is_wrong_is_refused_in_one_line_that_can_be_read(line, place, tmp_path_factory):
    said = given_there(line, place, tmp_path_factory)
    assert said.code == (4 if line[:2] == ["gate", "nowhere"] else 2)  # which first looks for the baseline
    assert said.err.count("\n") == 1
    assert len(said.err) <= LONG
    assert said.err.strip().isprintable()
