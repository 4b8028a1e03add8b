"""Writes figures of a written model as the hub lists them beside a benchmark: `.eval_results/BENCHMARK.yaml`.

A file there puts a model into the table of a benchmark's data set. It is written only for what the data set is: every
document of its split, by lm-eval's definition of the task as it stands, with its own number of examples. A part of the
documents, other examples, a chat or documents of one's own are left out, and a line says so. Figures of other tasks
are in the model index of the card alone.

The hub's benchmarks name a protocol of their own, with several answers to each question or with a judge. What lm-eval
asks is not that, and so `notes` says what was asked; the hub calls no such figure verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.records.measured import TaskScore
from bench.records.record import Record
from bench.runs.saving import RELOADED
from methods.files import write_atomically

FOLDER = ".eval_results"


@dataclass(frozen=True)
class Benchmark:
    """Says which data set of the hub a task of lm-eval is, and how its definition asks it.

    documents  of the whole split
    metric     as records name it
    fewshot    examples of the definition
    """

    dataset: str
    task: str
    documents: int
    metric: str
    fewshot: int
    version: float

    @property
    def file(self) -> str:
        """Return the name of the file: that of the data set, as the hub wants it."""
        return f"{self.dataset.rpartition('/')[2].lower().replace('-', '_')}.yaml"


BENCHMARKS = {  # data sets that the hub's documentation names as benchmarks and that lm-eval asks as a single task
    "gsm8k": Benchmark("openai/gsm8k", "gsm8k", 1319, "exact_match,strict-match", 5, 3.0),
    "gpqa_diamond_zeroshot": Benchmark("Idavidrein/gpqa", "gpqa_diamond", 198, "acc", 0, 2.2),
}
FILES = tuple(f"{FOLDER}/{benchmark.file}" for benchmark in BENCHMARKS.values())


def write_eval_results(folder: Path, record: Record, manifest: Mapping[str, Any]) -> list[str]:
    """Write the files of a written model's benchmarks, and return a line on each benchmark that is left out.

    folder    of the model, in Hugging Face's layout
    manifest  of that folder
    """
    left_out = []
    for name, score in record.measured.task_scores.items():
        if (benchmark := BENCHMARKS.get(name)) is None:
            continue
        reason = find_departure(benchmark, name, score, record) or _rounding(manifest)
        if reason:
            left_out.append(f"{name} is not among the hub's evaluation results, only in the card: {reason}")
            continue
        text = yaml.safe_dump(_entries(benchmark, name, score, record), sort_keys=False, allow_unicode=True)
        write_atomically(folder / FOLDER / benchmark.file, text)
    return left_out


def find_departure(benchmark: Benchmark, name: str, score: TaskScore, record: Record) -> str:
    """Return why a score is not of the whole benchmark as lm-eval defines it; empty where it is."""
    return next(_departures(benchmark, name, score, record), "")


def _departures(benchmark: Benchmark, name: str, score: TaskScore, record: Record) -> Iterator[str]:
    """Yield what differs from lm-eval's definition of the whole benchmark."""
    protocol = record.cell.protocol
    if score.documents != benchmark.documents:
        yield f"{score.documents:,} documents of {benchmark.documents:,} were answered"
    if score.available != benchmark.documents:
        yield f"they are of {score.available:,} documents, and the benchmark has {benchmark.documents:,}"
    if any(task == name for task, *_ in protocol.task_data):
        yield "its documents came from --task-data"
    if protocol.apply_chat_template:
        yield "its prompts were turns of a chat"
    if score.fewshot != benchmark.fewshot:
        yield f"{score.fewshot} examples stood in front of each question, and lm-eval has {benchmark.fewshot}"
    if score.version != benchmark.version:
        yield f"version {score.version} of lm-eval's definition was asked, and {benchmark.version} is known here"
    if benchmark.metric not in score.metrics:
        yield f"it has no {benchmark.metric}"


def _rounding(manifest: Mapping[str, Any]) -> str:
    """Return why the weights of a folder are not those that were measured; empty where they are."""
    is_measured = manifest.get("measured", {}).get("model") == RELOADED
    if is_measured or not manifest.get("rounding"):
        return ""
    return f"its weights were measured before they were rounded to {manifest.get('dtype')}"


def _entries(benchmark: Benchmark, name: str, score: TaskScore, record: Record) -> list[dict[str, Any]]:
    """Return the content of a benchmark's file. Its value is in percent, as the benchmark's table has it."""
    lm_eval, date = record.environment.get("versions", {}).get("lm_eval"), record.environment.get("date")
    task = f"lm-eval {lm_eval} {name}" if lm_eval else f"lm-eval {name}"
    entry = {
        "dataset": {"id": benchmark.dataset, "task_id": benchmark.task},
        "value": round(100 * score.metrics[benchmark.metric].value, 4),
        "notes": f"{task}, version {score.version}, {score.fewshot}-shot, {benchmark.metric}, {record.cell.dtype}",
    }
    return [entry | ({"date": str(date)[:10]} if date else {})]
