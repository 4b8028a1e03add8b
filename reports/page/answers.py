"""What a method wrote and chose beside the dense model, as the script of the page shows it.

A page has the first of each kind and says how many there are, so that one of many cells stays small. Prompts and the
dense model's continuations are the same for every cell of a setup, and stand in the data once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.records.changed_answers import Beside, ChangedAnswer, compare_with_dense
from bench.records.samples import Samples
from reports.groups import TableGroup
from reports.text import to_printable

EACH = 2  # continuations of each check
ANSWERS = 10  # changed answers of one cell, from all tasks
TEXT, ANSWER = 400, 160  # characters of a prompt or continuation, and of an answer


class AnswersBeside:
    """Collects what the cells of one setup wrote and chose beside their dense cell.

    prompts  (check, prompt, the dense model's continuation or None) of every continuation of any cell, each once
    """

    def __init__(self, groups: Sequence[TableGroup], samples: Samples) -> None:
        self._samples = samples
        self._records = {
            number: record
            for group in groups
            for numbers, drawn in zip(group.numbers, group.drawn, strict=True)
            for number, record in zip(numbers, drawn, strict=True)
        }
        self._places: dict[tuple[str, str, str | None], int] = {}

    @property
    def prompts(self) -> list[tuple[str, str, str | None]]:
        """Return the prompts to which the places in `describe_row` lead."""
        return list(self._places)

    def describe_row(self, group: TableGroup, place: int) -> dict[str, Any] | None:
        """Return the continuations and changed answers of a row's first cell as plain values; None without any.

        texts      (place among the prompts, continuation) of those that the page has
        count      continuations that there are
        sides      changed answers that were lost, that were gained, and all others; then all documents
        tasks      (task, its first changed answers), each (document, right, dense, own, change)
        of_draws   cells of the row, of which this is the first
        """
        if group.records[place].status != "ok" or group.records[place].cell.method == "dense":
            return None
        beside = compare_with_dense(self._samples, group.numbers[place][0], self._records)
        if not beside.texts and not any(beside.changed.values()):
            return None
        counts = Counter(answer.change for answers in beside.changed.values() for answer in answers)
        return {
            "texts": self._texts(beside),
            "count": len(beside.texts),
            "sides": [*(counts[change] for change in ("lost", "gained", "")), sum(beside.counts.values())],
            "tasks": [[task, list(map(_answer, answers))] for task, answers in _first_of_tasks(beside).items()],
            "of_draws": len(group.drawn[place]),
        }

    def _texts(self, beside: Beside) -> list[tuple[int, str]]:
        numbers, texts = Counter[str](), list[tuple[int, str]]()
        for each in beside.texts:
            numbers[each.check] += 1
            if numbers[each.check] <= EACH:
                dense = None if each.dense is None else _cap(each.dense, TEXT)
                prompt = (to_printable(each.check), _cap(each.prompt, TEXT), dense)
                texts.append((self._places.setdefault(prompt, len(self._places)), _cap(each.written, TEXT)))
        return texts


def _first_of_tasks(beside: Beside) -> dict[str, list[ChangedAnswer]]:
    """Return the first changed answers of each task, as many of each as there is room for, at least one."""
    changed = {task: answers for task, answers in beside.changed.items() if answers}
    first: dict[str, list[ChangedAnswer]] = {task: [] for task in changed}
    for turn in range(ANSWERS):
        for task, answers in changed.items():
            if turn < len(answers) and sum(map(len, first.values())) < ANSWERS:
                first[task].append(answers[turn])
    return {to_printable(task): answers for task, answers in first.items() if answers}


def _answer(answer: ChangedAnswer) -> list[Any]:
    texts = (_cap(text, ANSWER) for text in (answer.target, answer.dense, answer.answer))
    return [answer.document, *texts, answer.change]


def _cap(text: str, most: int) -> str:
    """Return the first characters of a text in its lines, with control and direction characters written out."""
    kept = text if len(text) <= most else f"{text[:most]}…"
    return "\n".join(map(to_printable, kept.split("\n")))
