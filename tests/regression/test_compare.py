"""Two cells side by side: figures by hand, refusals that name the field, tables that fit."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from made_runs import VERSIONS, answers, cell, nats, speed
from made_samples import made_answers
from scipy.stats import binomtest, ttest_rel

from bench.cli.main import main
from bench.regression import compare, gate
from bench.regression.compare import ComparedRow

RIGHT = answers(1, 400)


def changed(right, lose: int, gain: int) -> np.ndarray:
    """The answers with the first `lose` right ones wrong, and the first `gain` wrong ones right."""
    found = right.copy()
    found[np.flatnonzero(right == 1)[:lose]] = 0
    found[np.flatnonzero(right == 0)[:gain]] = 1
    return found


@pytest.fixture
def runs(tmp_path):
    """Two runs: one method loses 30 and gains 5 answers, 4 % of perplexity, and some speed."""
    a, b = tmp_path / "a", tmp_path / "b"
    other = answers(2, 100)
    for run, task, nll, ratio in ((a, RIGHT, nats(1), 1.5), (b, changed(RIGHT, 30, 5), nats(1) + 20, 1.3)):
        cell(run)
        cell(
            run, "laco", 0.1, tasks={"piqa": task, "arc": other}, texts={"wiki": nll}, measured={"speed": speed(ratio)}
        )
    return a, b


def rows(capsys, *arguments: str) -> dict[tuple[str, str], dict[str, str]]:
    assert main(["compare", *arguments, "--format", "csv"]) == 0
    lines = csv.DictReader(io.StringIO(capsys.readouterr().out))
    return {(line["cells"], line["metric"]): line for line in lines}


def test_every_metric_by_hand(runs, capsys):
    found = rows(capsys, *map(str, runs))
    piqa = found["laco at 0.1, seed 0", "piqa acc"]
    assert float(piqa["difference"]) == pytest.approx(-25 / 400)
    assert (piqa["lost"], piqa["gained"], piqa["documents"], piqa["verdict"]) == ("30", "5", "400", "worse")
    assert float(piqa["p"]) == pytest.approx(binomtest(5, 35).pvalue)
    assert float(piqa["p_adjusted"]) > float(piqa["p"])  # four tests stand in the table
    pooled = found["laco at 0.1, seed 0", "accuracy"]
    assert float(pooled["difference"]) == pytest.approx(-25 / 500)
    assert found["laco at 0.1, seed 0", "arc acc"]["verdict"] == "no difference shown"
    wiki = found["laco at 0.1, seed 0", "perplexity wiki"]
    assert float(wiki["difference"]) == pytest.approx(np.exp(20 / 511), rel=1e-6)
    assert wiki["verdict"] == "worse"
    timed = found["laco at 0.1, seed 0", "speed, prefill 128, batch 1"]
    assert float(timed["difference"]) == pytest.approx(1.3 / 1.5)
    assert (timed["verdict"], timed["p"]) == ("worse", "")
    assert found["laco at 0.1, seed 0", "parameters"]["verdict"] == "same"


def test_the_other_way_round_is_better(runs, capsys):
    found = rows(capsys, str(runs[1]), str(runs[0]))
    words = {line["verdict"] for (_, metric), line in found.items() if metric in ("piqa acc", "perplexity wiki")}
    assert words == {"better"}


def test_two_cells_of_one_run(runs, capsys):
    cell(runs[0], "other", 0.1, tasks={"piqa": RIGHT, "arc": answers(2, 100)}, texts={"wiki": nats(1)})
    found = rows(capsys, f"{runs[0]}/laco", f"{runs[0]}/other--0.1--0")
    assert {cells for cells, _ in found} == {"laco at 0.1, seed 0 → other at 0.1, seed 0"}
    assert found["laco at 0.1, seed 0 → other at 0.1, seed 0", "perplexity wiki"]["difference"] == "1.0"


@pytest.mark.parametrize("kind", ["terminal", "markdown"])
def test_the_tables_fit_and_say_what_can_be_seen(kind, runs, capsys):
    assert main(["compare", *map(str, runs), "--format", kind]) == 0
    out = capsys.readouterr().out
    assert "-6.2 pt" in out
    assert "30, 5 of 400" in out
    assert "detectable" in out
    assert kind == "markdown" or max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("cells", [1, 12])
def test_what_is_detectable_is_found_in_four_of_five_tables(cells):
    """A loss of that size in one cell, beside others that lose nothing: Holm's strictest level is its own."""
    generator = np.random.default_rng(1)

    def row(loss: float) -> ComparedRow:
        before, draw = generator.uniform(size=1000) < 0.7, generator.uniform(size=1000)
        lose, gain = (0.06 + loss) / 2 / 0.7, (0.06 - loss) / 2 / 0.3
        after = np.where(before, draw >= lose, draw < gain)
        sides = (made_answers("acc", right) for right in (before, after))
        return compare._row_of_answers("accuracy", "accuracy", [tuple(sides)], ())

    smallest = np.mean([row(0.0).detectable(0.05 / cells) for _ in range(20)])
    found = 0
    for _ in range(300):
        (first, *_) = gate.judge_rows({str(n): [row(0.0 if n else smallest)] for n in range(cells)})
        assert first.detectable == first.row.detectable(0.05 / cells)
        found += first.verdict == "worse"
    assert found / 300 == pytest.approx(0.8, abs=0.07)


DIFFERENCES = {
    "weights": {"measured": {"weights_sha256": "0" * 64}},
    "text": {"sha256": "b" * 64},
    "documents": {"questions": "another"},
    "torch": {"environment": {"versions": VERSIONS | {"torch": "2.12.0"}}},
    "lm_eval": {"environment": {"versions": VERSIONS | {"lm_eval": "0.4.12"}}},
    "gpu": {"environment": {"gpu": "Example GPU"}},
    "cuda": {"environment": {"cuda": "12.6"}},
    "cpu": {"environment": {"cpu": "Another CPU"}, "measured": {"speed": speed(1.0)}},
    "gomp_spincount": {"environment": {"gomp_spincount": "5000"}, "measured": {"speed": speed(1.0)}},
    "metric": {"metric": "acc_norm"},
}


@pytest.mark.parametrize("field", DIFFERENCES)
def test_what_is_not_comparable_is_refused_by_the_field(field, tmp_path, capsys):
    same = {"tasks": {"piqa": RIGHT}, "texts": {"wiki": nats(1)}}
    timed = {"measured": {"speed": speed(1.0)}} if "speed" in DIFFERENCES[field].get("measured", {}) else {}
    cell(tmp_path / "a", **same, **timed)
    cell(tmp_path / "b", **same, **DIFFERENCES[field])
    arguments = ["compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(arguments) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("prunebench: not comparable, these differ: ")
    assert f"--allow {field}" in err
    assert main([*arguments, "--allow", field]) == (2 if field == "documents" else 0)  # none of those is shared


LIKELY = np.random.default_rng(3).gamma(4, 0.4, 400)


def test_bits_per_byte_of_the_right_answer_by_hand(tmp_path, capsys):
    noise = np.random.default_rng(4).normal(0.05, 0.2, 400)
    for run, more in (("a", 0), ("b", noise)):
        bits = {"piqa": LIKELY + more, "arc": LIKELY[:100]}
        cell(tmp_path / run, tasks={"piqa": RIGHT, "arc": RIGHT[:100], "sum": RIGHT}, bits=bits)
    found = rows(capsys, str(tmp_path / "a"), str(tmp_path / "b"))
    piqa = found["dense, seed 0", "piqa bpb"]
    assert float(piqa["difference"]) == pytest.approx(noise.mean(), abs=1e-4)
    assert float(piqa["p"]) == pytest.approx(ttest_rel(LIKELY + noise, LIKELY).pvalue, rel=0.01)
    assert (piqa["kind"], piqa["verdict"], piqa["lost"], piqa["documents"]) == ("bits of a task", "worse", "", "400")
    pooled = found["dense, seed 0", "answer bpb"]
    assert float(pooled["difference"]) == pytest.approx(noise.sum() / 500, abs=1e-4)
    assert (pooled["kind"], pooled["verdict"]) == ("bits", "worse")
    assert found["dense, seed 0", "arc bpb"]["verdict"] == "no difference shown"
    assert ("dense, seed 0", "sum bpb") not in found  # without likelihoods there are none


def test_equal_runs_differ_by_no_bit(tmp_path, capsys):
    for run in ("a", "b"):
        cell(
            tmp_path / run, tasks={"piqa": RIGHT}, bits={"piqa": LIKELY + 1e-7 * (run == "b")}
        )  # another order of sums
    row = rows(capsys, str(tmp_path / "a"), str(tmp_path / "b"))["dense, seed 0", "piqa bpb"]
    assert [float(row[name]) for name in ("difference", "low", "high", "p")] == [0, 0, 0, 1]
    assert row["verdict"] == "no difference shown"


@pytest.mark.parametrize("builds", [("2.13.0", "2.13.0+cpu"), ("2.13.0+cu130", "2.13.0"), ("2.13.0+cpu", "2.13.0+cpu")])
def test_builds_of_one_version_may_be_compared(builds, tmp_path, capsys):
    """An index of wheels for CPUs, as the example of a workflow names, has another name for the same version."""
    for name, torch in zip("ab", builds, strict=True):
        cell(tmp_path / name, tasks={"piqa": RIGHT}, environment={"versions": VERSIONS | {"torch": torch}})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert main(["gate", str(tmp_path / "b"), "--baseline", str(tmp_path / "a"), "--no-confirm"]) == 0


def test_the_processor_matters_to_speed_alone(tmp_path, capsys):
    for name, cpu in (("a", "one"), ("b", "another")):
        cell(tmp_path / name, tasks={"piqa": RIGHT}, environment={"cpu": cpu})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0


def test_shared_documents_are_paired_where_that_is_allowed(tmp_path, capsys):
    cell(tmp_path / "a", tasks={"piqa": RIGHT})
    cell(tmp_path / "b", tasks={"piqa": changed(RIGHT, 10, 0)[:200]})
    arguments = (str(tmp_path / "a"), str(tmp_path / "b"), "--allow", "documents")
    found = rows(capsys, *arguments)["dense, seed 0", "piqa acc"]
    assert (found["documents"], found["lost"], found["gained"]) == ("200", "10", "0")


def test_other_numbers_of_examples_are_compared_on_the_same_documents_where_that_is_allowed(tmp_path, capsys):
    for run, right, likely, fewshot in (("a", RIGHT, LIKELY, 0), ("b", changed(RIGHT, 10, 3), LIKELY + 1, 5)):
        cell(tmp_path / run, tasks={"piqa": right}, bits={"piqa": likely}, fewshot=fewshot)
    cell(tmp_path / "c", tasks={"piqa": RIGHT}, fewshot=5, questions="another")
    arguments = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["compare", *arguments]) == 4
    found = rows(capsys, *arguments, "--allow", "fewshot")
    row = found["dense, seed 0", "piqa acc"]
    assert (row["documents"], row["lost"], row["gained"]) == ("400", "10", "3")
    assert float(found["dense, seed 0", "piqa bpb"]["difference"]) == pytest.approx(1)
    assert main(["compare", arguments[0], str(tmp_path / "c"), "--allow", "fewshot"]) == 4
    assert "documents" in capsys.readouterr().err


def test_answers_in_a_chat_are_compared_with_those_in_none_where_that_is_allowed(tmp_path, capsys):
    for run, right, system in (("a", RIGHT, ""), ("b", changed(RIGHT, 10, 3), "Answer."), ("c", RIGHT, "Please.")):
        cell(tmp_path / run, tasks={"piqa": right}, system=system)
    plain, chat, please = (str(tmp_path / run) for run in "abc")
    assert main(["compare", plain, chat]) == 4
    assert main(["compare", plain, chat, "--allow", "chat_template,fewshot"]) == 4
    assert "system" in capsys.readouterr().err
    assert main(["compare", chat, please, "--allow", "chat_template"]) == 4
    for before, after, allowed in ((plain, chat, "chat_template,system,tokenizer"), (please, chat, "system")):
        row = rows(capsys, before, after, "--allow", allowed)["dense, seed 0", "piqa acc"]
        assert (row["documents"], row["lost"], row["gained"]) == ("400", "10", "3")


def test_a_document_that_was_asked_twice_counts_once():
    def row(ids: list[str]) -> ComparedRow:
        sides = (np.ones(30), (np.arange(30) >= 8).astype(float))
        found = [made_answers("acc", values, ids) for values in sides]
        return compare._row_of_answers("task", "t", [(found[0], found[1])], ())

    twice, once = (row([f"{n // times}:p:t" for n in range(30)]).contrast for times in (2, 1))
    assert twice.high - twice.low > 1.2 * (once.high - once.low)
    assert twice.estimate == once.estimate == pytest.approx(-8 / 30)


def test_a_task_that_has_bits_alone_is_one_row_and_its_worsening_is_known(tmp_path, capsys):
    for run, more in (("a", 0), ("b", 0.2)):
        bits = {"gsm8k_bpb": LIKELY + more * np.linspace(0.5, 1.5, len(LIKELY))}
        cell(tmp_path / run, tasks=bits, bits=bits, metric="answer_bpb")
    found = rows(capsys, str(tmp_path / "a"), str(tmp_path / "b"))
    of_task = {metric: row["verdict"] for (_, metric), row in found.items() if metric.startswith("gsm8k_bpb")}
    assert of_task == {"gsm8k_bpb bpb": "worse"}


def test_a_metric_of_no_known_direction_only_differs(tmp_path, capsys):
    cell(tmp_path / "a", tasks={"summary": nats(1)}, metric="bleu")
    cell(tmp_path / "b", tasks={"summary": nats(1) + 30}, metric="bleu")
    found = rows(capsys, str(tmp_path / "a"), str(tmp_path / "b"))
    assert found["dense, seed 0", "summary bleu"]["verdict"] == "differs"


def test_other_tasks_are_other_data_and_fewer_are_not(tmp_path, capsys):
    cell(tmp_path / "a", tasks={"piqa": RIGHT})
    cell(tmp_path / "b", tasks={"arc": RIGHT})
    cell(tmp_path / "c", tasks={"piqa": RIGHT, "arc": RIGHT})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 4
    assert "documents (piqa and arc" in capsys.readouterr().err
    found = rows(capsys, str(tmp_path / "a"), str(tmp_path / "c"))
    assert found["dense, seed 0", "arc acc"]["verdict"] == "only in B"


def refused(capsys, *arguments: str) -> str:
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    a, b = map(str, runs)
    assert "neither a run folder nor a cell" in refused(capsys, a, str(tmp_path / "nothing"))
    assert "'lako' is no cell of" in refused(capsys, f"{a}/lako", f"{b}/laco")
    assert "no field that may differ" in refused(capsys, a, b, "--allow", "weather")
    (runs[0] / "samples" / "laco--0.1--0" / "piqa.parquet").unlink()
    assert "piqa.parquet is missing" in refused(capsys, a, b)
    (runs[0] / "samples" / "laco--0.1--0" / "piqa.parquet").write_bytes(b"PAR1 cut off")
    assert "piqa.parquet cannot be read" in refused(capsys, a, b)


def test_a_failed_cell_is_left_out_and_said(runs, capsys):
    cell(runs[1], status="error")
    assert main(["compare", *map(str, runs)]) == 0
    assert "dense, seed 0: ok in A, error in B; left out" in capsys.readouterr().err


def test_runs_without_a_common_cell_are_refused(runs, tmp_path, capsys):
    cell(tmp_path / "c", "sleb", 0.3)
    assert "no cell of" in refused(capsys, str(runs[0]), str(tmp_path / "c"))
