"""Measures tasks with lm-eval's evaluator: figures of each task, a row of samples for each document."""

from __future__ import annotations

import hashlib
import json
import numbers
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.data.chat import Chat
from bench.data.task_loading import (
    SHUFFLE_SEED,
    Documents,
    has_one_right_choice,
    position_of_answer,
    silence_lm_eval,
)
from bench.plan.cell import TaskInput
from bench.records import answers
from bench.records.measured import ANSWER_BPB, TaskMetric, TaskScore

if TYPE_CHECKING:
    import pandas as pd


FEWSHOT_SEED = 1234  # lm-eval's own
ADDRESS = re.compile(r"0x[0-9a-f]+")  # in the description of a function that has no source


def fingerprint_of_task(task: Any, documents: Sequence[int]) -> TaskInput:
    """Return the version of a task, and a hash of all that an answer to it depends on.

    The hash is of lm-eval's definition, of the documents at these positions, and of those that examples are taken from.
    """
    random.seed(SHUFFLE_SEED)
    definition = ADDRESS.sub("", json.dumps(task.dump_config(), sort_keys=True, default=str))
    digest = hashlib.sha256(f"{definition}\n{list(documents)}\n".encode())
    docs = task.eval_docs
    with silence_lm_eval():
        drawn = docs.read(documents) if isinstance(docs, Documents) else (docs[position] for position in documents)
        examples = task.fewshot_docs() if task.config.num_fewshot else None
        for doc in (*drawn, *(examples or ())):
            digest.update(json.dumps(doc, sort_keys=True, default=str).encode() + b"\n")
    return TaskInput(task.VERSION, digest.hexdigest())


def evaluate(
    lm: Any, tasks: dict[str, Any], documents: dict[str, list[int]], chat: Chat | None = None
) -> tuple[dict[str, TaskScore], dict[str, pd.DataFrame]]:
    """Return the scores and the samples of lm-eval's evaluator on the `documents` of each task, both by task.

    Prompts are the turns of `chat`; without one they are plain text. A standard error is given where a metric is the
    mean over documents.

    The samples have one row per document: doc_id, doc_hash, prompt_hash and target_hash as lm-eval writes them;
    target, the position of the right choice, or the text where there are no choices; loglikelihoods and greedy, one
    per choice, or responses where text is generated; and every metric that is a number for one document, with
    answer_bpb where one text is right (bench.records.answers), which is the main one of a task without others.
    """
    from lm_eval.evaluator import evaluate as run

    random.seed(SHUFFLE_SEED)
    for task in tasks.values():
        task.set_fewshot_seed(FEWSHOT_SEED)  # every model gets the same examples
    subsets = {name: ids for name, ids in documents.items() if len(ids) < len(tasks[name].eval_docs)}
    with silence_lm_eval():
        options = chat.options if chat else {}
        outcome = run(lm, {"tasks": tasks}, samples=subsets, bootstrap_iters=0, log_samples=True, **options)
    scores, samples = {}, {}
    for name, task in tasks.items():
        rows = samples[name] = _table(task, outcome["samples"][name])
        metrics = _metrics(task, outcome["results"][name], rows)
        has_choices = has_one_right_choice(task) and all(isinstance(target, int) for target in rows["target"])
        scores[name] = TaskScore(
            main=answers.find_main_metric(metrics) or ANSWER_BPB,
            metrics=metrics,
            version=outcome["versions"][name],
            documents=len(rows),
            available=len(task.eval_docs),
            fewshot=outcome["n-shot"][name] or 0,
            chance=answers.accuracy_of_guesses(rows["loglikelihoods"].tolist()) if has_choices else None,
            answer_bpb=answers.metric_of_documents(rows[ANSWER_BPB].to_numpy()) if ANSWER_BPB in rows else None,
        )
    return scores, samples


def _table(task: Any, samples: list[dict[str, Any]]) -> pd.DataFrame:
    """Return one row per document; `samples` holds one for each document and filter of the task."""
    import pandas as pd

    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], _row(task, sample))
        for metric in sample["metrics"]:
            if isinstance(sample[metric], numbers.Real):
                row[_metric_name(task, metric, sample["filter"])] = float(sample[metric])
    return pd.DataFrame(list(rows.values())).sort_values("doc_id", ignore_index=True)


def _row(task: Any, sample: dict[str, Any]) -> dict[str, Any]:
    row = {key: sample[key] for key in ("doc_id", "doc_hash", "prompt_hash", "target_hash")}
    row["target"] = _target(task, sample)
    responses = [response[0] for response in sample["resps"]]
    if all(isinstance(response, tuple) for response in responses):
        row["loglikelihoods"] = [float(loglikelihood) for loglikelihood, _ in responses]
        row["greedy"] = [bool(greedy) for _, greedy in responses]
        right = position_of_answer(task, row["target"])
        if right is not None:
            size = answers.count_scored_bytes(*sample["arguments"][right])
            row[ANSWER_BPB] = answers.bits_per_byte(row["loglikelihoods"][right], size)
    elif all(isinstance(response, float) for response in responses):
        row["loglikelihoods"] = responses
    else:
        row["responses"] = [str(response) for response in responses]
    return row


def _target(task: Any, sample: dict[str, Any]) -> Any:
    """Return the right choice's position. As in lm-eval, it is `doc_to_text` where the choices are contexts."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return str(sample["target"])
    if task.multiple_input:
        return task.doc_to_text(sample["doc"])
    choices, target = task.doc_to_choice(sample["doc"]), sample["target"]
    return choices.index(target) if isinstance(target, str) else target


def _metric_name(task: Any, metric: str, filtered: str) -> str:
    """Return lm-eval's 'metric,filter', without the filter where the task has only one."""
    return metric if len(task._filters) == 1 else f"{metric},{filtered}"


def _metrics(task: Any, results: dict[str, Any], samples: pd.DataFrame) -> dict[str, TaskMetric]:
    """Return the metrics of a task by name, in lm-eval's order."""
    from lm_eval.api.metrics import mean

    from bench.stats.intervals import mean_stderr

    metrics: dict[str, TaskMetric] = {}
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        name = _metric_name(task, metric, filtered)
        is_mean = task.aggregation().get(metric, mean) is mean and name in samples and len(samples) > 1
        metrics[name] = TaskMetric(
            value=float(value), stderr=mean_stderr(samples[name].tolist())[1] if is_mean else None
        )
    return metrics
