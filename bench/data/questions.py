"""Reads the questions of tasks, without their answers, to calibrate on: `task:piqa`.

A question is the prompt that lm-eval's definition makes of a document, without examples. Where the choices stand in
place of a prompt, as in WinoGrande, it is what they begin with alike.

No document is read that a cell scores. Of a task with a training split the questions are of that; of MMLU, whose test
sets are scored, of the stored validation sets. Otherwise they are of the documents beside those that `--documents`
draws with the seed of the cell. Documents may share a passage, as several questions of BoolQ do, and tasks of a group
may share documents: those that share a passage with a scored one are left out. `refuse_scored_questions` looks once
more at what was made of them, and at the questions of all tasks that are scored.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from bench.data import task_loading
from bench.data.mixture import task_of_text
from bench.data.task_sources import GROUPS, MMLU, OFFLINE, Offline
from bench.data.texts import PASSAGE, STEP
from methods.errors import UserError

SHORTEST = 32  # characters without white space of a question that is looked for inside others
VALIDATION = "validation"  # the stored split of MMLU that nobody scores


@functools.lru_cache(maxsize=8)
def read_unscored_questions(text: str, data: task_loading.Data, documents: int, seed: int) -> tuple[str, ...]:
    """Return the questions that are not scored of the task of a text, such as task:piqa; of a group, of all its tasks.

    data       files of tasks' documents, as of bench.data.task_sources.parse_task_data
    documents  of each task that are scored, as drawn with `seed`; 0: all

    Raises UserError where all documents are scored, or where the task's documents cannot be had.
    """
    name = task_of_text(text) or ""
    names = GROUPS.get(name, (name,))
    local = [entry for entry in data if entry[0] in names]
    with _read_alike():
        tasks = task_loading.load_tasks(names, local)
        drawn = {each: task_loading.draw_documents(task, documents, seed) for each, task in tasks.items()}
        pieces, unscored = set[str](), list[str]()
        for each, task in tasks.items():
            scored = _read_positions(task, drawn[each])
            pieces |= pieces_of_questions(question_of_document(task, doc) for doc in scored)
            unscored += (question_of_document(task, doc) for doc in _read_unscored(each, task, local, drawn[each]))
        questions = tuple(dict.fromkeys(_without_pieces(unscored, pieces)))
    if not questions:
        count = f"--documents {documents}" if documents else "--documents 0, which is all"
        raise UserError(f"{text} has no question that is not scored ({count}); give fewer --documents, or another text")
    return questions


@contextmanager
def _read_alike() -> Iterator[None]:
    """Let definitions that shuffle the choices of a document shuffle them the same way in every process."""
    before = random.getstate()
    random.seed(task_loading.SHUFFLE_SEED)
    try:
        with task_loading.silence_lm_eval():
            yield
    finally:
        random.setstate(before)


def question_of_document(task: Any, document: Any) -> str:
    """Return the prompt of a document; where its choices are whole sentences, the words that they begin with."""
    if task.multiple_input:
        alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*task.doc_to_choice(document), strict=False))
        return "".join(letters[0] for letters in alike).rpartition(" ")[0]
    return str(task.doc_to_text(document)).strip()


def _read_unscored(name: str, task: Any, data: task_loading.Data, scored: Sequence[int]) -> Iterable[Any]:
    """Return the documents of a task for training or for examples, else those at no position that is scored."""
    from datasets import Dataset

    examples: Iterable[Any] | None = None
    offline = OFFLINE.get(name)
    if name in {entry[0] for entry in data}:
        examples = task.dataset["examples"]  # of another split of the folder
    elif isinstance(offline, Offline) and name in MMLU:
        stored = Dataset.from_file(str(offline.file(VALIDATION)), in_memory=True)
        examples = task_loading.Documents(stored, task.config.process_docs)
    elif offline is None and task.has_training_docs():
        examples = task.training_docs()
    if examples is not None:
        return examples
    return _read_positions(task, sorted(set(range(len(task.eval_docs))) - set(scored)))


def _read_positions(task: Any, positions: Sequence[int]) -> Iterable[Any]:
    """Return the documents at these positions among those on which a task is evaluated, counted from 0."""
    docs = task.eval_docs
    if isinstance(docs, task_loading.Documents):
        return docs.read(positions) if positions else ()
    return (docs[position] for position in positions)


def pieces_of_questions(questions: Iterable[str]) -> set[str]:
    """Return what is looked for of scored questions, without white space: each whole, or the passages of a long one."""
    pieces = set[str]()
    for question in questions:
        bare = _bare(question)
        pieces.update(bare[start : start + PASSAGE] for start in range(0, max(1, len(bare) - PASSAGE + 1), STEP))
    return pieces


def _without_pieces(questions: Iterable[str], pieces: set[str]) -> Iterator[str]:
    """Yield the questions that neither equal a piece nor hold one of SHORTEST characters or more."""
    long = [piece for piece in pieces if len(piece) >= SHORTEST]
    for question in questions:
        bare = _bare(question)
        if bare not in pieces and not any(piece in bare for piece in long):
            yield question


def refuse_scored_questions(
    texts: Mapping[str, str], tasks: Mapping[str, Any], documents: Mapping[str, Sequence[int]]
) -> None:
    """Raise UserError where what is calibrated on holds a question that a task scores.

    texts      what is read of each text that is made of questions, without white space, by the text's name
    documents  the positions of what each task scores
    """
    for name, task in tasks.items() if texts else ():
        with _read_alike():
            scored = (question_of_document(task, doc) for doc in _read_positions(task, documents[name]))
            pieces = [piece for piece in pieces_of_questions(scored) if len(piece) >= SHORTEST]
        for text, content in texts.items():
            count = sum(piece in content for piece in pieces)
            if count:
                raise UserError(
                    f"{text}, which is calibrated on, has in part what {name} asks: {count} of {len(pieces)} pieces of "
                    "its questions stand there; give another text, or leave the task out"
                )


def _bare(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())
