"""Turns the flags of a run into the engine that they name."""

from __future__ import annotations

from bench.engines.engine import Engine
from bench.engines.local import Local
from bench.plan.run_spec import RunSpec


def engine(spec: RunSpec) -> Engine:
    """Return the engine that a run asks for. Raises UserError where its package is missing."""
    return Local(spec.slots or 1)
