"""The gate: every verdict, every exit code, its error rates by simulation, and real cells of a tiny model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from conftest import WORDS, tiny, trusting
from made_runs import VERSIONS, answers, cell, nats, speed
from made_samples import made_answers, made_windows
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch import nn

from bench.cli.main import main
from bench.records import run_folder
from bench.records.measured import Measured
from bench.records.run_folder import load_run
from bench.records.speed_results import PointTiming, Speed
from bench.regression import baseline, gate
from bench.regression.gate import Margins
from bench.regression.results import CellResults, _speeds, results_of_run
from bench.runs import reproduce

IDENTITY = {"label": "laco", "ratio": 0.1, "seed": 0}
RIGHT = answers(1)


def one(
    right: np.ndarray | None, nll: np.ndarray | None = None, bits: np.ndarray | None = None
) -> dict[str, CellResults]:
    """A cell as both sides of the gate hold it."""
    tasks = {} if right is None else {"piqa": made_answers("acc", right)}
    texts = {} if nll is None else {"wiki": made_windows(nll)}
    likely = {} if bits is None else {"piqa": made_answers("answer_bpb", bits)}
    found = CellResults(IDENTITY, "ok", tasks=tasks, texts=texts, bits=likely)
    return {found.name: found}


# Error rates


def trials(loses: float, gains: float, seed: int, *, windows: int = 0, times: int) -> float:
    """The share of trials that fail: 1,000 documents, 70 % right, of all `loses` lost and `gains` gained by the model.

    With windows, perplexity and bits per byte gate too: the two models are equal, and differ by 1 % of a window's nats
    and 0.12 bits of a document at random.
    """
    generator = np.random.default_rng(seed)
    failed = 0
    for _ in range(times):
        before = generator.uniform(size=1000) < 0.7
        draw = generator.uniform(size=1000)
        after = np.where(before, draw >= loses / 0.7, draw < gains / 0.3)
        nll = generator.normal(1500, 100, windows) if windows else None
        noisy = None if nll is None else nll + generator.normal(0, 15, windows)
        bits = generator.gamma(4, 0.4, 1000) if windows else None
        other = None if bits is None else bits + generator.normal(0, 0.12, 1000)
        sides = one(before.astype(float), nll, bits), one(after.astype(float), noisy, other)
        failed += gate.exit_code_of(gate.judge(*sides, Margins())) == 1
    return failed / times


def test_a_loss_of_two_points_is_found_in_most_trials():
    assert trials(0.7 * 0.06, 0.3 * 0.06, seed=1, times=600) > 0.8


def test_a_loss_is_found_in_most_trials_beside_perplexity_and_bits():
    assert trials(0.7 * 0.06, 0.3 * 0.06, seed=2, windows=16, times=600) > 0.76


@pytest.mark.nightly
def test_equal_models_with_as_many_flips_rarely_fail():
    assert trials(0.03, 0.03, seed=3, times=1500) < 0.02


@pytest.mark.nightly
def test_equal_models_rarely_fail_beside_perplexity_and_bits():
    assert trials(0.03, 0.03, seed=4, windows=16, times=1500) < 0.02


# Verdicts


def flipped(lose: int, gain: int) -> np.ndarray:
    found = RIGHT.copy()
    found[np.flatnonzero(RIGHT == 1)[:lose]] = 0
    found[np.flatnonzero(RIGHT == 0)[:gain]] = 1
    return found


@pytest.mark.parametrize(
    ("lose", "gain", "word"),
    [
        (0, 0, "not worse"),  # 1,000 equal answers exclude a loss of 0.4 points
        (40, 5, "worse"),
        (5, 40, "better"),
        (9, 0, "inconclusive"),  # significant, but less than the margin
        (30, 18, "inconclusive"),  # more than the margin, but not significant
        (4, 6, "not worse"),
    ],
)
def test_an_accuracy_needs_an_effect_and_significance(lose, gain, word):
    (verdict,) = gate.judge(one(RIGHT), one(flipped(lose, gain)), Margins())
    assert (verdict.metric, verdict.word) == ("accuracy", word)


@pytest.mark.parametrize(
    ("shift", "noise", "word"),
    [(0, 0, "not worse"), (8, 1, "worse"), (-8, 1, "better"), (3, 0.5, "not worse"), (8, 30, "inconclusive")],
)
def test_a_perplexity_needs_an_effect_and_significance(shift, noise, word):
    nll = nats(3)
    moved = nll + shift + np.resize([noise, -noise], 20)  # 5.1 nats in 511 tokens are one percent
    (verdict,) = gate.judge(one(None, nll), one(None, moved), Margins())
    assert (verdict.metric, verdict.word) == ("perplexity wiki", word)


LIKELY = np.random.default_rng(9).gamma(4, 0.4, 500)  # bits per byte of 500 right answers


def bits(*values: np.ndarray) -> dict[str, CellResults]:
    """A cell of which bits per byte of the right answers alone are known, by task."""
    tasks = {f"t{n}": made_answers("answer_bpb", one, f"t{n}") for n, one in enumerate(values)}
    return {"x": CellResults(IDENTITY, "ok", bits=tasks)}


@pytest.mark.parametrize(
    ("shift", "noise", "word"),
    [
        (0, 0, "not worse"),
        (0.02, 0.1, "worse"),
        (-0.02, 0.1, "better"),
        (0.005, 0.02, "not worse"),  # shown, and less than the margin
        (0.008, 0.1, "inconclusive"),
        (0.02, 1, "inconclusive"),
    ],
)
def test_bits_per_byte_need_an_effect_and_significance(shift, noise, word):
    moved = LIKELY + shift + np.resize([noise, -noise], 500)
    (verdict,) = gate.judge(bits(LIKELY), bits(moved), Margins())
    assert (verdict.metric, verdict.word, verdict.margin) == ("answer bpb", word, 0.01)


def test_of_single_tasks_the_gate_judges_the_accuracy_alone():
    found = gate.judge(bits(LIKELY[:250], LIKELY[250:]), bits(LIKELY[:250], LIKELY[250:] + 1), Margins())
    assert [(v.metric, v.word) for v in found] == [("answer bpb", "worse")]
    (off,) = gate.judge(bits(LIKELY), bits(LIKELY + 1), Margins(answer_bpb=None))
    assert (off.word, off.gates, off.findable) == ("worse", False, None)


def one_layer(loss: float, seed: int, times: int, *, alone: bool = True) -> float:
    """The share of gates that fail a model, of 500 documents whose bits differ by 0.12, as with one layer less."""
    generator = np.random.default_rng(seed)
    others = () if alone else (RIGHT[:500], nats(1))  # equal ones, which take their share of the level
    found = []
    for _ in range(times):
        likely = LIKELY + generator.normal(loss, 0.12, 500)
        sides = (bits(LIKELY), bits(likely)) if alone else (one(*others, LIKELY), one(*others, likely))
        found.append(gate.judge(*sides, Margins()))
    return sum(gate.exit_code_of(verdicts) == 1 for verdicts in found) / times


def test_the_smallest_loss_that_is_found_is_found_in_four_of_five_gates():
    """By the test where many documents differ, by the margin where few do."""
    (verdict,) = gate.judge(bits(LIKELY), bits(LIKELY + np.resize([0.12, -0.12], 500)), Margins())
    assert one_layer(verdict.findable, seed=1, times=1500) == pytest.approx(0.8, abs=0.04)
    (narrow,) = gate.judge(bits(LIKELY), bits(LIKELY + np.resize([0.001, -0.001], 500)), Margins())
    assert narrow.findable == pytest.approx(0.01, abs=1e-4)
    (same,) = gate.judge(bits(LIKELY), bits(LIKELY), Margins())
    assert same.findable is None


def test_the_smallest_loss_of_accuracy_is_found_in_four_of_five_gates():
    before, after = np.repeat([1.0, 0.0], [700, 300]), np.repeat([1.0, 0.0, 1.0, 0.0], [640, 60, 30, 270])
    (verdict,) = gate.judge(one(before), one(after), Margins())
    changed, loss = 0.09, verdict.findable
    share = trials((changed + loss) / 2, (changed - loss) / 2, seed=5, times=1500)
    assert 0.75 < share < 0.85


def test_a_layer_of_thirty_is_found_and_an_equal_model_is_not():
    assert one_layer(0.020, seed=2, times=500) > 0.9
    assert one_layer(0.020, seed=4, times=500, alone=False) > 0.8
    assert one_layer(0.0, seed=3, times=1500) < 0.025


@pytest.mark.parametrize(
    ("ratio", "half", "word"),
    [
        (1.5, 0.02, "not worse"),
        (1.4, 0.02, "worse"),
        (1.6, 0.02, "better"),
        (1.47, 0.005, "not worse"),
        (1.4, 0.3, "inconclusive"),
    ],
)
def test_a_speed_up_needs_an_effect_and_an_interval_apart(ratio, half, word):
    sides = [
        {"x": CellResults(IDENTITY, "ok", speed={"prefill": (middle, middle - wide, middle + wide)})}
        for middle, wide in ((1.5, 0.02), (ratio, half))
    ]
    (verdict,) = gate.judge(*sides, Margins())
    assert verdict.word == word


@pytest.mark.parametrize(("count", "word"), [(1000, "not worse"), (1001, "worse"), (999, "better")])
def test_sizes_are_exact(count, word):
    sides = [{"x": CellResults(IDENTITY, "ok", sizes={"parameters": size})} for size in (1000, count)]
    (verdict,) = gate.judge(*sides, Margins())
    assert verdict.word == word


def test_a_single_window_has_no_interval():
    (verdict,) = gate.judge(one(None, np.array([900.0])), one(None, np.array([990.0])), Margins())
    assert verdict.word == "inconclusive"
    (verdict,) = gate.judge(one(None, np.array([900.0])), one(None, np.array([900.0])), Margins())
    assert verdict.word == "not worse"


def test_tasks_gate_together_and_alone_where_they_are_named():
    def side(right: np.ndarray) -> dict[str, CellResults]:
        tasks = {"piqa": made_answers("acc", right, "d"), "arc": made_answers("acc", np.resize(RIGHT, 3000), "e")}
        return {"x": CellResults(IDENTITY, "ok", tasks=tasks)}

    sides = side(RIGHT), side(flipped(40, 5))
    words = {v.metric: (v.word, v.gates) for v in gate.judge(*sides, Margins())}
    assert words == {"accuracy": ("inconclusive", True), "piqa acc": ("worse", False), "arc acc": ("not worse", False)}
    named = gate.judge(*sides, Margins(tasks={"piqa": 2.0}))
    assert {v.metric: (v.word, v.gates) for v in named}["piqa acc"] == ("worse", True)
    assert gate.exit_code_of(named) == 1


def test_a_task_that_the_run_has_lost_counts_unless_accuracy_does_not_gate():
    """Else a run could pass by not asking what it answers badly."""

    def side(*names: str) -> dict[str, CellResults]:
        return {"x": CellResults(IDENTITY, "ok", tasks={one: made_answers("acc", RIGHT, one) for one in names})}

    sides = side("piqa", "arc"), side("piqa")
    for asked, gates, code in ((Margins(), True, gate.INCOMPLETE), (Margins(accuracy=None), False, 0)):
        found = gate.judge(*sides, asked)
        (lost,) = (verdict for verdict in found if verdict.metric == "arc acc")
        assert (lost.word, lost.gates, gate.exit_code_of(found)) == ("missing", gates, code)


def test_a_run_that_was_asked_another_task_is_incomparable_although_each_side_has_one():
    """Neither accuracy over all tasks nor bits over all tasks stands for what no side shares."""

    def side(task: str, right: np.ndarray) -> dict[str, CellResults]:
        every = {"tasks": {task: made_answers("acc", right, task)}, "bits": {task: made_answers("bpb", LIKELY, task)}}
        return {"x": CellResults(IDENTITY, "ok", **every)}

    found = gate.judge(side("piqa", RIGHT), side("arc_easy", 1 - RIGHT), Margins())
    assert {(v.metric, v.word) for v in found} >= {
        *(("piqa acc", "incomparable"), ("arc_easy acc", "incomparable"), ("answer bpb", "incomparable")),
    }
    assert gate.exit_code_of(found) == gate.INCOMPARABLE


def shares(lost: float) -> dict[str, CellResults]:
    """Answers to a task whose accuracy is a share of each document, as that of truthfulqa_mc2."""
    values = np.random.default_rng(2).uniform(0.3, 0.9, 400) + np.resize([0.02, -0.02], 400) * (lost > 0) - lost
    return {"x": CellResults(IDENTITY, "ok", tasks={"mc2": made_answers("acc", values, "mc2")})}


@pytest.mark.parametrize(("lost", "word"), [(0, "not worse"), (0.03, "worse")])
def test_an_accuracy_of_shares_is_judged_by_a_test_over_documents(lost, word):
    (verdict,) = gate.judge(shares(0), shares(lost), Margins())
    assert (verdict.metric, verdict.word, verdict.gates) == ("accuracy", word, True)
    (_, alone) = gate.judge(shares(0), shares(lost), Margins(tasks={"mc2": 2.0}))
    assert (alone.metric, alone.word, alone.row.contrast.lost) == ("mc2 acc", word, None)
    apart = shares(lost)["x"].tasks["mc2"].values - shares(0)["x"].tasks["mc2"].values
    assert alone.row.contrast.estimate == pytest.approx(apart.mean())
    assert alone.row.contrast.stderr == pytest.approx(apart.std(ddof=1) / 20)


def test_an_accuracy_of_shares_counts_in_the_accuracy_over_all_tasks():
    sides = [
        {"x": CellResults(IDENTITY, "ok", tasks=one(RIGHT)["laco at 0.1, seed 0"].tasks | shares(lost)["x"].tasks)}
        for lost in (0, 0.2)
    ]
    (whole, *_) = gate.judge(*sides, Margins())
    assert (whole.metric, whole.word, whole.row.count) == ("accuracy", "worse", 1400)
    assert whole.row.contrast.estimate == pytest.approx(-0.2 * 400 / 1400)


@pytest.mark.parametrize("count", [1, 200])
def test_a_single_task_that_is_not_right_or_wrong_is_shown(count):
    sides = [
        {"x": CellResults(IDENTITY, "ok", tasks={"f1": made_answers("f1", values[:count])})}
        for values in (LIKELY, LIKELY / 2)
    ]
    (verdict,) = gate.judge(*sides, Margins())
    assert (verdict.metric, verdict.word) == ("f1 f1", "inconclusive")


def test_captured_and_launched_steps_are_judged_apart():
    """On a GPU both are timed at a point; the one that was timed last does not stand for both."""

    def point(mode: str, ratio: float) -> PointTiming:
        ends = {"speedup": ratio, "speedup_low": ratio - 0.01, "speedup_high": ratio + 0.01}
        return PointTiming(kind="decode", context=1024, batch=1, mode=mode, **ends)

    def side(graph: float, *eager: float) -> dict[str, CellResults]:
        points = (point("graph", graph), *(point("eager", one) for one in eager))
        return {"x": CellResults(IDENTITY, "ok", speed=dict(_speeds(Measured(speed=Speed(points=points)))))}

    words = {v.metric: v.word for v in gate.judge(side(1.5, 1.05), side(1.2, 1.05), Margins())}
    name = "speed, decode 1024, batch 1"
    assert words == {f"{name}, graph": "worse", f"{name}, eager": "not worse"}
    words = {v.metric: v.word for v in gate.judge(side(1.5, 1.05), side(1.5), Margins())}
    assert words == {f"{name}, graph": "not worse", f"{name}, eager": "missing"}


# Runs and exit codes


@pytest.fixture
def base(tmp_path):
    """An accepted run with a dense cell and a pruned one."""
    run = tmp_path / "base"
    cell(run, tasks={"piqa": RIGHT}, texts={"wiki": nats(1)}, measured={"speed": speed(1.0)})
    cell(run, "laco", 0.1, tasks={"piqa": RIGHT}, texts={"wiki": nats(2)}, measured={"speed": speed(1.5)})
    cell(run, "flap", 0.1, status="unsupported")
    folder = tmp_path / "baseline"
    assert main(["baseline", "accept", str(run), "--out", str(folder), "--allow-failed"]) == 0
    return folder


def laco(run: Path, **changes) -> Path:
    """A run like the baseline's, with changes to its pruned cell."""
    cell(run, tasks={"piqa": RIGHT}, texts={"wiki": nats(1)}, measured={"speed": speed(1.0)})
    same = {"tasks": {"piqa": RIGHT}, "texts": {"wiki": nats(2)}, "measured": {"speed": speed(1.5)}}
    cell(run, "laco", 0.1, **{**same, **changes})
    cell(run, "flap", 0.1, status="unsupported")
    return run


def gated(capsys, file: Path, run: Path, *more: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["gate", "--baseline", str(file), str(run), "--no-confirm", *more])
    return code, capsys.readouterr().out


CASES = {
    "not worse": ({}, 0),
    "worse": ({"tasks": {"piqa": flipped(60, 5)}}, 1),
    "better": ({"tasks": {"piqa": flipped(5, 60)}}, 0),
    "inconclusive": ({"tasks": {"piqa": flipped(30, 18)}}, 0),
    "new": ({"tasks": {"piqa": RIGHT, "arc": RIGHT}}, 0),
    "missing": ({"texts": {}}, 3),
    "incomparable": ({"sha256": "b" * 64}, 4),
    "failed": ({"status": "error", "tasks": {}, "texts": {}}, 3),
}


@pytest.mark.parametrize("word", CASES)
def test_every_verdict_has_its_exit_code(word, base, tmp_path, capsys):
    changes, code = CASES[word]
    found, out = gated(capsys, base, laco(tmp_path / "run", **changes))
    assert found == code
    assert re.search(rf"  \(?{word}\)?$", out, re.MULTILINE)


@pytest.mark.parametrize(
    "changes",
    [
        {"questions": "another"},
        {"measured": {"weights_sha256": "0" * 64}},
        {"environment": {"versions": VERSIONS | {"torch": "2.0"}}},
        {"environment": {"gpu": "Example GPU"}},
        {"measured": {"speed": speed(1.5)}, "environment": {"cpu": "Another CPU"}},
    ],
)
def test_other_conditions_are_not_comparable(changes, base, tmp_path, capsys):
    assert gated(capsys, base, laco(tmp_path / "run", **changes))[0] == 4


def test_a_regression_outweighs_what_cannot_be_compared(base, tmp_path, capsys):
    changes = {"tasks": {"piqa": flipped(60, 5)}, "sha256": "b" * 64}
    assert gated(capsys, base, laco(tmp_path / "run", **changes))[0] == 1


def test_a_condition_may_be_allowed_to_differ(base, tmp_path, capsys):
    run = laco(tmp_path / "run", environment={"cpu": "Another CPU"})
    (tmp_path / "margins.yaml").write_text("allow: [cpu]\n")
    assert gated(capsys, base, run)[0] == 4
    assert gated(capsys, base, run, "--margins", str(tmp_path / "margins.yaml"))[0] == 0


def test_what_is_off_is_shown_and_does_not_count(base, tmp_path, capsys):
    run = laco(tmp_path / "run", tasks={"piqa": flipped(60, 5)})
    (tmp_path / "margins.yaml").write_text("accuracy: off\nspeed: 10\n")
    code, out = gated(capsys, base, run, "--margins", str(tmp_path / "margins.yaml"))
    assert code == 0
    assert re.search(r"accuracy .*\(worse\)", out)
    (tmp_path / "margins.yaml").write_text("accuracy: 20\n")
    assert gated(capsys, base, run, "--margins", str(tmp_path / "margins.yaml"))[0] == 0


def test_strict_does_not_pass_what_is_inconclusive(base, tmp_path, capsys):
    run = laco(tmp_path / "run", tasks={"piqa": flipped(30, 18)})
    assert gated(capsys, base, run)[0] == 0
    code, out = gated(capsys, base, run, "--strict")
    assert code == 3
    assert "incomplete: " in out


def test_a_missing_and_a_new_cell(base, tmp_path, capsys):
    run = laco(tmp_path / "run")
    cell(run, "sleb", 0.1, texts={"wiki": nats(5)})
    code, out = gated(capsys, base, run)
    assert (code, "1 new" in out) == (0, True)
    next((run / "cells").glob("laco*")).unlink()
    code, out = gated(capsys, base, run)
    assert (code, "1 missing" in out) == (3, True)


def test_a_partial_run_is_judged_by_the_cells_that_it_shares(tmp_path, capsys):
    for run in ("base", "alike", "worse"):
        cell(tmp_path / run, "sleb", 0.1, tasks={"piqa": RIGHT if run != "worse" else flipped(60, 5)})
    cell(tmp_path / "base", "laco", 0.1, tasks={"piqa": RIGHT})
    cell(tmp_path / "alike", "mine", 0.1, tasks={"piqa": RIGHT})
    code, out = gated(capsys, tmp_path / "base", tmp_path / "alike", "--partial")
    assert (code, "1 new" in out, "missing" in out) == (0, True, False)
    assert gated(capsys, tmp_path / "base", tmp_path / "alike")[0] == 3
    assert gated(capsys, tmp_path / "base", tmp_path / "worse", "--partial")[0] == 1
    cell(tmp_path / "other", "mine", 0.1, tasks={"piqa": RIGHT})
    code, _ = gated(capsys, tmp_path / "base", tmp_path / "other", "--partial")
    assert code == 2
    next((tmp_path / "alike" / "cells").glob("mine*")).write_text("{}")
    assert gated(capsys, tmp_path / "base", tmp_path / "alike", "--partial")[0] == 2
    cell(tmp_path / "mapped", "mine", 0.1, tasks={"piqa": RIGHT})
    assert gated(capsys, tmp_path / "base", tmp_path / "mapped", "--partial", "--map", "mine=laco")[0] == 0


def test_a_ratio_is_that_of_the_counts(tmp_path, capsys):
    cell(tmp_path / "base", "laco", 0.1, tasks={"piqa": RIGHT})
    cell(tmp_path / "run", "laco", 0.1, tasks={"piqa": RIGHT}, measured={"ratio": 0.1})
    assert main(["gate", "--baseline", str(tmp_path / "base"), str(tmp_path / "run"), "--no-confirm"]) == 2
    assert "ratio is 0 by parameters and 0.1 in the record" in capsys.readouterr().err


@pytest.mark.parametrize("measured_before", [True, False])
def test_a_margin_of_a_task_whose_only_cell_failed_leaves_the_cell_failed(measured_before, tmp_path, capsys):
    margins_file = tmp_path / "margins.yaml"
    margins_file.write_text("tasks: {piqa: 2.0}")
    cell(tmp_path / "base", tasks={"piqa": RIGHT} if measured_before else {"arc": RIGHT})
    cell(tmp_path / "run", tasks={"piqa": RIGHT}, status="crashed")
    assert main(["baseline", "accept", str(tmp_path / "base"), "--out", str(tmp_path / "baseline")]) == 0
    code, out = gated(capsys, tmp_path / "baseline", tmp_path / "run", "--margins", str(margins_file))
    assert (code, "failed" in out) == (3, True)
    margins_file.write_text("tasks: {nothing: 2.0}")
    assert gated(capsys, tmp_path / "baseline", tmp_path / "run", "--margins", str(margins_file))[0] == 2


def test_a_task_that_has_bits_alone_gates_by_them_and_takes_no_margin_of_its_own(tmp_path, capsys):
    for run, more in (("base", 0.0), ("run", 0.3)):
        bits = {"gsm8k_bpb": nats(1, 400) / 1500 + more}
        cell(tmp_path / run, tasks=bits, bits=bits, metric="answer_bpb")
    assert main(["baseline", "accept", str(tmp_path / "base"), "--out", str(tmp_path / "baseline")]) == 0
    capsys.readouterr()
    assert gated(capsys, tmp_path / "baseline", tmp_path / "run")[0] == 1
    assert gated(capsys, tmp_path / "baseline", tmp_path / "base")[0] == 0
    (tmp_path / "margins.yaml").write_text("tasks: {gsm8k_bpb: 2.0}")
    order = ["gate", "--baseline", str(tmp_path / "baseline"), str(tmp_path / "run")]
    assert main([*order, "--margins", str(tmp_path / "margins.yaml")]) == 2
    assert "gsm8k_bpb has no accuracy and cannot gate; answer_bpb is its margin" in capsys.readouterr().err


def test_no_baseline_is_4_and_a_mistake_is_2(base, tmp_path, capsys):
    run = str(laco(tmp_path / "run"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "records.jsonl").write_text("{}")
    (tmp_path / "old.json").write_text('{"schema": 1, "cells": {}}')
    said = {"nothing": "makes one", "empty": "no baseline", "damaged": "line 1 is not", "old.json": "no baseline"}
    for name, words in said.items():
        assert main(["gate", "--baseline", str(tmp_path / name), run]) == 4
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), words in err) == ("", 1, True)
    assert main(["baseline", "accept", run, "--out", str(tmp_path / "old.json"), "--allow-failed"]) == 2
    assert "is a file, and a baseline is a folder" in capsys.readouterr().err
    assert main(["baseline", "accept", run, "--out", str(tmp_path / "run"), "--replace", "--allow-failed"]) == 2
    assert "is no baseline that could be replaced" in capsys.readouterr().err
    assert main(["gate", "--baseline", str(base), str(tmp_path)]) == 2
    assert main(["gate", "--baseline", str(base), run, "--map", "laco"]) == 2
    assert main(["gate", "--baseline", str(base), run, "--map", "laco=sleb"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy: 1", "unknown key 'acuracy'; there are accuracy, answer_bpb, perplexity"),
        ("accuracy: much", "accuracy is a number of points, bits or percent"),
        ("accuracy: -1", "from 0 to below 100"),
        ("accuracy: true", "accuracy is a number"),
        ("sizes: 3", "sizes is exact or off"),
        ("tasks: [piqa]", "tasks has a margin for each task"),
        ("tasks: {piqa: x}", "tasks.piqa is a number"),
        ("tasks: {nothing: 1}", "tasks has nothing, which no cell measured"),
        ("allow: [weather]", "no field that may differ"),
        ("allow: cpu", "allow is a list"),
        ("a: [", "is not YAML"),
        ("- a", "is a table"),
    ],
)
def test_a_mistake_in_the_margins_is_one_line(text, message, base, tmp_path, capsys):
    (tmp_path / "margins.yaml").write_text(text)
    run = laco(tmp_path / "run")
    capsys.readouterr()
    assert main(["gate", "--baseline", str(base), str(run), "--margins", str(tmp_path / "margins.yaml")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_label_is_judged_by_another(base, tmp_path, capsys):
    run = tmp_path / "run"
    cell(run, tasks={"piqa": RIGHT}, texts={"wiki": nats(1)}, measured={"speed": speed(1.0)})
    worse = {"tasks": {"piqa": flipped(60, 5)}, "texts": {"wiki": nats(2)}}
    counts = {"parameters": 2000, "dense_parameters": 4000, "ratio": 0.5}
    cell(run, "mine:layers=1-1", 0.1, **worse, measured={"speed": speed(1.5)} | counts)
    code, out = gated(capsys, base, run, "--map", "mine:layers=1-1=laco")
    assert code == 1
    assert "mine:layers=1-1 at 0.1, seed 0 against laco at 0.1, seed 0" in out
    assert re.search(r"parameters .* \(worse\)", out)  # methods meet a budget each in their own steps
    assert not re.search(r"^laco at 0.1, seed 0$", out, re.MULTILINE)  # it stands for the cell that is mapped to it


def test_draws_are_paired_by_their_seed(tmp_path, capsys):
    for run in ("a", "b"):
        for seed in (0, 1):
            parameters = {"draws": 2, "seed": seed}
            cell(tmp_path / run, "random", 0.1, seed=0, parameters=parameters, texts={"wiki": nats(seed)})
            kept = next((tmp_path / run / "cells").glob("random--0.1--0.json"))
            kept.rename(kept.with_name(f"random--{seed}.json"))
            (tmp_path / run / "samples" / "random--0.1--0").rename(tmp_path / run / "samples" / f"random--{seed}")
    file = tmp_path / "base2"
    assert main(["baseline", "accept", str(tmp_path / "a"), "--out", str(file)]) == 0
    code, out = gated(capsys, file, tmp_path / "b")
    assert code == 0
    assert out.count("not worse") >= 4
    assert "random at 0.1, seed 0, draw 1" in out


# A second measurement


def test_a_regression_stands_only_if_it_is_measured_twice(base, tmp_path, capsys, monkeypatch):
    run = laco(tmp_path / "run", measured={"speed": speed(1.2)})
    arguments = ["gate", "--baseline", str(base), str(run)]
    second = results_of_run(laco(tmp_path / "second"))
    monkeypatch.setattr(reproduce, "find_measurable_cells", lambda run, names, trust: dict.fromkeys(names, ("", None)))
    monkeypatch.setattr(reproduce, "measure_again", lambda run, name, *_: second[name])
    assert main(arguments) == 0
    assert "worse at first, not worse when measured again" in capsys.readouterr().out
    second |= results_of_run(laco(tmp_path / "third", measured={"speed": speed(1.25)}))
    assert main(arguments) == 1
    assert "measured twice" in capsys.readouterr().out
    second |= results_of_run(laco(tmp_path / "fourth", status="out_of_memory", tasks={}, texts={}, measured={}))
    assert main(arguments) == 3
    assert "worse, and out_of_memory when measured again" in capsys.readouterr().out


def test_a_cell_that_cannot_be_measured_again_says_what_to_do(base, tmp_path, capsys, monkeypatch):
    run = laco(tmp_path / "run", tasks={"piqa": flipped(60, 5)})
    monkeypatch.setattr(reproduce, "cell_of", lambda record: (_ for _ in ()).throw(OSError("no such model")))
    assert main(["gate", "--baseline", str(base), str(run), *trusting("somewhere/model")]) == 2
    assert "no such model; --no-confirm judges without" in capsys.readouterr().err


# Files


def test_junit_is_valid_and_tells_failures_from_errors(base, tmp_path, capsys):
    run = laco(tmp_path / "run", tasks={"piqa": flipped(60, 5)}, sha256="b" * 64)
    cell(run, "<&]]>\x1b[31m\u202e", 0.1, status="error")
    out = tmp_path / "deep" / "junit.xml"
    code, shown = gated(capsys, base, run, "--format", "junit", "--out", str(out))
    assert code == 1
    assert "\x1b" not in shown
    suite = ElementTree.parse(out).getroot()
    cases = {(case.get("classname"), case.get("name")): [child.tag for child in case] for case in suite}
    assert int(suite.get("tests")) == len(cases) == len(suite)
    assert cases["laco at 0.1, seed 0", "accuracy"] == ["failure"]
    assert cases["laco at 0.1, seed 0", "perplexity wiki"] == ["error"]
    assert cases["dense, seed 0", "accuracy"] == ["system-out"]
    strange = [name for name, _ in cases if name.startswith("<&]]>")]
    assert strange == [r"<&]]>\x1b[31m\u202e at 0.1, seed 0"]
    for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(suite.get(count)) == sum(tag in children for children in cases.values())


def test_markdown_leads_with_the_outcome_and_is_escaped(base, tmp_path, capsys):
    run = laco(tmp_path / "run", tasks={"piqa": flipped(60, 5)})
    cell(run, "<script>|x", 0.1, status="error")
    out = gated(capsys, base, run, "--format", "markdown")[1]
    assert out.startswith("### prunebench: regression: ")
    assert "<script>" not in out
    assert re.search(r"\| laco at 0.1, seed 0 +\| accuracy .* worse +\|", out.split("<details>")[0])


def test_a_baseline_is_a_packed_run(base, tmp_path, capsys):
    assert sorted(path.name for path in base.iterdir()) == ["records.jsonl", "samples"]
    assert run_folder.read_records(base) == run_folder.read_records(tmp_path / "base")
    assert sum(path.stat().st_size for path in base.rglob("*") if path.is_file()) < 400_000
    assert gated(capsys, tmp_path / "base", laco(tmp_path / "run"))[0] == 0  # which any run may be
    assert main(["baseline", "accept", str(base), "--out", str(tmp_path / "copy"), "--allow-failed"]) == 0
    assert (tmp_path / "copy" / "records.jsonl").read_bytes() == (base / "records.jsonl").read_bytes()
    assert not list(tmp_path.glob(".baseline-*"))


def test_a_baseline_gives_back_what_was_measured(base, tmp_path):
    measured, read = results_of_run(tmp_path / "base"), baseline.read_baseline(base)
    assert read.keys() == measured.keys()
    for name, found in read.items():
        for task, was in measured[name].tasks.items():
            assert np.array_equal(found.tasks[task].values, was.values)
        for text, was in measured[name].texts.items():
            assert np.array_equal(found.texts[text].values, was.values)
        assert found.conditions == measured[name].conditions


def test_a_baseline_is_replaced_only_where_that_is_said(base, tmp_path, capsys):
    run = laco(tmp_path / "run", tasks={"piqa": flipped(60, 5)})
    arguments = ["baseline", "accept", str(run), "--out", str(base)]
    before = (base / "records.jsonl").read_text()
    assert main([*arguments, "--allow-failed"]) == 2
    assert "--replace" in capsys.readouterr().err
    assert main([*arguments, "--replace"]) == 2
    assert "failed cells: flap at 0.1, seed 0 (unsupported); --allow-failed" in capsys.readouterr().err
    assert (base / "records.jsonl").read_text() == before
    assert main([*arguments, "--allow-failed", "--replace"]) == 0
    share = RIGHT.mean()
    changed = f"laco at 0.1, seed 0: tasks piqa: {share:g} -> {share - 0.055:g}"
    assert capsys.readouterr().out.splitlines()[0].strip() == changed


@pytest.mark.parametrize("step", ["pack_run", "copytree", "rename"])
def test_replacing_a_baseline_leaves_one_whatever_interrupts_it(step, base, tmp_path, monkeypatch):
    """At any step; a file that is not the run's stays."""
    (base / "README.md").write_text("why")
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    run, renamed, rename = laco(tmp_path / "run", tasks={"piqa": flipped(60, 5)}), [], Path.rename

    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    def second(self: Path, to: Path) -> Path:
        renamed.append(to)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patched:
        at = {"pack_run": baseline.packed_run, "copytree": baseline.shutil, "rename": Path}[step]
        patched.setattr(at, step, second if step == "rename" else interrupted)
        with pytest.raises(KeyboardInterrupt):
            baseline.accept(run, base, allow_failed=True, replace=True)
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before
    baseline.accept(run, base, allow_failed=True, replace=True)
    assert baseline.read_baseline(base)["laco at 0.1, seed 0"].tasks["piqa"].values.sum() == RIGHT.sum() - 55
    assert (base / "README.md").read_text() == "why"
    assert not list(tmp_path.glob(".baseline-*"))


def test_two_cells_of_one_name_are_refused(tmp_path, capsys):
    cell(tmp_path / "run")
    kept = next((tmp_path / "run" / "cells").glob("*.json"))
    kept.with_name("dense--fixed--other.json").write_text(kept.read_text())
    assert main(["baseline", "accept", str(tmp_path / "run"), "--out", str(tmp_path / "b")]) == 2
    assert "several cells 'dense, seed 0', which other settings set apart" in capsys.readouterr().err


# Real cells


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """The tiny model after it has learnt which word follows which, and a text and a task of such words."""
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    folder, generator = tmp_path_factory.mktemp("trained"), torch.Generator().manual_seed(0)
    follow = torch.randperm(len(WORDS), generator=generator).tolist()

    def walk(length: int) -> list[int]:
        found = [int(torch.randint(len(WORDS), (1,), generator=generator))]
        while len(found) < length:
            found.append(follow[found[-1]])
        return found

    documents = [walk(60) for _ in range(30)]
    model, ids = tiny("llama").train(), torch.tensor(documents) + 3
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(40):
        logits = model(input_ids=ids).logits[:, :-1]
        nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder / "model")
    for name in ("text", "other"):
        lines = documents if name == "text" else [walk(60) for _ in range(30)]
        (folder / f"{name}.txt").write_text("\n\n".join(" ".join(WORDS[n] for n in line) for line in lines))
    rows = [{"goal": f"w{n % 90}", "sol1": f"w{n % 70}", "sol2": f"w{n % 50}", "label": n % 2} for n in range(60)]
    (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def small(trained: Path, text: str = "text") -> list[str]:
    """What makes a run one of the trained model that takes a second."""
    arguments = ["--model", str(trained / "model"), "--device", "cpu", "--profile", "smoke", "--no-checks"]
    arguments += ["--texts", str(trained / f"{text}.txt"), "--calibration", str(trained / "text.txt")]
    arguments += ["--tasks", "piqa", "--task-data", f"piqa={trained / 'piqa.jsonl'}", "--documents", "0"]
    arguments += ["--window", "32", "--windows", "12", "--calibration-sequences", "2", "--calibration-length", "16"]
    return arguments


def measured(trained: Path, run: Path, *methods: str, text: str = "text", plugin: str = "") -> Path:
    """A run of the trained model."""
    arguments = ["run", "--methods", ",".join(methods), *small(trained, text), "--speed-rounds", "0", "--out", str(run)]
    assert main([*arguments, *(["--plugin", plugin, "--ratio", "0.2"] if plugin else [])]) == 0
    return run


def test_real_cells(trained, tmp_path, capsys):
    file = tmp_path / "baseline"
    dense = measured(trained, tmp_path / "dense", "dense")
    assert main(["baseline", "accept", str(dense), "--out", str(file)]) == 0
    arguments = ["gate", "--baseline", str(file)]
    own = trusting(*(trained / name for name in ("model", "text.txt", "piqa.jsonl")))
    assert main([*arguments, str(measured(trained, tmp_path / "again", "dense"))]) == 0

    dropped = measured(trained, tmp_path / "dropped", "drop:layers=1-1")
    capsys.readouterr()
    assert main([*arguments, str(dropped), *own, "--map", "drop:layers=1-1=dense"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"perplexity text.txt .* worse$", out, re.MULTILINE)
    assert "measured twice" in out
    assert "looks worse; measuring it again" in err
    (folder,) = (dropped / "again").iterdir()
    (second,) = load_run(folder)
    first = next(record for record in load_run(dropped) if record.cell.method == "drop")
    assert second.cell == first.cell
    assert second.measured.text_scores == first.measured.text_scores

    other = measured(trained, tmp_path / "other", "dense", text="other")
    assert main([*arguments, str(other)]) == 4
    assert main(["gate", "--baseline", str(tmp_path / "nothing"), str(dense)]) == 4


# The documentation

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"


WORKFLOW = yaml.safe_load((EXAMPLES / "gate.yml").read_text())
STEPS = WORKFLOW["jobs"]["gate"]["steps"]


def test_the_commands_of_the_page_and_the_workflow_are_commands():
    from bench.cli.main import _parse

    steps = [line for step in STEPS for line in step.get("run", "").splitlines()]
    lines = [*(DOCS / "guides" / "gate.md").read_text().splitlines(), *steps]
    commands = [line.strip() for line in lines if line.strip().startswith("python -m bench ")]
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(command.partition("||")[0], comments=True)
        _parse(words[3:])


def test_the_workflow_is_one_that_a_service_takes():
    assert set(WORKFLOW) == {"name", True, "permissions", "jobs"}  # `on` is true in YAML 1.1
    assert WORKFLOW[True] == "pull_request"
    assert set(WORKFLOW["permissions"].values()) == {"read"}
    (job,) = WORKFLOW["jobs"].values()
    assert job["runs-on"]
    assert job["timeout-minutes"] > 0
    for step in STEPS:
        assert ("uses" in step) != ("run" in step), step
        assert set(step) <= {"name", "uses", "with", "run", "if", "env"}
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", step["uses"]), step
        for name in re.findall(r"\$(\w+)", step.get("run", "")):
            assert name in job["env"] or name.startswith("GITHUB_"), name
    (summary,) = (number for number, step in enumerate(STEPS) if "GITHUB_STEP_SUMMARY" in step.get("run", ""))
    (gated,) = (number for number, step in enumerate(STEPS) if "junit.xml" in step.get("run", ""))
    assert gated < summary
    assert all(step.get("if") == "always()" for step in STEPS[summary:])  # what went wrong is shown


def test_the_workflow_installs_versions_that_the_package_takes():
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    taken = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    env = WORKFLOW["jobs"]["gate"]["env"]
    for pinned in map(Requirement, env["VERSIONS"].split()):
        (exact,) = pinned.specifier
        assert exact.operator == "=="
        assert exact.version in taken[pinned.name], pinned
    (python,) = (step["with"]["python-version"] for step in STEPS if "setup-python" in step.get("uses", ""))
    assert python in SpecifierSet(project["requires-python"])


def stepped(step: dict[str, str], there: Path, more: Sequence[str] = ()) -> int:
    """Run a step as the service does, in a shell that ends at the first command that fails; its exit code."""
    command = f"{step['run'].strip()} {shlex.join(more)}".strip()
    own = {"GITHUB_STEP_SUMMARY": str(there / "step_summary.md"), "PYTHONPATH": str(DOCS.parent)}
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=there, env=os.environ | own, capture_output=True, check=False
    )
    return done.returncode


@pytest.mark.nightly
def test_the_steps_of_the_workflow_measure_gate_and_say(trained, tmp_path):
    own = shlex.join(trusting(*(trained / name for name in ("model", "text.txt", "piqa.jsonl"))))
    named = {step["name"]: step["run"] for step in STEPS if "name" in step}
    steps = {name: {"run": command.replace("gate run", f"gate run {own}")} for name, command in named.items()}
    for file in ("mine.py", "margins.yaml"):
        shutil.copy(EXAMPLES / file, tmp_path)
    assert stepped(steps["Measure"], tmp_path, small(trained)) == 0
    run = tmp_path / "run"
    assert {record.cell.method for record in load_run(run)} >= {"opposed", "laco", "dense"}
    assert stepped(steps["Gate"], tmp_path) == gate.INCOMPARABLE  # there is no baseline yet
    assert main(["baseline", "accept", str(run), "--out", str(tmp_path / "baseline")]) == 0
    assert stepped(steps["Gate"], tmp_path) == 0
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().tag == "testsuite"

    accepted = tmp_path / "baseline" / "records.jsonl"
    lines = [json.loads(line) for line in accepted.read_text().splitlines()]
    for line in lines:
        line["measured"]["weight_bytes"] -= 4  # so that the pull request has larger models, measured again too
    accepted.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert stepped(steps["Gate"], tmp_path) == gate.REGRESSION
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().findall(".//failure")
    assert stepped(steps["Summary"], tmp_path) == 0  # it says so, and does not fail again
    assert "worse" in (tmp_path / "step_summary.md").read_text()
    kept = next(step["with"]["path"].split() for step in STEPS if "upload-artifact" in step.get("uses", ""))
    assert all((tmp_path / path).exists() for path in kept)


def test_the_margins_of_the_page_are_the_defaults(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "guides" / "gate.md").read_text(), re.DOTALL)
    (tmp_path / "margins.yaml").write_text(text)
    assert gate.read_margins(tmp_path / "margins.yaml") == Margins()
    assert gate.read_margins(EXAMPLES / "margins.yaml") == Margins(speed=None)


def test_the_example_runs_and_is_gated(trained, tmp_path, capsys):
    plugin, file = str(EXAMPLES / "mine.py"), str(tmp_path / "baseline")
    run = str(measured(trained, tmp_path / "idea", "opposed", "drop-tail", plugin=plugin))
    assert main(["baseline", "accept", run, "--out", file]) == 0
    margins = ["--margins", str(EXAMPLES / "margins.yaml"), "--plugin", plugin]
    assert main(["gate", run, "--baseline", file, *margins]) == 0
    assert main(["compare", f"{run}/drop-tail", f"{run}/opposed"]) == 0
    assert main(["gate", run, "--baseline", file, *margins, "--map", "opposed=drop-tail"]) == 0  # close to it
    assert "opposed at 0.2, seed 0 against drop-tail at 0.2, seed 0" in capsys.readouterr().out
