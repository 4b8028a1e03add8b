"""Cells and inputs for tests that measure nothing."""

from __future__ import annotations

from typing import Any

from bench.plan.cell import Cell, Inputs
from bench.plan.protocol import Protocol


def made_cell(method: str, ratio: float | None, protocol: Protocol, **changes: Any) -> Cell:
    """Return a cell of the model 'm' on the CPU, in float32."""
    fields: dict[str, Any] = {"model": "m", "parameters": {}, "match": "layers", "seed": 0}
    fields |= {"device": "cpu", "dtype": "float32"}
    return Cell(method=method, ratio=ratio, protocol=protocol, **(fields | changes))


def made_inputs(weights: str = "a", **changes: Any) -> Inputs:
    """Return inputs whose hashes are short words."""
    hashes: dict[str, Any] = {"tokenizer_sha256": "b", "calibration_sha256": "c", "texts": {}, "tasks": {}}
    return Inputs(weights_sha256=weights, **(hashes | {"revision": "1", "versions": {}} | changes))
