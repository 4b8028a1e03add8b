"""Pairs two cells, metric by metric: what the second has more, with the interval of the same documents and windows.

CellResults, CellResults -> [ComparedRow]   by the tests of bench.stats

bench.regression.compare judges the rows of two runs by chance, bench.regression.gate against margins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.records.comparability import GATE
from bench.regression.cell_results import Answers, CellResults, Windows
from bench.stats import clusters, intervals
from bench.stats.intervals import Difference
from methods.errors import UserError

BITS = ("bits", "bits of a task")
OF_A_TASK = ("metric", "documents", "task_version", "fewshot")
FIELDS = (*dict.fromkeys(name for names in GATE.values() for name in names), *OF_A_TASK, "text")


def allowed_fields(text: str) -> tuple[str, ...]:
    """Read 'torch,cpu' as ('torch', 'cpu'). Raises UserError for what is no field."""
    names = tuple(filter(None, (piece.strip() for piece in text.split(","))))
    for name in names:
        if name not in FIELDS:
            raise UserError(f"{name!r} is no field that may differ; there are {', '.join(FIELDS)}")
    return names


@dataclass(frozen=True)
class ComparedRow:
    """Hold one metric of two cells.

    kind            "size", "accuracy" and "bits" (over the documents of all tasks), "task" and "bits of a task", "text"
                    or "speed"; bits are those per byte of the right answer
    before, after   its figures; None where a cell lacks it
    difference      a share for accuracy and task, a ratio for text and speed, else as the figure; None where there is
                    nothing to pair
    lost, gained    documents that only the first, only the second cell gets right
    is_accuracy     whether a task's figures are one, so that more is better
    differs         conditions in which the cells differ, as (field, words)
    """

    kind: str
    metric: str
    before: float | None
    after: float | None
    difference: Difference | None = None
    lost: int | None = None
    gained: int | None = None
    count: int = 0
    is_accuracy: bool = False
    differs: tuple[tuple[str, str], ...] = ()

    @property
    def task(self) -> str:
        """Return the task of a row of a task, whose metric is its name and that of the figure."""
        return self.metric.rpartition(" ")[0]

    @property
    def change(self) -> float:
        """Return what can be judged: above 0 the second cell is better, in shares, bits or the logarithm of a ratio."""
        return self.changes[0]

    @property
    def changes(self) -> tuple[float, float, float]:
        """Return (change, low, high)."""
        assert self.difference is not None
        found = (self.difference.estimate, self.difference.low, self.difference.high)
        if self.kind in ("accuracy", "task"):
            return found
        if self.kind in BITS:
            return -found[0], -found[2], -found[1]
        with np.errstate(divide="ignore"):
            a, b, c = np.log(found).tolist()
        return (-a, -c, -b) if self.kind == "text" else (a, b, c)

    def detectable(self, level: float, margin: float = 0.0) -> float | None:
        """Return the smallest true change that the row's test finds at this level with the probability intervals.POWER.

        It is in the scale of `change`, and None where nothing is tested or no change is found so often.

        margin  what the change that is seen has to reach as well
        """
        found = self.difference
        if found is None:
            return None
        if self.lost is not None and self.gained is not None and found.stderr is None:
            return intervals.detectable_share(self.count, (self.lost + self.gained) / self.count, level, margin=margin)
        return None if found.stderr is None else intervals.detectable(found.stderr, found.freedom, level, margin)


def rows(before: CellResults, after: CellResults, allowed: Collection[str] = ()) -> list[ComparedRow]:
    """Return a row for every metric that either cell has. Conditions that are `allowed` to differ are not looked at."""
    found = []
    for name in dict.fromkeys([*after.sizes, *before.sizes]):
        differs = _conditions("size", before, after, allowed)
        found.append(ComparedRow("size", name, before.sizes.get(name), after.sizes.get(name), differs=differs))
    found += [*_task_rows(before, after, allowed), *_bits_rows(before, after, allowed)]
    for name in dict.fromkeys([*after.texts, *before.texts]):
        found.append(_text(name, before, after, allowed))
    for name in dict.fromkeys([*after.speed, *before.speed]):
        found.append(_speed(name, before, after, allowed))
    return found


def _conditions(
    kind: str, before: CellResults, after: CellResults, allowed: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Return the conditions of a kind that differ; the calibration is none where one of the cells used none."""
    one, other = before.conditions, after.conditions
    names = [name for name in GATE[kind] if name not in allowed and one.get(name) != other.get(name)]
    both = "calibration" in one and "calibration" in other
    return tuple((name, _words(one.get(name), other.get(name))) for name in names if both or name != "calibration")


def _words(before: Any, after: Any) -> str:
    """Write two values as in '2.12 and 2.13'; of hashes the first digits."""
    one, other = (str("none" if value is None else value) for value in (before, after))
    return " and ".join(text[:12] if len(text) == 64 else text for text in (one, other))


def _task_rows(before: CellResults, after: CellResults, allowed: Collection[str]) -> list[ComparedRow]:
    """Return the accuracy over all tasks that both cells have, then each task."""
    common = _conditions("task", before, after, allowed)
    single = []
    paired: list[tuple[Answers, Answers]] = []
    for name in dict.fromkeys([*after.tasks, *before.tasks]):
        one, other = before.tasks.get(name), after.tasks.get(name)
        if one is None or other is None:
            alone = one or other
            assert alone is not None
            left, right = (None if answers is None else float(answers.values.mean()) for answers in (one, other))
            row = ComparedRow("task", f"{name} {alone.metric}", left, right, is_accuracy=alone.is_accuracy)
            single.append(replace(row, differs=_disjoint("documents", before.tasks, after.tasks, allowed)))
            continue
        differs = common + _task_differs(one, other, allowed)
        if not differs:
            one, other = _same_documents(one, other)
        if one.is_accuracy and other.is_accuracy:
            paired.append((one, other))
        single.append(_answers("task", f"{name} {one.metric}", [(one, other)], differs))
    if not paired:
        return single
    differs = tuple(dict.fromkeys(pair for row in single if row.is_accuracy for pair in row.differs))
    return [_answers("accuracy", "accuracy", paired, differs), *single]


def _bits_rows(before: CellResults, after: CellResults, allowed: Collection[str]) -> list[ComparedRow]:
    """Return the bits per byte of the right answer over all tasks that both cells have, then of each of them."""
    common = _conditions("task", before, after, allowed)
    single, paired = list[ComparedRow](), list[tuple[Answers, Answers]]()
    for name in (name for name in after.bits if name in before.bits):
        one, other = before.bits[name], after.bits[name]
        differs = common + _task_differs(one, other, allowed)
        paired.append((one, other) if differs else _same_documents(one, other))
        single.append(_answers("bits of a task", f"{name} bpb", paired[-1:], differs))
    if paired:
        differs = tuple(dict.fromkeys(pair for row in single for pair in row.differs))
        return [_answers("bits", "answer bpb", paired, differs), *single]
    left, right = (_mean_bits(side) for side in (before, after))
    differs = _disjoint("documents", before.bits, after.bits, allowed)
    only = ComparedRow("bits", "answer bpb", left, right, differs=differs)
    return [only] if left is not None or right is not None else []


def _mean_bits(cell: CellResults) -> float | None:
    """Return the mean over the documents of all tasks of a cell."""
    every = [answers.values for answers in cell.bits.values()]
    return float(np.concatenate(every).mean()) if every else None


def _disjoint(
    field: str, before: Mapping[str, Any], after: Mapping[str, Any], allowed: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Say that other data were measured, where the cells have nothing of a kind in common."""
    if field in allowed or not before or not after or before.keys() & after.keys():
        return ()
    return ((field, f"{', '.join(before)} and {', '.join(after)}"),)


def _task_differs(one: Answers, other: Answers, allowed: Collection[str]) -> tuple[tuple[str, str], ...]:
    if "fewshot" in allowed:
        one, other = _asked_alike(one, other)
    pairs = {
        "metric": (one.metric, other.metric),
        "documents": (one.documents, other.documents),
        "task_version": (one.version, other.version),
        "fewshot": (one.fewshot, other.fewshot),
    }
    return tuple((name, _words(*pair)) for name, pair in pairs.items() if pair[0] != pair[1] and name not in allowed)


def _same_documents(one: Answers, other: Answers) -> tuple[Answers, Answers]:
    """Return both on the documents that they share, where it was allowed that they were asked different ones."""
    one, other = _asked_alike(one, other)
    if one.documents == other.documents:
        return one, other
    shared = sorted(set(one.ids) & set(other.ids))
    if not shared:
        raise UserError("the cells share no document, so that nothing can be paired")
    return _only(one, shared), _only(other, shared)


def _asked_alike(one: Answers, other: Answers) -> tuple[Answers, Answers]:
    """Return both, without prompts where they had other numbers of examples, since no prompt can then be equal."""
    return (one, other) if one.fewshot == other.fewshot else (one.unprompted, other.unprompted)


def _only(answers: Answers, ids: Sequence[str]) -> Answers:
    place = {document: position for position, document in enumerate(answers.ids)}
    values = answers.values[[place[document] for document in ids]]
    return Answers(answers.metric, values, "", answers.version, answers.fewshot, tuple(ids))


def _answers(kind: str, metric: str, pairs: Sequence[tuple[Answers, Answers]], differs: tuple[Any, ...]) -> ComparedRow:
    """Return a row over the documents of the pairs' tasks.

    McNemar's test where an answer is right or wrong, Student's for bits and accuracies of other values, and one by
    resampling for any other figure.
    """
    before, after = (np.concatenate([pair[side].values for pair in pairs]) for side in (0, 1))
    accuracy = all(answers.is_accuracy for pair in pairs for answers in pair)
    simple = all(answers.right_or_wrong for pair in pairs for answers in pair)
    figures = float(before.mean()), float(after.mean())
    if differs:
        return ComparedRow(kind, metric, *figures, count=len(after), is_accuracy=accuracy, differs=differs)
    ids = [document.partition(":")[0] for one, other in pairs for document in one.ids or other.ids]
    groups = ids if len(ids) == len(before) else list(range(len(before)))
    if kind in BITS or (accuracy and not simple):
        difference = clusters.paired_clusters(before, after, groups) if len(set(groups)) > 1 else None
        return ComparedRow(kind, metric, *figures, difference, count=len(before), is_accuracy=accuracy)
    if not simple:
        from bench.stats.resampling import paired_resampled

        found = paired_resampled(before, after, groups) if len(set(groups)) > 1 else None
        return ComparedRow(kind, metric, *figures, found, count=len(before))
    if len(set(groups)) < len(groups):  # a document that was asked twice is one observation
        difference = clusters.paired_clusters(before, after, groups)
    else:
        difference = intervals.paired_shares(before, after)
    lost, gained, _ = intervals.flips(before, after)
    return ComparedRow(kind, metric, *figures, difference, lost, gained, len(before), is_accuracy=True)


def _text(name: str, before: CellResults, after: CellResults, allowed: Collection[str]) -> ComparedRow:
    one, other = before.texts.get(name), after.texts.get(name)
    left, right = (None if windows is None else windows.perplexity for windows in (one, other))
    differs = _conditions("text", before, after, allowed)
    difference = None
    if one is None or other is None:
        differs = _disjoint("text", before.texts, after.texts, allowed)
    elif one.sha256 != other.sha256:
        differs += () if "text" in allowed else (("text", _words(one.sha256, other.sha256)),)
    elif not np.array_equal(one.tokens, other.tokens):
        differs += (("text", "windows of other tokens under one hash"),)
    elif not differs:
        difference = _perplexity(one, other)
    return ComparedRow("text", f"perplexity {name}", left, right, difference, differs=differs)


def _perplexity(one: Windows, other: Windows) -> Difference | None:
    """Return how the perplexities differ; None for a single window of two likelihoods, which has no interval."""
    if len(one.nll) > 1:
        return clusters.paired_perplexity(one.nll, other.nll, one.tokens, in_a_row=one.in_a_row)
    return Difference(1.0, 1.0, 1.0, 1.0) if np.array_equal(one.nll, other.nll) else None


def _speed(name: str, before: CellResults, after: CellResults, allowed: Collection[str]) -> ComparedRow:
    """Return the row of two speed-ups over the dense model, whose measurements are independent."""
    one, other = before.speed.get(name), after.speed.get(name)
    left, right = (None if speed is None else speed[0] for speed in (one, other))
    if one is None or other is None:
        return ComparedRow("speed", f"speed, {name}", left, right)
    if differs := _conditions("speed", before, after, allowed):
        return ComparedRow("speed", f"speed, {name}", left, right, differs=differs)
    estimate, low, high = intervals.ratio_of_ratios(one, other)
    return ComparedRow("speed", f"speed, {name}", left, right, Difference(estimate, low, high, float("nan")))
