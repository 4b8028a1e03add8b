"""A cell's figures as a result file of lm-eval, read by lm-eval's own table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_records import with_cell, with_measured
from pages import ROOT

from bench.cli.main import main
from bench.export.write import results_of_record
from bench.records.run_folder import load_run
from methods.errors import UserError

RUN = ROOT / "docs/results/grid"
ASKED = ["export", str(RUN), "flap--0.2--2abec26d", "--lm-eval-json", "--to"]


@pytest.fixture(scope="module")
def record():
    return next(one for one in load_run(RUN) if one.cell.label == "flap" and one.cell.ratio == 0.2)


def table(content: dict) -> list[list[str]]:
    """Return the cells of the table that lm-eval prints, without spaces."""
    from lm_eval.utils import make_table

    return [[cell.strip() for cell in line.split("|")] for line in make_table(content).splitlines() if "|" in line]


def test_lm_evals_own_table_shows_the_figures_of_the_record(record, tmp_path, capsys):
    to = tmp_path / "flap.json"
    assert main([*ASKED, str(to)]) == 0
    assert capsys.readouterr().out == f"{to}\n"
    shown, task = {}, ""
    for line in table(json.loads(to.read_text(encoding="utf-8")))[2:]:
        task = line[1] or task
        shown[task, line[5]] = line
    for name, figures in record.measured.task_scores.items():
        for metric in ("acc", "acc_norm", "answer_bpb"):
            figure = figures.every_metric().get(metric)
            if figure is None:
                continue
            row = shown[name, metric]
            assert row[7] == f"{figure.value:.4f}"
            assert row[9] == f"{figure.stderr:.4f}"
            assert row[6] == ("↓" if metric == "answer_bpb" else "↑")
            assert row[2] == (f"{figures.version:g}" if row[1] else "")  # once for a task
            assert row[4] == str(figures.fewshot)
    perplexity = record.measured.text_scores["wiki"].perplexity
    assert shown["prunebench_wiki", "token_perplexity"][6:8] == ["↓", f"{perplexity:.4f}"]


def test_the_file_says_what_was_asked_and_of_how_many_documents(record):
    content = results_of_record(record)
    assert content["config"]["model_args"]["method"] == "flap"
    for name, task in record.measured.task_scores.items():
        assert content["n-samples"][name] == {"original": task.available, "effective": task.documents}


def test_the_file_says_that_prompts_were_a_chat(record):
    assert "apply_chat_template" not in results_of_record(record)["config"]
    protocol = replace(record.cell.protocol, apply_chat_template=True, system="Answer.")
    config = results_of_record(with_cell(record, protocol=protocol))["config"]
    assert (config["apply_chat_template"], config["system_instruction"]) == (True, "Answer.")


def test_a_text_of_a_file_is_called_by_its_name_alone(record):
    texts = {"/home/me/letters.txt": record.measured.text_scores["wiki"]}
    content = json.dumps(results_of_record(with_measured(record, perplexity=texts)))
    assert "prunebench_letters" in content
    assert "/home" not in content


def test_a_metric_behind_a_filter_keeps_its_name(record):
    tasks = {"gsm8k": {"main": "exact_match,strict-match"}}
    tasks["gsm8k"]["metrics"] = {"exact_match,strict-match": {"value": 0.5, "stderr": 0.1}}
    tasks["gsm8k"] |= {"version": 3.0, "documents": 10, "available": 10, "fewshot": 5}
    content = results_of_record(with_measured(record, tasks=tasks))
    assert content["results"]["gsm8k"] == {
        "alias": "gsm8k",
        "exact_match,strict-match": 0.5,
        "exact_match_stderr,strict-match": 0.1,
    }


def test_what_has_no_figures_or_no_place_is_one_line(record, tmp_path, capsys):
    with pytest.raises(UserError, match="flap was measured on no task and no text"):
        results_of_record(with_measured(record, tasks={}, perplexity={}))
    there = tmp_path / "there.json"
    there.write_text("mine")
    for arguments, said in (
        ([*ASKED, str(there)], "there.json exists; name a new file"),
        (ASKED[:-1], "say where the file goes: --to PATH"),
        ([*ASKED, str(tmp_path / "new"), "--format", "gguf"], "no model: leave --format out"),
        ([*ASKED, str(tmp_path / "new"), "--multiple", "8", "--device", "cpu"], "leave --multiple and --device out"),
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.count("\n") == 1
    assert there.read_text() == "mine"
