"""Whether methods differ from a chosen reference: paired tests on the samples that the runs of the records have kept.

An accuracy is tested by McNemar's exact test on the documents that both models answered, the average by the same test
over the documents of all tasks, a perplexity by Student's test on the windows that both scored (bench.stats). Both must
have seen the same documents in the same order, or windows of the same tokens; else there is no test, and no mark. The p
values of a column are adjusted for their number by Holm's procedure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import stats
from bench.record import Record, label
from reports.blocks import Block
from reports.contrasts import Samples
from reports.frame import is_accuracy
from reports.metrics import metric

LEVEL = 0.05
IDENTITIES = ("doc_hash", "doc_id")  # a column that tells documents apart, the surest first


@dataclass(frozen=True)
class Tested:
    """Which cells of a table differ from the reference's, as (row, column), and what is to be said of the tests."""

    differs: set[tuple[int, str]] = field(default_factory=set)
    notes: tuple[str, ...] = ()


def tested(reference: str, block: Block, columns: Sequence[str], samples: Sequence[Path | None]) -> Tested:
    """Test every row of a block against the row of `reference`, an empty name for none."""
    place = next((at for at, record in enumerate(block.records) if label(record.cell) == reference), None)
    if not reference or place is None or block.records[place].status != "ok":
        return Tested()
    if len(block.numbers[place]) > 1:
        return Tested(notes=(f"{reference} is a mean of draws, and no single model to test others against.",))
    read, differs, untested = Samples(samples), set(), []
    candidates = [at for at, record in enumerate(block.records) if at != place and record.status == "ok"]
    for column in (column for column in columns if column.startswith(("perplexity_", "task_")) or column == "average"):
        found = {at: _p(block, (place, at), column, read) for at in candidates if len(block.numbers[at]) == 1}
        known = {at: p for at, p in found.items() if p is not None}
        adjusted = stats.holm(list(known.values()))
        differs |= {(at, column) for at, p in zip(known, adjusted, strict=True) if p < LEVEL}
        if len(known) < len(candidates):
            untested.append((metric(column).label, [block.label(at) for at in candidates if at not in known]))
    return Tested(differs, tuple(_notes(reference, differs, untested)))


def _notes(reference: str, differs: set[tuple[int, str]], untested: list[tuple[str, list[str]]]) -> list[str]:
    """What the dagger claims, if there is one, and which cells no test has seen."""
    said = []
    if differs:
        said.append(
            f"†: differs from {reference}, p < 0.05 (paired: McNemar's exact test on documents, Student's on windows; "
            "adjusted by Holm for the methods of a column)."
        )
    for names in dict.fromkeys(tuple(names) for _, names in untested):
        columns = ", ".join(column for column, others in untested if tuple(others) == names)
        said.append(
            f"not tested against {reference} in {columns}: {', '.join(names)} (draws, or no samples in common)."
        )
    return said


def _p(block: Block, pair: tuple[int, int], column: str, samples: Samples) -> float | None:
    """The p value of no difference between two rows; None where nothing pairs them."""
    numbers = (block.numbers[pair[0]][0], block.numbers[pair[1]][0])
    records = (block.records[pair[0]], block.records[pair[1]])
    if column.startswith("perplexity_"):
        return _perplexity(records, numbers, column.removeprefix("perplexity_"), samples)
    tasks = _tasks(records) if column == "average" else [column.removeprefix("task_")]
    answers = [_answers(records, numbers, task, samples) for task in tasks]
    if not answers or any(answer is None for answer in answers):
        return None
    pairs = [pair for answer in answers if answer for pair in answer]
    if any(value not in (0.0, 1.0) for pair in pairs for value in pair):
        return None
    return stats.paired_shares([before for before, _ in pairs], [after for _, after in pairs]).p


def _tasks(records: tuple[Record, Record]) -> list[str]:
    """The accuracies that the average is made of, where every task has as many documents; else none.

    The pooled test weighs every document alike, the average every task.
    """
    measured = [record.measured.get("tasks", {}) for record in records]
    names = [name for name, task in measured[0].items() if is_accuracy(task)]
    counts = {task["documents"] for name, task in measured[0].items() if name in names}
    return names if len(counts) == 1 and all(name in measured[1] for name in names) else []


def _perplexity(records: tuple[Record, Record], numbers: tuple[int, int], text: str, samples: Samples) -> float | None:
    one, other = (samples.of(number, f"perplexity-{Path(text).stem}") for number in numbers)
    hashes = {record.measured.get("perplexity", {}).get(text, {}).get("sha256") for record in records}
    if one is None or other is None or len(hashes) > 1 or len(one) < 2 or list(one["tokens"]) != list(other["tokens"]):
        return None
    return stats.paired_perplexity(list(one["nll"]), list(other["nll"]), list(one["tokens"])).p


def _answers(
    records: tuple[Record, Record], numbers: tuple[int, int], task: str, samples: Samples
) -> list[tuple[float, float]] | None:
    """(reference's, other's) figure of each document."""
    mains = {record.measured.get("tasks", {}).get(task, {}).get("main") for record in records}
    one, other = (samples.of(number, task) for number in numbers)
    main = mains.pop()
    if mains or main is None or one is None or other is None or main not in one or main not in other:
        return None
    identity = next((name for name in IDENTITIES if name in one and name in other), None)
    if identity is None or list(one[identity]) != list(other[identity]):
        return None
    return list(zip(one[main].astype(float), other[main].astype(float), strict=True))
