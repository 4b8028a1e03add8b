"""Holds the log-likelihoods of an inference engine against this suite's own, on a sample of what a cell scores.

Engines disagree, and one that serves another model, or reads other tokens, answers as fluently as the right one. So
before a score of an engine counts, some windows and some answers of the cell's own are scored by both. The first
windows of the first text are held token by token, and answers by their sums.

Letters: M = windows, W = tokens of a window.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.data.texts import EvaluationText
from bench.evaluation.scoring import Backend, Question
from bench.records.measured import Agreement

WINDOWS, WINDOW = 2, 256  # windows of the sample, and the most tokens of each
ANSWERS = 16  # of the sample
# By how many nats a token the two may differ: each answer or window in its mean, and all of them in theirs. In float32
# vLLM differed from this suite by 1e-5 in the mean, and by 9e-4 at single tokens; in bfloat16 by 0.07 and by 0.4.
LIMITS = {"float32": (1e-3, 1e-3), "float16": (0.1, 0.03), "bfloat16": (0.6, 0.15)}


class Unlike(Exception):
    """Is raised where the likelihoods of an engine are not those of the weights at hand."""


class Collector:
    """Is a Backend that computes nothing, and keeps the `questions`; a prompt counts as one on its own tokens."""

    def __init__(self) -> None:
        self.questions = set[Question]()

    def score_questions(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
        """Keep the questions, and return zeros."""
        self.questions |= set(questions)
        return torch.zeros(len(questions), dtype=torch.float64), torch.zeros(len(questions), dtype=torch.bool)

    def nll_of_windows(self, ids: Tensor, scored: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros(ids.shape, dtype=torch.float64)

    def write_behind(self, prompts: Sequence[tuple[int, ...]], *_: object) -> list[list[int]]:
        """Keep each prompt as a question, and write nothing."""
        self.questions |= {(prompt, len(prompt) - 1) for prompt in prompts if len(prompt) > 1}
        return [[] for _ in prompts]


def draw_answers(questions: set[Question]) -> list[Question]:
    """Return the questions of the sample, sorted."""
    return sorted(random.Random(0).sample(sorted(questions), min(ANSWERS, len(questions))))


def compare_backends(
    engine: Backend, own: Backend, text: EvaluationText | None, answers: Sequence[Question], dtype: str
) -> Agreement:
    """Return how far the log-likelihoods of an engine are from this suite's own. Raises Unlike beyond LIMITS.

    text     whose windows are held; None for none
    answers  sorted and distinct
    dtype    in which this suite computes
    """
    absolute, tokens = list[float](), list[int]()
    largest = 0.0
    if text is not None:
        ids, scored = text.ids[:WINDOWS, :WINDOW], text.scored[:WINDOWS, :WINDOW]
        differences = (engine.nll_of_windows(ids, scored) - own.nll_of_windows(ids, scored)).abs()
        absolute += differences.sum(1).tolist()
        tokens += scored.sum(1).tolist()
        largest = float(differences.max())
    if answers:
        sums, _ = engine.score_questions(answers)
        own_sums, _ = own.score_questions(answers)
        absolute += (sums - own_sums).abs().tolist()
        tokens += [length for _, length in answers]
    means = [difference / count for difference, count in zip(absolute, tokens, strict=True) if count]
    worst, mean = max(means, default=0.0), sum(absolute) / max(1, sum(tokens))
    of_each, of_all = LIMITS[dtype]
    if not (worst <= of_each and mean <= of_all):  # nor where one is not a number
        raise Unlike(
            f"the server's log-probabilities differ from those of these weights by {worst:.2g} nats a token, and by "
            f"{mean:.2g} over {sum(tokens):,} tokens; in {dtype} {of_each:g} and {of_all:g} may be: it serves another "
            "model, or in another dtype (--dtype)"
        )
    return Agreement(tokens=sum(tokens), mean=mean, largest=max(largest, worst))
