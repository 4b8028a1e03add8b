"""What elements of Slurm do in tests/engines instead of measuring a cell. Imports no torch."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from bench.engines.engine import Job, SessionNeeds
from methods.errors import UserError


def session_needs(folder: Path, **how) -> SessionNeeds:
    alike = {"device": "cpu", "timed": False, "fresh": False, "threads": 1, "models": False, "work": None}
    return SessionNeeds(**({"folder": folder, "measure": notes} | alike | how))


def notes(text: str, out: str, place: object = None) -> None:
    """Note beside the parts that the job begins, sleep for its seconds, and write a file where its record would be.

    `dead` is killed, `broken` raises an error, and `wrong` is refused unless there is a file `right`.
    """
    asked, run = Job.from_json(text), Path(out).parent.parent
    with (run / "begun").open("a") as file:
        file.write(f"{asked.key}\n")
    if asked.key == "dead":
        os.kill(os.getpid(), signal.SIGKILL)
    if asked.key == "broken":
        raise RuntimeError("what nobody has foreseen")
    if asked.key == "wrong" and not (run / "right").exists():
        raise UserError("there is no such text")
    time.sleep(asked.search.seconds[0])
    record = Path(out) / "cells" / f"{asked.key}.json"
    record.parent.mkdir()
    record.write_text("{}")
