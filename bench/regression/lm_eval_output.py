"""Reads what lm-eval itself has written of a model, so that `compare` and `gate` take any two models that it scored.

    results_DATE.json, samples_TASK_DATE.jsonl  ->  CellResults

lm-eval writes the first file with --output_path, and the others beside it with --log_samples. Each sample has hashes of
its document, prompt and target, by which the answers of two models are paired. A task's metric is acc_norm, or acc, or
the first that it has, as in a run's own records; of several filters the first counts.

Bits per byte are those of the right answer (bench.records.answers). They are left out where the samples do not say
which choice is right: the position in `target` has to give the `acc` of every document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.records.answers import bits_per_byte, count_scored_bytes, find_main_metric
from bench.records.measured import ANSWER_BPB
from bench.records.record import read_json
from bench.records.samples import HASHES
from bench.regression.results import BITS_DIGITS, Answers, CellResults
from methods.errors import UserError

RESULTS, SAMPLES = "results_", "samples_"  # how lm-eval begins the names of its files
LOGGED = "lm_eval writes them with --output_path and --log_samples"
CLOSE = 1e-6  # between a task's metric and the mean of its samples
Lines = list[dict[str, Any]]  # of one task, a sample in each


def find_results_file(path: Path) -> Path | None:
    """Return the results file that a path names: itself, or the latest in a folder or in one below; else None."""
    if path.is_dir():
        files = sorted([*path.glob(f"{RESULTS}*.json"), *path.glob(f"*/{RESULTS}*.json")], key=lambda file: file.name)
        return files[-1] if files else None
    return path if path.suffix == ".json" and path.is_file() else None


def results_of_lm_eval(file: Path, samples: Path | None = None) -> CellResults:
    """Return the results of one model from a results file of lm-eval.

    samples  a folder of its samples, or the file of one task; by default they lie beside the results

    Raises UserError for a file that lm-eval has not written so, for missing samples, and for those of other results.
    """
    results = _read_results(file)
    files = _files_of_samples(file, samples)
    tasks, bits, untested = dict[str, Answers](), dict[str, Answers](), list[str]()
    for task, samples_file in files.items():
        if task not in results["versions"]:
            raise UserError(f"{samples_file} is of the task {task}, which {file} does not have")
        lines = _read_samples(samples_file)
        answers = _answers_of_task(task, lines, results)
        if answers is None:
            untested.append(task)
            continue
        _refuse_other_results(samples_file, file, answers, results["results"].get(task, {}), lines[0]["filter"])
        tasks[task] = answers
        right = _bits_of_documents(lines)
        bits |= {task: _replace_values(answers, right)} if right is not None else {}
    return CellResults(
        identity={"label": str(results.get("model_name") or file.stem), "ratio": None, "seed": None},
        status="ok",
        conditions=_conditions(results),
        about={"model": results.get("model_name")},
        tasks=tasks,
        bits=bits,
        untested=tuple(untested),
    )


def _read_results(file: Path) -> dict[str, Any]:
    """Return the contents of a results file. Raises UserError where it is none."""
    try:
        results = read_json(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    parts = ("results", "versions", "n-shot", "config")
    if not isinstance(results, dict) or not all(isinstance(results.get(part), dict) for part in parts):
        raise UserError(f"{file} is no results file of lm-eval, which has {', '.join(parts)}")
    return results


def _files_of_samples(file: Path, samples: Path | None) -> dict[str, Path]:
    """Return the file of samples of each task. Raises UserError where there are none."""
    date = file.stem.removeprefix(RESULTS)
    if samples is not None and samples.is_file():
        files = [samples]
    else:
        pattern = f"{SAMPLES}*.jsonl" if samples is not None else f"{SAMPLES}*_{date}.jsonl"
        files = sorted((samples or file.parent).glob(pattern))
    if not files:
        where = f"{samples} has no samples" if samples is not None else f"{file} has no samples beside it"
        raise UserError(f"{where}, {SAMPLES}TASK_DATE.jsonl: {LOGGED}")
    tasks = {path.stem.removeprefix(SAMPLES).rpartition("_")[0] or path.stem: path for path in files}
    if len(tasks) < len(files):
        raise UserError(f"{samples} has samples of several dates; name a folder that has those of {file.name} alone")
    return tasks


def _read_samples(file: Path) -> Lines:
    """Return the samples of a task's first filter. Raises UserError where a line is none."""
    lines = Lines()
    for number, text in enumerate(file.read_bytes().splitlines(), 1):
        where = f"{file}, line {number}"
        line = read_json(text, where)
        needed = (*HASHES, "metrics", "resps", "arguments", "target", "filter")
        missing = [name for name in needed if name not in line] if isinstance(line, dict) else ["sample"]
        if missing:
            raise UserError(f"{where} has no {missing[0]}, which lm-eval 0.4.13 writes for each document")
        lines.append(line)
    if not lines:
        raise UserError(f"{file} is empty")
    return [line for line in lines if line["filter"] == lines[0]["filter"]]


def _answers_of_task(task: str, lines: Lines, results: dict[str, Any]) -> Answers | None:
    """Return the values of a task's metric with its documents; None where no metric has a number for each."""
    numeric = [name for name in lines[0]["metrics"] if _is_number_throughout(lines, name)]
    metric = find_main_metric(numeric)
    if metric is None:
        return None
    fewshot = int(results["n-shot"].get(task) or 0)
    chat = (results.get("chat_template_sha"), results.get("system_instruction"))
    units = tuple(map(_unit_of_sample, lines))
    values = np.array([float(line[metric]) for line in lines])
    return Answers(units, values, (), metric, results["versions"][task], fewshot, (fewshot, *chat))


def _unit_of_sample(line: dict[str, Any]) -> str:
    """Return DOCUMENT:PROMPT:TARGET of a sample, as bench.records.samples.Sample has it."""
    return ":".join(str(line[name]) for name in HASHES)


def _is_number_throughout(lines: Lines, metric: str) -> bool:
    return all(_is_number(line.get(metric)) for line in lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _replace_values(answers: Answers, bits: Sequence[float]) -> Answers:
    """Return the bits per byte of the same documents."""
    values = np.array(bits).round(BITS_DIGITS)
    about = (ANSWER_BPB, answers.version, answers.fewshot, answers.prompting)
    return Answers(answers.units, values, (), *about)


def _refuse_other_results(
    samples: Path, file: Path, answers: Answers, metrics: dict[str, Any], filter_name: str
) -> None:
    """Raise UserError where the samples of a task do not have the mean that the results say."""
    expected, mean = metrics.get(f"{answers.metric},{filter_name}"), float(answers.values.mean())
    if not _is_number(expected) or abs(expected - mean) > CLOSE:  # type: ignore[operator]
        raise UserError(
            f"{samples} has an {answers.metric} of {mean:.4f} over {len(answers.units):,} documents, where {file} says "
            f"{expected}: they are of two evaluations"
        )


def _bits_of_documents(lines: Lines) -> list[float] | None:
    """Return the bits per byte of each document's right answer; None where it is not known or not scored."""
    every = list[float]()
    for line in lines:
        try:
            likelihoods = [float(response[0][0]) for response in line["resps"]]
            texts = [(arguments["arg_0"], arguments["arg_1"]) for arguments in line["arguments"].values()]
        except (KeyError, IndexError, TypeError, ValueError):  # what was written, or a whole document's likelihood
            return None
        right = _position_of_right_choice(line, likelihoods)
        if right is None or len(texts) != len(likelihoods):
            return None
        every.append(bits_per_byte(likelihoods[right], count_scored_bytes(*texts[right])))
    return every


def _position_of_right_choice(line: dict[str, Any], likelihoods: list[float]) -> int | None:
    """Return the position that the target of a sample names; None where its `acc` contradicts it, or it names none."""
    if len(likelihoods) == 1:
        return 0
    target = str(line["target"])
    if not target.isdigit() or int(target) >= len(likelihoods) or not _is_number(line.get("acc")):
        return None
    likeliest = likelihoods.index(max(likelihoods))
    return int(target) if bool(line["acc"]) == (likeliest == int(target)) else None


def _conditions(results: dict[str, Any]) -> dict[str, Any]:
    """Return what the answers depend on, by the names of comparability.GATE; what is unknown is absent."""
    config = results["config"]
    values = {
        "dtype": str(config.get("model_dtype") or "").removeprefix("torch."),
        "device": str(config.get("device") or "").partition(":")[0],
        "lm_eval": results.get("lm_eval_version"),
        "transformers": results.get("transformers_version"),
        "chat_template": results.get("chat_template_sha"),
        "system": results.get("system_instruction"),
    }
    return {name: value for name, value in values.items() if value}
