"""`bench.evaluate` and `bench.compare` on models in memory: the values are those of a run, and of `compare`."""

from __future__ import annotations

import json
import random
import re
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import tiny
from pages import text
from transformers import AutoModelForCausalLM, AutoTokenizer

import bench
from bench.plan.protocol import Protocol
from bench.records import run_folder
from bench.records.comparability import GATE
from bench.regression.compare import compare_cells
from bench.regression.gate import judge_rows, pair_cells
from bench.runs import quality_in_memory
from methods.errors import UserError

FLAGS = {"profile": "smoke", "window": 32, "windows": 2, "documents": 8, "seed": 3}


@pytest.fixture(scope="module")
def piqa_file(tmp_path_factory):
    """Twelve documents of words that the tiny model has, whose right choice is the first or the second."""
    rows = [{"goal": f"w{n} w3", "sol1": f"w{n + 1} w5", "sol2": f"w6 w{2 * n}", "label": n % 2} for n in range(12)]
    path = tmp_path_factory.mktemp("tasks") / "piqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def loaded(model_folder):
    """The tiny model and its tokenizer, in memory."""
    return AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def flags(text_file, piqa_file):
    """What is measured, as flags in Python."""
    more = {"texts": str(text_file), "calibration": str(text_file), "tasks": "piqa"}
    return FLAGS | more | {"task_data": {"piqa": str(piqa_file)}}


@pytest.fixture(scope="module")
def run(flags, model_folder, tmp_path_factory):
    """A run of the dense model and of a pruned one, measured alike."""
    folder = tmp_path_factory.mktemp("quality") / "run"
    spec = bench.RunSpec(
        "dense,drop-tail",
        ratio=0.3,
        model=str(model_folder),
        out=folder,
        no_checks=True,
        speed_rounds=0,
        device="cpu",
        dtype="float32",
        isolate=False,
        threads=1,
        calibration_length=24,
        positions=600,
        **flags,
    )
    bench.run(spec)
    return folder


@pytest.fixture(scope="module")
def evaluated(flags, loaded):
    """The same two models in memory."""
    model, tokenizer = loaded
    pruned = bench.prune(
        model, "drop-tail", 0.3, tokenizer=tokenizer, calibration=flags["calibration"], length=24, sequences=8, seed=3
    )
    return [bench.evaluate(each, tokenizer=tokenizer, positions=600, **flags) for each in (model, pruned)]


def test_values_and_samples_are_those_of_a_cell(run, evaluated):
    records = {record.cell.method: (key, record) for key, record in run_folder.read_records(run).items()}
    for each, method in zip(evaluated, ("dense", "drop-tail"), strict=True):
        key, record = records[method]
        assert each.measured.perplexity == record.measured.perplexity
        assert each.measured.tasks == record.measured.tasks
        assert each.measured.positions == record.measured.positions
        assert len(each.measured.positions) == 2
        assert each.measured.parameters == record.measured.parameters
        assert each.measured.weight_bytes == record.measured.weight_bytes
        folder = run_folder.folder_of_samples(run, key)
        assert sorted(each.samples) == sorted(path.stem for path in folder.glob("*.parquet"))
        for name, rows in each.samples.items():
            assert rows.to_json() == pd.read_parquet(folder / f"{name}.parquet").to_json()


def test_a_comparison_is_that_of_the_command(run, evaluated):
    [(_, dense, pruned)] = pair_cells(f"{run}/dense", f"{run}/drop-tail")
    [cells] = {row.cells for row in bench.compare(*evaluated).rows}
    by_command = {row.row.metric: row for row in judge_rows({cells: compare_cells(dense, pruned)})}
    rows = bench.compare(*evaluated).rows
    assert len(rows) == 7
    # of the command's rows an evaluation has no cache and no multiply-accumulates, which are tested by no statistics
    assert by_command.keys() - {row.row.metric for row in rows} == {
        *(name for name in by_command if name.startswith("macs")),
        "kv_bytes_per_token",
        "flips",
    }
    for row in rows:
        assert row == by_command[row.row.metric]
    assert {row.verdict for row in rows if row.row.kind == "size"} == {"smaller"}


def test_a_table_stands_in_a_terminal_and_in_a_notebook(evaluated):
    shown = str(evaluated[1])
    assert shown.startswith("drop-tail at 0.3")
    values = evaluated[1].measured.tasks["piqa"]
    assert f"{100 * values.main_metric.value:.1f}" in re.search(r"piqa acc_norm \(%\) +(\S+)", shown)[1]
    assert "8 of 12 documents" in shown
    compared = bench.compare(*evaluated)
    for each in (evaluated[0], compared):
        assert "<table" in each._repr_html_()
    assert "drop-tail at 0.3" in str(compared)
    named = quality_in_memory.Evaluation("<b>", evaluated[0].measured, {}, {})
    assert "<b>" not in named._repr_html_() and "&lt;b&gt;" in named._repr_html_()


def test_the_code_of_the_page_runs(flags, loaded, monkeypatch):
    """A small protocol and model stand in the place of the page's."""
    [code] = [each for each in re.findall(r"```python\n(.*?)```", text("docs/api.md"), re.DOTALL) if "compare(" in each]
    assert len(code.splitlines()) == 4
    model, tokenizer = loaded
    small = {name: value for name, value in flags.items() if name not in ("tasks", "windows", "calibration")}
    monkeypatch.setattr(bench, "evaluate", partial(bench.evaluate, **small), raising=False)
    monkeypatch.setattr(bench, "prune", partial(bench.prune, length=24, sequences=8), raising=False)
    names: dict[str, Any] = {"bench": bench, "model": model, "tokenizer": tokenizer}
    exec(code.replace("windows=16", "windows=4"), names)
    assert names["after"].measured.parameters < names["before"].measured.parameters


def test_the_program_and_the_model_are_left_alone(flags, loaded):
    model, tokenizer = loaded
    model.train()
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), torch.rand(2)
    random.seed(1)
    torch.manual_seed(1)
    try:
        in_training = bench.evaluate(model, tokenizer=tokenizer, **flags)
        assert model.training
    finally:
        model.eval()
    assert random.random() == expected[0] and torch.equal(torch.rand(2), expected[1])
    assert in_training.measured == bench.evaluate(model, tokenizer=tokenizer, **flags).measured


def test_conditions_are_those_of_compare(evaluated):
    names = {*GATE["text"], *GATE["task"]}
    assert evaluated[0].conditions.keys() <= names
    assert evaluated[0].conditions == evaluated[1].conditions
    assert evaluated[0].conditions["batch_tokens"] == Protocol.batch_tokens


DIFFERING = {
    "other windows": ({"windows": 3}, "these differ: text "),
    "other documents": ({"documents": 4}, "these differ: documents "),
    "another seed": ({"seed": 4}, "these differ: documents "),
    "another way to score": ({"scorer": "stock"}, r'these differ: scorer .*; allow="scorer" compares all the same'),
    "no common text": ({"tasks": "none", "task_data": ()}, ""),
}


@pytest.mark.parametrize("differing", DIFFERING)
def test_what_is_not_comparable_is_refused_in_one_line(differing, flags, loaded, evaluated):
    changes, message = DIFFERING[differing]
    model, tokenizer = loaded
    second = bench.evaluate(model, tokenizer=tokenizer, **flags | changes)
    if not message:  # what only one side has is shown, and not tested
        assert {row.verdict for row in bench.compare(evaluated[0], second).rows if "piqa" in row.row.metric} == {
            "only in A"
        }
        return
    with pytest.raises(UserError, match=message) as caught:
        bench.compare(evaluated[0], second)
    assert "\n" not in str(caught.value)


def test_two_weights_may_differ_in_dtype_where_that_is_allowed(flags, loaded, evaluated):
    model, tokenizer = loaded
    texts = flags | {"tasks": "none", "task_data": ()}
    first = bench.evaluate(model, tokenizer=tokenizer, **texts)
    second = bench.evaluate(tiny("llama").to(torch.bfloat16), tokenizer=tokenizer, **texts, name="in bfloat16")
    with pytest.raises(UserError, match="these differ: dtype"):
        bench.compare(first, second)
    assert bench.compare(first, second, allow=["dtype"]).rows


WRONG = {
    "no model": ({"model": torch.nn.Linear(2, 2)}, "a causal language model of transformers .* got Linear"),
    "a name of a model": ({"model": "smollm2-135m"}, "got str"),
    "no tokenizer": ({"tokenizer": None}, "tokenizer= is that of the model; got NoneType"),
    "another flag": ({"windws": 3}, "bench.evaluate takes no 'windws'; did you mean windows?"),
    "a flag of speed": ({"prefill": 8}, "bench.evaluate takes no 'prefill'"),
    "a wrong value": ({"windows": "many"}, "--windows is 0"),
    "another scorer": ({"scorer": "vllm"}, "scorer is shared or stock"),
    "nothing": ({"texts": "none", "tasks": "none", "task_data": ()}, "nothing is measured"),
    "no text": ({"texts": "wikki"}, "did you mean wiki"),
    "longer than the model": ({"window": 4096}, "--window 4096 is more than the 2048 tokens"),
    "other tokens": ({"model": tiny("llama", vocab_size=64)}, r"the tokenizer has a token \d+, and the model has 64"),
    "two calibrations": ({"calibration": "c4,wiki"}, "one seed and one calibration"),
    "programs": ({"tasks": "codex_mbpp_gen", "task_data": ()}, "--confirm-run-unsafe-code"),
    "no chat": ({"apply_chat_template": True}, "has no chat template"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_refused_in_one_line(wrong, flags, loaded):
    changes, message = WRONG[wrong]
    given = dict(zip(("model", "tokenizer"), loaded, strict=True)) | flags | changes
    with pytest.raises(UserError, match=message) as caught:
        bench.evaluate(given.pop("model"), **given)
    assert "\n" not in str(caught.value)


def test_what_a_copy_was_calibrated_on_is_not_what_it_is_evaluated_on(flags, loaded, text_file):
    model, tokenizer = loaded
    copy = bench.prune(model, "drop-tail", 0.3, tokenizer=tokenizer, calibration=str(text_file), length=24, sequences=8)
    own = {name: value for name, value in flags.items() if name != "calibration"}
    halved, whole = (bench.evaluate(each, tokenizer=tokenizer, **own) for each in (copy, model))
    assert [each.measured.perplexity[str(text_file)].whole for each in (halved, whole)] == [False, True]
    words = tokenizer(text_file.read_text())["input_ids"][: 24 * 100]
    of_tokens = bench.prune(model, "drop-tail", 0.3, calibration=torch.tensor(words).view(100, 24))
    with pytest.raises(UserError, match="which is calibrated on, is in part the text"):
        bench.evaluate(of_tokens, tokenizer=tokenizer, **own)


def test_two_evaluations_are_compared_and_nothing_else(evaluated):
    with pytest.raises(UserError, match=r"what `bench.evaluate` returns is compared; got str"):
        bench.compare(evaluated[0], "run/dense")
    with pytest.raises(UserError, match="'windws' is no field that may differ"):
        bench.compare(*evaluated, allow="windws")
