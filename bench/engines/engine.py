"""Says what a run and an engine exchange. An `Engine` starts a `Session`, which takes a `Job` and gives a `Result`.

JSON can carry a job to another machine; a result is plain values. Neither holds a model. What happens to a cell inside
a job is that cell's outcome: a crash, a lack of memory, a limit. The run alone decides which job may start, holds the
folder and writes records.

A session of this machine measures in the run's folder, where a job's samples are pieces (bench.runs.store). A session
of other machines has each job measured into a job folder (bench.runs.job), a run folder with that one cell. The run
takes in its files. A `Workplace` is what such jobs share on a machine: a process and a folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from bench.plan.address import ServerAddress, VllmPython
from bench.plan.cell import Cell
from bench.plan.kinds import to_plain
from bench.records.record import REFUSED
from bench.system.failures import Failure
from bench.system.worker import Channel, Limits, Worker
from methods.errors import UserError
from methods.plugin_sources import read_sources


class Workplace:
    """Runs one task after the other in a process. After a failure the next task gets a new process.

    folder  for what need not outlive the workplace, such as the dense model's predictions; None: one of its own
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
        """End the process, and remove the folder where it is the workplace's own."""
        self.end_process()
        if self._own:
            self._own.cleanup()

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._worker.end()
        self.close()


VISIBLE = "CUDA_VISIBLE_DEVICES"
PARTS = "parts"  # folder in the run's, in which other machines that see it measure a job, by its key
SOUND = ("ok", *REFUSED)  # a process in which a cell ended otherwise measures no other one


class InUse(UserError):
    """Say that another process holds a folder. Of a job folder: it measures the cell, and this process has lost it."""


class SearchStart(NamedTuple):
    """Holds the removals of another cell's search, with which a greedy search begins, and the seconds until each."""

    order: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunConditions:
    """Says what all jobs of a run share.

    folder   of the run, which holds the record and the model of a cell's parent
    scratch  for what need not outlive the run; None: a folder of the machine that measures
    code_sha256   of the code that measures, which another machine has to have
    plugins  files with methods; in a job of another machine their names in `sources`
    sources  {name: text} of those files and of what they import from beside them, for a machine that lacks them
    imports  folder from which those are imported; None: from where Python finds them
    limits   of the process of a job
    slots    jobs that may be at once on the machine where they run, which share its memory
    memory_gib         that a cell may take of the host's memory; None: its share of what there is
    device_memory_gib  that it may take of its GPU's; None: all
    offload  folder of the machine that measures, for states that wait on its host; None: they wait in memory
    free_cores    whether a job has fewer threads where other programs use cores, looked at before each stage but timing
    timed_threads torch's while a cell is timed. The inputs of a timed cell hold them (bench.runs.inputs)
    variables     of the environment, by which threads wait as they do in the run (bench.system.threads)
    server        that scores the cells; None: the process that measures does
    """

    folder: Path
    scratch: Path | None = None
    code_sha256: str = ""
    plugins: tuple[Path, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    imports: Path | None = None
    limits: Limits = Limits()
    slots: int = 1
    memory_gib: float | None = None
    device_memory_gib: float | None = None
    offload: Path | None = None
    free_cores: bool = False
    timed_threads: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    server: ServerAddress | VllmPython | None = None


@dataclass(frozen=True)
class Job:
    """Asks for the measurement of one cell.

    key      of the cell, which has its inputs. The worker computes them as well
    title    what messages call the cell
    folder   where it is measured: that of the run, or a job folder
    threads  torch's, on the CPU
    gpus     how many of them it needs for itself; the layers of its model are spread over them
    search   with which a greedy search begins
    keep_model  whether another cell goes on from the pruned model, so that it has to be kept
    """

    cell: Cell
    key: str
    title: str
    folder: Path
    run: RunConditions
    threads: int = 1
    gpus: int = 0
    search: SearchStart = SearchStart()
    keep_model: bool = False

    @property
    def is_timed(self) -> bool:
        """Say whether nothing may run beside it on its machine."""
        return self.cell.is_timed

    def to_json(self) -> str:
        """Return the job as JSON, with the text of its plugins, since another machine does not have the run's files."""
        names, texts = (self.run.plugins, self.run.sources) if self.run.sources else read_sources(self.run.plugins)
        return json.dumps(to_plain(replace(self, run=replace(self.run, plugins=names, sources=texts))))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Return the job that `to_json` wrote. Raises UserError where the text holds no job."""
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(f"this is no job of a run: {place}: {first['msg']}") from None


@dataclass(frozen=True)
class Result:
    """Holds what became of a job.

    outcome  status, error, and the other values of a record as far as they are known; empty where there is a part
    part     {path: bytes} of the job folder of another machine, or the job folder itself
    """

    key: str
    outcome: dict[str, Any]
    part: Path | dict[str, bytes] | None = None


Work = Callable[[Channel, Job], None]  # measures the cell of a job; it tells what it finds, at the end status and error
# Measures the job that a JSON text holds into the part whose path is given, in a place of earlier jobs or a new one.
Measure = Callable[[str, str, Workplace | None], None]


@dataclass(frozen=True)
class SessionNeeds:
    """Says what the cells of a run need of the session that measures them, before the first job.

    folder   of the run
    device   of its cells
    timed    whether one of them is timed
    fresh    whether every job gets a process of its own
    threads  of each cell, where the user gave them; None: the engine divides what there is
    models   whether cells keep models in the run's folder, which other machines then have to see
    soon     whether there will be a job, so that processes may start before it
    work     what a process of this machine does
    measure  what another machine does
    """

    folder: Path
    device: str
    timed: bool
    fresh: bool
    threads: int | None
    models: bool
    work: Work
    measure: Measure
    soon: bool = False

    def is_apart(self, slots: int) -> bool:
        """Say whether cells are measured outside the run's process on this machine, unless the user decided."""
        return self.fresh or self.timed or slots > 1 or self.device.startswith("cuda")


def refuse_gpus_of_cpus(device: str, gpus_per_cell: int, accelerator: str | None = None) -> None:
    """Raise UserError where GPUs are requested and cells run on the CPU."""
    if not device.startswith("cuda") and (accelerator or gpus_per_cell > 1):
        given = "--accelerator" if accelerator else "--gpus-per-cell"
        raise UserError(f"{given} is of GPUs, and cells run on the CPU; leave it out, or say --device cuda")


@dataclass(frozen=True)
class Machine:
    """Describes where cells run.

    processor  the name of the processor that timed cells run on
    threads    of a cell that has the machine alone
    gpus       of each cell, where cells run on GPUs
    queues     whether a job may wait behind those of other users, for a time that nobody knows
    """

    processor: str | None
    threads: int
    gpus: int = 1
    queues: bool = False


class Engine(Protocol):
    """Names a way to run cells."""

    @property
    def is_here(self) -> bool:
        """Say whether cells run on this machine, so that its devices can be looked at."""

    def start(self, needs: SessionNeeds) -> Session:
        """Begin a session. Raises UserError, within seconds, where the engine cannot run such cells."""


class Session(Protocol):
    """Measures jobs. At the end of a `with` block nothing that it started goes on, however the block ended."""

    @property
    def slots(self) -> int:
        """Return how many jobs run at once."""

    @property
    def machine(self) -> Machine:
        """Return the machine on which timed cells run."""

    def threads(self, timed: bool) -> int:
        """Return how many threads a cell has outside of timing. While it is timed it has those of the machine."""

    def has_room(self, timed: bool) -> bool:
        """Say whether a job would start now. Nothing works beside a cell while it is timed."""

    def submit(self, job: Job) -> None:
        """Start a job. There must be room for it."""

    def next_result(self) -> Result:
        """Wait until a job has ended, and return its result. Raises UserError for a mistake that is not one cell's."""

    def cancel(self) -> None:
        """End all running jobs at once, without results."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what runs."""
