"""How long the two scorers take for the same requests, on a random Llama of 4 layers and width 256.

python -m pytest tests/benchmarks/test_scoring_speed.py --benchmark-enable --benchmark-group-by=func
"""

from __future__ import annotations

import random

import pytest
import torch
from conftest import tiny
from transformers import PreTrainedTokenizerFast

from bench.evaluation.scoring import Scorer, make_stock_scorer, nll_of_windows

VOCABULARY = 8192
SHAPES = {  # shared examples, questions, tokens of a question, choices, tokens of a choice
    "endings": (0, 6, 60, 4, 25),
    "examples": (400, 6, 60, 4, 1),
    "alternatives": (0, 12, 20, 2, 20),
}


@pytest.fixture(scope="module")
def model():
    return tiny(
        "llama",
        layers=4,
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_attention_heads=4,
        max_position_embeddings=1024,
    )


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models

    words = {"<s>": 1, "</s>": 2, "<pad>": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def requests(task: str) -> list[tuple[tuple[str, str], list[int], list[int]]]:
    shared, questions, length, choices, answer = SHAPES[task]
    draw = random.Random(0)

    def words(count: int) -> list[int]:
        return [draw.randrange(4, VOCABULARY) for _ in range(count)]

    examples, asked = words(shared), []
    for question in range(questions):
        context = examples + words(length)
        asked += [((f"{question}", f"{choice}"), context, words(answer)) for choice in range(choices)]
    return asked


@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("scorer", ["fast", "stock"])
def test_requests(benchmark, model, tokenizer, task, scorer):
    lm = {"fast": Scorer, "stock": make_stock_scorer}[scorer](model, tokenizer)
    asked = requests(task)
    benchmark.extra_info["tokens"] = sum(len(context) + len(choice) - 1 for _, context, choice in asked)
    answers = benchmark(lm._loglikelihood_tokens, asked, disable_tqdm=True)
    assert len(answers) == len(asked)


@pytest.mark.parametrize("way", ["nll", "forward"])
def test_windows(benchmark, model, way):
    """The negative log-likelihoods of four windows of 512, and the forward alone, logits included."""
    ids = torch.randint(4, VOCABULARY, (4, 512), generator=torch.Generator().manual_seed(0))
    scored = torch.arange(512).expand(4, 512) > 0
    with torch.no_grad():
        if way == "nll":
            benchmark(nll_of_windows, model, ids, scored, batch_tokens=2048)
        else:
            benchmark(model, ids, use_cache=False)
