"""Makes the commands of a Slurm that has this machine as its only node.

N.sh          what sbatch was given as job N, from 77 on
queue/ID      the process of an element; `held` where nothing is started
states/ID     what sacct says of it, and shown/ID what scontrol does
reasons/ID    why it waits, as squeue says; without it, for its priority
cancelled     the ids that scancel was given
down          where this file is, squeue and scancel fail, and where `refuses` is, sbatch does, with what is in that
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from bench.engines.engine import Result
from bench.engines.slurm_queue import SlurmQueue

SBATCH = """
if [ -e refuses ]; then cat refuses >&2; exit 1; fi
number=$(( $(cat count 2>/dev/null || echo 76) + 1 ))
echo $number > count
cp "$1" $number.sh
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for id in $(if [ -n "$last" ]; then seq -f "${number}_%g" 0 $last; else echo $number; fi); do
    echo held > queue/$id
    if [ ! -e held ]; then
        if [ -n "$last" ]; then export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=${id#*_}; fi
        SLURM_JOB_ID=$number setsid bash $number.sh > /dev/null 2> $id.err < /dev/null &
        echo $! > queue/$id
    fi
done
echo Submitted batch job $number
"""
SQUEUE = """
[ -e down ] && exit 1
for id in $(ls queue); do
    process=$(cat queue/$id)
    if [ $process = held ] || [ -e /proc/$process ]; then
        echo $id $(cat reasons/$id 2>/dev/null || echo Priority)
    else rm queue/$id; fi
done
"""
SACCT = """
for word in "$@"; do case $word in --jobs=*) cat states/${word#--jobs=} ;; esac; done
"""
SCONTROL = """
echo JobId=${3%_*} JobState=$(cat shown/$3 2>/dev/null || echo RUNNING) Reason=None
"""
SCANCEL = """
[ -e down ] && exit 1
for id in "$@"; do
    process=$(cat queue/$id)
    number=${id%_*}
    if grep -qsa $number.sh /proc/$process/cmdline; then kill -9 -- -$process; fi
    rm queue/$id
    echo $id >> cancelled
done
"""


class MadeSlurm:
    """Is that Slurm, in the folder `place`; `held` is whether it starts nothing."""

    def __init__(self, place: Path, *, held: bool = False) -> None:
        self.place = place
        for name in ("bin", "queue", "states", "shown", "reasons"):
            (place / name).mkdir(parents=True)
        if held:
            (place / "held").touch()
        commands = {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT, "scontrol": SCONTROL, "scancel": SCANCEL}
        for name, text in (commands | {"srun": ""}).items():
            command = place / "bin" / name
            command.write_text(f"#!/bin/bash\ncd {place}\n{text}")
            command.chmod(0o755)

    @classmethod
    def put_in_place(cls, patch: pytest.MonkeyPatch, place: Path) -> MadeSlurm:
        """Make one that starts nothing, which is found on PATH and looked at all the time."""
        patch.setattr(SlurmQueue, "look", 0.0)
        patch.setattr(SlurmQueue, "pause", 0.01)
        made = cls(place, held=True)
        patch.setenv("PATH", made.path)
        return made

    @property
    def path(self) -> str:
        """Return what PATH is where these commands are."""
        return os.pathsep.join([str(self.place / "bin"), os.environ["PATH"]])

    def asked(self, number: int) -> dict[str, str]:
        """Return what sbatch was asked for as the job `number`, but for what submitit says of files and signals."""
        lines = re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", (self.place / f"{number}.sh").read_text(), re.MULTILINE)
        return {name: value for name, value in lines if name not in ("output", "error", "open-mode", "signal")}

    def ends(self, element: str, state: str) -> None:
        """End an element in this way."""
        (self.place / "states" / element).write_text(f"{state}\n")
        (self.place / "queue" / element).unlink()

    def cancelled(self) -> set[str]:
        """Return the ids of what was cancelled."""
        file = self.place / "cancelled"
        return set(file.read_text().split()) if file.exists() else set()


class Enough(Exception):
    """Says that nothing has come."""


def wait_a_little(session) -> Result:
    """Return a result, or raise Enough where none comes until the session pauses after a second."""
    pause, end = time.sleep, time.monotonic() + 1.0

    def until_then(seconds: float) -> None:
        if time.monotonic() > end:
            raise Enough
        pause(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", until_then)
        return session.next_result()
