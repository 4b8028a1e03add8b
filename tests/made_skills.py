"""Records and samples of tasks by skill that no model has answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from made_records import DENSE, LACO, changed
from made_samples import MadeSamples

from bench.records.record import Record

LEAVES = {"dense": 1.0, "shortgpt": 0.5, "flap": 0.7, "laco": 0.9}  # of what the dense model knows above guesses
CHANCE = {"copycolors_mc": 0.1, "boolq_rc": 0.5, "piqa_rc": 0.5, "winogrande_rc": 0.5}
PARTS_OF_A_RANGE = (
    *(
        "perplexity",
        "perplexity_low",
        "perplexity_high",
        "nll_per_token",
        "tokens",
        "windows",
        "drawn",
        "bos",
        "sha256",
    ),
)


def record(method: str, tasks: Mapping[str, float], documents: int = 10, seed: int = 0, ratio: float = 0.2) -> Record:
    """Return a record with these tasks and their accuracies of guesses; those of _bpb have none."""
    scores = {}
    for task, chance in tasks.items():
        score = {"version": 1, "documents": documents, "available": 100, "fewshot": 5}
        score["answer_bpb"] = {"value": 1.0, "stderr": 0.1}
        main = "answer_bpb" if task.endswith("_bpb") else "acc"
        score |= {"main": main, "metrics": {} if main == "answer_bpb" else {"acc": {"value": 0.5, "stderr": 0.1}}}
        scores[task] = score | ({} if main == "answer_bpb" else {"chance": chance})
    first = changed(DENSE if method == "dense" else LACO, "cell", "method", to=method)
    first = changed(changed(first, "cell", "seed", to=seed), "measured", "tasks", to=scores)
    return first if method == "dense" else changed(first, "cell", "ratio", to=ratio)


HEALED = {  # on 4,000 tokens in 8 s; the text was measured at the start and halfway
    "seconds": 8.0,
    "tokens": 4000,
    "curve": [
        {
            "step": step,
            "tokens": 1000 * step,
            "seconds": 2.0 * step,
            **{f"heldout_loss{end}": 5.0 for end in ("", "_low", "_high")},
            **({"texts": {"wiki": {"perplexity": 900.0, "perplexity_low": 800.0}}} if step in (0, 2) else {}),
        }
        for step in (0, 1, 2, 4)
    ],
}


def with_what_a_view_needs(cell: Record, view: str) -> Record:
    """Return a record that a view of its own tasks or texts shows, made of what it has; a failed one unchanged."""
    measured = cell.plain()["measured"]
    tasks, texts = measured.get("tasks", {}), measured.get("perplexity", {})
    if view == "positions" and "wiki" in texts:
        shared = {name: texts["wiki"][name] for name in PARTS_OF_A_RANGE}
        made = {f"wiki:{each}": shared | {"window": 1024, "within": True} for each in ("0-512", "512-1024")}
        return changed(cell, "measured", "positions", to=made)
    if view == "recovery" and "wiki" in texts:
        return changed(cell, "measured", "healing", to=HEALED)
    name, chance = {"skills": ("boolq_rc", 0.5), "needle": ("needle_1k", 0.1)}.get(view, ("", 0.0))
    if name and "piqa" in tasks:
        return changed(cell, "measured", "tasks", to=tasks | {name: tasks["piqa"] | {"chance": chance}})
    return cell


def samples_of(values: Mapping[tuple[int, str, str], Sequence[float]]) -> MadeSamples:
    """Return samples with these values, by the place of the record, the task and the metric."""
    return MadeSamples(lambda *at: np.array(values[at]) if at in values else None)


def answered(
    tasks: Sequence[str], leaves: Mapping[str, float] = LEAVES, documents: int = 400, ratio: float = 0.2
) -> tuple[list[Record], MadeSamples]:
    """Return records of methods that leave so much of what the dense model knows, and samples of their answers.

    The dense model knows 60 % of what is above guesses, of copycolors nothing. Of letters methods lose twice as much.
    """
    chances = {task: CHANCE.get(task, 0.25) for task in tasks}
    records = [record(method, chances, documents, ratio=ratio) for method in leaves]
    methods = list(leaves.values())

    def values(number: int, task: str, figure: str) -> np.ndarray | None:
        rng = np.random.default_rng([len(task), sum(map(ord, task))])  # alike for every method
        share = methods[number] ** (2 if task.endswith("_mc") else 1)
        if figure == "answer_bpb" and task in chances:
            return rng.gamma(4, 0.25, documents) * (2 - share)
        if figure != "acc" or task.endswith("_bpb") or task not in chances:
            return None
        chance, draw = chances[task], rng.random(documents)
        return (draw < chance + (0 if task.startswith("copycolors") else 0.6) * (1 - chance) * share).astype(float)

    return records, MadeSamples(values)
