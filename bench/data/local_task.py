"""Loads a task of lm-eval with documents of local files, which --task-data names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.data import task_sources
from bench.data.task_documents import has_one_right_choice, has_samples, processed, task_of
from methods.errors import UserError


def load(name: str, definition: Path, path: Path, every_document: bool) -> Any:
    """Load the task `name`, of lm-eval's `definition`, with its documents from `path`.

    every_document  also make the prompt of every document, so that a bad one is found now

    Raises UserError where they do not fit the definition.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config = load_yaml(definition)
    except Exception as error:  # of a package that the definition's code needs, such as sympy
        raise UserError(f"--task-data: the definition of {name} cannot be read: {error}") from error
    split = config.get("test_split") or config.get("validation_split")
    documents = task_sources.read_documents(path, split)
    if documents is None:
        raise UserError(f"--task-data: {path} has no files of the split {split}, on which {name} is evaluated")
    shots = config.get("fewshot_split") or config.get("training_split")
    examples = (
        task_sources.read_documents(path, shots)
        if shots and shots != split and task_sources.names_splits(path)
        else None
    )
    if examples is None and (shown := config.get("num_fewshot") or 0) and not has_samples(config):
        own = f"give a folder with files of the splits {split} and {shots}" if shots else "it has no split for them"
        raise UserError(f"--task-data: {name} is asked with {shown} examples, and {path} has none; {own}")
    try:
        documents, examples = processed(config.get("process_docs"), documents, examples)
        task = task_of(definition, documents, examples, processed=True)
        if every_document:
            _refuse_unlabelled(task)
            task.build_all_requests()
    except Unlabelled as error:
        raise UserError(f"--task-data: {path}: {error}") from None
    except Exception as error:  # whatever a definition does with a document that it does not expect
        columns = ", ".join(documents.column_names)
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise UserError(
            f"--task-data: {path} has the columns {columns}, of which lm-eval's {name} cannot make prompts as of "
            f"{config.get('dataset_path')} ({reason})"
        ) from error
    return task


class Unlabelled(ValueError):
    """Says which document has no right choice."""


def _refuse_unlabelled(task: Any) -> None:
    """Raise Unlabelled for a document whose right choice is none of its choices, as in the test sets of some tasks."""
    if not has_one_right_choice(task) or task.multiple_input:
        return
    for number, document in enumerate(task.eval_docs):
        target, choices = task.doc_to_target(document), task.doc_to_choice(document)
        known = target in choices if isinstance(target, str) else 0 <= target < len(choices)
        if not known:
            raise Unlabelled(
                f"document {number} has the right choice {target!r}, of {len(choices)} choices; leave out "
                "documents without a label"
            )
