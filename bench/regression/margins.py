"""Says what a run may lose beside its baseline: a margin for each kind of metric, of a YAML file or the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.plan import spec_file
from bench.regression.compared_rows import ComparedRow, allowed_fields
from methods.errors import UserError


@dataclass(frozen=True)
class Margins:
    """Say what may be lost. Points of accuracy, bits per byte, percent of perplexity and speed; None does not gate.

    sizes   whether sizes gate
    tasks   points, of tasks that gate by themselves too
    allow   conditions that may differ (bench.regression.compared_rows.FIELDS)
    """

    accuracy: float | None = 1.0
    answer_bpb: float | None = 0.01
    perplexity: float | None = 1.0
    speed: float | None = 5.0
    sizes: bool = True
    tasks: Mapping[str, float] = field(default_factory=dict)
    allow: tuple[str, ...] = ()

    def of(self, row: ComparedRow) -> float | None:
        """Return the margin of a row in the scale of its change; of a task that does not gate the accuracy's."""
        if row.kind == "text":
            return None if self.perplexity is None else math.log1p(self.perplexity / 100)
        if row.kind == "speed":
            return None if self.speed is None else -math.log1p(-self.speed / 100)
        if row.kind == "bits":
            return self.answer_bpb
        points = self.tasks.get(row.task, self.accuracy) if row.kind == "task" else self.accuracy
        return None if points is None else points / 100

    def gates(self, row: ComparedRow) -> bool:
        """Say whether a row counts; a task does where it is named, or where the run has lost it."""
        if row.kind == "task":
            return row.task in self.tasks or (row.after is None and self.accuracy is not None)
        return self.sizes if row.kind == "size" else self.of(row) is not None


def read(file: Path | None) -> Margins:
    """Read the margins of a YAML file; without one return the defaults. Raises UserError."""
    if file is None:
        return Margins()
    plain = spec_file.read_yaml(file, f"--margins: {file}") or {}
    if not isinstance(plain, dict):
        raise UserError(f"--margins: {file} is a table of names and margins, as in `accuracy: 1.0`")
    known = tuple(Margins.__dataclass_fields__)
    if unknown := [str(key) for key in plain if key not in known]:
        raise UserError(f"--margins: {file} has the unknown key {unknown[0]!r}; there are {', '.join(known)}")
    return Margins(**{key: _checked(file, key, value) for key, value in plain.items()})


def _checked(file: Path, key: str, value: Any) -> Any:
    where = f"--margins: {file}: {key}"
    if key == "allow":
        if not isinstance(value, list):
            raise UserError(f"{where} is a list of fields, as in [cpu, threads]; got {value!r}")
        try:
            return allowed_fields(",".join(map(str, value)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if key == "sizes":
        if value != "exact" and not _is_off(value):
            raise UserError(f"{where} is exact or off; got {value!r}")
        return value == "exact"
    if key == "tasks":
        if not isinstance(value, dict):
            raise UserError(f"{where} has a margin for each task, as in {{hellaswag: 2.0}}; got {value!r}")
        return {str(task): _margin(f"{where}.{task}", points) for task, points in value.items()}
    return None if _is_off(value) else _margin(where, value)


def _is_off(value: Any) -> bool:
    """Say whether a value of YAML is off, which YAML 1.1 reads as false."""
    return value is False or value == "off"


def _margin(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 100:
        raise UserError(f"{where} is a number of points, bits or percent from 0 to below 100, or off; got {value!r}")
    return float(value)
