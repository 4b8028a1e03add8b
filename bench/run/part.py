"""Measures the cell of a job into a part: a run folder with that one cell, as a machine without the run's folder does.

`python -m bench cell JOB.json --out PART` calls it, and so do the engines of other machines (bench.engines). What the
part holds is taken into the run's folder (bench.run.store.take_in), or joined with other parts by `merge`.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.engines.engine import PARTS, SOUND, InUse, Job, Result, no_job
from bench.engines.workplace import Workplace
from bench.plan.cell import Cell, from_plain
from bench.records.record import LOST, Record
from bench.run import job, lock, store
from bench.system import interrupt
from bench.system.console import say
from bench.system.worker import Limits
from methods.errors import UserError
from methods.files import write_atomically

TOLD = "told.json"  # in a part, what its cell has told so far
PATIENCE = 120.0  # seconds for the lock of a process that is gone to be free on a file system over a network


def measure(text: str, out: str, place: Workplace | None = None) -> None:
    """Measure the job that a JSON text holds into the folder `out`, unless its record is there.

    place  where earlier jobs of the same run may have been measured; None: one for this job alone

    Raises InUse where another process measures there, and UserError where the text is no job, the folder holds another
    run, or this machine has other code, versions, texts or tasks than the run.
    """
    with interrupt.prompt(leave=partial(store.leave, Path(out))):
        measured(Job.from_json(text), Path(out), place)


def measured(asked: Job, part: Path, place: Workplace | None = None) -> Record:
    """Measure the job into the folder `part`, unless its record is there, and return the record."""
    cell = _cell(asked)
    with lock.held(part, PATIENCE) as dead, contextlib.ExitStack() as opened:
        if dead:
            say(dead)
        if others := [path.stem for path in (part / "cells").glob("*.json") if path.stem != asked.key]:
            raise UserError(f"{part} belongs to another run, it holds {min(others)}; name another --out")
        known, _ = store.finished(part, asked.key, cell, retry_failed=False)
        if known is not None:
            return known
        opened.enter_context(store.tidied(part))
        if place is None:
            scratch = tempfile.TemporaryDirectory(prefix=store.SCRATCH, dir=part, ignore_cleanup_errors=True)
            place = opened.enter_context(Workplace(Path(opened.enter_context(scratch))))
        found = dict[str, Any]()
        here, limits = _here(asked, part, place.folder), Limits(**asked.limits)

        def hear(news: Mapping[str, Any]) -> None:
            found.update(news)
            with contextlib.suppress(TypeError, ValueError):  # of what no record holds
                write_atomically(part / TOLD, json.dumps(found))

        failure = place.run(job.told, (here,), variables=asked.variables, limits=limits, hear=hear)
        if "refused" in found:
            raise UserError(found["refused"])
        if failure and "status" not in found:
            found |= {"status": failure.status, "error": failure.reason}
        if found["status"] not in SOUND:
            place.end_process()
        record = store.finish(job.record(cell, found), part, asked.key)
        (part / TOLD).unlink(missing_ok=True)
        return record


def hand_over(folder: Path, key: str, here: bool) -> None:
    """Move what a cell of the run has left to where it goes on: into its part, or back from there to be measured here.

    Nothing is moved while a process measures in the part.
    """
    part = folder / PARTS / key
    source, target = (part, folder) if here else (folder, part)
    if (part if here else folder / "partial" / key).exists():
        with contextlib.suppress(InUse), lock.held(part):
            store.move_partial_results(source, target, key)
            (part / TOLD).unlink(missing_ok=True)


def take_in_measured(folder: Path, cells: Iterable[Cell]) -> Iterator[str]:
    """Take in what other machines have measured for an earlier run, which has not heard of it; a line on each cell.

    A part stays where a process measures there, and where its cell has failed, which is measured again.
    """
    for cell in cells:
        part, known = folder / PARTS / cell.key, None
        if not (part / "cells").exists() or (folder / "cells" / f"{cell.key}.json").exists():
            continue
        with contextlib.suppress(InUse), lock.held(part):
            known, _ = store.finished(part, cell.key, cell, retry_failed=True)
        if known is not None:
            store.take_in(part, folder, cell.key)
            yield f"{cell.label} was measured for an earlier run, on another machine"


def with_told(folder: Path, result: Result) -> dict[str, Any]:
    """Return what was found of a cell; where its job was ended from outside, with what it had told in its part.

    One that was lost goes on there, and tells all of it at its end.
    """
    told = dict[str, Any]()
    if result.found["status"] != LOST:
        with contextlib.suppress(OSError, ValueError):  # it had told nothing
            told = json.loads((folder / PARTS / result.key / TOLD).read_text(encoding="utf-8"))
    return {**told, **result.found}


def _cell(asked: Job) -> Cell:
    """Return the cell of a job. Raises UserError where it is none."""
    from pydantic import ValidationError

    try:
        return from_plain(asked.cell)
    except ValidationError as error:
        raise no_job(error, "cell") from None


def _here(asked: Job, part: Path, scratch: Path) -> Job:
    """Return the job as it is done here: with its plugins as files, its own folder, and scratch if it names none.

    A plugin's file has the same path for all jobs of a place, so that its methods are registered once in a process.
    """
    files = list[str]()
    for name, text in asked.sources.items():
        if Path(name).name != name:
            raise UserError(f"this is no job of a run: a plugin has the name {name!r}")
        file, unfinished = scratch / name, scratch / f"{name}.{os.getpid()}"  # another process may be about the same
        if not file.exists():
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(file)
        files.append(str(file))
    return replace(asked, plugins=tuple(files), folder=str(part), scratch=asked.scratch or str(scratch))
