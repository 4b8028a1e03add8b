"""Compares two cells, metric by metric: a row for each says what the second cell has more.

    CellResults, CellResults -> [ComparedRow]   by the tests of bench.regression.pairs

A row has its interval over the same documents and windows. bench.regression.gate judges the rows, by chance or against
margins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from bench.records.comparability import GATE
from bench.records.samples import Pair, Sample, pair, pair_whole
from bench.regression.pairs import compare_perplexities, compare_shares
from bench.regression.results import Answers, CellResults
from bench.stats import clusters
from bench.stats import intervals as stats
from bench.stats.intervals import Contrast
from methods.errors import UserError

BITS = ("bits", "bits of a task")
LOWER_IS_BETTER = (*BITS, "flips")
OF_A_TASK = ("metric", "documents", "task_version", "fewshot")
PROMPTING = frozenset({"fewshot", "chat_template", "system"})  # which all prompts of a task share
FIELDS = (*dict.fromkeys(name for names in GATE.values() for name in names), *OF_A_TASK, "text")


def parse_allowed(text: str) -> tuple[str, ...]:
    """Return the fields of a text: 'torch,cpu' -> ('torch', 'cpu'). Raises UserError for a name that is no field."""
    names = tuple(filter(None, (piece.strip() for piece in text.split(","))))
    for name in names:
        if name not in FIELDS:
            raise UserError(f"{name!r} is no field that may differ; there are {', '.join(FIELDS)}")
    return names


@dataclass(frozen=True)
class ComparedRow:
    """Holds one metric of two cells.

    kind            "size", "accuracy", "bits" and "flips" (over the documents of all tasks), "task" and "bits of a
                    task", "text" or "speed"; bits are those per byte of the right answer, flips those of the dense
                    model's answers
    before, after   its figures; None where a cell lacks it
    contrast        of a share for accuracy, task and flips, of a ratio for text and speed, else as the figure; None
                    where there is nothing to pair
    is_accuracy     whether a task's figures are one, so that more is better
    differs         conditions in which the cells differ, as (field, words)
    """

    kind: str
    metric: str
    before: float | None
    after: float | None
    contrast: Contrast | None = None
    count: int = 0
    is_accuracy: bool = False
    differs: tuple[tuple[str, str], ...] = ()

    @property
    def task(self) -> str:
        """Return the task of a row of a task; its metric is the task's name with that of the value."""
        return self.metric.rpartition(" ")[0]

    @property
    def change(self) -> float:
        """Return the change in shares, bits or the logarithm of a ratio; above 0 the second cell is better."""
        return self.changes[0]

    @property
    def changes(self) -> tuple[float, float, float]:
        """Return (change, low, high): `change` with its 95 % interval."""
        assert self.contrast is not None
        interval = (self.contrast.estimate, self.contrast.low, self.contrast.high)
        if self.kind in ("accuracy", "task"):
            return interval
        if self.kind in LOWER_IS_BETTER:
            return -interval[0], -interval[2], -interval[1]
        with np.errstate(divide="ignore"):
            a, b, c = np.log(interval).tolist()
        return (-a, -c, -b) if self.kind == "text" else (a, b, c)

    def detectable(self, level: float, margin: float = 0.0) -> float | None:
        """Return the smallest true change that the row's test shows at this level with the probability POWER.

        It is in the scale of `change`, and None where nothing is tested or no change is shown that often.

        margin  the least measured change that counts
        """
        contrast = self.contrast
        if contrast is None:
            return None
        if contrast.stderr is not None:
            return stats.detectable_effect(contrast.stderr, contrast.freedom, level, margin)
        if contrast.lost is None or contrast.gained is None:
            return None
        return stats.detectable_share(self.count, (contrast.lost + contrast.gained) / self.count, level, margin=margin)


def compare_cells(before: CellResults, after: CellResults, allowed: Collection[str] = ()) -> list[ComparedRow]:
    """Return a row for every metric that either cell has. Conditions that are `allowed` to differ are ignored."""
    rows = []
    for name in dict.fromkeys([*after.sizes, *before.sizes]):
        differs = _conditions("size", before, after, allowed)
        rows.append(ComparedRow("size", name, before.sizes.get(name), after.sizes.get(name), differs=differs))
    common = _conditions("task", before, after, allowed)
    rows += _task_rows(before, after, common, allowed)
    rows += _rows_over_tasks("bits", ("answer", "bpb"), (before.bits, after.bits), common, allowed)
    if not before.identity["label"] == after.identity["label"] == "dense":
        rows += _rows_over_tasks("flips", ("", "flips"), (before.flips, after.flips), common, allowed)[:1]
    for name in dict.fromkeys([*after.texts, *before.texts]):
        rows.append(_text(name, before, after, allowed))
    for name in dict.fromkeys([*after.speed, *before.speed]):
        rows.append(_speed(name, before, after, allowed))
    return rows


def _conditions(
    kind: str, before: CellResults, after: CellResults, allowed: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Return the conditions of a kind that differ; the calibration counts only where both cells used one."""
    old, new = before.conditions, after.conditions
    names = [name for name in GATE[kind] if name not in allowed and old.get(name) != new.get(name)]
    both = "calibration" in old and "calibration" in new
    return tuple((name, _words(old.get(name), new.get(name))) for name in names if both or name != "calibration")


def _words(before: Any, after: Any) -> str:
    """Return two values in words, as in '2.12 and 2.13'; of hashes the first digits."""
    old, new = (str("none" if value is None else value) for value in (before, after))
    return " and ".join(text[:12] if len(text) == 64 else text for text in (old, new))


def _task_rows(
    before: CellResults, after: CellResults, common: tuple[tuple[str, str], ...], allowed: Collection[str]
) -> list[ComparedRow]:
    """Return a row for the accuracy over all tasks that both cells have, then a row for each task.

    common  conditions of all tasks that differ
    """
    single = []
    paired: list[tuple[Answers, Answers]] = []
    for name in dict.fromkeys([*after.tasks, *before.tasks]):
        old, new = before.tasks.get(name), after.tasks.get(name)
        if old is None or new is None:
            alone = old or new
            assert alone is not None
            left, right = (None if answers is None else float(answers.values.mean()) for answers in (old, new))
            row = ComparedRow("task", f"{name} {alone.metric}", left, right, is_accuracy=alone.is_accuracy)
            single.append(replace(row, differs=_disjoint("documents", before.tasks, after.tasks, allowed)))
            continue
        differs = common + _task_differs(old, new, allowed)
        if not differs:
            old, new = _pair_documents(old, new)
        if old.is_accuracy and new.is_accuracy:
            paired.append((old, new))
        single.append(_row_of_answers("task", f"{name} {old.metric}", [(old, new)], differs))
    if not paired:
        return single
    differs = tuple(dict.fromkeys(pair for row in single if row.is_accuracy for pair in row.differs))
    return [_row_of_answers("accuracy", "accuracy", paired, differs), *single]


def _rows_over_tasks(
    kind: str,
    names: tuple[str, str],
    sides: tuple[Mapping[str, Answers], Mapping[str, Answers]],
    common: tuple[tuple[str, str], ...],
    allowed: Collection[str],
) -> list[ComparedRow]:
    """Return a row over the documents of all tasks that both sides have, then a row for each task.

    names   the words in front of the metric's name and the name; a row of a task has the task in front
    common  conditions of all tasks that differ
    """
    (first, metric), (before, after) = names, sides
    whole = f"{first} {metric}".strip()
    single, paired = list[ComparedRow](), list[tuple[Answers, Answers]]()
    for name in (name for name in after if name in before):
        old, new = before[name], after[name]
        differs = common + _task_differs(old, new, allowed)
        paired.append((old, new) if differs else _pair_documents(old, new))
        single.append(_row_of_answers(f"{kind} of a task", f"{name} {metric}", paired[-1:], differs))
    if paired:
        differs = tuple(dict.fromkeys(pair for row in single for pair in row.differs))
        return [_row_of_answers(kind, whole, paired, differs), *single]
    left, right = map(_mean_of_documents, sides)
    differs = _disjoint("documents", before, after, allowed)
    only = ComparedRow(kind, whole, left, right, differs=differs)
    return [only] if left is not None or right is not None else []


def _mean_of_documents(answers_by_task: Mapping[str, Answers]) -> float | None:
    """Return the mean over the documents of all tasks; None without any."""
    every = [answers.values for answers in answers_by_task.values()]
    return float(np.concatenate(every).mean()) if every else None


def _disjoint(
    field: str, before: Mapping[str, Any], after: Mapping[str, Any], allowed: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Return the difference of a field where the cells share no text or task of a kind; else nothing."""
    if field in allowed or not before or not after or before.keys() & after.keys():
        return ()
    return ((field, f"{', '.join(before)} and {', '.join(after)}"),)


def _task_differs(before: Answers, after: Answers, allowed: Collection[str]) -> tuple[tuple[str, str], ...]:
    if not PROMPTING.isdisjoint(allowed):
        before, after = _without_prompts(before, after)
    same = before.sorted_units == after.sorted_units
    values = {
        "metric": (before.metric, after.metric),
        "documents": ("", "") if same else (_digest(before.units), _digest(after.units)),
        "task_version": (before.version, after.version),
        "fewshot": (before.fewshot, after.fewshot),
    }
    return tuple(
        (name, _words(*sides)) for name, sides in values.items() if sides[0] != sides[1] and name not in allowed
    )


def _digest(units: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(units).encode()).hexdigest()


def _pair_documents(before: Answers, after: Answers) -> Pair[Answers]:
    """Return both on the documents that they share. Raises UserError where they share none."""
    both = pair(*_without_prompts(before, after))
    if not both.first.units:
        raise UserError("the cells share no document, so that nothing can be paired")
    return both


def _without_prompts(before: Answers, after: Answers) -> tuple[Answers, Answers]:
    """Return both; without prompts where their examples, template or system text differ, as no prompt is equal then."""
    return (before, after) if before.prompting == after.prompting else (before.unprompted, after.unprompted)


def _row_of_answers(
    kind: str, metric: str, pairs: Sequence[tuple[Answers, Answers]], differs: tuple[Any, ...]
) -> ComparedRow:
    """Return a row over the documents of the pairs' tasks."""
    firsts, seconds = zip(*pairs, strict=True)
    both = Pair(_join(firsts), _join(seconds))
    before, after = (float(sample.values.mean()) for sample in both)
    accuracy = all(answers.is_accuracy for answers in (*firsts, *seconds))
    contrast = None if differs else _compare_answers(kind, both, accuracy)
    return ComparedRow(kind, metric, before, after, contrast, len(both.second.units), accuracy, differs)


def _join(answers: Sequence[Answers]) -> Sample:
    """Return the answers to several tasks as one sample."""
    units = chain.from_iterable(answers_of_task.units for answers_of_task in answers)
    return Sample(tuple(units), np.concatenate([answers_of_task.values for answers_of_task in answers]))


def _compare_answers(kind: str, both: Pair[Sample], accuracy: bool) -> Contrast | None:
    """Return the contrast of answers, with every document weighing alike.

    The test is McNemar's where an answer is right or wrong, Student's for bits and accuracies of other values, and one
    by resampling for any other metric. A document that comes twice is one observation.
    """
    documents, (before, after) = both.first.documents, (sample.values for sample in both)
    distinct = len(set(documents))
    if accuracy and kind not in BITS and all(sample.is_right_or_wrong for sample in both):
        (exact,) = compare_shares([[both]])
        if distinct == len(documents):
            return exact
        return replace(clusters.paired_clusters(before, after, documents), lost=exact.lost, gained=exact.gained)
    test = clusters.paired_clusters if accuracy or kind in BITS else clusters.paired_resampled
    return test(before, after, documents) if distinct > 1 else None


def _text(name: str, before: CellResults, after: CellResults, allowed: Collection[str]) -> ComparedRow:
    old, new = before.texts.get(name), after.texts.get(name)
    left, right = (None if windows is None else windows.perplexity for windows in (old, new))
    differs = _conditions("text", before, after, allowed)
    contrast = None
    if old is None or new is None:
        differs = _disjoint("text", before.texts, after.texts, allowed)
    elif old.sha256 != new.sha256:
        differs += () if "text" in allowed else (("text", _words(old.sha256, new.sha256)),)
    elif (both := pair_whole(old, new)) is None:
        differs += (("text", "windows of other tokens under one hash"),)
    elif not differs and len(old.units) > 1:
        contrast, *_ = compare_perplexities([both])
    elif not differs and np.array_equal(old.values, new.values):  # a single window has no interval
        contrast = Contrast(1.0, 1.0, 1.0, 1.0)
    return ComparedRow("text", f"perplexity {name}", left, right, contrast, differs=differs)


def _speed(name: str, before: CellResults, after: CellResults, allowed: Collection[str]) -> ComparedRow:
    """Return the row of two speed-ups over the dense model, whose measurements are independent."""
    old, new = before.speed.get(name), after.speed.get(name)
    left, right = (None if speed is None else speed[0] for speed in (old, new))
    if old is None or new is None:
        return ComparedRow("speed", f"speed, {name}", left, right)
    if differs := _conditions("speed", before, after, allowed):
        return ComparedRow("speed", f"speed, {name}", left, right, differs=differs)
    estimate, low, high = stats.ratio_of_ratios(old, new)
    return ComparedRow("speed", f"speed, {name}", left, right, Contrast(estimate, low, high, float("nan")))
