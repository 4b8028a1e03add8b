"""Measures pruned models and reports them: from a spec to one JSON record for each cell.

    import bench

    spec = bench.RunSpec(methods="laco,slicegpt", ratio=0.3, out="results/mine")
    records = bench.run(spec)                                # measured, or read from the folder
    records = bench.run(spec, engine=bench.engines.Local(slots=4))      # four cells at once
    cells = bench.read("results/mine")                       # a pandas DataFrame, a row for each cell
    documents = bench.samples("results/mine", "piqa")        # a row for each cell and document
    report = bench.report("results/mine")                    # tables and figures, for Jupyter to show
    pruned = bench.prune(model, "flap", 0.2, tokenizer=tokenizer)       # a copy of a model that is in memory
    before, after = (bench.evaluate(each, tokenizer=tokenizer) for each in (model, pruned))
    bench.compare(before, after)                             # in pairs of the same documents and windows

Nothing heavy is imported before one of these names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.plan.protocol import Recipe
    from bench.plan.run_spec import RunSpec
    from bench.records.run_folder import read, samples
    from bench.runs.in_memory import prune
    from bench.runs.quality_in_memory import compare, evaluate
    from bench.runs.runner import run_spec as run
    from reports.report import report


__all__ = ["Recipe", "RunSpec", "compare", "evaluate", "prune", "read", "report", "run", "samples"]

HOMES = {  # the module that has each name, and what it is called there
    "Recipe": ("bench.plan.protocol", "Recipe"),
    "RunSpec": ("bench.plan.run_spec", "RunSpec"),
    "compare": ("bench.runs.quality_in_memory", "compare"),
    "evaluate": ("bench.runs.quality_in_memory", "evaluate"),
    "prune": ("bench.runs.in_memory", "prune"),
    "read": ("bench.records.run_folder", "read"),
    "report": ("reports.report", "report"),
    "run": ("bench.runs.runner", "run_spec"),
    "samples": ("bench.records.run_folder", "samples"),
}


def __getattr__(name: str) -> Any:
    if name == "engines":
        return import_module("bench.engines")
    if name in HOMES:
        module, attribute = HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
