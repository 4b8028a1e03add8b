"""Holds the finding of a check, and writes findings as a table for the reader or as JSON for a bug report.

`difference_of_tensors` and `is_close` compare numbers that two machines, or two ways on one, have computed.
"""

from __future__ import annotations

import math
import re
import textwrap
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tabulate import tabulate
from torch import Tensor

from bench.system import failures

LAYOUT = 1
CODE = Path(__file__).resolve().parents[2]  # below which the project's own files lie
FIGURE = 76  # columns of the last column of the table
PATH = re.compile(r"(?<![\w/.])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/'\"]+[\\/])+(?=[^\s\\/'\"]*)")  # up to the last name


@dataclass(frozen=True)
class Finding:
    """Holds the outcome of one check.

    status  ok; wrong; not here, where this machine has no such thing or nothing to compare with
    what    the thing, as a method's name
    figure  what was measured, or what is wrong
    found   the same as plain JSON values
    where   lines of code, the innermost last, where an exception was raised
    """

    status: Literal["ok", "wrong", "not here"]
    what: str
    figure: str
    found: dict[str, Any] = field(default_factory=dict)
    where: tuple[str, ...] = ()


def finding_of_check(what: str, wrong: Sequence[str], figure: str, **values: Any) -> Finding:
    """Return a finding that is ok with its figure, unless something is wrong."""
    return Finding("wrong", what, "; ".join(wrong), values) if wrong else Finding("ok", what, figure, values)


def finding_of_error(what: str, error: Exception) -> Finding:
    """Return the finding of an exception: its text without paths, and the lines of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = tuple(f"{_inside(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames)
    return Finding("wrong", what, without_paths(failures.reason_of_error(error)), where=where)


def without_paths(text: str) -> str:
    """Return a text in which every path is cut to its last name, and the user's folder to a tilde."""
    home = Path.home()
    return PATH.sub("", text.replace(str(home), "~") if home.name else text)


def _inside(file: str) -> str:
    """Return a file's name from its package on."""
    path = Path(file)
    if path.is_relative_to(CODE) and "site-packages" not in path.parts:
        return path.relative_to(CODE).as_posix()
    parts = path.parts
    start = next((at + 1 for at, part in enumerate(parts) if part in ("site-packages", "dist-packages")), -1)
    return "/".join(parts[start:])


def format_findings(findings: Iterable[Finding]) -> str:
    """Return one line for each finding: its status, its name, and the figure."""
    rows = [(finding.status, finding.what, textwrap.fill(finding.figure, FIGURE)) for finding in findings]
    return tabulate(rows, ("status", "what", "figure"), tablefmt="plain", disable_numparse=True)


def document_of_findings(findings: Iterable[Finding], machine: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a bug report as plain JSON values: no host name, no user's name, no path."""
    plain = []
    for finding in findings:
        plain.append({name: value for name, value in asdict(finding).items() if value})
    document: dict[str, Any] = _finite({"layout": LAYOUT, "machine": machine, "findings": plain})
    return document


def _finite(value: Any) -> Any:
    """Return plain values with None in place of floats that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


DTYPES = (torch.float32, torch.bfloat16)
# How far apart two computations may be, as a share of how much the numbers vary (root mean square of both). Measured on
# a CPU: noise of 1e-6 in every weight moves logits by less than 2e-5, and bfloat16 by less than 0.05, with the same
# decisions; a wrong decision moves them by 0.05 and more, which float32 shows.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}


def difference_of_tensors(got: Tensor, want: Tensor) -> float:
    """Return the root mean square of the difference as a share of the standard deviation of `want`; nan for nan."""
    got, want = got.double().cpu(), want.double().cpu()
    return float((got - want).square().mean().sqrt() / want.std())


def is_close(share: float, dtype: torch.dtype) -> bool:
    """Say whether such a share is rounding; False for nan."""
    return share <= TOLERANCE[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name."""
    return str(dtype).removeprefix("torch.")
