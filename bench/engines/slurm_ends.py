"""Says what became of an element of an array that has left no record: by Slurm's word for it, or else by its log."""

from __future__ import annotations

import re
from pathlib import Path

ENDS = {  # statuses of records, by Slurm's word for how an element ended; any other is a lost one
    "TIMEOUT": ("timed_out", "Slurm ended it at the time limit of its job; --slurm time=MINUTES sets another"),
    "OUT_OF_MEMORY": ("out_of_memory", "Slurm ended it, which took more memory than its job has; see --slurm mem="),
}
LOGGED = {  # what slurmstepd writes into the log of a job, where nobody keeps accounts
    "TIMEOUT": re.compile(r"DUE TO TIME LIMIT"),
    "OUT_OF_MEMORY": re.compile(r"oom[-_ ]kill", re.IGNORECASE),
}


def end(name: str, state: str, log: Path) -> tuple[str, str]:
    """Return the status of an element that has left no record, and why it has none.

    name   its id
    state  Slurm's word for how it ended; empty where Slurm has none
    """
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    lines = [line for line in lines if line.strip()]
    said = next((word for word, pattern in LOGGED.items() if any(map(pattern.search, lines))), "")
    if known := ENDS.get(state or said):
        return known
    last = lines[-1] if lines else "its log is empty"
    return "lost", f"its job {name} has left no record{f', Slurm says {state}' if state else ''}; {last}"
