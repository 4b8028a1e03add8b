"""Submits calls to other nodes, and says what became of them. `SlurmQueue` uses Slurm's own commands.

`ProcessQueue` starts processes of this machine in the same way, so that a run through Slurm can be tried without it.
Both submit through submitit, which writes the sbatch file. A call is a function, by its name, and paths.
"""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from bench.system.failures import reason_of_error
from methods.errors import UserError

Call = tuple[Callable[..., None], *tuple[Any, ...]]  # a function of a module, and its arguments
PATIENCE = 60.0  # seconds for an answer of Slurm
GOES_ON = ("", "COMPLETING", "PENDING", "REQUEUED", "RESIZING", "RUNNING", "SUSPENDED")  # accounts that lag say so
FOREVER = 60 * 24 * 365  # minutes, since submitit's own processes end after 2


@dataclass(frozen=True)
class Needs:
    """Says what each call needs.

    gpus   as Slurm writes them: 2, or h100:2; empty for none
    alone  whether its node may do nothing else meanwhile
    """

    threads: int
    gpus: str
    alone: bool


class Queue(Protocol):
    """Starts calls elsewhere. `pause` is the seconds between two looks at files, `look` between two at the queue."""

    pause: float
    look: float

    def submit(self, calls: Sequence[Call], needs: Needs) -> list[str]:
        """Submit calls at once, and return the id of each. Raises UserError where the queue refuses them."""

    def list_waiting(self) -> Mapping[str, str] | None:
        """Return {id: why it waits} of all that wait or run; None where the queue gives no answer."""

    def state(self, name: str) -> str:
        """Return the word for how a call ended, such as TIMEOUT; empty where it is unknown."""

    def cancel(self, names: Collection[str]) -> Collection[str]:
        """Cancel the jobs with these ids; return the ids of jobs that may still run."""


class SlurmQueue:
    """Submits arrays of jobs with sbatch.

    folder      where submitit keeps sbatch files and logs, which all nodes have to see
    parameters  of submitit, for every array (`parameters` of bench.engines.slurm.Slurm)
    """

    pause, look = 1.0, 30.0

    def __init__(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        self._folder, self._parameters = folder, dict(parameters)

    def submit(self, calls: Sequence[Call], needs: Needs) -> list[str]:
        """Submit calls as an array of jobs, and return their ids."""
        import submitit

        _be_quiet()
        executor = submitit.SlurmExecutor(self._folder)
        executor.update_parameters(
            **self._parameters,
            cpus_per_task=needs.threads,
            gpus_per_node=needs.gpus or None,
            exclusive=needs.alone or None,
        )
        try:
            return _submit_array(executor, calls)
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError) as error:
            reason = (str(error).strip().splitlines() or ["it says nothing"])[-1]
            limit = "--slots, the most cells in the queue at once, " if "limit" in reason.lower() else ""
            raise UserError(f"sbatch takes no cells: {reason}; see {limit}--partition and --slurm") from None
        except OSError as error:
            raise UserError(f"sbatch cannot be given cells: {reason_of_error(error)}") from None

    def list_waiting(self) -> Mapping[str, str] | None:
        """Return {id: why it waits} of the jobs in the queue; None where squeue does not answer."""
        listing = _output("squeue", "--me", "--noheader", "--array", "--format=%i %r")
        if listing is None:
            return None
        parts = [line.strip().partition(" ") for line in listing.splitlines()]
        return {name: reason.strip() for name, _, reason in parts if name}

    def state(self, name: str) -> str:
        """Return the state of a job by Slurm's accounts; without accounts, or where they lag, by the controller."""
        accounts = _output("sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={name}")
        state = (accounts or "").partition("\n")[0].partition(" ")[0]  # it may be "CANCELLED by 1000"
        if state in GOES_ON:
            match = re.search(r"\bJobState=(\w+)", _output("scontrol", "show", "job", name, "--oneliner") or "")
            state = match[1] if match else state
        return "" if state in GOES_ON else state

    def cancel(self, names: Collection[str]) -> Collection[str]:
        """Have jobs cancelled. Where that fails, as for ids that Slurm has forgotten, look which of them are left."""
        if not names or _output("scancel", *sorted(names)) is not None:
            return ()
        listed = self.list_waiting()
        return names if listed is None else [name for name in names if name in listed]


class ProcessQueue:
    """Starts processes of this machine, which go on when this one is killed."""

    pause, look = 0.05, 0.5

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def submit(self, calls: Sequence[Call], needs: Needs) -> list[str]:
        """Start a process for each call, and return their ids."""
        import submitit

        _be_quiet()
        executor = submitit.LocalExecutor(self._folder)
        executor.update_parameters(timeout_min=FOREVER, gpus_per_node=int(needs.gpus.rpartition(":")[2] or 0))
        return _submit_array(executor, calls)

    def list_waiting(self) -> Mapping[str, str] | None:
        """Return {id: ""} of the processes that run."""
        every = psutil.process_iter(["pid", "cmdline", "status"])
        return {str(process.pid): "" for process in every if self._is_own(process)}

    def state(self, name: str) -> str:
        """Return "": a process has no state that Slurm knows."""
        return ""

    def cancel(self, names: Collection[str]) -> Collection[str]:
        """End processes of this queue; return none, since none is left."""
        for name in names:
            with contextlib.suppress(psutil.NoSuchProcess):
                if self._is_own(psutil.Process(int(name))):
                    _kill(psutil.Process(int(name)))
        return ()

    def _is_own(self, process: psutil.Process) -> bool:
        """Say whether a process was started by this queue. A process id may be another program's by now."""
        try:
            is_own = str(self._folder) in process.cmdline()
            return is_own and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def _kill(process: psutil.Process) -> None:
    """Kill a process with all that it has started, and wait until they have ended."""
    process.suspend()  # or it would start another one meanwhile
    every = [process, *process.children(recursive=True)]
    for each in every:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(every, timeout=10)


def _submit_array(executor: Any, calls: Sequence[Call]) -> list[str]:
    """Submit calls as one array, and return their ids."""
    with executor.batch():
        jobs = [executor.submit(*call) for call in calls]
    return [job.job_id for job in jobs]


def _be_quiet() -> None:
    """Keep submitit from writing to stdout, where the run's results stand."""
    logging.getLogger("submitit").setLevel(logging.ERROR)


def _output(*command: str) -> str | None:
    """Return what a command of Slurm prints; None where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
