"""Bits per byte of the right answer: of samples that hold it, and of earlier ones, which hold likelihoods alone.

PRUNEBENCH_UPDATE_GOLDEN=1 python -m pytest tests/records/test_answers.py -k bytes  writes answer_bytes.parquet anew
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lm_eval.utils import handle_non_serializable, hash_string
from made_runs import answers as answered
from made_runs import cell
from pyarrow import parquet

from bench.data import task_loading, task_sources
from bench.records import answers, run_folder
from bench.records.columns import frame
from bench.records.samples import SampleFiles, Samples

STUDY = Path(__file__).parents[2] / "docs/results/smollm2-135m"


@pytest.fixture(scope="module")
def study():
    return run_folder.records(STUDY)


def known(task: str, count: int) -> tuple[list[str], list[int]]:
    """Hashes of some documents of a task as samples have them, and the bytes of their right answers."""
    table = parquet.read_table(answers.BYTES).to_pandas()
    found = table[table["task"] == task].head(count)
    return [f"{number:08x}" + 56 * "0" for number in found["document"]], found["bytes"].tolist()


def test_the_formula_by_hand():
    assert answers.bits_per_byte(-8 * math.log(2), 4) == pytest.approx(2)
    hashes, sizes = known("piqa", 3)
    table = pa.table(
        {"doc_hash": hashes, "target": [1, 0, 1], "loglikelihoods": [[-9.0, -1.0], [-2.0, -9.0], [-9.0, -3.0]]}
    )
    right = [1 / sizes[0], 2 / sizes[1], 3 / sizes[2]]
    assert answers.of_documents("piqa", table) == pytest.approx(np.array(right) / math.log(2))


def test_every_document_counts_alike():
    figures = np.array([1.0, 2.0, 6.0])
    assert answers.figure(figures) == {"value": 3.0, "stderr": pytest.approx(figures.std(ddof=1) / math.sqrt(3))}
    assert answers.figure(np.array([2.0])) == {"value": 2.0}


def test_what_the_samples_hold_goes_before_what_follows_from_them():
    hashes, _ = known("piqa", 1)
    table = pa.table({"doc_hash": hashes, "target": [0], "loglikelihoods": [[-1.0]], "answer_bpb": [7.0]})
    assert answers.of_documents("piqa", table).tolist() == [7.0]


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("piqa", {"doc_hash": ["f" * 64] * 2}),  # other documents, as of --task-data
        ("nosuch", {}),
        ("piqa", {"target": ["text", "text"]}),  # generated
        ("piqa", {"target": [[0], [1]]}),  # several right answers
        ("piqa", {"loglikelihoods": None}),
    ],
)
def test_without_likelihood_or_bytes_there_is_none(task, changes):
    hashes, _ = known("piqa", 2)
    columns = {"doc_hash": hashes, "target": [0, 1], "loglikelihoods": [[-1.0, -2.0]] * 2} | changes
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    assert answers.of_documents(task, table) is None


def test_records_of_earlier_versions_get_the_figure_from_their_samples(study):
    files, count = SampleFiles(), 0
    for key, record in study.items():
        for task, result in record.measured.get("tasks", {}).items():
            table = files.table(None, run_folder.samples_folder(STUDY, key), task)
            assert "answer_bpb" not in table.column_names
            figures = answers.of_documents(task, table)
            assert len(figures) == result["documents"]
            assert result["answer_bpb"]["value"] == pytest.approx(figures.mean())
            assert result["answer_bpb"]["stderr"] == pytest.approx(figures.std(ddof=1) / math.sqrt(len(figures)))
            count += 1
    assert count == 5 * 73


def test_the_dense_model_has_the_fewest_bits_of_all(study):
    table = frame(list(study.values()))
    dense = table[table["method"] == "dense"].iloc[0]
    assert (table["answer_bpb"] >= dense["answer_bpb"]).all()
    tasks = [name for name in table if name.startswith("answer_bpb_") and not name.endswith("_stderr")]
    assert len(tasks) == 5
    assert dense["answer_bpb"] == pytest.approx(dense[tasks].mean())
    assert dense["answer_bpb_stderr"] == pytest.approx(
        math.hypot(*(dense[f"{name}_stderr"] for name in tasks)) / len(tasks)
    )


def test_figures_per_document_stand_beside_their_documents(study):
    keys = list(study)[:2]
    samples = Samples([run_folder.samples_folder(STUDY, key) for key in keys])
    one, other = (samples.of(place, "piqa", "answer_bpb") for place in (0, 1))
    assert one.units.equals(other.units)
    assert one.figures.mean() == pytest.approx(study[keys[0]].measured["tasks"]["piqa"]["answer_bpb"]["value"])


def test_damaged_samples_leave_an_earlier_record_as_it_is(tmp_path):
    cell(tmp_path, tasks={"piqa": answered(1)})
    (sample,) = tmp_path.glob("samples/*/piqa.parquet")
    sample.write_bytes(b"no parquet")
    (record,) = run_folder.load_run(tmp_path)
    assert "answer_bpb" not in record.measured["tasks"]["piqa"]


def right_continuation(task, doc) -> int:
    """The bytes of a document's right answer as lm-eval asks for it, without asking."""
    if task.multiple_input:
        request = task.construct_requests(doc, task.fewshot_context(doc, 0), metadata=("", 0, 1))[task.doc_to_text(doc)]
        return len(request.args[1].encode())
    choices, right = task.doc_to_choice(doc), task.doc_to_target(doc)
    place = choices.index(right) if isinstance(right, str) else right
    return len(f"{task.config.target_delimiter}{choices[place]}".encode())


@pytest.mark.default_model
def test_known_bytes_are_those_of_the_documents():
    """Every document where the file is written, else every eleventh, and of MMLU two subjects."""
    writes = bool(os.environ.get("PRUNEBENCH_UPDATE_GOLDEN"))
    rows = set()
    some = [name for name in task_sources.OFFLINE if writes or name not in task_sources.MMLU[2:]]
    for name in some:
        task = task_loading.load([name])[name]
        if task.OUTPUT_TYPE == "multiple_choice":
            with task_loading.quiet():
                docs = task.eval_docs.read(range(0, len(task.eval_docs), 1 if writes else 11))
            rows |= {(name, number(doc), right_continuation(task, doc)) for doc in docs}
    if writes:
        assert len(rows) == len({row[:2] for row in rows})
        columns = dict(zip(("task", "document", "bytes"), map(list, zip(*sorted(rows), strict=True)), strict=True))
        table = pa.table(columns, pa.schema({"task": pa.string(), "document": pa.int64(), "bytes": pa.int32()}))
        small = dict.fromkeys(("document", "bytes"), "DELTA_BINARY_PACKED")
        parquet.write_table(table, answers.BYTES, compression="zstd", use_dictionary=["task"], column_encoding=small)
    assert rows <= {tuple(row.values()) for row in parquet.read_table(answers.BYTES).to_pylist()}


def number(doc) -> int:
    """The first 32 bits of lm-eval's hash of a document."""
    return int(hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False))[:8], 16)
