"""Turns the flags of a run into the engine that they name."""

from __future__ import annotations

from bench.engines.engine import Engine
from bench.engines.local import Local
from bench.engines.ray import Ray
from bench.plan.fields import options
from bench.plan.run_spec import RunSpec
from methods.errors import UserError

OWN = {  # {field: the engines that heed it}
    "ray_address": ("ray",),
    "gpus_per_cell": ("ray", "slurm"),
    "accelerator": ("ray", "slurm"),
    "partition": ("slurm",),
    "slurm_options": ("slurm",),
}


def engine(spec: RunSpec) -> Engine:
    """Return the engine that a run asks for. Raises UserError where its package is missing, and for another's flags."""
    for one in options(RunSpec):
        heeded = OWN.get(one.field, (spec.engine,))
        if spec.engine not in heeded and getattr(spec, one.field) != one.default:
            raise UserError(f"--{one.flag} is for --engine {' or '.join(heeded)}, not for {spec.engine}; leave it out")
    if spec.engine == "local":
        return Local(spec.slots or 1)
    if spec.isolate is False:
        raise UserError(f"--engine {spec.engine} measures each cell in a process of its own; leave --no-isolate out")
    most = None if spec.slots == "auto" else spec.slots
    return Ray(spec.ray_address or "auto", spec.gpus_per_cell, spec.accelerator, most)
