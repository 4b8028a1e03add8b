"""Scores by what an inference engine predicts of the tokens of prompts.

Letters: M = windows, W = tokens of a window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Ids = Sequence[int]
Predicted = list[tuple[float, bool]]  # log-probability of each token but the first, and whether it is the likeliest


class NoAnswer(Exception):
    """Says what an engine does in place of an answer that can be used."""


class Predictor(ABC):
    """Computes log-likelihoods as a Backend of bench.evaluation.scoring, from an engine's predictions of prompts."""

    @abstractmethod
    def predict_all(self, sequences: Sequence[Ids], what: str) -> list[Predicted]:
        """Return the predictions of each token but the first of token sequences. Raises NoAnswer.

        what  is done, in the words of a bar
        """

    def score_questions(self, questions: Sequence[tuple[Ids, int]]) -> tuple[Tensor, Tensor]:
        """Return a float64 log-likelihood and a bool greedy flag of each question: tokens, how many of them answer."""
        predicted = self.predict_all([tokens for tokens, _ in questions], "scoring")
        sums, greedy = [], []
        for (_, length), each in zip(questions, predicted, strict=True):
            sums.append(sum(logarithm for logarithm, _ in each[-length:]))
            greedy.append(all(likeliest for _, likeliest in each[-length:]))
        return torch.tensor(sums, dtype=torch.float64), torch.tensor(greedy, dtype=torch.bool)

    def nll_of_windows(self, ids: Tensor, scored: Tensor) -> Tensor:
        """Return the nats of each scored token of (M, W) windows, float64; zero where not scored."""
        nll = torch.zeros(ids.shape, dtype=torch.float64)
        predicted = self.predict_all(ids.tolist(), "perplexity")
        for row, each in zip(nll, predicted, strict=True):
            row[1:] = -torch.tensor([logarithm for logarithm, _ in each], dtype=torch.float64)
        return torch.where(scored, nll, 0.0)


def cut_at_end(ids: list[int], has_ended: Callable[[Ids], bool]) -> list[int]:
    """Return tokens up to the first with which they have ended."""
    return next((ids[:count] for count in range(1, len(ids)) if has_ended(ids[:count])), ids)
