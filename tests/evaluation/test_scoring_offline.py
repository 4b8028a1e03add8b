"""Scoring against lm-eval's own backend on the default model: documents of every offline task, float32.

PRUNEBENCH_DOCUMENTS=100 python -m pytest tests/test_scoring_offline.py     the full check, half an hour on one core

Without the variable, four documents of each task are drawn. Tasks that generate text are left out: Scorer generates as
lm-eval does. The 57 subjects of MMLU share a form: one is asked without examples and with five.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.data import pretrained, task_loading
from bench.data.chat import Chat
from bench.data.skills import QUICK_SKILLS, REFERENCE_TASKS, SOURCES, WRITTEN_TASKS
from bench.data.task_sources import MMLU, OFFLINE
from bench.evaluation import tasks
from bench.evaluation.scoring import Scorer, make_stock_scorer

DOCUMENTS = int(os.environ.get("PRUNEBENCH_DOCUMENTS", "4"))
CASES = [(name, 0) for name in OFFLINE if name not in (*MMLU, *SOURCES, "nq_open", "instructions")]
CASES += [(name, 0) for name in QUICK_SKILLS if name not in WRITTEN_TASKS]
CASES += [("mmlu_anatomy", 0), ("mmlu_world_religions", 5)]
AT_ONCE = ("piqa", "arc_easy", "winogrande", "boolq", "openbookqa", "mmlu_world_religions")  # one of each form
ASKED = [case if case[0] in AT_ONCE else pytest.param(*case, marks=pytest.mark.nightly) for case in CASES]

pytestmark = pytest.mark.default_model


@pytest.fixture(scope="module")
def scorers():
    """Ours and lm-eval's, on the same model."""
    model, tokenizer = pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)
    return Scorer(model, tokenizer), make_stock_scorer(model, tokenizer)


@pytest.mark.parametrize(("name", "fewshot"), ASKED)
def test_scores_are_those_of_lm_eval(scorers, name, fewshot):
    hold_to_stock_scorer(scorers, name, fewshot)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "fewshot"), [("winogrande", 0), ("mmlu_world_religions", 5), ("gsm8k_bpb", 0)])
def test_scores_in_a_chat_are_those_of_lm_eval(scorers, name, fewshot):
    assert "<|im_start|>system\nAnswer." in hold_to_stock_scorer(scorers, name, fewshot, Chat("Answer."))


def hold_to_stock_scorer(scorers, name, fewshot, chat=None):
    """Assert that both scorers give the same answers, and return the first prompt."""
    task = task_loading.load_tasks([name], fewshot=fewshot)[name]
    documents = {name: task_loading.draw_documents(task, DOCUMENTS, 0)}
    (ours, samples), (theirs, reference) = (tasks.evaluate(lm, {name: task}, documents, chat) for lm in scorers)
    got, want = samples[name], reference[name]
    assert len(got) == min(DOCUMENTS, len(task.eval_docs))
    assert got["prompt_hash"].tolist() == want["prompt_hash"].tolist()
    drift = 2e-5 if name in REFERENCE_TASKS else 0.0  # that of lm-eval's softmax, over the hundred tokens of a solution
    for mine, other in zip(got["loglikelihoods"], want["loglikelihoods"], strict=True):
        assert np.abs(np.array(mine) - np.array(other)).max() <= 1e-3 + drift * np.abs(other).max()
    assert got["greedy"].tolist() == want["greedy"].tolist()
    metrics = [column for column in got.columns if column.startswith("acc")]
    assert bool(metrics) != (name in REFERENCE_TASKS)
    assert got[metrics].equals(want[metrics])
    bits, reference_bits = (vars(scores[name].answer_bpb) for scores in (ours, theirs))
    assert bits == pytest.approx(reference_bits, rel=1e-3)
    assert replace(ours[name], answer_bpb=None) == replace(theirs[name], answer_bpb=None)
    return task.instances[0].args[0]


def test_every_offline_task_is_compared():
    compared = {name for name, _ in CASES}
    assert {name for name in OFFLINE if name not in (*MMLU, *SOURCES)} - compared == {"nq_open", "instructions"}
    assert ("mmlu_world_religions", 5) in CASES
