"""What a cell wrote and chose beside its dense cell, as facts that `show` prints behind those of the record."""

from __future__ import annotations

from collections import Counter

from bench.records.changed_answers import Beside, ChangedAnswer, TwoTexts
from reports.tables.whole_cell import Fact

EACH = 3  # continuations of each check, and changed answers of each task, unless all are shown


def list_facts_beside(beside: Beside, name: str, *, every: bool = False) -> list[Fact]:
    """Return the continuations and the changed answers as two facts; a part without any is left out.

    name   of the cell, beside `dense`
    every  whether all are shown, and not only the first of each check and task
    """
    parts = {
        "continuations": tuple(_facts_of_texts(beside.texts, name, every=every)),
        "changed answers": tuple(
            _fact_of_task(task, changed, beside.counts[task], name, every=every)
            for task, changed in beside.changed.items()
        ),
    }
    return [Fact(part, inside=inside) for part, inside in parts.items() if inside]


def _facts_of_texts(texts: list[TwoTexts], name: str, *, every: bool) -> list[Fact]:
    facts, numbers = list[Fact](), Counter[str]()
    for each in texts:
        numbers[each.check] += 1
        if not every and numbers[each.check] > EACH:
            continue
        dense = [] if each.dense is None else [Fact("dense", each.dense)]
        lines = (Fact("prompt", each.prompt), *dense, Fact(name, each.written))
        facts.append(Fact(f"{each.check} {numbers[each.check]}", inside=lines))
    return [*facts, *_more(sum(numbers.values()) - len(facts))]


def _fact_of_task(task: str, changed: list[ChangedAnswer], documents: int, name: str, *, every: bool) -> Fact:
    """Return a task with its changed answers, and how many there are of how many documents."""
    counts = Counter(answer.change for answer in changed)
    words = [f"{counts[change]} {change or 'other texts'}" for change in ("lost", "gained", "") if counts[change]]
    first = changed if every else changed[:EACH]
    inside = [Fact("answers", f"{len(changed):,} of {documents:,} changed{': ' if words else ''}{', '.join(words)}")]
    for answer in first:
        texts = (Fact("right", answer.target), Fact("dense", answer.dense), Fact(name, answer.answer))
        inside.append(Fact(f"document {answer.document}{', ' if answer.change else ''}{answer.change}", inside=texts))
    return Fact(task, inside=(*inside, *_more(len(changed) - len(first))))


def _more(count: int) -> list[Fact]:
    return [Fact("more", f"{count:,}, with --all-answers")] if count > 0 else []
