"""A run in the schema of Every Eval Ever: read by its own checker, and by arithmetic on its lines."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest
from conftest import refused
from made_records import with_cell, with_measured
from pages import ROOT

from bench.cli.main import main
from bench.export.document_words import DocumentWords, has_words
from bench.export.every_eval_ever import content_of_record, name_of_record, path_of_record, rows_of_answers
from bench.records.run_folder import read_records
from methods.errors import UserError

RUN = ROOT / "docs/results/grid"
KEY = "flap--0.2--2abec26d"
CHECKER = "every-eval-ever==0.3.0"


@pytest.fixture(scope="module")
def record():
    return read_records(RUN)[KEY]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an export of one cell."""
    to = tmp_path_factory.mktemp("every") / "to"
    assert main(["export", str(RUN), KEY, "--every-eval-ever", "--to", str(to)]) == 0
    return to


@pytest.fixture(scope="module")
def checker(tmp_path_factory):
    """The folder of the other side's package, which asks for another huggingface_hub and so for a place of its own."""
    target = tmp_path_factory.mktemp("checker")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python", "--no-compile"]
    installed = subprocess.run([*pip, "--target", str(target), CHECKER], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{CHECKER} cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return target


def read_export(folder: Path) -> tuple[dict, list[dict]]:
    (figures,), (answers,) = folder.rglob("*[0-9a-f].json"), folder.rglob("*_samples.jsonl")
    return json.loads(figures.read_text()), [json.loads(line) for line in answers.read_text().splitlines()]


def judge(checker: Path, folder: Path) -> list[dict]:
    """Return what the checker says of each file of an export."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json*"))
    command = [sys.executable, "-m", "every_eval_ever.validate", "--format", "json", *files]
    variables = os.environ | {"PYTHONPATH": str(checker)}
    told = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in told.stderr:
        pytest.skip(f"{CHECKER} needs what is not installed: {told.stderr.splitlines()[-1]}")
    return json.loads(told.stdout)


def test_the_other_sides_own_checker_has_no_complaint(exported, checker):
    reports = judge(checker, exported)
    assert [(report["valid"], report["errors"], report["warnings"]) for report in reports] == [(True, [], [])] * 2
    assert [report["file_type"] for report in reports] == ["aggregate", "instance"]
    (figures,) = exported.rglob("*[0-9a-f].json")
    written = json.loads(figures.read_text())
    written["model_info"]["id"] = "else/where"
    figures.write_text(json.dumps(written))
    try:
        assert not all(report["valid"] for report in judge(checker, exported))
    finally:
        written["model_info"]["id"] = f"prunebench/SmolLM2-135M-Instruct--{KEY}"
        figures.write_text(json.dumps(written))


def test_the_mean_of_the_lines_is_the_figure_that_they_name(exported, record):
    figures, rows = read_export(exported)
    scores = defaultdict(list)
    for row in rows:
        assert row["evaluation"]["is_correct"] == (row["evaluation"]["score"] == 1)
        scores[row["evaluation_result_id"]].append(row["evaluation"]["score"])
    by_id = {entry["evaluation_result_id"]: entry for entry in figures["evaluation_results"]}
    tasks = record.measured.task_scores
    assert scores.keys() == {f"{task}/{name}" for task, score in tasks.items() for name in score.metrics}
    for name, values in scores.items():
        task, _, metric = name.partition("/")
        assert mean(values) == pytest.approx(by_id[name]["score_details"]["score"])
        assert by_id[name]["score_details"]["score"] == tasks[task].metrics[metric].value
        assert len(values) == tasks[task].documents
    assert by_id["text-wiki/perplexity"]["score_details"]["score"] == record.measured.text_scores["wiki"].perplexity


def test_lines_have_the_words_that_were_answered_and_what_was_chosen(exported):
    _, rows = read_export(exported)
    for row in rows:
        answer, reference = row["output"]["raw"], row["input"]["reference"]
        assert set(reference) <= set(row["input"]["choices"])
        assert (answer == reference) == row["evaluation"]["is_correct"]
        text = "\n".join((row["input"]["raw"], *reference))
        assert row["sample_hash"] == hashlib.sha256(text.encode()).hexdigest()
    easy = next(row for row in rows if row["evaluation_name"] == "arc_easy" and row["sample_id"] == "1")
    assert easy["input"]["raw"].startswith("Question: A student hypothesizes that algae are producers.")
    assert easy["input"]["reference"] == ["Do algae use sunlight to make food?"]


def test_the_words_of_other_tasks_are_hashes_and_nothing_is_opened_for_them(record, monkeypatch):
    """A record may not say what is opened: not by the name of a task, and not by a file of documents."""
    monkeypatch.setattr("bench.data.task_loading.load_tasks", lambda *_: pytest.fail("a task was loaded"))
    score = record.measured.task_scores["arc_easy"]
    other = with_measured(record, tasks={"no_task": score})
    sample = {"doc_id": 1, "doc_hash": "ab" * 32, "target": 2, "loglikelihoods": [-1.0, -2.0], "acc": 1.0}
    table = type("Table", (), {"to_pylist": lambda _: [sample]})()
    (row,) = (row for row in rows_of_answers(other, KEY, {"no_task": table}, DocumentWords()))
    assert (row["input"]["raw"], row["input"]["reference"]) == (f"sha256 {'ab' * 32}", ["2"])
    assert (row["output"]["raw"], row["answer_attribution"]) == ([], [])
    data = (("arc_easy", "mine.jsonl", "0" * 64),)
    local = with_cell(record, protocol=record.cell.protocol.__class__(tasks=("arc_easy",), task_data=data))
    assert not has_words(local, "arc_easy")
    row = next(iter(rows_of_answers(local, KEY, {"arc_easy": table}, DocumentWords())))
    assert row["input"]["raw"].startswith("sha256")


def test_what_a_model_wrote_is_its_answer(record):
    score = {"main": "exact_match", "metrics": {"exact_match": {"value": 0.0}}, "version": 1}
    written = with_measured(record, tasks={"mine": score | {"documents": 1, "available": 1, "fewshot": 0}})
    sample = {"doc_id": 0, "doc_hash": "ab" * 32, "target": "4", "responses": ["five"], "exact_match": 0.0}
    table = type("Table", (), {"to_pylist": lambda _: [sample]})()
    (row,) = rows_of_answers(written, KEY, {"mine": table}, DocumentWords())
    assert (row["output"]["raw"], row["evaluation"]["is_correct"]) == (["five"], False)
    assert row["answer_attribution"][0]["extracted_value"] == "five"


def test_a_pruned_model_is_not_its_bases_and_a_record_has_one_place(record):
    assert name_of_record(record, KEY) == f"prunebench/SmolLM2-135M-Instruct--{KEY}"
    hub = with_cell(record, model="Org/Model", method="dense", parameters={}, ratio=0.0)
    assert name_of_record(hub, "dense--0") == "Org/Model"
    assert path_of_record(record, KEY) == path_of_record(record, KEY)
    assert path_of_record(record, KEY) != path_of_record(with_cell(record, seed=1), KEY)
    home = with_cell(record, model="/home/me/secret folder", method="dense", parameters={}, ratio=0.0)
    assert "home" not in json.dumps(content_of_record(home, "dense--0", None)).replace(home.display_name or "", "")


def test_a_whole_run_is_exported_by_the_word_all(tmp_path, capsys, monkeypatch):
    """Of documents that are not on this machine a line says so, and their hashes stand in the export."""
    records = {key: record for key, record in read_records(RUN).items() if record.cell.label in ("dense", "drop-tail")}

    def refuse(names):
        raise UserError("no index can be reached")

    monkeypatch.setattr("bench.export.every_eval_ever.run_folder.read_records", lambda _: records)
    monkeypatch.setattr("bench.data.task_loading.load_tasks", refuse)
    assert main(["export", str(RUN), "all", "--every-eval-ever", "--to", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    ok = [key for key, record in records.items() if record.status == "ok"]
    assert len(ok) > 1
    assert out.splitlines() == [str(tmp_path / path_of_record(records[key], key)) for key in ok]
    assert all(Path(line).is_file() for line in out.splitlines())
    assert "arc_easy: the run holds the hashes" in err
    assert err.splitlines()[0].endswith("no index can be reached")
    assert len(set(err.splitlines())) == len(err.splitlines())


def test_what_is_wrong_is_one_line(exported, tmp_path, capsys):
    taken = tmp_path / "file"
    taken.write_text("mine")
    command = ["export", str(RUN), KEY, "--every-eval-ever"]
    assert "--to PATH" in refused(capsys, command)
    assert "is a file; name a folder" in refused(capsys, [*command, "--to", str(taken)])
    assert "exported there already" in refused(capsys, [*command, "--to", str(exported)])
    assert "leave --format out" in refused(capsys, [*command, "--to", str(tmp_path / "n"), "--format", "gguf"])
    assert "not allowed with" in refused(capsys, [*command, "--to", str(tmp_path / "n"), "--lm-eval-json"])
    assert "'all' is no cell" in refused(capsys, ["export", str(RUN), "all", "--to", str(tmp_path / "n")])
    assert not (tmp_path / "n").exists()
