"""Records and samples of tasks by skill that no model has answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from made_records import DENSE, LACO, changed
from made_samples import MadeSamples

from bench.records.record import Record

LEAVES = {"dense": 1.0, "shortgpt": 0.5, "flap": 0.7, "laco": 0.9}  # of what the dense model knows above guesses
CHANCE = {"copycolors_mc": 0.1, "boolq_rc": 0.5, "piqa_rc": 0.5, "winogrande_rc": 0.5}


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


def with_skill(cell: Record) -> Record:
    """Return a record with one of its tasks as a task by skill too, and a failed one unchanged."""
    tasks = cell.plain()["measured"].get("tasks", {})
    more = {"boolq_rc": tasks["piqa"] | {"chance": 0.5}} if "piqa" in tasks else {}
    return changed(cell, "measured", "tasks", to=tasks | more) if more else cell


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
