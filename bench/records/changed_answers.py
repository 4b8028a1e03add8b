"""Sets what a cell wrote and chose beside what its dense cell did: continuations of the checks, and changed answers.

An answer has changed where it is right in one cell and wrong in the other, or where another text was written. Both are
of the samples, which hold no documents: `doc_id` is the place of a document among those of its task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import run_folder
from bench.records.comparability import find_dense_peer, setups_of_records
from bench.records.record import Record
from bench.records.sample_tables import CONTINUATIONS
from bench.records.samples import HASHES, Samples

Row = Mapping[str, Any]
COLUMNS = (*HASHES, "doc_id", "target", "responses", "loglikelihoods", "greedy")  # of an answer, beside its metric


@dataclass(frozen=True)
class TwoTexts:
    """Holds a prompt of the checks, what the dense model wrote behind it, and what the cell's model did.

    dense  None: there is no dense cell with these prompts, or the cell is one
    """

    check: str
    prompt: str
    dense: str | None
    written: str


@dataclass(frozen=True)
class ChangedAnswer:
    """Holds a document whose answer is another one than the dense model's.

    target         the right answer: its place among the choices, or its text
    dense, answer  what the two models wrote; of choices the place of the one that was taken
    change         lost, gained, or empty where both are right or both wrong
    """

    document: int
    target: str
    dense: str
    answer: str
    change: str


@dataclass(frozen=True)
class Beside:
    """Holds all that `show` prints of what two cells wrote and chose.

    changed  of each task its changed answers, those that were lost first
    counts   of each task all its documents
    """

    texts: list[TwoTexts]
    changed: dict[str, list[ChangedAnswer]]
    counts: dict[str, int]


def find_beside(run: Path, key: str, record: Record) -> Beside:
    """Return the continuations and changed answers of a cell of a run. Raises InvalidRecord for damaged samples."""
    records = run_folder.read_records(run, run_folder.ignore_warning) | {key: record}
    setups = dict(zip(records, setups_of_records(list(records.values())), strict=True))
    samples = Samples([run_folder.folder_of_samples(run, peer) for peer in records], list(records.values()))
    numbers = {number: records[peer] for number, peer in enumerate(records) if setups[peer] == setups[key]}
    return compare_with_dense(samples, list(records).index(key), numbers)


def compare_with_dense(samples: Samples, number: int, peers: Mapping[int, Record]) -> Beside:
    """Return the continuations and changed answers of one record beside those of its dense peer.

    samples  of all records
    number   the place of the record among them
    peers    the records of its setup, itself among them, by their places

    Raises InvalidRecord for damaged samples.
    """
    record = peers[number]
    dense = find_dense_peer(record, list(peers.values())) if record.cell.method != "dense" else None
    dense_number = next((place for place, peer in peers.items() if peer is dense), None)

    def read(name: str, columns: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        of_dense = [] if dense_number is None else samples.rows(dense_number, name, columns)
        return samples.rows(number, name, columns), of_dense

    changed, counts = dict[str, list[ChangedAnswer]](), dict[str, int]()
    for name, score in record.measured.task_scores.items() if dense else ():
        own, of_dense = read(name, (*COLUMNS, score.main))
        changed[name] = list_changed_answers(own, of_dense, score.main)
        counts[name] = len(own)
    return Beside(_pair_texts(*read(CONTINUATIONS, ())), changed, counts)


def _pair_texts(own: Sequence[Row], dense: Sequence[Row]) -> list[TwoTexts]:
    """Return the continuations, each with the dense model's where both cells have the same prompts."""
    columns = ("check", "prompt", "written")
    if not (_has_columns(own, columns) and _has_columns(dense, columns)):
        return []
    prompts, of_dense = _prompts(own), _prompts(dense)
    is_same = prompts == of_dense  # in their order, since two may read alike
    texts = [str(row["written"]) for row in dense] if is_same else [None] * len(own)
    return [TwoTexts(row["check"], row["prompt"], text, row["written"]) for row, text in zip(own, texts, strict=True)]


def _prompts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row["check"], row["prompt"]) for row in rows]


def _has_columns(rows: Sequence[Row], names: Sequence[str]) -> bool:
    return all(name in row for row in rows[:1] for name in names)


def list_changed_answers(own: Sequence[Row], dense: Sequence[Row], metric: str) -> list[ChangedAnswer]:
    """Return the changed answers of a task, lost ones first, from the rows of its samples in both cells.

    metric  that says which answers are right, where it is 1 or 0
    """
    if not (_has_columns(own, ("doc_id",)) and _has_columns(dense, ("doc_id",))):
        return []
    by_document = {_identity(row): row for row in dense}
    pairs = [(row, by_document[_identity(row)]) for row in own if _identity(row) in by_document]
    changed = list[ChangedAnswer]()
    for row, before in pairs:
        change = _change(before.get(metric), row.get(metric))
        old, new = _answer(before, metric), _answer(row, metric)
        if change or ("responses" in row and old != new):
            changed.append(ChangedAnswer(int(row["doc_id"]), str(row.get("target", "")), old, new, change))
    order = ("lost", "gained", "")
    return sorted(changed, key=lambda answer: (order.index(answer.change), answer.document))


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("doc_id", *HASHES))


def _change(before: Any, after: Any) -> str:
    if before not in (0, 1) or after not in (0, 1) or before == after:
        return ""
    return "lost" if before else "gained"


def _answer(row: Row, metric: str) -> str:
    """Return what was written, or the place of the choice; of a single text whether it is the likeliest."""
    if "responses" in row:
        return str(next(iter(row["responses"]), ""))
    likelihoods = row.get("loglikelihoods") or []
    if len(likelihoods) > 1:
        return _choice(row, metric, likelihoods.index(max(likelihoods)), len(likelihoods))
    return "the right text" if any(row.get("greedy") or ()) else "another text"


def _choice(row: Row, metric: str, likeliest: int, choices: int) -> str:
    """Return the place of the choice that a metric judges, which for all but `acc` need not be the likeliest one.

    acc_norm divides by lengths that no sample has. Of several wrong choices it is then not known which was taken.
    """
    right, target = row.get(metric), row.get("target")
    if metric.partition(",")[0] == "acc" or right not in (0, 1):
        return str(likeliest)
    if right:
        return str(target)
    wrong = [place for place in range(choices) if place != target]
    return str(wrong[0]) if len(wrong) == 1 else f"another; likeliest is {likeliest}"
