"""Estimates what of several tasks is lost from one model to another: of accuracies, and of bits per byte.

Letters: T = tasks, n = documents of a task, a = right answers of the dense model, c = the accuracy of guesses.

Accuracy. What is lost is a share of what the dense model has above guesses,

    share = N / D     N = mean over tasks of mean(first - second)     D = mean over tasks of mean(a - c)

so that 0 is the dense model, and 1 is guessing. It is one minus kappa over the dense model's kappa, where kappa is the
accuracy above chance over what is possible (J. Cohen, "A coefficient of agreement for nominal scales", 1960). Its
interval is that of E. C. Fieller, "Some problems in interval estimation", 1954: every share r for which N - r D is not
shown to differ from 0. It has ends only where D is shown to be above 0, and there is no share elsewhere.

Variances and covariances are those between the documents of each task, to which a lost and a gained answer is added:
without any, ten answers that stay as they are would have an interval of no width. D. G. Bonett, R. M. Price, "Adjusted
Wald confidence interval for a difference of binomial proportions based on paired data", 2012.

Bits. No score stands for guessing: the bits of a text have no upper end. What is added is the geometric mean over tasks
of the ratio of the mean bits of the two models, since ratios are averaged so (P. J. Fleming, J. J. Wallace, "How not to
lie with statistics", 1986). Its interval is normal on the logarithm, from the paired documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.stats.intervals import NORMAL_95, Contrast, Floats, normal_p


@dataclass(frozen=True)
class FormAnswers:
    """Holds the answers of three models to the same documents of a task in one form, 1 for a right one and 0 else.

    chance  the accuracy of guesses
    """

    dense: Floats
    first: Floats
    second: Floats
    chance: float


def estimate_share(tasks: Sequence[Sequence[FormAnswers]]) -> tuple[Contrast | None, Contrast]:
    """Return the share that is lost from the first to the second model, and what the dense model has above guesses.

    Every task weighs alike, and so do the forms of each. The share is None where the dense model is not shown to be
    above guesses. Its stderr is that of N over D, by which p says whether anything is lost.
    """
    means, variances = np.zeros(2), np.zeros((2, 2))
    for forms in tasks:
        for block in _blocks(forms):
            weight = len(block) / len(forms) / len(tasks)
            lost = np.mean([form.first - form.second for form in block], axis=0)
            above = np.mean([form.dense - form.chance for form in block], axis=0)
            chance = float(np.mean([form.chance for form in block]))
            means += weight * np.array([lost.mean(), above.mean()])
            added = np.array([[1.0, -1.0], [1.0 - chance, -chance]])
            documents = np.concatenate([[lost, above], added], axis=1)
            variances += weight**2 * np.cov(documents, ddof=0) / documents.shape[1]
    (lost_mean, above_mean), (lost_stderr, above_stderr) = means.tolist(), np.sqrt(np.diag(variances)).tolist()
    headroom = _normal(above_mean, above_stderr)
    if headroom.low <= 0:
        return None, headroom
    low, high = _fieller(means, variances)
    p = normal_p(lost_mean, lost_stderr)
    return Contrast(lost_mean / above_mean, low, high, p, lost_stderr / above_mean, test="normal"), headroom


def _blocks(forms: Sequence[FormAnswers]) -> list[Sequence[FormAnswers]]:
    """Return the forms of the same documents together; of unlike numbers of documents each by itself."""
    same = len({len(form.dense) for form in forms}) == 1
    return [forms] if same else [[form] for form in forms]


def _fieller(means: Floats, variances: Floats) -> tuple[float, float]:
    """Return the ends of Fieller's interval of the first mean over the second, which is shown to be above 0.

    variances  (2, 2), of the means and between them
    """
    squares = np.outer(means, means) - NORMAL_95**2 * variances
    (c, b), (_, a) = squares.tolist()
    half = math.sqrt(max(0.0, b * b - a * c))
    return (b - half) / a, (b + half) / a


def _normal(estimate: float, stderr: float) -> Contrast:
    half = NORMAL_95 * stderr
    return Contrast(estimate, estimate - half, estimate + half, normal_p(estimate, stderr), stderr, test="normal")


def estimate_added(tasks: Sequence[tuple[Floats, Floats]]) -> Contrast | None:
    """Return the share of the first model's bits that the second adds on the same documents, every task weighing alike.

    Each task has two documents or more. Its stderr is that of log(1 + share). None where a model has no bits on a task.
    """
    logs, variance = [], 0.0
    for first, second in tasks:
        if min(first.mean(), second.mean()) <= 0:
            return None
        logs.append(math.log(second.mean() / first.mean()))
        parts: Floats = second / second.mean() - first / first.mean()
        variance += float(parts.var(ddof=1)) / len(parts)
    log = _normal(float(np.mean(logs)), math.sqrt(variance) / len(logs))
    estimate, low, high = (math.expm1(value) for value in (log.estimate, log.low, log.high))
    return Contrast(estimate, low, high, log.p, log.stderr, test="normal")
