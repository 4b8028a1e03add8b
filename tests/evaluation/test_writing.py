"""What models write, against `generate` of transformers for one prompt at a time, on tiny models of each family."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, tiny
from tiny_methods import pruned

from bench.data import pretrained, task_loading
from bench.evaluation import writing
from bench.evaluation.scoring import Scorer, make_stock_scorer
from bench.evaluation.tasks import evaluate
from bench.evaluation.writing import divide_prompts, write_behind
from methods import console

MOST = 8
AT_ONCE = ("llama", "gemma3_text", "gpt2")  # rotary positions, windows of 8 tokens in some layers, learnt positions
MODELS = [family if family in AT_ONCE else pytest.param(family, marks=pytest.mark.nightly) for family in FAMILIES]


def draw_prompts(seed=0):
    """Prompts of many lengths, with examples that most share, with a passage that some do, and two alone."""
    draw = random.Random(seed)

    def words(count):
        return tuple(draw.randrange(3, VOCABULARY) for _ in range(count))

    examples, passage = words(13), words(4)
    prompts = {examples, examples + passage, words(1), words(3)}
    prompts |= {examples + words(draw.randint(1, 9)) for _ in range(2)}
    prompts |= {examples + passage + words(draw.randint(1, 5)) for _ in range(2)}
    return sorted(prompts)


def generate(model, prompt, eos=None):
    """What transformers writes behind one prompt."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": MOST, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    new = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return new[0, len(prompt) :].tolist()


def write(model, prompts, eos=None, size=2048):
    total = sum(map(len, divide_prompts(prompts))) + MOST * len(prompts)
    with console.make_bar(total, "writing", "token") as bar:
        return write_behind(model, prompts, MOST, lambda tokens: tokens[-1] == eos, size=size, bar=bar)


def test_a_beginning_belongs_to_all_prompts_that_have_it():
    first, second, third = divide_prompts([(5, 6), (5, 6, 7), (5, 8)])
    assert first.columns.T.tolist() == [[0, 3, 0, 5], [0, 2, 1, 6]]  # first prompt, one past the last, depth, token
    assert second.columns.T.tolist() == [[1, 2, 2, 7]]
    assert third.columns.T.tolist() == [[2, 3, 1, 8]]
    visible, distance = second.depths_of_visible(first + second + third)
    assert visible.tolist() == [[True, True, True, False]]
    assert distance.tolist() == [[2, 1, 0, 1]]


@pytest.mark.parametrize("family", MODELS)
def test_tokens_are_those_of_generate(family, monkeypatch):
    monkeypatch.setattr(writing, "AT_ONCE", 3)  # so that prompts begin while others are being written
    model, prompts = tiny(family), draw_prompts()
    want = [generate(model, prompt) for prompt in prompts]
    assert len(set(map(tuple, want))) > 2
    assert write(model, prompts, size=5) == want  # smaller than a prompt
    monkeypatch.setattr(writing, "AT_ONCE", 32)
    monkeypatch.setattr(writing, "KEPT", 40)
    assert write(model, prompts) == want


@pytest.mark.parametrize("method", ["flap", "llm-drop"])
def test_pruned_models_write_the_same(method):
    model, prompts = pruned(method, "llama", 0.4)[0].model, draw_prompts()[::2]
    assert write(model, prompts) == [generate(model, prompt) for prompt in prompts]


def test_a_prompt_that_has_ended_is_read_no_more():
    model, prompts = tiny("llama"), draw_prompts()
    eos = write(model, prompts)[3][2]
    want = [generate(model, prompt, eos) for prompt in prompts]
    assert min(map(len, want)) < MOST
    counts = []
    model.register_forward_pre_hook(
        lambda _model, _args, given: counts.append(given["input_ids"].numel()), with_kwargs=True
    )
    assert write(model, prompts, eos) == want
    # every beginning once, and of what is written all but each last token, which nothing is behind
    assert sum(counts) == sum(map(len, divide_prompts(prompts))) + sum(len(tokens) - 1 for tokens in want)


def test_a_prompt_that_has_ended_leaves_the_cache(monkeypatch):
    monkeypatch.setattr(writing, "AT_ONCE", 1)
    model, prompts, widths = tiny("llama"), draw_prompts(), []
    model.register_forward_pre_hook(
        lambda _model, _args, given: widths.append(given["attention_mask"].shape[-1]), with_kwargs=True
    )
    write(model, prompts)
    assert widths[-1] == len(prompts[-1]) + MOST - 1  # the last token is read by none


@pytest.mark.nightly
@pytest.mark.default_model
def test_the_default_model_writes_what_lm_eval_writes():
    model, tokenizer = pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)
    scorers = Scorer(model, tokenizer), make_stock_scorer(model, tokenizer, 1)
    for name in ("jeopardy_gen", "basic_skills_string_operations_gen", "gsm8k_gen"):
        task = task_loading.load_tasks([name])[name]
        documents = {name: task_loading.draw_documents(task, 4, 0)}
        (_, ours), (_, theirs) = (evaluate(lm, {name: task}, documents) for lm in scorers)
        assert ours[name]["responses"].tolist() == theirs[name]["responses"].tolist()
