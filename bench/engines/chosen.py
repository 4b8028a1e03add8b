"""Turns the flags of a run into the engine that they name."""

from __future__ import annotations

from dataclasses import fields

from bench.engines.engine import Engine
from bench.engines.local import Local
from bench.plan.run_spec import RunSpec
from methods.errors import UserError

CLUSTERS = ("ray", "slurm")
ONLY_OF = {  # fields of a run, by the engines that take them
    "gpus_per_cell": CLUSTERS,
    "accelerator": CLUSTERS,
    "ray_address": ("ray",),
    "partition": ("slurm",),
    "slurm_options": ("slurm",),
}


def engine(spec: RunSpec) -> Engine:
    """Return the engine that a run asks for.

    Raises UserError where its package is missing, and for flags of another engine.
    """
    _refuse_others(spec)
    if spec.engine == "slurm":
        return _slurm(spec)
    return Local(spec.slots or 1)


def _refuse_others(spec: RunSpec) -> None:
    """Refuse flags that the engine of the run does not take."""
    for one in fields(RunSpec):
        takers = ONLY_OF.get(one.name, (spec.engine,))
        if spec.engine not in takers and getattr(spec, one.name) != one.default:
            flag = one.metadata.get("flag", one.name.replace("_", "-"))
            raise UserError(f"--{flag} is of --engine {' or '.join(takers)}, and this run's is {spec.engine}")


def _slurm(spec: RunSpec) -> Engine:
    """Return Slurm, as the flags describe it."""
    from bench.engines.slurm import Slurm

    if spec.slots == "auto":
        raise UserError("--slots auto counts the GPUs of this machine; give how many cells Slurm may have at once")
    options = {}
    for given in spec.slurm_options:
        name, is_given, value = given.partition("=")
        if not is_given:
            raise UserError(f"--slurm is NAME=VALUE, as in time=120; got {given!r}")
        options[name] = value
    return Slurm(spec.partition, spec.gpus_per_cell, spec.accelerator, spec.slots, options)
