"""Writes what a cell has answered as a result file of lm-eval, for programs that read those.

The fields are those of lm-eval 0.4.13 that its own table and common readers use. What this suite adds stands there by
its own names: `answer_bpb`, bits per byte of the right answer, is a metric of its task, and a perplexity is that of a
task `prunebench_TEXT`, whose windows are in `config`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.records import run_folder
from bench.records.answers import NAME as ANSWER_BPB
from bench.records.record import Record, text_name
from methods.errors import UserError
from methods.files import write_atomically

OF_TEXTS = {
    "perplexity": "token_perplexity",
    "word_perplexity": "word_perplexity",
    "byte_perplexity": "byte_perplexity",
    "bits_per_byte": "bits_per_byte",
}
LOWER = (ANSWER_BPB, *OF_TEXTS.values(), "perplexity")


def write(run: Path, cell: str, to: Path) -> str:
    """Write the result file of the one measured cell that is meant; return its path. Raises UserError."""
    key, record = run_folder.cell(run, cell)
    if record.status != "ok":
        raise UserError(f"{key} has no figures: {record.status}, {(record.error or '').partition(chr(10))[0]}")
    if to.exists():
        raise UserError(f"{to} exists; name a new file")
    write_atomically(to, json.dumps(results(record), indent=2, ensure_ascii=False) + "\n")
    return str(to)


def results(record: Record) -> dict[str, Any]:
    """Return the content of the file, as plain JSON values. Raises UserError for a cell without tasks and texts."""
    tasks, texts = record.measured.get("tasks", {}), record.measured.get("perplexity", {})
    if not tasks and not texts:
        raise UserError(f"{record.cell['label']} was measured on no task and no text")
    found = {name: _metrics(task) for name, task in tasks.items()}
    found |= {f"prunebench_{text_name(name)}": _of_text(text) for name, text in texts.items()}
    cell, protocol = record.cell, record.cell["protocol"]
    return {
        "results": {name: {"alias": name} | metrics for name, metrics in found.items()},
        "group_subtasks": {name: [] for name in found},
        "versions": {name: task["version"] for name, task in tasks.items()},
        "n-shot": {name: task["fewshot"] for name, task in tasks.items()},
        "higher_is_better": {name: dict(map(_direction, metrics)) for name, metrics in found.items()},
        "n-samples": {
            name: {"original": task["available"], "effective": task["documents"]} for name, task in tasks.items()
        },
        "config": {
            "model": "prunebench",
            "model_args": {name: cell.get(name) for name in ("model", "method", "parameters", "ratio", "ratio_of")},
            "dtype": cell["dtype"],
            "device": cell["device"],
            "window": protocol["window"],
            "stride": protocol["stride"],
        },
        "model_name": f"{cell['model']} {cell['label']}",
        "date": record.environment.get("date"),
        "versions_of_packages": record.environment.get("versions", {}),
    }


def _metrics(task: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of a task as lm-eval names them, METRIC,FILTER and METRIC_stderr,FILTER."""
    found = {}
    right = {ANSWER_BPB: task[ANSWER_BPB]} if ANSWER_BPB in task else {}
    for name, figure in {**task["metrics"], **right}.items():
        metric, _, chosen = name.partition(",")
        found[f"{metric},{chosen or 'none'}"] = figure["value"]
        if "stderr" in figure:
            found[f"{metric}_stderr,{chosen or 'none'}"] = figure["stderr"]
    return found


def _of_text(text: dict[str, Any]) -> dict[str, Any]:
    return {f"{shown},none": text[name] for name, shown in OF_TEXTS.items() if name in text}


def _direction(metric: str) -> tuple[str, bool]:
    """Return a metric's name, without its filter, and whether higher is better."""
    name = metric.partition(",")[0].removesuffix("_stderr")
    return name, name not in LOWER
