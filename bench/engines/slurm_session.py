"""Has cells measured as elements of arrays of Slurm's jobs, and takes in what those leave in the run's folder.

Each cell is measured into a part (bench.run.part) in the run's folder, which therefore has to lie where all nodes see
it under the same path. RUN/parts has

    KEY/job.json      the job
    KEY/ended.json    what that has to say at its end: {refused: a mistake that is no cell's alone, or null; and where
                      another element has measured the cell for long, lost: which}
    KEY/...           what a part holds
    .slurm/           what sbatch was given, the logs, and elements.json: {KEY: {cluster, id} of its element}

A run that is killed leaves its elements in the queue. The same command waits for them, and takes in what they have
measured meanwhile. The folder RUN/parts is gone once each cell has a record of its own.
"""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from bench.engines.engine import PARTS, Conditions, Job, Machine, Result
from bench.engines.slurm_elements import Element, Submitted
from bench.engines.slurm_ends import end
from bench.engines.slurm_node import ENDED, JOB, measure_there, read, tell_machine
from bench.engines.slurm_queue import Call, Needs, Queue
from bench.records.record import LOST
from bench.system.console import say
from methods.errors import UserError
from methods.files import write_atomically

if TYPE_CHECKING:
    from bench.engines.slurm import Slurm

LOGS = ".slurm"
ELEMENTS = "elements.json"
STUCK = re.compile(r"held|^Partition|NotAllowed|Invalid|PerJob|BadConstraints|ReqNodeNotAvail", re.IGNORECASE)
PROBE = ".machine"  # stands for a key where a node is asked what it is
THREADS = 8  # of a cell but while it is timed, unless the user says otherwise
REFUSED_FOR = 600.0  # seconds for which sbatch may take nothing before a run ends of which nothing is in the queue
MOST = 1000  # elements in the queue at once; an array of Slurm has that many unless the site allows more
MOST_NAMED = 10  # jobs in a message


class SlurmSession:
    """Measures jobs as elements of arrays: what is submitted before a result is waited for is one array."""

    def __init__(self, engine: Slurm, conditions: Conditions, queue: Queue) -> None:
        self._engine, self._conditions, self._queue = engine, conditions, queue
        self._folder = conditions.folder.absolute()
        self._parts = self._folder / PARTS
        self._ids = Submitted(self._parts / LOGS / ELEMENTS, engine.cluster)
        self._one_machine = engine.cluster == "local"
        self.slots = engine.slots or (1 if self._one_machine else MOST)
        self._waiting: list[Element] = []
        self._running: dict[str, Element] = {}
        self._looked = -math.inf
        self._refused: float | None = None  # since when sbatch takes nothing
        self._tried = -math.inf
        self._submitted = False
        self._told = set[str]()  # of what was said once

    @functools.cached_property
    def machine(self) -> Machine:
        """Return what nodes of timed cells are, by asking the first that is free; of others nothing is known."""
        threads, device = self._conditions.threads, self._conditions.device
        if not self._conditions.timed:
            return Machine(None, threads or THREADS, self._engine.gpus_per_cell, not self._one_machine)
        say("cells are timed: a node is asked what it is, as soon as one is free")
        needs = Needs(
            threads or 1, self._engine.named(0 if device == "cpu" else self._engine.gpus_per_cell), alone=True
        )
        element = Element(PROBE, self._parts / PROBE, needs, self._ids.ids().get(PROBE))
        if element.id:  # of a run that was killed while it waited for that
            self._withdraw(element)
        self._submit([element])
        while (said := read(element.part / ENDED)) is None:
            if self._is_over(element):
                raise UserError(f"no node has said what it is, which timed cells need: {self._end(element)[1]}")
            time.sleep(self._queue.pause)
        del self._running[PROBE]
        self._ids.forget(PROBE)
        shutil.rmtree(element.part)
        threads = threads or said["threads"]
        return Machine(said["processor"], threads, self._engine.gpus_per_cell, not self._one_machine)

    def threads(self, timed: bool) -> int:
        return self._conditions.threads or THREADS

    def has_room(self, timed: bool) -> bool:
        """Say whether a job would start now. A timed one is alone on its node, whatever runs on others."""
        beside = [*self._waiting, *self._running.values()]
        alone = self._one_machine and (timed or any(element.needs.alone for element in beside))
        return len(beside) < (1 if alone else self.slots)

    def submit(self, job: Job) -> None:
        """Have the job measured, unless an element of an earlier run does that or has done it."""
        part = self._parts / job.key
        job = replace(job, folder=str(part), parents=str(self._folder))
        needs = Needs(job.threads, self._engine.named(job.gpus), job.timed)
        element = Element(job.key, part, needs, self._ids.ids().get(job.key), earlier=True)
        text, before = job.to_json(), read(part / JOB)
        is_same = before is not None and before | {"where": ""} == json.loads(text) | {"where": ""}
        if (is_same and element.id) or (element.is_measured and (is_same or not job.keep)):
            say(f"{job.where}: submitted by an earlier run")
            self._running[job.key] = element
            return
        if before and not is_same:
            self._withdraw(element)
        self._ids.forget(job.key)
        write_atomically(part / JOB, text)
        self._waiting.append(Element(job.key, part, needs))

    def next_result(self) -> Result:
        """Submit what waits, and wait until an element has ended. Raises UserError for a mistake that one has met."""
        self._say_unasked()
        while True:
            self._submit_waiting()
            for element in list(self._running.values()):
                if result := self._result(element):
                    return result
            time.sleep(self._queue.pause)

    def cancel(self) -> None:
        self._cancel([element.id for element in self._running.values() if element.id])
        self._waiting.clear()
        self._running.clear()

    def __enter__(self) -> SlurmSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what runs, and remove the logs where every cell has come to its record."""
        self.cancel()
        if all(path.name == LOGS for path in self._parts.glob("*")):
            shutil.rmtree(self._parts, ignore_errors=True)

    def _submit_waiting(self) -> None:
        """Submit what waits. What is refused waits on as long as others run, or were taken a while ago.

        Raises UserError where nothing was taken yet, and where it has been refused for long.
        """
        now = time.monotonic()
        if not self._waiting or (self._refused is not None and now - self._tried < self._queue.look):
            return
        self._tried = now
        try:
            self._submit(self._waiting)
            self._refused = None
        except UserError as error:
            self._refused = now if self._refused is None else self._refused
            is_long = not self._submitted or now - self._refused > REFUSED_FOR
            if is_long and not self._running:
                raise
            self._say_once("refused", f"{error}; they are submitted again every {self._queue.look:g} s")
        self._waiting = [one for one in self._waiting if one.key not in self._running]

    def _submit(self, elements: Sequence[Element]) -> None:
        """Submit elements, those that need the same as one array, and write down their ids."""
        groups: dict[Needs, list[Element]] = {}
        for element in elements:
            (element.part / ENDED).unlink(missing_ok=True)
            groups.setdefault(element.needs, []).append(element)
        for needs, group in groups.items():
            ids = self._queue.submit([self._call(element) for element in group], needs)
            self._submitted = True
            for element, name in zip(group, ids, strict=True):
                element.id = name
                self._running[element.key] = element  # so that it is cancelled, whatever happens meanwhile
            self._ids.add({element.key: name for element, name in zip(group, ids, strict=True)})

    def _call(self, element: Element) -> Call:
        """Return what a node does for an element."""
        if element.key == PROBE:
            return tell_machine, self._conditions.device, str(element.part)
        return measure_there, self._conditions.measure, str(element.part)

    def _result(self, element: Element) -> Result | None:
        """Return what became of an element, or None as long as it goes on, which one from before may do anew."""
        said = read(element.part / ENDED) or {}
        is_told = said.get("refused") or said.get("lost") or (said and element.is_measured)
        if not is_told and not self._is_over(element):  # a record may come through the file system behind that
            return None
        element.look_anew()
        said = read(element.part / ENDED) or said
        del self._running[element.key]
        if element.is_measured:
            return Result(element.key, {}, element.part)
        if said.get("refused") and not element.earlier:
            raise UserError(said["refused"])
        status, error = (LOST, said["lost"]) if said.get("lost") else self._end(element)
        if element.earlier and (said or status == LOST):  # it was cancelled with its run, or lost while nobody looked
            self._waiting.append(replace(element, id=None, earlier=False, unseen=0))
            return None
        return Result(element.key, {"status": status, "error": error})

    def _is_over(self, element: Element) -> bool:
        """Say whether an element is neither waiting nor running.

        One of this run has to be missing twice, by when its last files have come through the file system.
        """
        if time.monotonic() - self._looked > self._queue.look:
            self._looked = time.monotonic()
            if (listed := self._listed()) is not None:
                for one in self._running.values():
                    one.unseen = 0 if one.id in listed else one.unseen + 1
        return element.id is None or element.unseen >= (1 if element.earlier else 2)

    def _listed(self) -> Mapping[str, str] | None:
        """Look at the queue, and say once where it gives no answer, and what may wait there for ever."""
        listed = self._queue.listed()
        if listed is None:
            self._say_once("queue", "squeue gives no answer; until it does, what was submitted counts as running")
        own = {one.id for one in self._running.values()}
        for name, why in (listed or {}).items():
            if name in own and STUCK.search(why):
                self._say_once(why, f"job {name} does not start, and may never: Slurm says {why}")
        return listed

    def _say_unasked(self) -> None:
        """Say once which jobs of earlier runs are in the queue for cells that this one does not ask for."""
        if "unasked" in self._told:
            return
        own = {*self._running, *(one.key for one in self._waiting)}
        others = {name for key, name in self._ids.ids().items() if key not in own and (self._parts / key).exists()}
        if not others:
            return
        if left := sorted(others & set(self._listed() or ())):
            names = " ".join(left[:MOST_NAMED]) + (" ..." if len(left) > MOST_NAMED else "")
            what = "in the queue, of an earlier run, for cells that are not asked for so far"
            self._say_once("unasked", f"{len(left)} jobs are {what}; they go on unless you end them: scancel {names}")
        self._told.add("unasked")

    def _say_once(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            say(message)

    def _end(self, element: Element) -> tuple[str, str]:
        """Return the status of an element that has left no record, and why it has none."""
        name = element.id or ""
        return end(name, self._queue.state(name), self._parts / LOGS / f"{name}_0_log.err")

    def _cancel(self, ids: Collection[str]) -> None:
        """Cancel elements, and say so where some may go on."""
        if left := self._queue.cancel(ids):
            arrays = sorted({name.partition("_")[0] for name in left})
            self._say_once("scancel", f"scancel fails, and jobs may go on: end them with scancel {' '.join(arrays)}")

    def _withdraw(self, element: Element) -> None:
        """End an element of an earlier run that measures otherwise than is asked now, and remove what it has.

        What another attempt at its cell goes on from stays.
        """
        wait = self._queue.pause
        while element.id:
            self._cancel([element.id])
            if (listed := self._listed()) is not None and element.id not in listed:
                break
            time.sleep(wait)
            wait = max(self._queue.pause, min(2 * wait, self._queue.look))
        for path in element.part.glob("*"):
            if path.is_dir() and path.name != "partial":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()
