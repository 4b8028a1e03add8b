"""Rows of a study's table, made of records: perplexity and the bits of right answers, beside those of a method."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.run_folder import Merged
from bench.stats import contrasts

MODELS = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b")
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


def rows(run: Merged, base: str, texts: Sequence[str] = ("wiki", "c4")) -> list[str]:
    """Return a row for each method, by model and ratio: its figures, and how they differ from those of `base`."""
    records, samples, lines = run.records, run.samples, []
    for (model, ratio), at in ((where, its) for where, its in places(run).items() if base in its):
        for label in sorted(at, key=lambda each: records[at[each]].measured["perplexity"]["wiki"]["perplexity"]):
            measured, pair, words = records[at[label]].measured, (at[base], at[label]), []
            for name in texts:
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
