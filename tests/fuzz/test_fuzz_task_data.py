"""Documents of tasks with anything wrong in them are refused in one line before any work."""

from __future__ import annotations

import json

import pyarrow as pa
from fuzzing import damaged, damages, refused_or_done, scratch, share, wild_json
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from bench.data import task_loading, task_sources

ROWS = [{"goal": f"to do {n}", "sol1": "so", "sol2": "otherwise", "label": n % 2} for n in range(4)]
ROWS_OF = {
    "piqa": ROWS,
    "winogrande": [{"sentence": f"{n} saw _ there", "option1": "a", "option2": "b", "answer": "1"} for n in range(4)],
    "arc_easy": [
        {"id": str(n), "question": "who?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
        for n in range(4)
    ],
}
COLUMNS = [[None] * 4, ["größe"] * 4, [2**62] * 4, [-7] * 4, [0.5] * 4, [float("nan")] * 4, [[]] * 4, [["a"]] * 4]
COLUMNS += [[{"text": []}] * 4, [True] * 4, [b"\xff"] * 4, ["", "a", None, "b"]]
SUFFIXES = st.sampled_from([".jsonl", ".parquet", ".arrow"])


def held_to(task: str, name: str, content: bytes, tmp_path_factory) -> None:
    """Look at a task with its documents from a file of this content, as a run does before any work."""
    with scratch(tmp_path_factory, "task") as folder:
        (folder / name).write_bytes(content)
        said = refused_or_done(
            lambda: task_loading.check_tasks([task], task_sources.parse_task_data([f"{task}={folder / name}"])), folder
        )
        assert said is None or str(folder / name) in said


def stored(table: pa.Table, suffix: str) -> bytes:
    """The bytes of a file with these rows."""
    sink = pa.BufferOutputStream()
    if suffix == ".parquet":
        parquet.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


@share(0.03)
@given(task=st.sampled_from(sorted(ROWS_OF)), first=wild_json(st.sampled_from([rows[0] for rows in ROWS_OF.values()])))
@example(task="piqa", first=json.dumps(ROWS[0] | {"label": -(2**63) - 1}))
@example(task="piqa", first="[" * 3000)
def test_wild_lines_of_documents(task, first, tmp_path_factory):
    lines = [first, *map(json.dumps, ROWS_OF[task][1:])]
    held_to(task, "rows.jsonl", "\n".join(lines).encode(), tmp_path_factory)


@share(0.03)
@given(
    task=st.sampled_from(sorted(ROWS_OF)),
    suffix=SUFFIXES.filter(lambda suffix: suffix != ".jsonl"),
    changes=st.lists(st.tuples(st.integers(0, 3), st.integers(-1, len(COLUMNS) - 1)), min_size=1, max_size=3),
)
def test_wild_columns_of_documents(task, suffix, changes, tmp_path_factory):
    table = pa.Table.from_pylist(ROWS_OF[task])
    for at, values in changes:
        if at < table.num_columns:
            name = table.column_names[at]
            table = table.remove_column(at) if values < 0 else table.set_column(at, name, [COLUMNS[values]])
    held_to(task, f"rows{suffix}", stored(table, suffix), tmp_path_factory)


@share(0.03)
@given(task=st.sampled_from(sorted(ROWS_OF)), suffix=SUFFIXES, changes=damages())
@example(task="piqa", suffix=".jsonl", changes=[("set", 0, 0xFF)])
@example(task="piqa", suffix=".arrow", changes=[("cut", 0, 0)])
@example(task="piqa", suffix=".arrow", changes=[("set", 668, 229)])
@example(task="piqa", suffix=".arrow", changes=[("set", 701, 107)])
@example(task="piqa", suffix=".parquet", changes=[("cut", -1, 0)])
def test_damaged_documents(task, suffix, changes, tmp_path_factory):
    rows = ROWS_OF[task]
    whole = (
        "\n".join(map(json.dumps, rows)).encode() if suffix == ".jsonl" else stored(pa.Table.from_pylist(rows), suffix)
    )
    held_to(task, f"rows{suffix}", damaged(whole, changes), tmp_path_factory)
