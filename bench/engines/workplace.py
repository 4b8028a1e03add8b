"""Keeps what jobs share that another machine than the run's measures one after the other: a process and a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.system.failures import Failure
from bench.system.worker import Limits, Worker


class Workplace:
    """Runs one task after the other in a process, of which a failure makes a new one.

    folder  for what need not outlive the place, as the dense model's predictions; None: one of its own
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._own = None
        if folder is None:
            self._own = tempfile.TemporaryDirectory(prefix="prunebench-", ignore_cleanup_errors=True)
            folder = Path(self._own.name)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._variables: Mapping[str, str] = {}
        self._worker = Worker()

    def run(
        self,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        *,
        variables: Mapping[str, str],
        limits: Limits,
        hear: Callable[[dict[str, Any]], object],
    ) -> Failure | None:
        """Run a task, as `Worker.run` does, in a process whose environment has the variables."""
        if variables != self._variables:
            self.end_process()
            self._worker, self._variables = Worker(variables), dict(variables)
        return self._worker.run(target, arguments, limits=limits, hear=hear)

    def end_process(self) -> None:
        """Let the next task have a process of its own."""
        self._worker.stop()

    def close(self) -> None:
        """End the process, and remove the folder where it is the place's own."""
        self.end_process()
        if self._own:
            self._own.cleanup()

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._worker.end()
        self.close()
