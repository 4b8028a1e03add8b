"""Measures cells on the nodes of a Slurm cluster: each is an element of an array of jobs, submitted through submitit.

    bench.run(spec, engine=bench.engines.Slurm(partition="gpu", options={"time": 120}))

How that goes is in bench/engines/slurm_session.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from bench.engines.engine import PARTS, Conditions, refuse_gpus_of_cpus
from bench.engines.slurm_queue import ProcessQueue, SlurmQueue
from bench.engines.slurm_session import LOGS, MOST, SlurmSession
from methods.errors import UserError

COMMANDS = ("sbatch", "srun", "squeue", "scancel")  # srun is not called: submitit takes it for a sign of Slurm
OPTIONS = (
    *("account", "begin", "comment", "constraint", "exclude", "gres", "licenses", "mail-type", "mail-user", "mem"),
    *("mem-per-cpu", "mem-per-gpu", "nice", "nodelist", "qos", "reservation", "time", "tmp"),
)
FLAGS = {  # what has a flag of its own
    **{"partition": "--partition", "array": "--slots", "cpus-per-task": "--threads", "exclusive": "--speed-rounds"},
    **{"gpus": "--gpus-per-cell", "gpus-per-node": "--gpus-per-cell"},
}


@dataclass(frozen=True)
class Slurm:
    """Runs cells as jobs of Slurm. Raises UserError where submitit or Slurm's commands are missing.

    partition      of the cluster; None: its default
    gpus_per_cell  GPUs of one node that each cell has for itself, where cells run on GPUs
    accelerator    the kind of GPU, as the cluster names it
    slots          cells in the queue at once, whether they run or wait; None: all that may start, up to MOST
    options        of sbatch, of OPTIONS
    cluster        "slurm"; "local" starts processes of this machine instead, one at once unless `slots` says otherwise
    """

    partition: str | None = None
    gpus_per_cell: int = 1
    accelerator: str | None = None
    slots: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    cluster: Literal["slurm", "local"] = "slurm"
    here: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if find_spec("submitit") is None:
            raise UserError("--engine slurm needs a package that is missing: pip install 'prunebench[slurm]'")
        if self.slots is not None and self.slots < 1:
            raise UserError(f"slots are a positive number of cells, or None; got {self.slots}")
        for name in self.options:
            if (plain := flag(name)) not in OPTIONS:
                instead = f"say {FLAGS[plain]}" if plain in FLAGS else f"there are {', '.join(OPTIONS)}"
                raise UserError(f"--slurm {name}=...: there is no such option here; {instead}")
        missing = [name for name in COMMANDS if self.cluster == "slurm" and shutil.which(name) is None]
        if missing:
            raise UserError(f"--engine slurm: there is no {missing[0]} on this machine; run it where Slurm takes jobs")

    def start(self, conditions: Conditions) -> SlurmSession:
        """Begin a session. Raises UserError for GPUs that are asked for while cells run on the CPU."""
        refuse_gpus_of_cpus(conditions.device, self.gpus_per_cell, self.accelerator)
        folder = conditions.folder.absolute() / PARTS / LOGS
        queue = ProcessQueue(folder) if self.cluster == "local" else SlurmQueue(folder, self.parameters())
        return SlurmSession(self, conditions, queue)

    def parameters(self) -> dict[str, Any]:
        """Return what every array is submitted with, by submitit's names.

        Without srun a job's processes may use all of its cores: since Slurm 22.05 srun no longer takes over
        --cpus-per-task. Jobs whose node is lost, or that give way to others, go back into the queue.
        """
        return {
            "job_name": "prunebench",
            "partition": self.partition,
            "time": None,  # that of the partition, where the options have none
            "wckey": None,  # submitit's own, which a site may not know
            "use_srun": False,
            "array_parallelism": self.slots or MOST,
            "additional_parameters": {"requeue": True} | {flag(name): given for name, given in self.options.items()},
        }

    def named(self, gpus: int) -> str:
        """Return a number of GPUs as Slurm writes it, with their kind; empty for none."""
        return ":".join(filter(None, (self.accelerator, str(gpus)))) if gpus else ""


def flag(name: str) -> str:
    """Return the name of an option as sbatch has it."""
    return name.replace("_", "-")
