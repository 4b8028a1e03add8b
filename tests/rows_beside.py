"""Figures of records for a study's table: perplexity and the bits of right answers, beside those of another record."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.records.run_folder import Merged
from bench.regression import contrasts

MODELS = {"smollm2-135m": "SmolLM2", "gemma3-270m": "Gemma", "qwen2.5-coder-0.5b": "Qwen"}
ANSWERS = "answers"  # where a text is named otherwise


def places(run: Merged, model: str, ratio: float, seed: int = 0) -> dict[str, int]:
    """Return which records are of a model at a ratio by one draw, by label; the dense model's is among them."""
    its = {}
    for place, record in enumerate(run.records):
        cell, of_dense = record.cell, record.cell.label == "dense"
        if (cell.model, cell.seed) == (model, seed) and (of_dense or cell.ratio == ratio) and record.status == "ok":
            its[cell.label] = place
    return its


def figure(run: Merged, place: int, name: str) -> float:
    """Return the perplexity of a record on a text, or the bits per byte of the right answers of all its tasks."""
    measured = run.records[place].measured
    if name != ANSWERS:
        return float(measured.text_scores[name].perplexity)
    bits = [task.answer_bpb.value for task in measured.task_scores.values()]
    return float(sum(bits) / len(bits))


def words_of_figure(value: float, name: str) -> str:
    return f"{value:.3f}" if name == ANSWERS else f"{value:.1f}"


def beside(run: Merged, pair: tuple[int, int], name: str) -> tuple[float, float, float]:
    """Return times the perplexity of the first that the second has, or bits that it has more; the 95 % interval."""
    if name != ANSWERS:
        contrast = contrasts.contrast_of_perplexities(run.records, [pair], run.samples, name)[pair]
    else:
        tasks = list(run.records[pair[0]].measured.task_scores)
        every = contrasts.contrast_of_averages(run.records, [pair], run.samples, tasks, "answer_bpb", bounds=True)
        contrast = every[pair]
    return float(contrast.estimate), float(contrast.low), float(contrast.high)


def words_beside(run: Merged, pair: tuple[int, int], name: str) -> str:
    """Write what `beside` returns, as the tables of studies do."""
    estimate, low, high = beside(run, pair, name)
    if name == ANSWERS:
        return f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def rows_by_seed(
    run: Merged, place: tuple[str, float], labels: Sequence[str], name: str, seeds: Sequence[int]
) -> list[str]:
    """Return for each method its figures by some draws, each beside that of the first method, and their mean.

    place  a model, and a ratio
    name   a text, whose perplexities are divided; or ANSWERS, whose bits per byte are subtracted
    """
    lines = []
    for label in labels:
        words, figures = [], []
        for seed in seeds:
            at = places(run, *place, seed)
            figures.append(figure(run, at[label], name))
            words.append(words_of_figure(figures[-1], name))
            if label != labels[0]:
                words[-1] += f", {words_beside(run, (at[labels[0]], at[label]), name)}"
        mean = sum(figures) / len(seeds) if name == ANSWERS else math.exp(sum(map(math.log, figures)) / len(seeds))
        lines.append(f"| `{label}` | {' | '.join(words)} | {words_of_figure(mean, name)} |")
    return lines
