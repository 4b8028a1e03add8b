"""Measures the cell of a job into a part: a run folder with that one cell, as a machine without the run's folder does.

`python -m bench cell JOB.json --out PART` calls it, and so do the engines of other machines (bench.engines). What the
part holds is taken into the run's folder (bench.run.store.take_in), or joined with other parts by `merge`.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.engines.engine import Job
from bench.plan.cell import from_plain
from bench.records.record import Record
from bench.run import job, lock, store
from bench.system import interrupt
from bench.system.console import say
from bench.system.worker import Limits, Worker
from methods.errors import UserError


def measure(text: str, out: str) -> None:
    """Measure the job that a JSON text holds into the folder `out`, unless its record is there.

    Raises UserError where the text is no job, the folder holds another run, or this machine has other code, versions,
    texts or tasks than the run.
    """
    with interrupt.prompt():
        measured(Job.from_json(text), Path(out))


def measured(asked: Job, part: Path) -> Record:
    """Measure the job into the folder `part`, unless its record is there, and return the record."""
    cell = from_plain(asked.cell)
    with lock.held(part) as dead:
        if dead:
            say(dead)
        if others := [path.stem for path in (part / "cells").glob("*.json") if path.stem != asked.key]:
            raise UserError(f"{part} belongs to another run, it holds {min(others)}; name another --out")
        known, _ = store.finished(part, cell, retry_failed=False)
        if known is not None:
            return known
        store.clear_leftovers(part)
        with tempfile.TemporaryDirectory(prefix=store.SCRATCH, dir=part, ignore_cleanup_errors=True) as scratch:
            here = _here(asked, part, Path(scratch))
            found = dict[str, Any]()
            with Worker(asked.variables) as worker:
                failure = worker.run(job.told, (here,), limits=Limits(**asked.limits), hear=found.update)
            if "refused" in found:
                raise UserError(found["refused"])
            if failure and "status" not in found:
                found |= {"status": failure.status, "error": failure.reason}
        return store.finish(job.record(cell, found), part, asked.key)


def _here(asked: Job, part: Path, scratch: Path) -> Job:
    """Return the job as it is done here: with its plugins as files, its own folder, and scratch if it names none."""
    files = list[str]()
    for name, text in asked.sources.items():
        if Path(name).name != name:
            raise UserError(f"this is no job of a run: a plugin has the name {name!r}")
        files.append(str(scratch / name))
        (scratch / name).write_text(text, encoding="utf-8")
    return replace(asked, plugins=tuple(files), folder=str(part), scratch=asked.scratch or str(scratch))
