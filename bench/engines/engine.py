"""Says what a run asks of what measures its cells: an `Engine` takes a `Job` for each cell and gives a `Result` back.

A job is plain values, so that JSON can carry it to another machine, and a result is too; a model is in neither. What
happens to a cell inside a job is that cell's outcome: a crash, a lack of memory, a limit. The run alone decides which
job may start, holds the folder and writes records; a job's samples are pieces in the folder (bench.run.store).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from bench.records.record import REFUSED
from bench.system.worker import Line

SOUND = ("ok", *REFUSED)  # a process in which a cell ended otherwise measures no other one


@dataclass(frozen=True)
class Job:
    """Asks for the measurement of one cell.

    cell     bench.plan.cell.Cell.plain, with the inputs that the worker has to find as well
    key      of that cell
    where    what messages call it
    folder   of the run
    scratch  for what need not outlive the run
    order    the removals that another cell has found, with which a greedy search begins
    seconds  what those have cost
    keep     whether another cell goes on from the pruned model, so that it has to be kept
    plugins  files with methods
    limits   by the names of bench.system.worker.Limits
    timed    whether nothing may run beside it on its machine
    gpus     how many of them it needs for itself
    threads  torch's, on the CPU
    run_threads   torch's of the run, of which the hash of what is timed speaks (bench.run.fingerprint)
    """

    cell: dict[str, Any]
    key: str
    where: str
    folder: str
    scratch: str
    order: tuple[str, ...] = ()
    seconds: float = 0.0
    keep: bool = False
    plugins: tuple[str, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    timed: bool = False
    gpus: int = 0
    threads: int = 1
    run_threads: int = 1


@dataclass(frozen=True)
class Result:
    """Holds what became of a job: `found` has status, error, and as far as they are known the others of a record."""

    key: str
    found: dict[str, Any]


Work = Callable[[Line, Job], None]  # measures the cell of a job; it tells what it finds, at the end status and error


class Engine(Protocol):
    """Measures jobs. At the end of a `with` block nothing that it has started is left, however the block ended."""

    @property
    def slots(self) -> int:
        """Say how many jobs run at once."""

    def has_room(self, timed: bool) -> bool:
        """Say whether a job would start now: a timed one only where nothing runs, and nothing beside a timed one."""

    def submit(self, job: Job) -> None:
        """Start a job, for which there is room."""

    def next_result(self) -> Result:
        """Wait until a job that runs has ended. Raises UserError for a mistake that is no cell's alone."""

    def cancel(self) -> None:
        """End whatever runs at once, without results."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what runs."""
