"""Scores the quality of one model, piece by piece: a text, its ranges of positions, and what answers its tasks.

A cell of a run and a model in memory are scored by these functions alone, so that their values are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from bench.data import texts
from bench.data.texts import EvaluationText
from bench.evaluation import scoring
from bench.evaluation.forwards import Sweeping
from bench.evaluation.scoring import Backend
from bench.plan.protocol import Protocol, name_of_range, ranges_of_window
from bench.records.measured import RangeScore, TextScore


def cut_texts(protocol: Protocol, cut: Callable[..., EvaluationText]) -> dict[str, EvaluationText]:
    """Return the windows of each text of a protocol by its name.

    cut  bench.data.texts.make_evaluation_text of a tokenizer
    """
    p = protocol
    return {text: cut(text, p.window, p.stride, p.windows, **_draw_of_windows(p, text)) for text in p.texts}


def cut_long_texts(protocol: Protocol, cut: Callable[..., EvaluationText]) -> dict[str, EvaluationText]:
    """Return the long windows of each text by its name, for perplexity by position; {} where none is asked for.

    cut  bench.data.texts.make_long_text of a tokenizer
    """
    p = protocol
    return {text: cut(text, p.positions, p.windows, **_draw_of_windows(p, text)) for text in p.texts if p.positions}


def _draw_of_windows(protocol: Protocol, text: str) -> dict[str, bool]:
    """Return whether the windows of a text are drawn, and whether they are of all of it."""
    return {"drawn": protocol.windows_drawn, "whole": texts.is_whole(text, protocol.calibration)}


def score_text(protocol: Protocol, backend: Backend, name: str, text: EvaluationText) -> tuple[TextScore, pd.DataFrame]:
    """Return the score of a text, and of each window: nll, in nats, and tokens that are scored."""
    nll = backend.nll_of_windows(text.ids, text.scored).sum(1)
    counts = text.scored.sum(1)
    score = TextScore(
        **vars(scoring.compute_perplexity(nll, counts, text.bytes, text.words, drawn=text.drawn)),
        window=protocol.window,
        stride=protocol.stride,
        bos=text.bos,
        sha256=text.sha256,
        whole=texts.is_whole(name, protocol.calibration),
    )
    return score, pd.DataFrame({"nll": nll.tolist(), "tokens": counts.tolist()})


def list_ranges(name: str, text: EvaluationText) -> dict[str, tuple[int, int]]:
    """Return the ends of each range of positions of a text's long windows, by the range's name."""
    return {name_of_range(name, *ends): ends for ends in ranges_of_window(text.ids.shape[1])}


def score_ranges(backend: Backend, name: str, text: EvaluationText) -> dict[str, tuple[RangeScore, pd.DataFrame]]:
    """Return the score and the samples of each range of positions, all by one forward of each of the long windows."""
    nll = backend.nll_of_windows(text.ids, text.scored)
    scores = {}
    for each, ends in list_ranges(name, text).items():
        score, sums, counts = scoring.score_range(nll, text, *ends)
        scores[each] = score, pd.DataFrame({"nll": sums.tolist(), "tokens": counts.tolist()})
    return scores


def make_scorer(
    protocol: Protocol,
    loaded: tuple[Any, Any],
    *,
    check: bool,
    sweeping: Sweeping | None = None,
    backend: Backend | None = None,
) -> Any:
    """Return what answers tasks for lm-eval with a model and its tokenizer.

    check    whether the model is tried on a small tree. A damaged model can magnify rounding beyond any bound
    backend  an inference engine that scores in place of the model; None: there is none
    """
    if protocol.scorer == "stock":
        return scoring.make_stock_scorer(*loaded)
    tokens = protocol.batch_tokens
    return scoring.Scorer(*loaded, batch_tokens=tokens, check=check, sweeping=sweeping, backend=backend)
