"""Says how a cell was measured otherwise than a printed figure; where it was not, their difference means something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.data.task_sources import VALIDATION
from bench.records.record import Record
from reports import healing_notes
from reports.published.papers import PublishedProtocol

CALIBRATION = ("calibration", "calibration_sequences", "calibration_length")


def of_perplexity(published: PublishedProtocol, record: Record, text: str) -> list[str]:
    """Return why a perplexity of the record is not the same figure as the printed one; nothing where it is."""
    found = record.measured["perplexity"][text]
    reasons = list(_otherwise("the window", "windows of {} tokens", published.window, found["window"]))
    if published.window is not None and found["stride"] != found["window"]:
        reasons.append(f"windows that do not overlap published, a stride of {found['stride']} here")
    if found.get("drawn"):
        reasons.append("windows one behind the other published, drawn from the text here")
    every = found.get("whole") and record.cell["protocol"]["windows"] == 0
    windows = 0 if every else found["windows"]
    if published.windows != windows:
        words = {None: "how many windows not known", 0: "the whole text"}
        theirs, ours = (words.get(one, f"{one} windows") for one in (published.windows, windows))
        reasons.append(f"{theirs}{' published' * (published.windows is not None)}, {ours} here")
    return [*reasons, *_otherwise("BOS", "BOS {}", published.bos, found["bos"]), *_alike(published, record)]


def of_tasks(published: PublishedProtocol, record: Record, tasks: Sequence[str]) -> list[str]:
    """Return why the accuracies of tasks are not the same figures as the printed ones."""
    measured = {name: record.measured["tasks"][name] for name in tasks}
    version = record.environment.get("versions", {}).get("lm_eval")
    reasons = list(_otherwise("the version of lm-eval", "lm-eval {}", published.lm_eval, version))
    few = [f"{name} {one['documents']:,} of {one['available']:,}" for name, one in measured.items() if _is_part(one)]
    if few:
        reasons.append(f"all documents published, {', '.join(few)} here")
    local = {task for task, *_ in record.cell["protocol"].get("task_data", ())}
    if other := [name for name in tasks if name in VALIDATION and name not in local]:
        reasons.append(f"the validation sets of {', '.join(other)} here")
    shots = sorted({one["fewshot"] for one in measured.values()})
    reasons += _otherwise(
        "the number of examples", "{} examples", published.fewshot, shots[0] if len(shots) == 1 else shots
    )
    metrics = {_metric(published.metric, one) for one in measured.values()}
    if published.metric is None:
        reasons.append("which metrics not known of the published")
    elif metrics != {True}:
        mains = sorted({one["main"] for one in measured.values()})
        reasons.append(f"{published.metric} published, {' and '.join(mains)} here")
    return [*reasons, *_alike(published, record)]


def _is_part(task: Mapping[str, Any]) -> bool:
    return bool(task["documents"] < task["available"])


def _metric(published: str | None, task: Mapping[str, Any]) -> bool:
    """Say whether a task's main metric is the printed one."""
    if published == "acc_norm or acc":
        return bool(task["main"] == ("acc_norm" if "acc_norm" in task["metrics"] else "acc"))
    return bool(task["main"] == published)


def _alike(published: PublishedProtocol, record: Record) -> Iterator[str]:
    """Yield what is otherwise whatever was measured: the dtype, what a method has looked at, and what else was done."""
    yield from _otherwise("the dtype", "{}", published.dtype, record.cell["dtype"])
    if record.cell.get("earlier"):
        yield "pruned in several steps here"
    if healing_notes.of(record.cell):
        yield "healed here"
    if record.cell["method"] == "dense":
        return
    asked = record.cell["protocol"]
    here = [asked[name] for name in CALIBRATION]
    theirs = [getattr(published, name) for name in CALIBRATION]
    if theirs[0] is None:
        yield "the calibration not known of the published"
    elif theirs[0] not in here[0] or any(a not in (None, b) for a, b in zip(theirs[1:], here[1:], strict=True)):
        yield f"calibrated on {_calibrated(theirs)} published, on {_calibrated(here)} here"


def _calibrated(asked: Sequence[Any]) -> str:
    text, sequences, length = asked
    return text if None in (sequences, length) else f"{sequences} sequences of {length:,} tokens of {text}"


def _otherwise(what: str, words: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Yield that two settings differ, or that the published one is not known."""
    if theirs is None:
        yield f"{what} not known of the published"
    elif theirs != ours:
        shown = [f"{one:,}" if isinstance(one, int) else str(one) for one in (theirs, ours)]
        yield f"{words.format(shown[0])} published, {words.format(shown[1])} here"
