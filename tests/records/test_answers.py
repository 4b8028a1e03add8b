"""Bits per byte of the right answer, which samples hold."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bench.records import answers, run_folder
from bench.records.frame import frame_of_records
from bench.records.measured import TaskMetric
from bench.records.samples import SampleFiles, Samples

STUDY = Path(__file__).parents[2] / "docs/results/grid"


@pytest.fixture(scope="module")
def study():
    records = run_folder.read_records(STUDY)
    return {key: record for key, record in records.items() if record.cell.model == "smollm2-135m"}


def test_the_formula_by_hand():
    assert answers.bits_per_byte(-8 * math.log(2), 4) == pytest.approx(2)


def test_every_document_counts_alike():
    figures = np.array([1.0, 2.0, 6.0])
    assert answers.metric_of_documents(figures) == TaskMetric(
        value=3.0, stderr=pytest.approx(figures.std(ddof=1) / math.sqrt(3))
    )
    assert answers.metric_of_documents(np.array([2.0])) == TaskMetric(value=2.0)


def test_the_figure_of_every_record_follows_from_its_samples(study):
    files, count = SampleFiles(), 0
    for key, record in study.items():
        for task, result in record.measured.task_scores.items():
            table = files.table(None, run_folder.folder_of_samples(STUDY, key), task)
            figures = np.array(table["answer_bpb"].to_pylist())
            assert len(figures) == result.documents
            assert result.answer_bpb.value == pytest.approx(figures.mean())
            assert result.answer_bpb.stderr == pytest.approx(figures.std(ddof=1) / math.sqrt(len(figures)))
            count += 1
    assert count == 5 * len(study) > 5 * 100


def test_the_dense_model_has_the_fewest_bits_of_all(study):
    table = frame_of_records(list(study.values()))
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
    samples = Samples([run_folder.folder_of_samples(STUDY, key) for key in keys])
    one, other = (samples.of(place, "piqa", "answer_bpb") for place in (0, 1))
    assert one.units == other.units
    assert one.values.mean() == pytest.approx(study[keys[0]].measured.task_scores["piqa"].answer_bpb.value)
