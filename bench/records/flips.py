"""Counts the answers that pruning flips, from the samples of a cell and of its dense cell.

    lost     the dense model is right, and this one is wrong
    gained   the dense model is wrong, and this one is right
    flips    lost + gained
    changed  another choice is the likeliest

Each is a share of the documents of a task. A. Dutta, S. Krishnan, N. Kwatra, R. Ramjee, "Accuracy is not all you need",
2024, https://arxiv.org/abs/2407.09141: an accuracy changes by gained - lost, and so hides what both have in common.

No record holds them. A row of the frame has them wherever there are samples, since a cell may end before its dense
cell does. Samples hold no lengths of choices, so that `changed` goes by the likelihood, as the metric acc does.
"""

from __future__ import annotations

from bench.records.answers import metric_of_documents
from bench.records.measured import TaskMetric
from bench.records.samples import LIKELIEST, Samples, pair_whole

KINDS = ("flips", "lost", "gained", "changed")


def find_flips(samples: Samples, dense: int, pruned: int, task: str, metric: str) -> dict[str, TaskMetric]:
    """Return the share of a task's documents of each kind, with its standard error.

    None is there where a document has an answer that is neither right nor wrong, and unless both cells have samples of
    the same documents. `changed` is there where every document has choices.

    dense, pruned  the places of the two cells among the records of the samples
    metric         the accuracy by which an answer is right or wrong
    """
    both = pair_whole(samples.of(dense, task, metric), samples.of(pruned, task, metric))
    if both is None or not (both.first.is_right_or_wrong and both.second.is_right_or_wrong):
        return {}
    lost, gained = both.differences < 0, both.differences > 0
    marks = {"flips": lost | gained, "lost": lost, "gained": gained}
    choices = pair_whole(samples.of(dense, task, LIKELIEST), samples.of(pruned, task, LIKELIEST))
    if choices is not None:
        marks["changed"] = choices.differences != 0
    return {kind: metric_of_documents(values.astype(float)) for kind, values in marks.items()}
