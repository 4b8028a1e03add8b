"""Defines a record: one cell's outcome, as one JSON file that is written once and never edited.

    results/<run>/cells/<key>.json               what was asked, decided and measured
    results/<run>/samples/<key>/<name>.parquet   one row per document or perplexity window

or, once the run is packed, as a line of records.jsonl (bench.records.packed_run). bench.records.schema says what each
key means, and refuses a file that is no record when it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from methods.counted import QUANTITIES
from methods.errors import UserError, first_line
from methods.files import write_atomically

SCHEMA = 3
LOST = "lost"
FAILED = ("error", "out_of_memory", "crashed", "timed_out", LOST)
REFUSED = ("unsupported", "out_of_reach")  # what a method cannot do: outcomes, and no failures
STATUSES = ("ok", *REFUSED, *FAILED)
EARLIER = ("parameters", "layers", "ratio", "ratio_budget", "pruned_sha256", "prune_seconds", "healing")
ANSWER_BPB = "answer_bpb"  # the metric of the right answer's bits per byte
ACCURACY = re.compile(r"(^|_)acc(_|$)")
LEFT_OUT = "it is left out"  # what is said of a record that does not fit
KEYS = ("schema", "cell", "status", "error", "environment", "decisions", "measured")


class InvalidRecord(UserError):
    """Say that a file is not a record: truncated, of another schema, or with a field that does not fit."""


@dataclass(frozen=True)
class Record:
    """Hold one cell's outcome. `cell` holds plain JSON values, so that reports need no other module to read it."""

    cell: dict[str, Any]
    status: str
    environment: dict[str, Any]
    decisions: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InvalidRecord(f"status is one of {', '.join(STATUSES)}; got {self.status!r}")
        if self.status == "ok" and self.error is not None:
            raise InvalidRecord("error is a reason, not null, and status is ok")
        if self.status != "ok" and self.error is None:
            raise InvalidRecord(f"error is null, not a reason, and status is {self.status}")
        if self.status == "ok" and "parameters" not in self.measured:
            raise InvalidRecord("measured.parameters is missing, and status is ok")


def label(cell: Mapping[str, Any]) -> str:
    """Write a cell as its method and the parameters that were given, with what was done before in front.

    'laco:C=3', 'laco, healed', 'laco at 0.25, healed, then laco'. `cell` holds the fields of bench.plan.cell.Cell.
    """
    before = [_label(stage, stage["ratio"]) for stage in cell.get("earlier") or ()]
    return ", then ".join([*before, _label(cell)])


def _label(stage: Mapping[str, Any], ratio: float | None = None) -> str:
    given = ",".join(f"{name}={stage['parameters'][name]}" for name in stage.get("given", ()))
    asked = f"{stage['method']}:{given}" if given else str(stage["method"])
    where = "" if ratio is None else f" at {ratio:g}"
    return f"{asked}{where}, healed" if stage.get("healing") else f"{asked}{where}"


def display_name(record: Record) -> str:
    """Return the model's name for a reader."""
    return str(record.cell.get("display_name") or record.cell["model"])


def model_names(models: Iterable[str]) -> dict[str, str]:
    """Name each model by the end of its path or address, as short as tells it from the others."""
    parts = {model: PurePath(model).parts for model in models}
    found = {}
    for model, own in parts.items():
        others = [theirs for other, theirs in parts.items() if other != model]
        lengths = range(1, len(own) + 1)
        alone = (n for n in lengths if not any(theirs[-n:] == own[-n:] for theirs in others))
        found[model] = str(PurePath(*own[-next(alone, len(own)) :]))
    return found


def requested_ratio(record: Record) -> float | None:
    """Return the share of the parameters that was asked to go; None for the dense model."""
    return None if record.cell["method"] == "dense" else record.cell["ratio"]


def peak_bytes(measured: Mapping[str, Any], stage: str = "") -> int | None:
    """Return the highest memory of a stage, or of all: allocated on GPUs, resident on a CPU; None if unknown."""
    stages = measured.get("peak_memory", {})
    found = [stages[stage]] if stage in stages else [] if stage else list(stages.values())
    known = [one.get("allocated_bytes", one.get("resident_bytes")) for one in found]
    return max(known, default=None)


def ratio_of(cell: Mapping[str, Any]) -> str:
    """Return what the ratio of a record's cell is a share of: all, decoder or layers; or bytes, kv or macs."""
    return str(cell.get("ratio_of", "all"))


def share(ratio: float | None, of: str = "all") -> str:
    """Write a ratio as it was asked for: '0.3', '0.3 of the decoder', or as a budget 'macs=0.8'; empty for none."""
    if ratio is None:
        return ""
    return f"{of}={1 - ratio:g}" if of in QUANTITIES else f"{ratio:g}" + ("" if of == "all" else f" of the {of}")


def amount(ratio: float | None, of: str = "all") -> str:
    """Write a ratio or a budget with the word for it: 'ratio 0.3', 'budget macs=0.8'; empty for none."""
    return f"{'budget' if of in QUANTITIES else 'ratio'} {share(ratio, of)}" if ratio is not None else ""


def named(record: Record) -> str:
    """Write a cell as sentences and figures call it: 'laco at 0.3'."""
    asked = share(requested_ratio(record), ratio_of(record.cell))
    return label(record.cell) + (f" at {asked}" if asked else "")


def metric_of_task(task: Mapping[str, Any], metric: str) -> Any:
    """Return {value, stderr} of a metric of a task, or of the bits per byte of its right answers; None without one."""
    return task.get(ANSWER_BPB) if metric == ANSWER_BPB else task["metrics"].get(metric)


def main_metric(task: Mapping[str, Any]) -> Any:
    """Return {value, stderr} of the metric of a task that stands in tables."""
    return task["metrics"][task["main"]]


def is_accuracy(task: Mapping[str, Any]) -> bool:
    """Say whether a task's main metric is an accuracy, which alone can be averaged over tasks."""
    return is_accuracy_metric(task["main"])


def is_accuracy_metric(metric: str) -> bool:
    """Say whether a metric is a share of documents that were right."""
    name = metric.partition(",")[0]  # lm-eval names a filter behind a comma
    return name in ("exact_match", "em", "mc1", "mc2") or ACCURACY.search(name) is not None


def text_name(text: str) -> str:
    """Return what the samples of a text are called by; no path: of a file its name without the ending.

    A dataset of the hub goes by all that it is called, since its parts may differ only behind a point.
    """
    return quote(text, safe="") if text.startswith("hub:") else PurePath(text).stem


def save(record: Record, path: Path) -> None:
    """Write atomically: the file is there whole or not at all."""
    write_json(vars(record), path)


def write_json(plain: Mapping[str, Any], path: Path) -> None:
    """Write the plain values of a record atomically."""
    write_atomically(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Record:
    """Read and validate one record. Raises InvalidRecord, naming the file and what is wrong with it."""
    return from_json(read_json(content(path), str(path)), str(path))


def content(path: Path) -> bytes:
    """Return the bytes of a file of records. Raises InvalidRecord where it cannot be read, as a folder or a loop."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRecord(f"{path} cannot be read: {first_line(error)}") from None


def read_json(text: bytes, where: str) -> Any:
    """Return what a JSON text says. Raises InvalidRecord, whose message begins with `where` that was read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"{where} is not JSON: {first_line(error)}") from None


def from_json(data: Any, where: str) -> Record:
    """Return the record in a JSON object. Raises InvalidRecord, whose message begins with `where` that was read."""
    if isinstance(data, dict) and data.get("schema", SCHEMA) != SCHEMA:
        raise InvalidRecord(f"{where} has schema {data['schema']}; this version reads {SCHEMA}")
    if wrong := misfit(data):
        raise InvalidRecord(f"{where}: {wrong}")
    try:
        return Record(**{name: data[name] for name in KEYS})
    except InvalidRecord as error:
        raise InvalidRecord(f"{where}: {error}") from None


def misfit(data: Any) -> str:
    """Say in one sentence what keeps plain JSON values from being a record; empty where nothing does."""
    from bench.records.schema import fitting, layouts

    return fitting.misfit(data, layouts.RecordLayout)
