"""Does on a node of a Slurm cluster what an element of an array is for, and says in its part that it has ended."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from bench.engines.engine import InUse, Measure
from methods.errors import UserError
from methods.files import write_atomically

JOB, ENDED = "job.json", "ended.json"


def measure_there(measure: Measure, part: str) -> None:
    """Measure, on a node, the job of a part, and say there that it has ended, and by which mistake."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which submitit has hushed, and `measure` ends by
    ended: dict[str, str | None] = {"refused": None}
    try:
        measure((Path(part) / JOB).read_text(encoding="utf-8"), part, None)
    except InUse as error:
        ended["lost"] = str(error)
    except UserError as error:
        ended["refused"] = str(error)
    write_atomically(Path(part) / ENDED, json.dumps(ended))


def tell_machine(device: str, part: str) -> None:
    """Say, on a node, what timed cells find there."""
    import torch

    from bench.system import environment

    said = {"processor": environment.processor(torch.device(device)), "threads": torch.get_num_threads()}
    write_atomically(Path(part) / ENDED, json.dumps(said))


def read(path: Path) -> dict[str, Any] | None:
    """Return what a file says; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
