"""Finds the words of the documents that a cell has answered, of which a run holds hashes alone.

They are those of the suite's own tasks on this machine, where their hashes agree. Of any other task the hashes stand in
their place: a record may not say what is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.data.task_sources import OFFLINE
from bench.records.record import Record
from methods.console import say
from methods.errors import UserError, first_line_of

WITHOUT_WORDS = "the run holds the hashes of its documents and not their words, and so does the export"


@dataclass(frozen=True)
class Words:
    """Holds the question, the references and the choices of one document, or hashes in their place."""

    question: str
    references: tuple[str, ...]
    choices: tuple[str, ...] | None = None

    @property
    def sha256(self) -> str:
        """Return a hash of question and references, by which other records have the same document."""
        return hashlib.sha256("\n".join((self.question, *self.references)).encode()).hexdigest()


def has_words(record: Record, task: str) -> bool:
    """Say whether the words of a task's documents are the suite's own, which no record can have named otherwise."""
    return task in OFFLINE and task not in {name for name, *_ in record.cell.protocol.task_data}


class DocumentWords:
    """Reads the words of documents; each task is loaded once, and of one that has none a line says so once."""

    def __init__(self) -> None:
        self._tasks: dict[str, Any] = {}
        self._words: dict[tuple[str, str], Words] = {}
        self._remarks = set[str]()

    def of(self, record: Record, task: str, samples: Sequence[Mapping[str, Any]]) -> list[Words]:
        """Return the words of the document of each sample of a task; hashes where this machine has no such document."""
        if has_words(record, task):
            self._read(task, samples)
        else:
            self._say(f"{task}: {WITHOUT_WORDS}")
        hashes = [str(sample.get("doc_hash")) for sample in samples]
        by_hash = self._words if has_words(record, task) else {}
        return [
            by_hash.get((task, digest)) or Words(f"sha256 {digest}", (str(sample.get("target", "")),))
            for digest, sample in zip(hashes, samples, strict=True)
        ]

    def _read(self, task: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Read the documents of the samples that have not been read before."""
        from bench.data.task_loading import load_tasks, silence_lm_eval

        if task not in self._tasks:
            try:
                self._tasks[task] = load_tasks([task])[task]
            except UserError as error:
                self._tasks[task] = None
                self._say(f"{task}: {WITHOUT_WORDS}: {first_line_of(error)}")
        loaded = self._tasks[task]
        if loaded is None:
            return
        missing = [sample for sample in samples if (task, sample.get("doc_hash")) not in self._words]
        count = len(loaded.eval_docs)
        places = [sample["doc_id"] for sample in missing if 0 <= sample.get("doc_id", -1) < count]
        with silence_lm_eval():
            for document in loaded.eval_docs.read(places):
                self._words[task, _hash_of_document(document)] = _words_of_document(loaded, document)

    def _say(self, remark: str) -> None:
        if remark not in self._remarks:
            self._remarks.add(remark)
            say(remark)


def _hash_of_document(document: Any) -> str:
    """Return the hash of a document as lm-eval writes it into samples."""
    from lm_eval.utils import handle_non_serializable, hash_string

    plain = json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(plain))


def _words_of_document(task: Any, document: Any) -> Words:
    """Return the words of a document of a loaded task."""
    text, target = task.doc_to_text(document), task.doc_to_target(document)
    question = text if isinstance(text, str) else json.dumps(document, ensure_ascii=False, default=str)
    if task.OUTPUT_TYPE != "multiple_choice":
        references = target if isinstance(target, list | tuple) else [target]
        return Words(question, tuple(map(str, references)))
    choices = tuple(map(str, task.doc_to_choice(document)))
    right = text if task.multiple_input else target
    words = Words(question, (str(right),), choices)
    is_place = isinstance(right, int) and 0 <= right < len(choices)
    return replace(words, references=(choices[right],)) if is_place else words
