"""Writes the answers of a run in the schema of Every Eval Ever, each document on a line of its own.

    TO/data/prunebench/DEVELOPER/MODEL/UUID.json            the figures of one cell
    TO/data/prunebench/DEVELOPER/MODEL/UUID_samples.jsonl   its answers that are right or wrong

The schema is 0.3.0, of the package every-eval-ever, whose `validate` reads both files. A pruned model is none of its
base's developer: its name is prunebench/MODEL--CELL, and what was done to it stands in `additional_details`.

The words of documents are those of bench.export.document_words.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

from bench.export.document_words import DocumentWords, Words
from bench.plan.address import ENDPOINT
from bench.plan.kinds import to_plain
from bench.plan.protocol import VLLM, name_of_text
from bench.records import run_folder
from bench.records.measured import ANSWER_BPB, TaskMetric, TaskScore, TextScore, is_accuracy_metric
from bench.records.record import Record, name_of_model
from bench.records.samples import SampleFiles
from methods.errors import UserError
from methods.files import write_atomically

SCHEMA = "0.3.0"
COLLECTION = "prunebench"
UNBOUNDED = "Infinity"  # as the schema writes it
LEAST = {  # of the figures of a text: their smallest value, and their unit
    "perplexity": (1, "perplexity per token"),
    "word_perplexity": (1, "perplexity per word"),
    "byte_perplexity": (1, "perplexity per byte"),
    "bits_per_byte": (0, "bits per byte"),
}
UNFIT = re.compile(r'[<>:"\\|?*/\s\x00-\x1f]+')  # what no name of a model may hold there
OF_LIKELIHOODS = "the choice with the highest log-likelihood"
BY_LENGTH = f"{OF_LIKELIHOODS} per character"


def write_every_eval_ever(run: Path, cell: str | None, to: Path) -> list[Path]:
    """Write the measured cells of a run, or the one that `cell` names, and return the files of their figures.

    to  a folder, which may hold other exports

    Raises UserError where nothing was measured, and where a cell is exported there already.
    """
    if to.exists() and not to.is_dir():
        raise UserError(f"{to} is a file; name a folder, which may hold other exports")
    records = dict([run_folder.find_cell(run, cell)]) if cell else run_folder.read_records(run)
    measured = {key: record for key, record in records.items() if record.status == "ok" and _is_answered(record)}
    if not measured:
        raise UserError(f"{cell or run} was measured on no task and no text")
    paths = {key: to / path_of_record(record, key) for key, record in measured.items()}
    for path in paths.values():
        if path.exists():
            raise UserError(f"{path} exists: that cell is exported there already; name another folder")
    files, words = SampleFiles(), DocumentWords()
    for key, record in measured.items():
        folder = run_folder.folder_of_samples(run, key)
        tables = {name: files.table(record, folder, name) for name in record.measured.task_scores}
        rows = rows_of_answers(record, key, tables, words)
        answers = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        text = "".join(f"{row}\n" for row in answers)
        if answers:
            write_atomically(paths[key].with_name(f"{paths[key].stem}_samples.jsonl"), text)
        content = content_of_record(record, key, text if answers else None)
        write_atomically(paths[key], json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return list(paths.values())


def _is_answered(record: Record) -> bool:
    return bool(record.measured.task_scores or record.measured.text_scores)


def name_of_record(record: Record, key: str) -> str:
    """Return DEVELOPER/MODEL of a record: of a dense model of the hub its name there, else one below prunebench."""
    from bench.data import pretrained

    model = record.cell.model
    if record.cell.label == "dense" and pretrained.is_on_hub(model) and model.count("/") == 1:
        return model
    base = PurePath(name_of_model(record)).name
    return f"{COLLECTION}/{UNFIT.sub('_', base if record.cell.label == 'dense' else f'{base}--{key}').strip('._')}"


def uuid_of_record(record: Record) -> str:
    """Return the UUID of a record's files, which follows from its content: the same record has the same one."""
    digest = hashlib.sha256(json.dumps(record.plain(), sort_keys=True).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def path_of_record(record: Record, key: str) -> PurePath:
    """Return the path of the file of a record's figures below the folder of an export."""
    return PurePath("data", COLLECTION, *name_of_record(record, key).split("/"), f"{uuid_of_record(record)}.json")


def content_of_record(record: Record, key: str, answers: str | None) -> dict[str, Any]:
    """Return the figures of a record in the schema, as plain JSON values.

    answers  the content of the file with its answers; None where there is none
    """
    name, path, versions = name_of_record(record, key), path_of_record(record, key), _versions(record)
    content = {
        "schema_version": SCHEMA,
        "evaluation_id": _id_of_evaluation(record, key),
        "evaluation_timestamp": str(record.environment.get("date", "unknown")),
        "retrieved_timestamp": _seconds(record),
        "source_metadata": {
            "source_name": COLLECTION,
            "source_type": "evaluation_run",
            "source_organization_name": "not stated",
            "evaluator_relationship": "third_party" if record.cell.label == "dense" else "first_party",
        },
        "eval_library": {
            "name": COLLECTION,
            "version": versions.get("prunebench", "unknown"),
            "additional_details": versions,
        },
        "model_info": {
            "name": f"{name_of_model(record)} {record.cell.title}",
            "id": name,
            "inference_engine": _engine(record),
            "additional_details": {"deployment_type": "self_deployed", "model_availability": "unknown"}
            | _about(record),
        },
        "evaluation_results": [*_results_of_tasks(record), *_results_of_texts(record)],
    }
    if answers is not None:
        content["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": path.with_name(f"{path.stem}_samples.jsonl").as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(answers.encode()).hexdigest(),
            "total_rows": answers.count("\n"),
        }
    return content


def _versions(record: Record) -> dict[str, str]:
    return {name: str(version) for name, version in record.environment.get("versions", {}).items()}


def _engine(record: Record) -> dict[str, str]:
    """Return which program computed the likelihoods."""
    scorer = record.cell.protocol.scorer
    name = scorer if scorer in (ENDPOINT, VLLM) else "transformers"
    return {"name": name, "version": _versions(record).get(name, "unknown")}


def _seconds(record: Record) -> str:
    """Return when a record was written, in seconds since 1970 as the schema has it; 0 where it does not say."""
    try:
        return str(int(datetime.fromisoformat(str(record.environment.get("date"))).timestamp()))
    except ValueError:
        return "0"


def _id_of_evaluation(record: Record, key: str) -> str:
    return f"{COLLECTION}/{name_of_record(record, key)}/{_seconds(record)}"


def _about(record: Record) -> dict[str, str]:
    """Return what was done to the model, as the schema has it: texts alone."""
    cell, measured = record.cell, record.measured
    values = {
        "deployment_type": "self_deployed",
        "model_availability": "unknown",
        "base_model": PurePath(name_of_model(record)).name,
        "method": cell.method,
        "method_parameters": json.dumps(to_plain(cell.parameters), sort_keys=True),
        "requested_ratio": cell.ratio,
        "ratio_of": cell.ratio_of,
        "achieved_ratio": measured.ratio,
        "seed": cell.seed,
        "dtype": cell.dtype,
        "device": cell.device,
        "parameters": measured.parameters,
        "weights_sha256": measured.pruned_sha256 or measured.weights_sha256,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _results_of_tasks(record: Record) -> Iterator[dict[str, Any]]:
    """Yield the figures of each task, a metric in each."""
    for task, score in record.measured.task_scores.items():
        for metric, figure in score.every_metric().items():
            yield {
                "evaluation_result_id": _id_of_result(task, metric),
                "evaluation_name": task,
                "source_data": _source(task, score, record),
                "metric_config": _config_of_metric(metric, score),
                "score_details": _score(figure, score.documents),
            }


def _id_of_result(task: str, metric: str) -> str:
    return f"{task}/{metric}"


def _source(task: str, score: TaskScore, record: Record) -> dict[str, Any]:
    """Return which documents a task has, and how many of them were answered."""
    inputs = record.cell.inputs.tasks.get(task) if record.cell.inputs else None
    details = {
        "task_version": score.version,
        "documents_answered": score.documents,
        "documents_available": score.available,
        "examples": score.fewshot,
        "chat_template": record.cell.protocol.apply_chat_template,
        "definition_and_documents_sha256": inputs.sha256 if inputs else "unknown",
    }
    plain = {name: str(value) for name, value in details.items()}
    return {"dataset_name": task, "source_type": "other", "additional_details": plain}


def _config_of_metric(metric: str, score: TaskScore) -> dict[str, Any]:
    """Return what a metric of a task is; one that the schema cannot bound has no bounds."""
    config: dict[str, Any] = {"metric_name": metric, "lower_is_better": metric == ANSWER_BPB}
    if metric == ANSWER_BPB:
        return config | _bounds(0, UNBOUNDED) | {"metric_unit": "bits per byte", "metric_kind": "bits_per_byte"}
    if is_accuracy_metric(metric):
        chance = {} if score.chance is None else {"additional_details": {"accuracy_of_guesses": str(score.chance)}}
        return config | _bounds(0, 1) | {"metric_unit": "proportion", "metric_kind": "accuracy"} | chance
    return config


def _bounds(least: float, most: float | str) -> dict[str, Any]:
    return {"score_type": "continuous", "min_score": least, "max_score": most}


def _score(figure: TaskMetric, documents: int) -> dict[str, Any]:
    """Return a value with its standard error, where it has one."""
    if figure.stderr is None:
        return {"score": figure.value}
    error = {"value": figure.stderr, "method": "analytic"}
    return {"score": figure.value, "uncertainty": {"standard_error": error, "num_samples": documents}}


def _results_of_texts(record: Record) -> Iterator[dict[str, Any]]:
    """Yield the figures of each text."""
    for text, score in record.measured.text_scores.items():
        name = f"text-{name_of_text(text)}"
        for metric, (least, unit) in LEAST.items():
            if (value := getattr(score, metric)) is not None:
                yield {
                    "evaluation_result_id": _id_of_result(name, metric),
                    "evaluation_name": name,
                    "source_data": _source_of_text(name_of_text(text), score),
                    "metric_config": {
                        "metric_name": metric,
                        "metric_unit": unit,
                        "lower_is_better": True,
                        **_bounds(least, UNBOUNDED),
                    },
                    "score_details": {"score": value} | _interval(metric, score),
                }


def _source_of_text(name: str, score: TextScore) -> dict[str, Any]:
    fields = ("window", "stride", "windows", "tokens", "bos", "drawn", "sha256")
    details = {field: str(getattr(score, field)) for field in fields}
    return {"dataset_name": name, "source_type": "other", "additional_details": details}


def _interval(metric: str, score: TextScore) -> dict[str, Any]:
    """Return the interval of a perplexity; nothing for any other figure."""
    low, high = score.perplexity_low, score.perplexity_high
    if metric != "perplexity" or low is None or high is None:
        return {}
    interval = {"lower": low, "upper": high, "confidence_level": 0.95, "method": "over windows"}
    return {"uncertainty": {"confidence_interval": interval, "num_samples": score.windows}}


def rows_of_answers(
    record: Record, key: str, tables: Mapping[str, Any], words: DocumentWords
) -> Iterator[dict[str, Any]]:
    """Yield a row for each document and each metric by which its answer is right or wrong.

    tables  of the samples, by task; None for a task without any
    words   of the documents
    """
    common = {
        "schema_version": SCHEMA,
        "evaluation_id": _id_of_evaluation(record, key),
        "model_id": name_of_record(record, key),
        "interaction_type": "single_turn",
    }
    for task, table in tables.items():
        if table is None:
            continue
        samples = table.to_pylist()
        metrics = [name for name in record.measured.task_scores[task].metrics if _is_right_or_wrong(samples, name)]
        documents = words.of(record, task, samples) if metrics else []
        for metric in metrics:
            result = {"evaluation_name": task, "evaluation_result_id": _id_of_result(task, metric)}
            for sample, document in zip(samples, documents, strict=True):
                yield common | result | _row_of_answer(sample, document, metric)


def _is_right_or_wrong(samples: Sequence[Mapping[str, Any]], metric: str) -> bool:
    return is_accuracy_metric(metric) and all(sample.get(metric) in (0, 1) for sample in samples)


def _row_of_answer(sample: Mapping[str, Any], document: Words, metric: str) -> dict[str, Any]:
    """Return what the schema asks of one answer by one metric."""
    answers, method = _answers(sample, document, metric)
    names = ("doc_hash", "prompt_hash", "target_hash", "loglikelihoods", ANSWER_BPB)
    values = {name: sample[name] for name in names if sample.get(name) is not None}
    attribution = {"turn_idx": 0, "source": "output.raw", "extraction_method": method, "is_terminal": True}
    return {
        "sample_id": str(sample.get("doc_id", sample.get("doc_hash", ""))),
        "sample_hash": document.sha256,
        "input": {
            "raw": document.question,
            "reference": list(document.references),
            "choices": list(document.choices) if document.choices else None,
        },
        "output": {"raw": answers},
        "answer_attribution": [attribution | {"extracted_value": answer} for answer in answers[:1]] if method else [],
        "evaluation": {"score": sample[metric], "is_correct": sample[metric] == 1},
        "metadata": {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()},
    }


def _answers(sample: Mapping[str, Any], document: Words, metric: str) -> tuple[list[str], str]:
    """Return what the model answered, and how that follows from what it was asked; no word where it does not.

    Of choices it is the likeliest by the rule of the metric, and none where that does not give the value of the metric.
    """
    if sample.get("responses") is not None:
        return list(sample["responses"]), metric if len(sample["responses"]) == 1 else ""
    likelihoods, choices = sample.get("loglikelihoods") or [], document.choices or ()
    if metric not in ("acc", "acc_norm") or len(likelihoods) != len(choices) or not choices:
        return [], ""
    lengths = [max(len(choice), 1) if metric == "acc_norm" else 1 for choice in choices]
    scores = [likelihood / length for likelihood, length in zip(likelihoods, lengths, strict=True)]
    best = scores.index(max(scores))
    if (best == sample.get("target")) != (sample[metric] == 1):
        return [], ""
    return [choices[best]], BY_LENGTH if metric == "acc_norm" else OF_LIKELIHOODS
