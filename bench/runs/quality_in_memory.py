"""Measures models that a program holds in memory, without a run: `bench.evaluate` and `bench.compare`.

    model of transformers, tokenizer -> texts and tasks -> bench.evaluation.quality -> Evaluation
    Evaluation, Evaluation           -> bench.regression.compare                    -> Comparison

Values, intervals and samples are those of a cell of `run` with the same protocol. A comparison is that of the command
`compare`, and refuses what that refuses.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from bench.data import programs, questions, task_loading, texts
from bench.data.chat import check_template, sha256_of_template
from bench.data.texts import EvaluationText
from bench.evaluation import quality
from bench.evaluation.scoring import OwnModel
from bench.evaluation.tasks import evaluate as evaluate_tasks
from bench.plan.fields import refuse_name
from bench.plan.protocol import Protocol, name_of_samples
from bench.plan.run_spec import RunSpec, options_by_name
from bench.plan.validate import check_tasks_of_spec, refuse_longer
from bench.records.measured import Measured, RangeScore, TaskScore, TextScore
from bench.regression import gate
from bench.regression.compare import compare_cells, parse_allowed
from bench.regression.gate import JudgedRow
from bench.regression.results import CellResults, results_of_measured
from bench.runs.calibration import questions_of_calibration
from bench.runs.in_memory import TOKENS_AT_HAND, PrunedCopy
from bench.runs.inputs import sha256_of_tokenizer
from bench.system import environment
from methods.errors import UserError
from methods.model.calibration import Calibration
from methods.model.decoder import gpus_of
from reports.report import ShownTables
from reports.tables import verdicts
from reports.tables.quality import table_of_quality

OF_QUALITY = {  # fields of Protocol and RunSpec that say what quality is
    *("tasks", "documents", "texts", "window", "stride", "windows", "windows_drawn", "positions", "calibration"),
    *("batch_tokens", "scorer", "fewshot", "apply_chat_template", "system", "profile", "task_data"),
    *("confirm_run_unsafe_code", "include_path", "trust_remote_code"),
}
SCORERS = ("shared", "stock")  # that score in this process


@dataclass(frozen=True)
class Evaluation:
    """Holds what `bench.evaluate` returns. A terminal and Jupyter show it as a table.

    name        of the model, as tables call it
    measured    the values with their intervals, as `measured` of a record has them: `perplexity`, `tasks`, `positions`
    samples     the values of each document of a task, and of each window of a text by "perplexity-TEXT"
    conditions  what the values depend on beside texts and documents, by the names of `compare`
    """

    name: str
    measured: Measured
    samples: dict[str, pd.DataFrame]
    conditions: dict[str, Any]

    @cached_property
    def results(self) -> CellResults:
        """Return the values as `compare` takes them."""
        import pyarrow

        return results_of_measured(
            self.measured,
            lambda name: pyarrow.Table.from_pandas(self.samples[name], preserve_index=False),
            identity={"label": self.name, "ratio": None, "seed": None},
            conditions=self.conditions,
            where=(self.name, f"{self.name}: "),
        )

    @property
    def tables(self) -> ShownTables:
        """Return the values as a table."""
        return ShownTables([table_of_quality(self.name, self.measured)])

    def __str__(self) -> str:
        return str(self.tables)

    def __repr__(self) -> str:
        return f"<evaluation of {self.name}: {', '.join(self.samples)}>"

    def _repr_html_(self) -> str:
        return self.tables._repr_html_()


@dataclass(frozen=True)
class Comparison:
    """Holds what `bench.compare` returns. A terminal and Jupyter show it as the table of `compare`.

    rows  of each metric: the figures, the contrast over the same documents or windows, adjusted p, and the verdict
    """

    rows: tuple[JudgedRow, ...]

    @property
    def tables(self) -> ShownTables:
        """Return the rows as a table."""
        return ShownTables(verdicts.tables_of_comparison(self.rows))

    def __str__(self) -> str:
        return str(self.tables)

    def __repr__(self) -> str:
        return f"<comparison of {', '.join(dict.fromkeys(row.cells for row in self.rows))}>"

    def _repr_html_(self) -> str:
        return self.tables._repr_html_()


def evaluate(
    model: Any, *, tokenizer: Any, name: str = "", profile: str = "quick", seed: int = 0, **flags: Any
) -> Evaluation:
    """Return the quality of a model in memory: perplexity, answers to tasks, intervals and samples.

    model      any causal language model of transformers, wherever it lies, or what `bench.prune` returns
    tokenizer  of the model; a fast one where texts are read
    name       what tables call the model, by default as transformers or `bench.prune` calls it
    profile    of `list profiles`, where the flags are silent
    seed       of the draw of the tasks' documents
    flags      of `run` that say what quality is, as in texts="wiki", tasks="piqa", windows=16, documents=200

    Raises UserError for what cannot be: a flag of another name, a text or task that there is not, a text that the model
    was calibrated on, and a model that takes fewer tokens.
    """
    copy, module = (model, model.model) if isinstance(model, PrunedCopy) else (None, model)
    if not isinstance(module, PreTrainedModel) or module.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        raise UserError(f"a causal language model of transformers is evaluated; got {type(module).__name__}")
    if not callable(tokenizer):
        raise UserError(f"tokenizer= is that of the model; got {type(tokenizer).__name__}")
    if copy and copy.calibration.source != TOKENS_AT_HAND:
        flags = {"calibration": copy.calibration.source} | flags
    title = name or (copy.title if copy else Path(module.config.name_or_path or "").name or type(module).__name__)
    with _leave_program_alone(module):
        data = _read_data(_parse_flags(flags | {"profile": profile, "seed": seed}), module, tokenizer, title)
        _refuse_data(data, module, tokenizer, copy.calibration if copy else None)
        measured, samples = _score(data, module, tokenizer, is_tried=copy is None)
    return Evaluation(title, measured, samples, _conditions(data.protocol, module, tokenizer))


def compare(a: Evaluation, b: Evaluation, *, allow: str | Collection[str] = ()) -> Comparison:
    """Return what the second evaluation has more than the first, in pairs of the same documents and windows.

    allow  conditions that may differ, as --allow of the command `compare` takes them

    Raises UserError where texts, documents, windows or anything else differs on which the values depend.
    """
    for side in (a, b):
        if not isinstance(side, Evaluation):
            raise UserError(f"what `bench.evaluate` returns is compared; got {type(side).__name__}")
    allowed = parse_allowed(allow if isinstance(allow, str) else ",".join(allow))
    rows = {f"{a.name} → {b.name}": compare_cells(a.results, b.results, allowed)}
    if reason := gate.reason_for_refusal(rows):
        raise UserError(re.sub(r"--allow (\S+)", r'allow="\1"', reason))
    return Comparison(tuple(gate.judge_rows(rows)))


@dataclass(frozen=True)
class _Data:
    """Holds what a model is evaluated on."""

    protocol: Protocol
    texts: dict[str, EvaluationText]
    long_texts: dict[str, EvaluationText]
    tasks: dict[str, Any]
    documents: dict[str, list[int]]


def _parse_flags(flags: Mapping[str, Any]) -> RunSpec:
    """Return the flags of an evaluation as a spec of the dense model. Raises UserError for any other flag."""
    names = {
        option.flag.replace("-", "_"): name for name, option in options_by_name().items() if option.field in OF_QUALITY
    }
    every = [*dict.fromkeys([*names, *names.values()])]
    for name in flags:
        if name not in (*every, "seed"):
            refuse_name("bench.evaluate takes no", name, every, f"it takes {', '.join(sorted(names))}")
    if flags.get("scorer", SCORERS[0]) not in SCORERS:
        raise UserError(f"scorer is {' or '.join(SCORERS)}, which score a model in memory; got {flags['scorer']!r}")
    spec = RunSpec("dense", **flags)
    if len(spec.protocols()) > 1:
        raise UserError("an evaluation has one seed and one calibration; evaluate once for each")
    return spec


def _read_data(spec: RunSpec, model: PreTrainedModel, tokenizer: Any, title: str) -> _Data:
    """Return what a model is evaluated on. Raises UserError where it cannot be had."""
    [(protocol, seed)] = spec.protocols()
    tasks, local, files = check_tasks_of_spec(spec)
    protocol = replace(protocol, tasks=tasks, task_data=local, task_files=files)
    programs.refuse_open_guard(protocol.tasks)
    if not protocol.tasks and not protocol.texts:
        raise UserError("nothing is measured without a text and without a task; name one, as in texts='wiki'")
    for text in protocol.texts:
        texts.check_text(text)
    refuse_longer(protocol, model.config.get_text_config(), is_calibrated=False)
    if protocol.chat:
        check_template(tokenizer, title, protocol.chat)
    cut, cut_long = (partial(make, tokenizer) for make in (texts.make_evaluation_text, texts.make_long_text))
    loaded = task_loading.load_tasks(protocol.tasks, local, protocol.fewshot, tokenizer, files=files)
    documents = {name: task_loading.draw_documents(task, protocol.documents, seed) for name, task in loaded.items()}
    every_text = quality.cut_texts(protocol, cut), quality.cut_long_texts(protocol, cut_long)
    return _Data(protocol, *every_text, loaded, documents)


def _refuse_data(data: _Data, model: PreTrainedModel, tokenizer: Any, block: Calibration | None) -> None:
    """Raise UserError for texts and questions that the model was calibrated on, and for tokens that it lacks."""
    table: Any = model.get_input_embeddings().weight
    every_text, words = [*data.texts.values(), *data.long_texts.values()], len(table)
    for text in every_text:
        if (largest := int(text.ids.max())) >= words:
            raise UserError(f"the tokenizer has a token {largest}, and the model has {words}; give that of the model")
    if block is not None:
        texts.refuse_shared(tokenizer, block.ids, block.source, every_text, "calibrated on")
        questions.refuse_scored_questions(questions_of_calibration(tokenizer, block), data.tasks, data.documents)


def _score(
    data: _Data, model: PreTrainedModel, tokenizer: Any, *, is_tried: bool
) -> tuple[Measured, dict[str, pd.DataFrame]]:
    """Return the values of a model and their samples, as a cell has them.

    is_tried  whether the model is tried on a small tree before it answers
    """
    backend, samples = OwnModel(model, data.protocol.batch_tokens), dict[str, pd.DataFrame]()
    perplexity, positions, answered = dict[str, TextScore](), dict[str, RangeScore](), dict[str, TaskScore]()
    for name, text in data.texts.items():
        perplexity[name], samples[name_of_samples(name)] = quality.score_text(data.protocol, backend, name, text)
    for name, text in data.long_texts.items():
        for each, (score, rows) in quality.score_ranges(backend, name, text).items():
            positions[each], samples[name_of_samples(each)] = score, rows
    with task_loading.silence_lm_eval():  # which advises on starting several processes
        lm = quality.make_scorer(data.protocol, (model, tokenizer), check=is_tried) if data.tasks else None
    for name, task in data.tasks.items():
        scores, rows_by_task = evaluate_tasks(lm, {name: task}, {name: data.documents[name]}, data.protocol.chat)
        answered, samples = answered | scores, samples | rows_by_task
    measured = Measured(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        perplexity=perplexity or None,
        positions=positions or None,
        tasks=answered or None,
    )
    return measured, samples


def _conditions(protocol: Protocol, model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """Return what values depend on beside texts and documents; the versions of one program are the same."""
    values = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "gpu": environment.name_of_processor(model.device) if model.device.type == "cuda" else None,
        "tokenizer": sha256_of_tokenizer(tokenizer),
        "chat_template": sha256_of_template(tokenizer) if protocol.chat else None,
        "system": protocol.system,
        "batch_tokens": protocol.batch_tokens,
        "scorer": protocol.scorer,
    }
    return {name: value for name, value in values.items() if value}


@contextmanager
def _leave_program_alone(model: PreTrainedModel) -> Iterator[None]:
    """Let the model be in its mode of evaluation, and draw no random numbers of the program."""
    drawn, is_trained = random.getstate(), model.training
    model.train(False)
    try:
        with torch.random.fork_rng(gpus_of(model)):
            yield
    finally:
        random.setstate(drawn)
        model.train(is_trained)
