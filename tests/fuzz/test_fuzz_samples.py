"""Files of samples with anything wrong in them end no command in a traceback, beside a record that fits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from fuzzing import damaged, damages, scratch, share, watched
from hypothesis import example, given
from hypothesis import strategies as st
from made_runs import answers, nats, speed
from made_runs import cell as written_cell
from pyarrow import parquet

from bench.records import packed_run

COMMANDS = (
    ("report", "RUN", "--reference", "dense"),
    ("report", "RUN", "--view", "all", "--reference", "dense"),
    ("report", "RUN", "--view", "signal"),
    ("compare", "BASE", "RUN"),
    ("compare", "BASE/laco", "RUN/laco"),
    ("gate", "RUN", "--baseline", "BASE", "--no-confirm"),
    ("gate", "BASE", "--baseline", "RUN", "--no-confirm"),
    ("show", "RUN", "laco"),
    ("pack", "RUN"),
    ("pack", "RUN", "--unpack"),
    ("merge", "RUN", "--out", "joined"),
    ("baseline", "accept", "RUN", "--out", "new"),
    ("export", "RUN", "laco", "--to", "answers.json", "--lm-eval-json"),
    ("export", "RUN", "laco", "--to", "answers", "--every-eval-ever"),
)
WRITE = ("pack", "merge", "baseline", "export")
COLUMNS = [
    pa.array([None] * 100),
    pa.array(["größe"] * 100),
    pa.array([[1.0, 2.0]] * 100),
    pa.array([[]] * 100, pa.list_(pa.float64())),
    pa.array([float("nan")] * 100),
    pa.array([float("inf"), *[0.5] * 99]),
    pa.array([None, *[1] * 99]),
    pa.array([2**63 - 1] * 100),
    pa.array([-5] * 100),
    pa.array([True] * 100),
    pa.array([b"\xff"] * 100),
    pa.array([{"a": 1}] * 100),
    pa.array([0] * 100, pa.timestamp("us")),
    pa.array(["x"] * 100).dictionary_encode(),
]
KINDS = ("removed", "renamed", "twice", "fewer", "none", "shuffled", *range(len(COLUMNS)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with samples, once loose and once packed, and the baseline that both are held against."""
    folder = tmp_path_factory.mktemp("runs")
    for label, ratio, seed in (("dense", None, 1), ("laco", 0.1, 3), ("sleb", 0.1, 4)):
        figures = {"tasks": {"piqa": answers(seed, 100)}, "texts": {"wiki": nats(seed, 100)}}
        bits = {"piqa": answers(seed + 9, 100)}
        written_cell(folder / "loose", label, ratio, **figures, bits=bits, measured={"speed": speed(1)})
    shutil.copytree(folder / "loose", folder / "packed")
    packed_run.pack_run(folder / "packed", folder / "packed")
    return folder


def put(runs: Path, form: str, folder: Path) -> list[Path]:
    """Copies of both runs; the files of samples of one of them."""
    shutil.copytree(runs / form, folder / "RUN")
    shutil.copytree(runs / "loose", folder / "BASE")
    return sorted((folder / "RUN" / "samples").rglob("*.parquet"))


def changed(table: pa.Table, column: int, kind: str | int) -> pa.Table:
    """A table with one column or its rows changed."""
    names, rows = table.column_names, table.num_rows
    at = column % len(names)
    if isinstance(kind, int):
        times = 1 + rows // len(COLUMNS[kind])
        values = pa.chunked_array([COLUMNS[kind]] * times).slice(0, rows)
        return table.set_column(at, names[at], values)
    if kind == "removed":
        return table.remove_column(at)
    if kind == "renamed":
        return table.rename_columns([*names[:at], f"{names[at]}\u202e", *names[at + 1 :]])
    if kind == "twice":
        return table.append_column(names[at], table.column(at))
    order = {"fewer": range(min(rows, 7)), "none": range(0), "shuffled": reversed(range(rows))}[kind]
    return table.take(pa.array(order, pa.int64()))


FORMS = st.sampled_from(["loose", "packed"])


@share(0.08)
@given(
    form=FORMS,
    which=st.integers(0, 5),
    changes=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(KINDS)), min_size=1, max_size=3),
    command=st.sampled_from(COMMANDS),
)
@example(form="loose", which=1, changes=[(4, "twice"), (4, 0)], command=COMMANDS[3])
@example(form="loose", which=0, changes=[(0, 2)], command=COMMANDS[3])
@example(form="loose", which=0, changes=[(0, 5)], command=COMMANDS[0])
@example(form="loose", which=0, changes=[(0, 7)], command=COMMANDS[3])
@example(form="loose", which=0, changes=[(0, "none")], command=COMMANDS[3])
@example(form="loose", which=0, changes=[(0, "fewer")], command=COMMANDS[3])
@example(form="loose", which=0, changes=[(0, "twice")], command=COMMANDS[8])
@example(form="loose", which=0, changes=[(0, 7)], command=COMMANDS[8])
@example(form="packed", which=1, changes=[(0, "removed")], command=COMMANDS[3])
def test_wild_columns_of_samples(form, which, changes, command, runs, tmp_path_factory):
    with scratch(tmp_path_factory, "columns") as folder:
        files = put(runs, form, folder)
        file = files[which % len(files)]
        table = parquet.read_table(file)
        for column, kind in changes:
            if table.column_names and not (kind == "twice" and table.num_rows == 0):
                table = changed(table, column, kind)
        parquet.write_table(table.replace_schema_metadata(None), file)
        watched(list(command), folder, writes=command[0] in WRITE)


@share(0.04)
@given(form=FORMS, which=st.integers(0, 5), changes=damages(), command=st.sampled_from(COMMANDS))
@example(form="loose", which=0, changes=[("cut", 0, 0)], command=COMMANDS[0])
@example(form="packed", which=0, changes=[("cut", -1, 0)], command=COMMANDS[0])
@example(form="packed", which=1, changes=[("cut", 0, 0)], command=COMMANDS[9])
@example(form="loose", which=0, changes=[("set", 26, 96)], command=COMMANDS[0])
def test_damaged_samples(form, which, changes, command, runs, tmp_path_factory):
    with scratch(tmp_path_factory, "damaged") as folder:
        files = put(runs, form, folder)
        file = files[which % len(files)]
        file.write_bytes(damaged(file.read_bytes(), changes))
        watched(list(command), folder, writes=command[0] in WRITE)
