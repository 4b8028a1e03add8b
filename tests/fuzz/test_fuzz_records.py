"""Records with anything wrong in them, one in a file or packed, end no command in a traceback."""

from __future__ import annotations

import copy
import functools
import json
import operator
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fuzzing import damaged, damages, scratch, share, watched, wild_json
from hypothesis import example, given
from hypothesis import strategies as st
from made_records import DENSE, FAILED, LACO, MENDED, UNICODE
from made_runs import answers, nats, speed
from made_runs import cell as written_cell
from made_served import point
from made_served import record as served_record

from bench.records import packed_run

PLAIN = [record.plain() for record in [DENSE, LACO, UNICODE, *FAILED[:2], *MENDED[:3]]]
SERVED = asdict(served_record("laco", points=(point(),)))
READ = (
    ("report", "RUN"),
    ("report", "RUN", "--view", "all"),
    ("report", "RUN", "--format", "html", "--reference", "laco"),
    ("report", "RUN", "--view", "all", "--format", "latex"),
    ("show", "RUN", "other"),
    ("show", "RUN", "laco"),
    ("compare", "RUN", "RUN"),
    ("compare", "RUN/laco", "RUN/other"),
    ("gate", "RUN", "--baseline", "RUN", "--no-confirm"),
    ("history", "RUN", "--metric", "perplexity_wiki"),
    ("history", "RUN", "RUN", "--metric", "parameters", "--label", "laco", "--format", "csv"),
)
WRITE = (("pack", "RUN"), ("merge", "RUN", "--out", "joined"), ("baseline", "accept", "RUN", "--out", "base"))
COMMANDS = st.sampled_from([*READ, *READ, *WRITE])


def changed_record(*path: str | int, to: Any = None) -> bytes:
    """The record of a third cell with another value at a path, or without the field if there is no value."""
    plain = copy.deepcopy(PLAIN[1])
    plain["cell"]["ratio"] = 0.2
    *parents, field = path
    place = functools.reduce(operator.getitem, parents, plain)
    assert field in place
    if to is None:
        del place[field]
    else:
        place[field] = to
    return json.dumps(plain).encode()


# Records that once ended a command in a traceback, and words of the line that says what is wrong; "" for none.
ONCE_FAILED = {
    "cut short": (json.dumps(PLAIN[1]).encode()[:700], "is not JSON"),
    "macs without context": (changed_record("measured", "macs_context"), ""),
    "nothing to be timed": (changed_record("cell", "protocol", "prefill", to=[]), ""),
    "perplexity without windows": (
        changed_record("measured", "perplexity", "wiki", "windows"),
        "perplexity.wiki.windows is missing",
    ),
    "point without flags": (changed_record("measured", "speed", "points", 0, "flags"), ""),
    "protocol without calibration": (
        changed_record("cell", "protocol", "calibration_sequences"),
        "calibration_sequences is missing",
    ),
    "protocol without compile": (changed_record("cell", "protocol", "compile"), "protocol.compile is missing"),
}


def put(folder: Path, other: bytes) -> None:
    """A run of three cells, of which one has these bytes for its record."""
    for key, record in {"dense": DENSE, "laco": LACO}.items():
        path = folder / "RUN" / "cells" / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record.plain()))
    (folder / "RUN" / "cells" / "other.json").write_bytes(other)


@pytest.mark.parametrize("name", ONCE_FAILED)
def test_records_that_once_failed(name, tmp_path):
    text, mistake = ONCE_FAILED[name]
    for number, command in enumerate([*READ, *WRITE]):
        folder = tmp_path / str(number)
        put(folder, text)
        outcome = watched(list(command), folder, writes=command in WRITE)
        if command == READ[0]:
            lines = [line for line in outcome.err.splitlines() if "other.json" in line]
            assert [mistake in line for line in lines] == ([True] if mistake else [])
            assert ("ratio 0.2" in outcome.out) == (not mistake)


@share(0.10)
@given(text=wild_json(st.sampled_from(PLAIN)), command=COMMANDS)
def test_wild_records(text, command, tmp_path_factory):
    with scratch(tmp_path_factory, "records") as folder:
        put(folder, text.encode())
        watched(list(command), folder, writes=command in WRITE)


@share(0.02)
@given(changes=damages(), which=st.sampled_from(PLAIN), command=COMMANDS)
@example(changes=[("set", 0, 0xFF)], which=PLAIN[0], command=READ[0])
def test_damaged_records(changes, which, command, tmp_path_factory):
    with scratch(tmp_path_factory, "damaged") as folder:
        put(folder, damaged(json.dumps(which).encode(), changes))
        watched(list(command), folder, writes=command in WRITE)


@share(0.03)
@given(text=wild_json(st.sampled_from([{"key": "other", "rows_sha256": {}} | one for one in PLAIN])), command=COMMANDS)
def test_wild_lines_of_a_packed_run(text, command, tmp_path_factory):
    with scratch(tmp_path_factory, "packed") as folder:
        put(folder, b"{}")
        (folder / "RUN" / "cells" / "other.json").unlink()
        packed_run.pack_run(folder / "RUN", folder / "RUN")
        with (folder / "RUN" / "records.jsonl").open("a") as file:
            file.write(f"{text}\n")
        watched(list(command), folder, writes=command in WRITE)


@share(0.02)
@given(text=wild_json(st.just(SERVED)))
@example(text=json.dumps(SERVED | {"protocol": {"engine": "llama.cpp"}}))
def test_wild_lines_of_what_engines_served(text, tmp_path_factory):
    with scratch(tmp_path_factory, "served") as folder:
        put(folder, json.dumps(PLAIN[2]).encode())
        (folder / "RUN" / "served.jsonl").write_text(f"{json.dumps(SERVED)}\n{text}\n")
        watched(["report", "RUN", "--view", "served"], folder)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with samples."""
    folder = tmp_path_factory.mktemp("measured")
    for label, ratio, seed in (("dense", None, 1), ("laco", 0.1, 3), ("sleb", 0.1, 4)):
        figures = {
            "tasks": {"piqa": answers(seed, 100)},
            "texts": {"wiki": nats(seed)},
            "measured": {"speed": speed(1)},
        }
        written_cell(folder / "RUN", label, ratio, **figures)
    return folder


@share(0.04)
@given(data=st.data())
def test_wild_records_beside_samples(data, measured, tmp_path_factory):
    with scratch(tmp_path_factory, "beside") as folder:
        shutil.copytree(measured, folder, dirs_exist_ok=True)
        shutil.copytree(measured / "RUN", folder / "BASE")
        path = folder / "RUN" / "cells" / "laco--0.1--0.json"
        text = data.draw(wild_json(st.just(json.loads(path.read_text()))))
        path.write_text(text)
        of_both = (
            ("compare", "BASE", "RUN"),
            ("compare", "BASE/laco", "RUN/laco"),
            ("gate", "RUN", "--baseline", "BASE", "--no-confirm"),
            ("gate", "RUN", "--baseline", "BASE", "--no-confirm", "--format", "junit"),
            ("report", "RUN", "BASE", "--reference", "dense", "--view", "all"),
        )
        watched(list(data.draw(st.sampled_from(of_both))), folder)
