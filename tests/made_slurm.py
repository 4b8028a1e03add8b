"""Makes the commands of a Slurm that has this machine as its only node.

N.sh          what sbatch was given as job N, from 77 on
queue/ID      the process of an element; `held` where nothing is started
states/ID     what sacct says of it
cancelled     the ids that scancel was given
down          where this file is, squeue fails
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SBATCH = """
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
    if [ $process = held ] || [ -e /proc/$process ]; then echo $id; else rm queue/$id; fi
done
"""
SACCT = """
for word in "$@"; do case $word in --jobs=*) cat states/${word#--jobs=} ;; esac; done
"""
SCANCEL = """
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
        for name in ("bin", "queue", "states"):
            (place / name).mkdir(parents=True)
        if held:
            (place / "held").touch()
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT, "scancel": SCANCEL, "srun": ""}.items():
            command = place / "bin" / name
            command.write_text(f"#!/bin/bash\ncd {place}\n{text}")
            command.chmod(0o755)

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
