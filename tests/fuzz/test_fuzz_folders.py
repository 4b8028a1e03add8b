"""Run folders with anything wrong in them end no command in a traceback, are told in lines, and take no time."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from fuzzing import watched
from made_runs import answers, cell, nats, speed
from mutated_folders import CONTROL, mutate

from bench.records import packed_run

NIGHTLY = int(os.environ.get("PRUNEBENCH_MUTATIONS", "2000"))
SECONDS = 10.0  # of processor time, for one command
READ = (
    ("report", "RUN"),
    ("report", "RUN", "--view", "all", "--reference", "laco"),
    ("report", "RUN", "BASE", "--view", "all"),
    ("report", "RUN", "--format", "markdown"),
    ("report", "RUN", "--view", "all", "--format", "latex"),
    ("gate", "RUN", "--baseline", "BASE", "--no-confirm"),
    ("gate", "BASE", "--baseline", "RUN", "--no-confirm", "--format", "markdown"),
    ("history", "RUN", "BASE", "--metric", "perplexity_wiki", "--label", "laco"),
    ("compare", "BASE", "RUN"),
    ("compare", "BASE/laco--0.1--0", "RUN/laco--0.1--0"),
    ("show", "RUN", "laco"),
)
WRITE = (
    ("history", "RUN", "--metric", "perplexity_wiki", "--label", "laco", "--plot", "history.svg"),
    ("pack", "RUN", "--out", "packed"),
    ("pack", "RUN"),
    ("pack", "RUN", "--unpack"),
    ("merge", "RUN", "--out", "joined"),
    ("merge", "RUN", "BASE", "--out", "joined"),
    ("export", "RUN", "laco", "--to", "answers.json", "--lm-eval-json"),
    ("export", "RUN", "laco", "--to", "answers", "--every-eval-ever"),
    ("baseline", "accept", "RUN", "--out", "new", "--allow-failed"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with samples, loose and packed, and the one that both are held against."""
    folder = tmp_path_factory.mktemp("runs")
    for label, ratio, seed in (("dense", None, 1), ("laco", 0.1, 3), ("sleb", 0.1, 4), ("laco", 0.2, 5)):
        figures = {"tasks": {"piqa": answers(seed, 100)}, "texts": {"wiki": nats(seed)}}
        cell(folder / "loose", label, ratio, **figures, measured={"speed": speed(1)})
    shutil.copytree(folder / "loose", folder / "packed")
    packed_run.pack_run(folder / "packed", folder / "packed")
    return folder


def one(runs: Path, folder: Path, number: int) -> float:
    """Mutate a run, run a command on it, hold that to what has to hold; return the seconds that it took."""
    draw = random.Random(number)
    shutil.copytree(runs / draw.choice(["loose", "packed"]), folder / "RUN")
    shutil.copytree(runs / "loose", folder / "BASE")
    done = mutate(folder / "RUN", draw)
    command = draw.choice([*READ, *READ, *WRITE])
    began = time.process_time()
    try:
        said = watched(list(command), folder, writes=command in WRITE, seconds=SECONDS)
    except BaseException as error:
        raise AssertionError(f"{number}: {' '.join(command)} behind {done}: {type(error).__name__}: {error}") from error
    assert not CONTROL & set(said.out + said.err), f"{number}: {' '.join(command)} behind {done}"
    return time.process_time() - began


@pytest.mark.parametrize("part", range(4))
def test_mutated_folders(part, runs, tmp_path):
    for number in range(part * 10, part * 10 + 10):
        one(runs, tmp_path / str(number), number)


@pytest.mark.nightly
def test_many_mutated_folders(runs, tmp_path):
    taken = {}
    for number in range(1000, 1000 + NIGHTLY):
        taken[number] = one(runs, tmp_path / str(number), number)
        shutil.rmtree(tmp_path / str(number))
    longest = max(taken, key=lambda number: taken[number])
    print(f"{len(taken)} commands; the longest, {longest}, took {taken[longest]:.1f} s of a core")
