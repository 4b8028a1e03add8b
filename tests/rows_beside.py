"""Rows of a study's table, made of records: perplexity and the bits of right answers, beside those of a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from bench.records.run_folder import Merged
from bench.regression import contrasts

MODELS = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b")
SEEDS = (0, 1, 2, 6)  # of the calibration text
Places = dict[tuple[str, float], dict[str, int]]


def places(run: Merged) -> Places:
    """Return which records are of a model at a ratio, by method, the dense model's among them."""
    found = Places()
    dense = {one.cell.model: n for n, one in enumerate(run.records) if one.cell.label == "dense"}
    for n, one in enumerate(run.records):
        if one.cell.label != "dense":
            its = found.setdefault((one.cell.model, one.cell.ratio), {"dense": dense[one.cell.model]})
            its[one.cell.label] = n
    return dict(sorted(found.items(), key=lambda each: (MODELS.index(each[0][0]), each[0][1])))


def rows(run: Merged, base: str, labels: Collection[str]) -> list[str]:
    """Return a row for each method, by model and ratio: its figures, and how they differ from those of `base`."""
    records, lines = run.records, []
    for (model, ratio), every in places(run).items():
        at = {label: n for label, n in every.items() if label in labels}
        for label in sorted(at, key=lambda each: records[at[each]].measured.text_scores["wiki"].perplexity):
            words = []
            for name in ("wiki", "c4", "answers"):
                words.append(f"{figure(run, at[label], name):{'.3f' if name == 'answers' else '.1f'}}")
                if label != base:
                    words[-1] += f", {_beside(run, (at[base], at[label]), name)}"
            lines.append(f"| {model} | {ratio if label != 'dense' else '-'} | `{label}` | {' | '.join(words)} |")
    return lines


def by_seed(
    run_of: Callable[[int], Merged],
    ratio: float,
    labels: Sequence[str],
    name: str,
    *,
    model: str = MODELS[0],
    seeds: Sequence[int] = SEEDS,
) -> list[str]:
    """Return for each method its figures by some seeds, each beside that of the first method, and their mean.

    run_of  gives the run that holds the cells of a seed
    name    a text, whose perplexities are divided; or "answers", whose bits per byte are subtracted
    """
    lines = []
    for label in labels:
        words, figures = [], []
        for seed in seeds:
            run = run_of(seed)
            cells = [(n, one.cell) for n, one in enumerate(run.records) if one.cell.model == model]
            at = {cell.label: n for n, cell in cells if (cell.ratio, cell.seed) == (ratio, seed)}
            figures.append(figure(run, at[label], name))
            words.append(f"{figures[-1]:{'.3f' if name == 'answers' else '.1f'}}")
            if label != labels[0]:
                words[-1] += f", {_beside(run, (at[labels[0]], at[label]), name)}"
        if name == "answers":
            mean = f"{sum(figures) / len(seeds):.3f}"
        else:
            mean = f"{math.exp(sum(map(math.log, figures)) / len(seeds)):.1f}"
        lines.append(f"| `{label}` | {' | '.join(words)} | {mean} |")
    return lines


def figure(run: Merged, place: int, name: str) -> float:
    """Return the perplexity of a record on a text, or the bits per byte of the right answers of all its tasks."""
    measured = run.records[place].measured
    if name != "answers":
        return float(measured.text_scores[name].perplexity)
    bits = [task.answer_bpb.value for task in measured.task_scores.values()]
    return float(sum(bits) / len(bits))


def _beside(run: Merged, pair: tuple[int, int], name: str) -> str:
    """Say how many times the perplexity of the first the second has, or how many bits more, with the 95 % interval."""
    if name != "answers":
        found = contrasts.contrast_of_perplexities(run.records, [pair], run.samples, name)[pair]
        return f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
    tasks = list(run.records[pair[0]].measured.task_scores)
    found = contrasts.contrast_of_averages(run.records, [pair], run.samples, tasks, "answer_bpb", bounds=True)[pair]
    return f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
