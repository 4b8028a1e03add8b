"""Asks, runs, writes down: from what is asked for to one JSON record for each cell.

    import bench

    spec = bench.RunSpec(methods="laco,slicegpt", ratio=0.3, out="results/mine")
    records = bench.run(spec)                                # measured, or found in the folder
    records = bench.run(spec, engine=bench.engines.Local(slots=4))      # four cells at once
    cells = bench.read("results/mine")                       # a pandas DataFrame, a row for each cell
    documents = bench.samples("results/mine", "piqa")        # a row for each cell and document
    report = bench.report("results/mine")                    # tables and figures, which Jupyter shows

Nothing heavy is imported before one of these names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.plan.recipe import Recipe
    from bench.plan.run_spec import RunSpec
    from bench.records.run_folder import read, samples
    from bench.run.runner import run_spec as run
    from reports.notebook import report

__all__ = ["Recipe", "RunSpec", "read", "report", "run", "samples"]

HOMES = {  # the module that has each name
    "Recipe": "bench.plan.recipe",
    "RunSpec": "bench.plan.run_spec",
    "read": "bench.records.run_folder",
    "report": "reports.notebook",
    "samples": "bench.records.run_folder",
}


def __getattr__(name: str) -> Any:
    if name in ("engines", "run"):
        return import_module(f"bench.{name}")  # of which bench.run can be called
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
