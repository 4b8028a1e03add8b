"""Logs of Inspect are compared as two cells are, and a wrong log is one line.

The logs in golden/inspect are Inspect's own: 30 sums that its model `mockllm` answers, right with the odds 0.9 and 0.5.
Messages and events have been taken out of them.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import refused
from scipy import stats

from bench.cli.main import main
from bench.regression.gate import INCOMPARABLE, REGRESSION
from bench.regression.inspect_output import results_of_inspect
from bench.regression.other_output import is_other_output

LOGS = Path(__file__).parents[1] / "golden" / "inspect"
A, B = LOGS / "a.json", LOGS / "b.json"


@pytest.fixture
def changed(tmp_path):
    """A function that writes the first log as a function of its values makes it."""

    def write(change, source: Path = A) -> Path:
        log = json.loads(source.read_text())
        change(log)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(log))
        return path

    return write


def row_of(capsys, *arguments: object) -> dict[str, str]:
    assert main(["compare", *map(str, arguments), "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    return row


def right_of(file: Path) -> dict[int, bool]:
    return {each["id"]: each["scores"]["match"]["value"] == "C" for each in json.loads(file.read_text())["samples"]}


def test_the_test_is_that_of_scipy_on_the_same_samples(capsys):
    row = row_of(capsys, A, B)
    first, second = right_of(A), right_of(B)
    lost = sum(first[sample] and not second[sample] for sample in first)
    gained = sum(second[sample] and not first[sample] for sample in first)
    assert float(row["p"]) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, rel=1e-3)
    assert (float(row["a"]), float(row["b"])) == (sum(first.values()) / 30, sum(second.values()) / 30)
    assert row["metric"] == "sums acc,match"


def test_a_gate_judges_one_log_by_the_other(capsys):
    assert main(["gate", str(B), "--baseline", str(A)]) == REGRESSION
    assert "regression: 1 worse" in capsys.readouterr().out
    assert main(["gate", str(A), "--baseline", str(A)]) == 0


def test_samples_are_paired_by_what_they_are_and_not_by_their_order_or_the_ids_of_turns(changed, capsys):
    as_written = row_of(capsys, A, B)
    assert row_of(capsys, changed(lambda log: log["samples"].reverse()), B) == as_written

    def ask(name):
        def as_turns(log):
            for number, sample in enumerate(log["samples"]):
                sample["input"] = [{"role": "user", "content": sample["input"], "id": f"{name}{number}"}]

        return as_turns

    first, second = (results_of_inspect(changed(ask(name))).tasks["sums"] for name in "xy")
    assert first.units == second.units


def test_a_sample_that_was_asked_several_times_has_the_mean_of_its_scores(changed, capsys):
    def twice(log):
        log["samples"] += [each | {"epoch": 2, "scores": {"match": {"value": "I"}}} for each in log["samples"]]
        log["results"]["scores"][0]["metrics"]["accuracy"]["value"] /= 2

    answers = results_of_inspect(changed(twice)).tasks["sums"]
    assert len(answers.units) == 30
    assert answers.values.mean() == pytest.approx(0.45)
    assert (answers.metric, answers.is_accuracy) == ("mean,match", False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda log: log["samples"][0].update(target="7"), "documents"),
        (lambda log: log["samples"].pop() and log["results"]["scores"][0]["metrics"].clear(), "documents"),
        (lambda log: log["eval"]["packages"].update(inspect_ai="0.3.1"), "scorer (inspect_ai 0.3.285 with"),
        (lambda log: log["plan"]["config"].update(temperature=1.0), "scorer (inspect_ai 0.3.285 with"),
        (lambda log: log["plan"]["steps"][0].update(solver="chain_of_thought"), "scorer"),
        (lambda log: log["eval"].update(task_version=1), "task_version"),
        (lambda log: log["eval"].update(task="products"), "documents"),
    ],
)
def test_other_questions_settings_and_versions_are_not_comparable(change, reason, changed, capsys):
    assert main(["compare", str(A), str(changed(change, B))]) == INCOMPARABLE
    error = capsys.readouterr().err
    assert "not comparable" in error
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda log: log.update(status="error"), "did not end well: its status is error"),
        (lambda log: log.pop("samples"), "has no samples"),
        (lambda log: log["samples"][3].update(error={"message": "x"}), "sample 3 ended with an error"),
        (lambda log: log["samples"][3].pop("target"), "sample 4 has no id, input or target"),
        (lambda log: log["samples"][0]["scores"]["match"].update(value="I"), "says an accuracy of 0.9000"),
        (lambda log: log["eval"].pop("task"), "is no log of Inspect"),
        (lambda log: log.update(plan=[1]), "is no log of Inspect as its schema describes one"),
        (lambda log: log["samples"][0].update(scores=[1]), "is no log of Inspect as its schema describes one"),
    ],
)
def test_a_log_that_cannot_be_compared_is_one_line(change, reason, changed, capsys):
    assert reason in refused(capsys, ["compare", str(A), str(changed(change))])


def test_settings_that_change_no_answer_may_differ(changed, capsys):
    other = changed(lambda log: log["plan"]["config"].update(max_connections=64, temperature=None), B)
    assert row_of(capsys, A, other) == row_of(capsys, A, B)


def test_a_packed_log_is_read_by_inspect_or_says_what_to_install(tmp_path, capsys, monkeypatch):
    packed = tmp_path / "a.eval"
    packed.write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    assert "`pip install inspect-ai`" in refused(capsys, ["compare", str(packed), str(B)])
    reader = ModuleType("inspect_ai.log")
    log = SimpleNamespace(model_dump=lambda **_: json.loads(A.read_text()))
    reader.read_eval_log = lambda path: log if path == str(packed) else None
    monkeypatch.setitem(sys.modules, "inspect_ai", ModuleType("inspect_ai"))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", reader)
    assert row_of(capsys, packed, B) == row_of(capsys, A, B)

    def refuse(path):
        raise ValueError("not a zip file")

    reader.read_eval_log = refuse
    assert "cannot be read by Inspect: not a zip file" in refused(capsys, ["compare", str(packed), str(B)])


def test_outputs_of_two_programs_are_found_in_one_place(tmp_path, capsys):
    assert is_other_output(A)
    for name, content in (("results_1.json", "{}"), ("broken.json", '{"version": 2, "status": ')):
        (tmp_path / name).write_text(content)
        assert "\n" in refused(capsys, ["compare", str(A), str(tmp_path / name)])
    assert not is_other_output(tmp_path / "nothing.eval")
    error = refused(capsys, ["compare", str(A), str(tmp_path / "nothing.eval")])
    assert "neither a run folder nor a cell of one" in error
    assert "a log of Inspect, *.eval or *.json" in error
    assert "--samples is about lm-eval" in refused(
        capsys, ["compare", str(A), str(B), "--samples", *2 * [str(tmp_path)]]
    )
    assert "none of what other programs write" in refused(capsys, ["gate", str(A), "--baseline", str(tmp_path / "x")])


def test_inspects_own_packed_logs_are_those_as_json(tmp_path):
    """Where Inspect is installed: it packs the log, and its reader gives the same answers under the same conditions."""
    reason = "inspect-ai is not installed: its s3fs holds fsspec at an older version"
    log = pytest.importorskip("inspect_ai.log", reason=reason)
    packed = tmp_path / "a.eval"
    log.write_eval_log(log.read_eval_log(str(A)), str(packed))
    read, plain = results_of_inspect(packed), results_of_inspect(A)
    assert read.conditions == plain.conditions
    assert read.tasks["sums"].units == plain.tasks["sums"].units
    assert (read.tasks["sums"].values == plain.tasks["sums"].values).all()
