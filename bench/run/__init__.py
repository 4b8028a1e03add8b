"""Turns cells into records. The package is called as well: `bench.run(spec)` measures what a RunSpec asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.engines.engine import Engine
    from bench.plan.run_spec import RunSpec
    from bench.records.record import Record


class _Run(ModuleType):
    """A package that can be called, since `bench.run` is its name and that of what it does."""

    def __call__(
        self,
        spec: RunSpec,
        report: Callable[[Path, list[Record]], object] = lambda folder, records: None,
        engine: Engine | None = None,
    ) -> list[Record]:
        """Measure what is asked for and return the records of its cells, as bench.run.runner.run_spec does."""
        from bench.run.runner import run_spec

        return run_spec(spec, report, engine)


sys.modules[__name__].__class__ = _Run
