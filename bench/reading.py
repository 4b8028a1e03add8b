"""What the cells of a run read, each once, however many protocols they are measured under."""

from __future__ import annotations

import functools
from pathlib import Path

from bench import checks, data, models, tasks
from bench.spec import Cell


class Reading:
    """A model's tokenizer, and what has been read through it so far.

    load(tasks, task_data, fewshot)                       as bench.tasks.load
    text(name, window, stride, windows, whole=whole)      as bench.data.evaluation
    dense(text)                                           the dense model's predictions on it, in a file in `scratch`
    """

    def __init__(self, cell: Cell, scratch: Path) -> None:
        self.scratch = scratch
        self.tokenizer = models.load_tokenizer(cell.model, cell.trust_remote_code)
        self.load = functools.cache(tasks.load)
        self.text = functools.cache(functools.partial(data.evaluation, self.tokenizer))

    def dense(self, text: data.EvaluationText) -> checks.Dense:
        return checks.Dense(text.ids, self.scratch / f"dense-{text.sha256[:16]}.safetensors")
