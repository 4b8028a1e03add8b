"""The scorer against lm-eval's own backend on the default model: the same documents, paired in one process.

OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_scoring_pairs.py -o addopts= --benchmark-enable -s

Times are of the processor, without what is paid once for a model. Beside the ratio stands how much of the machine's
matrix-multiplication rate is reached, so that the distance to the limit is visible.
"""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.data import pretrained, task_loading, texts
from bench.evaluation import tasks
from bench.evaluation.scoring import Scorer, make_stock_scorer, nll_of_windows

ROUNDS = 3
CASES = [("hellaswag", 0, 60), ("arc_easy", 0, 60), ("arc_challenge", 0, 60), ("piqa", 0, 60), ("winogrande", 0, 60)]
CASES += [("mmlu_world_religions", 5, 100)]

pytestmark = pytest.mark.default_model


@pytest.fixture(autouse=True)
def _timed(request):
    if request.config.getoption("benchmark_disable"):
        pytest.skip("minutes of timing; tests/test_scoring_offline.py compares the values")


@pytest.fixture(scope="module")
def loaded():
    return pretrained.load("smollm2-135m", torch.device("cpu"), torch.float32)


def matmul_rate(size: int = 1536, rounds: int = 7) -> float:
    """Operations a second of a float32 product of two (size, size) matrices, the best of `rounds`."""
    a, b = torch.randn(2, size, size)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds)


def timed(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def report(benchmark, name: str, call, reference, rounds: int) -> None:
    """Time both in turn, and say how they compare."""
    with FlopCounterMode(display=False) as counter:
        call()
    reference()
    pairs = []

    def pair() -> None:
        pairs.append((timed(reference), timed(call)))

    benchmark.pedantic(pair, rounds=rounds)
    theirs, ours = (median(column) for column in zip(*pairs, strict=True))
    share = counter.get_total_flops() / ours / matmul_rate()
    figures = {"reference_s": theirs, "ours_s": ours, "times_as_fast": theirs / ours, "share_of_matmul_rate": share}
    benchmark.extra_info |= {figure: round(value, 3) for figure, value in figures.items()}
    print(f"\n{name}: " + ", ".join(f"{figure} {value:.3g}" for figure, value in figures.items()))


@pytest.mark.parametrize(("name", "fewshot", "documents"), CASES)
def test_against_stock(name, fewshot, documents, loaded, benchmark):
    task = task_loading.load_tasks([name], fewshot=fewshot)[name]
    drawn = {name: task_loading.draw_documents(task, documents, 0)}
    ours, theirs = (
        lambda lm=lm: tasks.evaluate(lm, {name: task}, drawn) for lm in (Scorer(*loaded), make_stock_scorer(*loaded))
    )
    report(benchmark, f"{name}, {fewshot}-shot, {documents} documents", ours, theirs, ROUNDS)


def test_perplexity_against_a_plain_forward(loaded, benchmark):
    model, tokenizer = loaded
    text = texts.make_evaluation_text(tokenizer, "wiki", 512, 512, 8)

    @torch.inference_mode()
    def forward() -> None:
        for row in range(0, len(text.ids), 4):
            model(input_ids=text.ids[row : row + 4], use_cache=False)

    report(
        benchmark, "wiki, 8 windows of 512", lambda: nll_of_windows(model, text.ids, text.scored, 2048), forward, ROUNDS
    )


def test_what_a_model_costs_once(loaded, benchmark):
    """Everything between a loaded model and its first request: the scorer, and the definition of a task."""

    def start() -> None:
        Scorer(*loaded)
        task_loading.load_tasks(["hellaswag"])

    benchmark.pedantic(start, rounds=ROUNDS, warmup_rounds=1)
