"""Finds and reads what other programs have written of a model: lm-eval's output, or a log of Inspect."""

from __future__ import annotations

from pathlib import Path

from bench.records import run_folder
from bench.regression.inspect_output import is_log, results_of_inspect
from bench.regression.lm_eval_output import find_results_file, results_of_lm_eval
from bench.regression.results import CellResults
from methods.errors import UserError

OUTPUT = "the output"  # as messages name it, and as a gate pairs it
PROGRAMS = "lm-eval's results_*.json, or a log of Inspect, *.eval or *.json"


def is_other_output(path: Path) -> bool:
    """Say whether a path names an output of another program, and no run and no cell of one."""
    if run_folder.is_run(path) or run_folder.split_name(str(path)) is not None:
        return False
    return is_log(path) or find_results_file(path) is not None


def read_other_output(path: Path, samples: Path | None = None) -> CellResults:
    """Return the one model of an output of another program.

    samples  a folder of lm-eval's samples, or the file of one task; by default they lie beside the results

    Raises UserError where it cannot be compared, and where there is no such output.
    """
    if is_log(path):
        if samples is not None:
            raise UserError(f"--samples is about lm-eval's output, and {path} is a log of Inspect, which has its own")
        return results_of_inspect(path)
    file = find_results_file(path)
    if file is None:
        raise UserError(f"{path} is none of what other programs write: {PROGRAMS}")
    return results_of_lm_eval(file, samples)
