"""Reads a log of Inspect, so that `compare` and `gate` take any two models that it has evaluated.

    LOG.json, LOG.eval  ->  CellResults

The first is Inspect's log as JSON, whose schema `inspect log schema` prints. The second is packed, and Inspect's own
reader opens it where it is installed. Samples are paired by hashes of their id with input, and of their target. The
first scorer counts. A sample that was asked several times has the mean of its scores.

What prompts share stands in the solvers and the settings of generation: a hash of both is a part of the condition
`scorer`, beside the version of Inspect.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.records.record import read_json
from bench.regression.results import Answers, CellResults
from methods.errors import UserError, first_line_of

PACKED = ".eval"
SCORES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partially correct, incorrect, no answer
RIGHT = "accuracy"  # Inspect's metric that is the mean of the scores, by its name
CLOSE = 1e-6  # between the metric of a log and the mean of its samples
UNASKED = {  # settings of generation that change no answer
    *("max_connections", "adaptive_connections", "max_retries", "timeout", "attempt_timeout", "batch", "cache"),
}


def is_log(path: Path) -> bool:
    """Say whether a path names a log of Inspect: by its ending, or as JSON by its first keys."""
    if not path.is_file():
        return False
    if path.suffix != ".json":
        return path.suffix == PACKED
    try:
        with path.open("rb") as file:
            begin = file.read(200)
    except OSError:
        return False
    return begin.replace(b" ", b"").replace(b"\n", b"").startswith(b'{"version":') and b'"status"' in begin


def results_of_inspect(file: Path) -> CellResults:
    """Return the results of one model from a log of Inspect. Raises UserError for one that cannot be compared."""
    log = _read_packed(file) if file.suffix == PACKED else _read_log(file)
    try:
        about, status = log["eval"], log["status"]
        task, model = str(about["task"]), str(about["model"])
    except (KeyError, TypeError):
        raise UserError(f"{file} is no log of Inspect, which has status and eval with task and model") from None
    if status != "success":
        raise UserError(f"{file} is of an evaluation that did not end well: its status is {status}")
    try:
        answers, scorer = _answers(file, log), _words_of_scorer(log)
    except (AttributeError, IndexError, KeyError, TypeError):  # a part has another shape than the schema says
        raise UserError(f"{file} is no log of Inspect as its schema describes one; see `inspect log schema`") from None
    return CellResults(
        identity={"label": model, "ratio": None, "seed": None},
        status="ok",
        conditions={"scorer": scorer},
        about={"model": model},
        tasks={task: answers} if answers is not None else {},
        untested=() if answers is not None else (task,),
    )


def _read_log(file: Path) -> Any:
    try:
        return read_json(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _read_packed(file: Path) -> Any:
    """Return a packed log as plain values, by Inspect's own reader. Raises UserError where it is not installed."""
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise UserError(
            f"{file} is packed, and Inspect's reader is not installed: `pip install inspect-ai`, or write it as JSON "
            "where Inspect is, with `inspect log dump`"
        ) from None
    try:
        return read_eval_log(str(file)).model_dump(mode="json", exclude_none=True)
    except Exception as error:  # whatever its reader raises of a damaged file
        raise UserError(f"{file} cannot be read by Inspect: {first_line_of(error)}") from None


def _answers(file: Path, log: Mapping[str, Any]) -> Answers | None:
    """Return the value of each sample by the first scorer; None where a sample has no number.

    Raises UserError where the log has no samples, and where their mean is not the one that it says.
    """
    samples = log.get("samples")
    if not samples:
        raise UserError(f"{file} has no samples, by which models are compared; Inspect logs them unless told otherwise")
    scored = ((log.get("results") or {}).get("scores") or [{}])[0]
    scorer = str(scored.get("name"))
    values_by_unit: dict[str, list[float]] = {}
    for number, sample in enumerate(samples, 1):
        value = _value(file, number, sample, scorer)
        if value is None:
            return None
        values_by_unit.setdefault(_unit_of_sample(sample), []).append(value)
    values = np.array([np.mean(several) for several in values_by_unit.values()])
    expected = ((scored.get("metrics") or {}).get(RIGHT) or {}).get("value")
    if isinstance(expected, int | float) and abs(expected - float(values.mean())) > CLOSE:
        raise UserError(
            f"{file} says an accuracy of {expected:.4f}, and its {len(values):,} samples have a mean of "
            f"{values.mean():.4f}: they are reduced by a rule of their own, and cannot be compared"
        )
    is_right_or_wrong = bool(np.isin(values, (0, 1)).all())
    metric = f"{'acc' if is_right_or_wrong else 'mean'},{scorer}"
    return Answers(tuple(values_by_unit), values, (), metric, log["eval"].get("task_version"), 0, (0, None, None))


def _value(file: Path, number: int, sample: Any, scorer: str) -> float | None:
    """Return the score of a sample as a number; None where it has none. Raises UserError for what is no sample."""
    if not isinstance(sample, dict) or not {"id", "input", "target"} <= sample.keys():
        raise UserError(f"{file}: sample {number} has no id, input or target, which Inspect writes of each")
    if sample.get("error"):
        raise UserError(f"{file}: sample {sample['id']} ended with an error, so that models have not answered the same")
    value = ((sample.get("scores") or {}).get(scorer) or {}).get("value")
    if isinstance(value, str):
        return SCORES.get(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _unit_of_sample(sample: Mapping[str, Any]) -> str:
    """Return DOCUMENT:PROMPT:TARGET of a sample, as bench.records.samples.Sample has it."""
    turns = sample["input"]
    if isinstance(turns, list):  # a turn has a random id, which differs from log to log
        turns = list(map(_drop_id, turns))
    content = json.dumps([turns, sample.get("choices")], sort_keys=True)
    parts = (f"{sample['id']} {content}", content, json.dumps(sample["target"]))
    return ":".join(hashlib.sha256(part.encode()).hexdigest() for part in parts)


def _drop_id(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn without its id."""
    return {name: value for name, value in turn.items() if name != "id"}


def _words_of_scorer(log: Mapping[str, Any]) -> str:
    """Return the version of Inspect, with a hash of the solvers, the scorers and the settings of generation."""
    about, plan = log["eval"], log.get("plan") or {}
    settings = [plan.get("config") or {}, about.get("model_generate_config") or {}]
    kept = list(map(_drop_unasked, settings))
    steps = [[step.get("solver"), step.get("params")] for step in plan.get("steps") or []]
    scorers = [[each.get("name"), each.get("options")] for each in about.get("scorers") or []]
    settled = json.dumps(_drop_absent([steps, kept, scorers]), sort_keys=True)
    digest = hashlib.sha256(settled.encode()).hexdigest()
    return f"inspect_ai {(about.get('packages') or {}).get('inspect_ai', '')} with the settings {digest[:8]}"


def _drop_unasked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of generation without those that change no answer."""
    return {name: value for name, value in settings.items() if name not in UNASKED}


def _drop_absent(value: Any) -> Any:
    """Return plain values without keys whose value is None, which one form of a log writes and the other leaves out."""
    if isinstance(value, dict):
        return {name: _drop_absent(each) for name, each in value.items() if each is not None}
    return [_drop_absent(each) for each in value] if isinstance(value, list) else value
