"""Runs the checks one after the other. An error in a check is wrong on this machine, and the others go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from bench.doctor import CHECKS, machine, measuring, pruning
from bench.doctor.finding import Finding, finding_of_error
from methods.console import say
from methods.errors import UserError

FUNCTIONS: dict[str, Callable[[torch.device], Iterator[Finding]]] = {
    "machine": machine.check_machine,
    "methods": pruning.check_pruning,
    "scorer": measuring.check_scores,
    "timing": measuring.check_timing,
    "checkpoints": pruning.check_storing,
    "memory": machine.check_memory,
    "copies": machine.check_copies,
}


def examine(device: torch.device, only: Sequence[str] = ()) -> list[Finding]:
    """Run all checks, or only the named ones, and return their findings. Raises UserError for an unknown name."""
    if unknown := [name for name in only if name not in CHECKS]:
        raise UserError(f"--only names checks of {', '.join(CHECKS)}; got {unknown[0]!r}")
    findings = list[Finding]()
    for name, about in CHECKS.items():
        if only and name not in only:
            continue
        say(f"{name}: {about}")
        start = time.perf_counter()
        try:
            findings.extend(FUNCTIONS[name](device))
        except Exception as error:
            findings.append(finding_of_error(name, error))
        say(f"{name}: {time.perf_counter() - start:.1f} s")
    return findings


def names_of_wrong(findings: Sequence[Finding]) -> list[str]:
    """Return the names of the findings that are wrong."""
    return [finding.what for finding in findings if finding.status == "wrong"]
