"""Figures of a written model as the hub's evaluation results, read by the hub's own client."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from lm_eval.tasks._yaml_loader import load_yaml
from made_records import with_cell, with_measured
from pages import ROOT

from bench.data.task_sources import DEFINITIONS
from bench.export.eval_results import BENCHMARKS, FOLDER, write_eval_results
from bench.export.hub import _is_replaced
from bench.records.run_folder import read_records
from bench.runs.saving import IN_MEMORY, RELOADED

KEY = "flap--0.2--2abec26d"
EXACT = {"exact_match,strict-match": {"value": 0.25123, "stderr": 0.01}}
GSM8K = {"main": "exact_match,strict-match", "metrics": EXACT, "version": 3.0, "fewshot": 5}
GSM8K |= {"documents": 1319, "available": 1319}
FILES = {"gsm8k": "gsm8k/gsm8k.yaml", "gpqa_diamond_zeroshot": "gpqa/zeroshot/gpqa_diamond_zeroshot.yaml"}


@pytest.fixture(scope="module")
def record():
    return read_records(ROOT / "docs/results/grid")[KEY]


def with_task(record, **changes):
    """Return the record with an answer to the whole of GSM8K, or with one that differs from it."""
    return with_measured(record, tasks={"gsm8k": GSM8K | changes, "piqa": record.measured.task_scores["piqa"]})


def test_a_whole_benchmark_is_a_file_that_the_hubs_client_reads(record, tmp_path):
    assert write_eval_results(tmp_path, with_task(record), {}) == []
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.yaml")] == [f"{FOLDER}/gsm8k.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / FOLDER / "gsm8k.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 25.123)
    assert entry.date == record.environment["date"][:10]
    assert entry.notes == "lm-eval 0.4.13 gsm8k, version 3.0, 5-shot, exact_match,strict-match, float32"
    assert entry.verify_token is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"documents": 100}, "100 documents of 1,319 were answered"),
        ({"documents": 7, "available": 7}, "7 documents of 1,319"),
        ({"available": 8792}, "they are of 8,792 documents, and the benchmark has 1,319"),
        ({"fewshot": 8}, "8 examples stood in front of each question, and lm-eval has 5"),
        ({"version": 2.0}, "version 2.0 of lm-eval's definition was asked"),
        (
            {"metrics": {"exact_match": EXACT["exact_match,strict-match"]}, "main": "exact_match"},
            "it has no exact_match,",
        ),
    ],
)
def test_what_is_not_the_whole_benchmark_is_left_out_and_said(record, changes, reason, tmp_path):
    (line,) = write_eval_results(tmp_path, with_task(record, **changes), {})
    assert reason in line
    assert line.startswith("gsm8k is not among the hub's evaluation results")
    assert not (tmp_path / FOLDER).exists()


def test_a_chat_and_documents_of_ones_own_are_left_out(record, tmp_path):
    whole, protocol = with_task(record), record.cell.protocol
    data = (("gsm8k", "mine.jsonl", "0" * 64),)
    for other, reason in (
        (replace(protocol, apply_chat_template=True), "turns of a chat"),
        (replace(protocol, task_data=data), "--task-data"),
    ):
        (line,) = write_eval_results(tmp_path, with_cell(whole, protocol=other), {})
        assert reason in line


def test_weights_that_were_rounded_after_they_were_measured_have_no_such_figure(record, tmp_path):
    rounded = {"rounding": {"dtype": "bfloat16"}, "dtype": "bfloat16"}
    (line,) = write_eval_results(tmp_path, with_task(record), rounded | {"measured": {"model": IN_MEMORY}})
    assert "measured before they were rounded to bfloat16" in line
    assert not (tmp_path / FOLDER).exists()
    assert write_eval_results(tmp_path, with_task(record), rounded | {"measured": {"model": RELOADED}}) == []


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_what_lm_evals_definition_says(name):
    definition, benchmark = load_yaml(DEFINITIONS / FILES[name]), BENCHMARKS[name]
    assert definition["dataset_path"] == benchmark.dataset
    assert definition["num_fewshot"] == benchmark.fewshot
    assert definition["metadata"]["version"] == benchmark.version
    assert benchmark.metric.partition(",")[0] in [metric["metric"] for metric in definition["metric_list"]]
    filters = [each["name"] for each in definition.get("filter_list", [])]
    assert not filters or benchmark.metric.partition(",")[2] in filters


def test_a_push_replaces_the_results_of_an_earlier_one_and_none_of_the_owners():
    assert _is_replaced(".eval_results/gsm8k.yaml")
    assert not _is_replaced(".eval_results/hle.yaml")
