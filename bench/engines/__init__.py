"""Where cells run: on this machine (local), a Ray cluster (ray) or Slurm (slurm). `engine` has what all of them offer.

bench.run(spec, engine=bench.engines.Ray(address="10.0.0.1:6379"))

`engine_of_spec` turns the flags of a run into the engine that they name. An engine is imported when it is named, so
that a node of a cluster, which needs the words of an engine alone, imports no torch for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.engines.engine import Engine
from bench.plan.fields import options_of_class
from bench.plan.run_spec import RunSpec
from methods.errors import UserError

if TYPE_CHECKING:
    from bench.engines.local import Local
    from bench.engines.ray import Ray
    from bench.engines.slurm import Slurm


__all__ = ["Local", "Ray", "Slurm"]

HOMES = {  # the module that has each engine
    "Local": "bench.engines.local",
    "Ray": "bench.engines.ray",
    "Slurm": "bench.engines.slurm",
}


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'bench.engines' has no attribute {name!r}")


OWN = {  # {field: the engines that heed it}
    "ray_address": ("ray",),
    "accelerator": ("ray", "slurm"),
    "partition": ("slurm",),
    "slurm_options": ("slurm",),
}


def refuse_flags(spec: RunSpec) -> None:
    """Raise UserError for a flag that the engine of the run does not heed."""
    for option in options_of_class(RunSpec):
        heeded = OWN.get(option.field, (spec.engine,))
        if spec.engine not in heeded and getattr(spec, option.field) != option.default:
            raise UserError(
                f"--{option.flag} is for --engine {' or '.join(heeded)}, not for {spec.engine}; leave it out"
            )
    if spec.engine != "local" and spec.isolate is False:
        raise UserError(f"--engine {spec.engine} measures each cell in a process of its own; leave --no-isolate out")


def engine_of_spec(spec: RunSpec) -> Engine:
    """Return the engine that a run names. Raises UserError as `refuse_flags` does, and where its package is missing."""
    from bench.engines.local import Local
    from bench.engines.ray import Ray
    from bench.engines.slurm import Slurm

    refuse_flags(spec)
    if spec.engine == "local":
        return Local(spec.slots or 1, spec.gpus_per_cell)
    most = None if spec.slots == "auto" else spec.slots
    if spec.engine == "slurm":
        return Slurm(spec.partition, spec.gpus_per_cell, spec.accelerator, most, _parse_options(spec.slurm_options))
    return Ray(spec.ray_address or "auto", spec.gpus_per_cell, spec.accelerator, most)


def _parse_options(options: Sequence[str]) -> dict[str, str]:
    """Return the options of sbatch by their names. Raises UserError for one that has no value or is given twice."""
    from bench.engines.slurm import to_flag

    option_by_name = dict[str, str]()
    for given in options:
        name, _, value = given.partition("=")
        if not value:
            raise UserError(f"--slurm is NAME=VALUE, as in time=120; got {given!r}")
        if (plain := to_flag(name)) in option_by_name:
            raise UserError(f"--slurm {name}= is given twice, as {option_by_name[plain]!r} and {value!r}; say one")
        option_by_name[plain] = value
    return option_by_name
