"""Where cells run: what every engine offers (engine), this machine (local), a Ray cluster (ray), Slurm (slurm).

bench.run(spec, engine=bench.engines.Ray(address="10.0.0.1:6379"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
