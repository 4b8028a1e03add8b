"""Runs that are ended again and again come to what one comes to that nothing disturbs."""

from __future__ import annotations

import random
import signal
from itertools import cycle
from pathlib import Path

import pytest
from ledger_runs import Order, Runner
from run_contents import contents

from bench.records.run_folder import load_run
from bench.runs import store

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
HEALED = [
    *(
        "--then",
        "drop-tail:ratio=0.6",
        "--heal",
        "full",
        "--heal-text",
        "TEXT",
        "--heal-tokens",
        "512",
        "--heal-length",
        "16",
    ),
    *("--heal-batch", "2", "--heal-passes", "1"),
]
QUICK = ["--methods", "sleb", "--ratio", "0.3", *HEALED]
SMALL = {
    "sleb": ["--methods", "sleb", "--ratio", "0.3,0.5", *HEALED],
    "obs and evopress": [
        *("--methods", "obs,evopress:generations=4,offspring=4,initial=4,tokens=40", "--ratio", "0.3", *HEALED),
    ],
    "all that search": [
        *("--ratio", "0.3", "--methods"),
        "blockpruner,finercut,sleb+ghost,flap+refit,2ssp:alpha=9,laco-ls:trial_tokens=48,final_tokens=96,"
        "laco-puzzle:steps=2,tokens=48,best=2,collapsed=0.9,"
        "tyr:rounds=2,generations=2,offspring=4,tokens=40,final_tokens=80",
    ],
}
DEATHS = {"sleb": 30, "obs and evopress": 20, "all that search": 20}
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def runner(model_folder, text_file):
    """A run whose methods and ratios are to be named; small, and without tasks."""
    asked = [
        *("run", "--model", str(model_folder), "--texts", str(text_file), "--calibration", str(text_file)),
        *("--tasks", "none", "--no-checks", "--window", "32", "--windows", "2", "--calibration-sequences", "4"),
        *("--calibration-length", "24", "--calibration-memory-mib", "64", "--profile", "smoke", "--device", "cpu"),
        *("--speed-rounds", "0", "--threads", "1", "--dtype", "float32"),
        *("--methods", "drop-tail", "--ratio", "0.3"),
    ]
    with Runner(asked) as found:
        found.text = str(text_file)
        yield found


def differing(folder: Path, whole: Path) -> dict[str, object]:
    """What is not alike in two folders, by file, of records by what they say."""
    found, expected = contents(folder), contents(whole)
    unlike = {name for name in {*found, *expected} if found.get(name, 0) != expected.get(name, 0)}
    said = dict[str, object]()
    for name in sorted(unlike):
        here, there = found.get(name), expected.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            parts = {part: (here[part], there[part]) for part in here if here[part] != there.get(part)}
            said[name] = {
                f"{part}.{key}": (one.get(key), other.get(key))
                for part, (one, other) in parts.items()
                for key in {*(one or {}), *(other or {})}
                if isinstance(one, dict) and isinstance(other, dict) and one.get(key) != other.get(key)
            } or parts
        else:
            said[name] = "is there" if name in found else "is missing"
    return said


def ended_again_and_again(runner, tmp_path: Path, asked: list[str], deaths: int, in_a_run: int) -> list[int]:
    """End runs until there were so many deaths; each folder comes to the same. Returns the signals that ended one."""
    whole, asked = tmp_path / "whole", [runner.text if word == "TEXT" else word for word in asked]
    answer = runner.made(Order(str(whole), asked))
    assert answer["code"] == 0, answer["said"]
    draw, signals, met, trial = random.Random(0), cycle(SIGNALS), list[int](), 0
    most = max(2, 2 * answer["writes"] // in_a_run)
    while len(met) < deaths:
        folder, trial = tmp_path / str(trial), trial + 1
        while len(met) < deaths:
            number = next(signals)
            answer = runner.made(Order(str(folder), asked, deaths={draw.randint(1, most): number}))
            if answer["code"] == 0:
                break
            assert answer["code"] == CODES[number], answer["said"]
            met.append(number)
            if number != signal.SIGKILL:
                assert answer["said"].count("goes on where it stopped") == 1, answer["said"]
                assert not (folder / store.OWNER).exists()
                assert not list(folder.glob(f"{store.SCRATCH}*"))
            assert "Traceback" not in answer["said"]
            assert "resource_tracker" not in answer["said"]
        answer = runner.made(Order(str(folder), asked))
        assert answer["code"] == 0, answer["said"]
        assert differing(folder, whole) == {}, f"{trial}"
    return met


@pytest.mark.nightly
def test_a_search_a_chain_and_healing_that_are_ended_at_writes_come_to_the_same(runner, tmp_path):
    met = ended_again_and_again(runner, tmp_path, QUICK, deaths=len(SIGNALS), in_a_run=5)
    assert set(met) == set(SIGNALS)


@pytest.mark.nightly
@pytest.mark.parametrize("what", SMALL)
def test_all_that_search_come_to_the_same_however_often_they_are_ended(what, runner, tmp_path):
    met = ended_again_and_again(runner, tmp_path, SMALL[what], DEATHS[what], in_a_run=12)
    assert len(met) == DEATHS[what]


TIMED = ["--speed-rounds", "6", "--prefill", "4", "--decode", "none"]


@pytest.mark.nightly
@pytest.mark.parametrize(("options", "kills"), [([], 24), (TIMED, 6)])
def test_cells_whose_processes_are_killed_come_to_the_same_when_they_are_tried_again(options, kills, runner, tmp_path):
    # at one ratio, since a search goes on from that of another cell only where this one has not crashed
    asked = ["--methods", "sleb,finercut,blockpruner,drop-tail", "--ratio", "0.3", "--slots", "2", "--retry-failed"]
    asked += options
    whole, failed, done, trial = tmp_path / "whole", 0, 0, 0
    answer = runner.made(Order(str(whole), asked))
    assert answer["code"] == 0, answer["said"]
    while done < kills:
        folder, trial = tmp_path / str(trial), trial + 1
        for start in (1, 2, 3):
            answer = runner.made(Order(str(folder), asked, fails=[start, start + 4, start + 8, start + 12]))
            assert answer["code"] == 0, answer["said"]
            assert "Traceback" not in answer["said"]
            done += answer["fails"]
            failed += sum(record.status == "crashed" for record in load_run(folder))
        answer = runner.made(Order(str(folder), asked))
        assert answer["code"] == 0, answer["said"]
        assert differing(folder, whole) == {}
    assert failed > kills / 4
