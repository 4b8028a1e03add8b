"""Keeps the baseline of a gate: a packed run in the user's repository that review alone changes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.records import packed_run, run_folder
from bench.records.record import LEFT_OUT
from bench.regression.pairs import Windows
from bench.regression.results import Answers, CellResults, results_of_run
from methods.errors import UserError


class NoBaseline(Exception):
    """Says in one line that there is no folder of a baseline, or that it holds no run."""


def read_baseline(folder: Path) -> dict[str, CellResults]:
    """Return the cells of a baseline, or of any other run folder, by their names. Raises NoBaseline."""
    if not run_folder.files_of_records(folder):
        raise NoBaseline(f"no baseline {folder}; `baseline accept RUN --out {folder}` makes one")
    wrong = list[str]()
    try:
        cells = dict(sorted(results_of_run(folder, wrong.append).items()))
    except UserError as error:
        raise NoBaseline(f"{folder} cannot be read as a baseline: {error}") from None
    if wrong:  # their cells would not be compared
        raise NoBaseline(f"{folder} cannot be read as a baseline: {wrong[0].removesuffix(f'; {LEFT_OUT}')}")
    return cells


def accept(run: Path, folder: Path, *, allow_failed: bool = False, replace: bool = False) -> list[str]:
    """Pack a run into `folder`, and return lines on its changes, its untested tasks and its size. Raises UserError."""
    cells = results_of_run(run)
    failed = [f"{name} ({cell.status})" for name, cell in cells.items() if cell.status != "ok"]
    if failed and not allow_failed:
        raise UserError(f"{run} has failed cells: {', '.join(failed)}; --allow-failed accepts them as failed")
    if folder.is_file():
        raise UserError(f"{folder} is a file, and a baseline is a folder; name another --out")
    before: Mapping[str, CellResults] = {}
    if folder.is_dir() and any(folder.iterdir()):
        if not replace:
            raise UserError(f"{folder} exists; --replace overwrites it and prints what changes")
        if not packed_run.is_packed(folder):
            raise UserError(f"{folder} is no baseline that could be replaced: it has no {packed_run.RECORDS}")
        before = _readable(folder)
    _write(run, folder)
    untested = [f"{name}: {task}" for name, cell in cells.items() for task in cell.untested]
    left_out = [f"left out, since it has no figure per document: {name}" for name in untested]
    size = sum(path.stat().st_size for path in packed_run.files_of_packed_run(folder))
    return [*changes_of_cells(before, cells), *left_out, f"{folder}: {len(cells)} cells, {size:,} bytes"]


def _write(run: Path, folder: Path) -> None:
    """Put the packed run in place of an earlier one, once it is whole; files of the folder that are no run's stay."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".baseline-") as name:
        staged, earlier = Path(name) / "run", Path(name) / "earlier"
        packed_run.pack_run(run, staged, run_folder.ignore_warning)
        if not folder.exists():
            staged.rename(folder)
            return
        old = set(packed_run.files_of_packed_run(folder))
        shutil.copytree(
            folder, staged, ignore=lambda at, names: [n for n in names if Path(at, n) in old], dirs_exist_ok=True
        )
        folder.rename(earlier)
        try:
            staged.rename(folder)
        except BaseException:
            earlier.rename(folder)
            raise


def _readable(folder: Path) -> Mapping[str, CellResults]:
    """Return the cells of a baseline that is about to be replaced, none where it is damaged."""
    try:
        return results_of_run(folder)
    except UserError:
        return {}


def changes_of_cells(before: Mapping[str, CellResults], after: Mapping[str, CellResults]) -> list[str]:
    """Return a line for each cell that is new or missing, and for each value or condition that changes."""
    lines = [f"- {name}" for name in sorted(before.keys() - after.keys())]
    for name, cell in sorted(after.items()):
        if name not in before:
            lines.append(f"+ {name}")
        else:
            lines += [f"  {name}: {line}" for line in _cell_changes(before[name], cell)]
    return lines


def _cell_changes(before: CellResults, after: CellResults) -> Iterator[str]:
    old_values, new_values = _flat(before), _flat(after)
    nothing = ("nothing", None)
    for key in sorted(old_values.keys() | new_values.keys()):
        (old, old_content), (new, new_content) = old_values.get(key, nothing), new_values.get(key, nothing)
        if old != new:
            yield f"{key}: {old} -> {new}"
        elif old_content != new_content:
            yield f"{key}: {old}, of other {DATA_OF_GROUP[key.partition(' ')[0]]}"


DATA_OF_GROUP = {  # the data that may differ behind an equal value
    "tasks": "answers",
    "bits": "likelihoods",
    "texts": "windows",
    "speed": "interval",
}


def _flat(cell: CellResults) -> dict[str, tuple[str, Any]]:
    """Return {group and name: (value or condition as a line writes it, other data that must be equal)}."""
    values: dict[str, tuple[str, Any]] = {"status": (cell.status, None)}
    for group in ("about", "conditions", "sizes"):
        values |= {f"{group} {name}": (_brief(value), None) for name, value in getattr(cell, group).items()}
    values |= {f"tasks {name}": _answers(answers) for name, answers in cell.tasks.items()}
    values |= {f"bits {name}": _answers(answers) for name, answers in cell.bits.items()}
    values |= {f"texts {name}": _windows(windows) for name, windows in cell.texts.items()}
    return values | {f"speed {name}": (str(round(speeds[0], 4)), speeds) for name, speeds in cell.speed.items()}


def _answers(task: Answers) -> tuple[str, Any]:
    about = (task.metric, task.units, task.version, task.fewshot)
    return str(round(float(task.values.mean()), 6)), (*about, task.values.tolist())


def _windows(text: Windows) -> tuple[str, Any]:
    return str(float(f"{text.perplexity:.6g}")), (text.sha256, text.values.tolist(), text.tokens)


def _brief(value: Any) -> str:
    """Write a condition; of a hash its first digits."""
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)
