"""Rows of a study's table, made of records: perplexity and the bits of right answers, beside those of a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bench.records.run_folder import Merged
from bench.stats import contrasts

MODELS = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b")
SEEDS = (0, 1, 2, 6)  # of the calibration text
Places = dict[tuple[str, float], dict[str, int]]


def places(run: Merged) -> Places:
    """Return which records are of a model at a ratio, by method, the dense model's among them."""
    found = Places()
    dense = {one.cell["model"]: n for n, one in enumerate(run.records) if one.cell["label"] == "dense"}
    for n, one in enumerate(run.records):
        if one.cell["label"] != "dense":
            its = found.setdefault((one.cell["model"], one.cell["ratio"]), {"dense": dense[one.cell["model"]]})
            its[one.cell["label"]] = n
    return dict(sorted(found.items(), key=lambda each: (MODELS.index(each[0][0]), each[0][1])))


def rows(run: Merged, base: str) -> list[str]:
    """Return a row for each method, by model and ratio: its figures, and how they differ from those of `base`."""
    records, samples, lines = run.records, run.samples, []
    for (model, ratio), at in places(run).items():
        for label in sorted(at, key=lambda each: records[at[each]].measured["perplexity"]["wiki"]["perplexity"]):
            measured, pair, words = records[at[label]].measured, (at[base], at[label]), []
            for name in ("wiki", "c4"):
                words.append(f"{measured['perplexity'][name]['perplexity']:.1f}")
                if label != base:
                    found = contrasts.perplexity(records, [pair], samples, name)[pair]
                    words[-1] += f", {found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
            bits = [task["answer_bpb"]["value"] for task in measured["tasks"].values()]
            words.append(f"{sum(bits) / len(bits):.3f}")
            if label != base:
                tasks = list(measured["tasks"])
                found = contrasts.average(records, [pair], samples, tasks, "answer_bpb", bounds=True)[pair]
                words[-1] += f", {found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
            lines.append(f"| {model} | {ratio if label != 'dense' else '-'} | `{label}` | {' | '.join(words)} |")
    return lines


def by_seed(run_of: Callable[[int], Merged], ratio: float, labels: Sequence[str], name: str) -> list[str]:
    """Return for each method its perplexities on a text by four seeds, times those of the first method, and their mean.

    run_of  gives the run that holds the cells of a seed, of one model
    """
    lines = []
    for label in labels:
        words, figures = [], []
        for seed in SEEDS:
            run = run_of(seed)
            cells = [(n, one.cell) for n, one in enumerate(run.records) if one.cell["model"] == MODELS[0]]
            at = {cell["label"]: n for n, cell in cells if (cell["ratio"], cell["seed"]) == (ratio, seed)}
            figures.append(run.records[at[label]].measured["perplexity"][name]["perplexity"])
            words.append(f"{figures[-1]:.1f}")
            if label != labels[0]:
                (pair,) = contrasts.perplexity(run.records, [(at[labels[0]], at[label])], run.samples, name).values()
                words[-1] += f", {pair.estimate:.2f} [{pair.low:.2f}, {pair.high:.2f}]"
        mean = math.exp(sum(map(math.log, figures)) / len(SEEDS))
        lines.append(f"| `{label}` | {' | '.join(words)} | {mean:.1f} |")
    return lines
