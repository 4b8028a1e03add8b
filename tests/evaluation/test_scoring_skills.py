"""Scoring of tasks by skill against lm-eval's own backend on a tiny model, in the same dtype."""

import numpy as np
import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import tiny
from datasets import Dataset

from bench.data import task_loading
from bench.evaluation import tasks
from bench.evaluation.scoring import Scorer, make_stock_scorer

PREFACE = {"preface": "1 + 1 = 2\n\n", "examples": 1}
DOCUMENTS = {
    "gsm8k_bpb": [PREFACE | {"question": f"{n} + {n} =", "reference": f" {2 * n}, so {n}."} for n in range(6)],
    "codex_mbpp_bpb": [{"question": "```python", "reference": f"\ndef f():\n    return [{n}]\n```"} for n in range(4)],
    "sciq_rc": [PREFACE | {"question": f"{n}?", "choices": ["a", "bc", "def"], "right": n % 3} for n in range(6)],
    "sciq_mc": [PREFACE | {"question": f"{n}?\n A. a\n B. b", "choices": ["A", "B"], "right": 1} for n in range(6)],
    "winogrande_rc": [
        PREFACE | {"questions": [f"Ann {n} so Ann", f"Ann {n} so Bo"], "ending": "won.", "right": 1} for n in range(4)
    ],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_likelihoods_are_those_of_lm_eval(name, dtype):
    model, tokenizer = tiny("llama", vocab_size=260).to(dtype), byte_tokenizer()
    task = task_loading.make_task(task_loading.make_definition(name), Dataset.from_list(DOCUMENTS[name]), None)
    stock = make_stock_scorer(model, tokenizer)
    stock.logits_cache = False  # which reads a wrong position where an answer of one token meets a longer one
    positions = {name: list(range(len(DOCUMENTS[name])))}
    (_, ours), (_, theirs) = (tasks.evaluate(lm, {name: task}, positions) for lm in (Scorer(model, tokenizer), stock))
    got, want = (np.concatenate(samples[name]["loglikelihoods"].tolist()) for samples in (ours, theirs))
    assert np.abs(got - want).max() <= (1e-3 if dtype == torch.float32 else 0.03 * np.abs(want).max())
    if dtype == torch.float32:
        assert (
            ours[name]
            .drop(columns=["loglikelihoods", "answer_bpb"])
            .equals(theirs[name].drop(columns=["loglikelihoods", "answer_bpb"]))
        )
