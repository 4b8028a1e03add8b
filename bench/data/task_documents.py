"""Makes a task of an lm-eval definition and of documents at hand, which are read as they are needed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SHUFFLE_SEED = 0  # of the few definitions that shuffle choices when they make a document


def task_of(definition: Path, documents: Any, examples: Any, *, processed: bool = False) -> Any:
    """Make lm-eval's task of a definition, with these documents and, unless that is None, these examples.

    processed  whether they are as the definition makes them of what is stored
    """
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    class LocalTask(ConfigurableTask):  # type: ignore[misc]
        """Takes its documents from data sets at hand."""

        def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
            self.dataset = {"documents": documents, "examples": examples}

        def fewshot_docs(self) -> Any:
            """Return the documents that examples are taken from, or None where there are none."""
            return super().fewshot_docs() if examples is None else Documents(examples, self.config.process_docs)

        @property
        def eval_docs(self) -> Documents:
            return Documents(documents, self.config.process_docs)

        def doc_iterator(self, *, samples: list[int] | None = None, **_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
            """Give (position among those drawn, document), and read no other document."""
            return enumerate(self.eval_docs.read(samples or range(len(documents))))

    config = load_yaml(definition)
    for key in ("tag", "training_split", "test_split", "fewshot_split"):
        config.pop(key, None)
    if processed:
        config.pop("process_docs", None)
    if examples is None and not has_samples(config):
        config.pop("fewshot_config", None)
    shots = {} if examples is None else {"fewshot_split": "examples"}
    return LocalTask(config=config | {"validation_split": "documents"} | shots)


class Documents(Sequence[dict[str, Any]]):
    """Turns stored documents into lm-eval's form when they are read: all of HellaSwag's 10,042 would take a second."""

    def __init__(self, stored: Any, process: Any):
        self.stored = stored
        self.process = process

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, position: Any) -> Any:
        return self.read([position])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.read(range(len(self))))

    def read(self, positions: Iterable[int]) -> Any:
        """Return the documents at `positions`, as lm-eval's data set of them."""
        selected = self.stored.select(positions)
        return selected if self.process is None else self.process(selected)

    @property
    def features(self) -> Any:
        return self.read([0]).features


def processed(process: Any, *sets: Any) -> list[Any]:
    """Return data sets as a definition makes documents of them: once, since some shuffle choices or leave rows out.

    lm-eval's own evaluator does so twice, for the prompts and for the scores, and finds the first time on the disk.
    """
    before = random.getstate()
    random.seed(SHUFFLE_SEED)
    try:
        return [one if one is None or process is None else process(one) for one in sets]
    finally:
        random.setstate(before)


def has_one_right_choice(task: Any) -> bool:
    """Say whether the answer is one of several choices, scored by lm-eval's own rule.

    A task with a rule of its own, as truthfulqa_mc2, may sum over several right choices, which no target names.
    """
    return task.OUTPUT_TYPE == "multiple_choice" and task.config.process_results is None


def has_samples(config: dict[str, Any]) -> bool:
    """Say whether a definition has the examples in front of each question in itself."""
    return (config.get("fewshot_config") or {}).get("samples") is not None
