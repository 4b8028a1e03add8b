"""Measures cells on the nodes of a Slurm cluster. Each cell is an element of an array of jobs, submitted by submitit.

    bench.run(spec, engine=bench.engines.Slurm(partition="gpu", options={"time": 120}))

Each cell is measured into a job folder (bench.runs.job) in the run's folder. All nodes therefore have to see that
folder under the same path. RUN/parts has

    KEY/job.json      the job
    KEY/ended.json    what the element says at its end: {refused: a mistake that is not one cell's, or null; lost:
                      which other element has measured the cell for long}
    KEY/...           what a job folder holds
    .slurm/           what sbatch was given, the logs, and elements.json: {KEY: {cluster, id} of its element}

A run that is killed leaves its elements in the queue. The same command waits for them, and takes in what they have
measured meanwhile. The folder RUN/parts is removed once each cell has a record of its own.

The file holds, in this order, the engine, its elements and their ids, the words for how an element ended, what a node
does for an element, and the session.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import shutil
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

from bench.engines.engine import PARTS, InUse, Job, Machine, Measure, Result, SessionNeeds, refuse_gpus_of_cpus
from bench.engines.slurm_queue import Call, Needs, ProcessQueue, Queue, SlurmQueue
from bench.records.record import LOST
from methods.console import say
from methods.errors import UserError
from methods.files import write_atomically

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
    is_here: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if find_spec("submitit") is None:
            raise UserError("--engine slurm needs a package that is missing: pip install 'prunebench[slurm]'")
        if self.slots is not None and self.slots < 1:
            raise UserError(f"slots are a positive number of cells, or None; got {self.slots}")
        for name in self.options:
            if (plain := to_flag(name)) not in OPTIONS:
                instead = f"say {FLAGS[plain]}" if plain in FLAGS else f"there are {', '.join(OPTIONS)}"
                raise UserError(f"--slurm {name}=...: there is no such option here; {instead}")
        missing = [name for name in COMMANDS if self.cluster == "slurm" and shutil.which(name) is None]
        if missing:
            raise UserError(f"--engine slurm: there is no {missing[0]} on this machine; run it where Slurm takes jobs")

    def start(self, needs: SessionNeeds) -> SlurmSession:
        """Begin a session. Raises UserError where GPUs are requested and cells run on the CPU."""
        refuse_gpus_of_cpus(needs.device, self.gpus_per_cell, self.accelerator)
        folder = needs.folder.absolute() / PARTS / LOGS
        queue = ProcessQueue(folder) if self.cluster == "local" else SlurmQueue(folder, self.parameters())
        return SlurmSession(self, needs, queue)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of every array, by submitit's names.

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
            "additional_parameters": {"requeue": True} | {to_flag(name): given for name, given in self.options.items()},
        }

    def words_of_gpus(self, gpus: int) -> str:
        """Return a number of GPUs as Slurm writes it, with their kind; empty for none."""
        return ":".join(filter(None, (self.accelerator, str(gpus)))) if gpus else ""


def to_flag(name: str) -> str:
    """Return the name of an option as sbatch has it."""
    return name.replace("_", "-")


@dataclass
class Element:
    """Is one job in the queue.

    id       from the queue; None where it was not submitted
    earlier  whether an earlier run submitted it
    unseen   looks in a row at which it was not in the queue
    """

    key: str
    part: Path
    needs: Needs
    id: str | None = None
    earlier: bool = False
    unseen: int = 0

    @property
    def is_measured(self) -> bool:
        """Say whether its cell has a record. The record is written after everything else."""
        return (self.part / "cells" / f"{self.key}.json").is_file()

    def look_anew(self) -> None:
        """List its folders, so that a file system over a network asks its server for files that were missing."""
        for folder in (self.part, self.part / "cells"):
            with contextlib.suppress(OSError):
                list(folder.iterdir())


class Submitted:
    """Keeps the id of each element by its key in a file, for a run that comes after one that was killed.

    The ids of an array are written at once, so that one is known as soon as others are.
    """

    def __init__(self, file: Path, cluster: str) -> None:
        self._file, self._cluster = file, cluster
        self._entries: dict[str, Mapping[str, str]] = read_answer(file) or {}

    def ids(self) -> dict[str, str]:
        """Return {key: id} of the elements that this cluster has."""
        return {key: entry["id"] for key, entry in self._entries.items() if entry["cluster"] == self._cluster}

    def add(self, ids: Mapping[str, str]) -> None:
        """Write down the ids of an array."""
        self._entries |= {key: {"cluster": self._cluster, "id": name} for key, name in ids.items()}
        self._write()

    def forget(self, key: str) -> None:
        """Remove an element that is submitted anew."""
        if self._entries.pop(key, None):
            self._write()

    def _write(self) -> None:
        write_atomically(self._file, json.dumps(self._entries))


ENDS = {  # statuses of records, by Slurm's word for how an element ended; any other is a lost one
    "TIMEOUT": ("timed_out", "Slurm ended it at the time limit of its job; --slurm time=MINUTES sets another"),
    "OUT_OF_MEMORY": ("out_of_memory", "Slurm ended it, which took more memory than its job has; see --slurm mem="),
}
LOGGED = {  # what slurmstepd writes into the log of a job, where nobody keeps accounts
    "TIMEOUT": re.compile(r"DUE TO TIME LIMIT"),
    "OUT_OF_MEMORY": re.compile(r"oom[-_ ]kill", re.IGNORECASE),
}


def status_of_end(name: str, state: str, log: Path) -> tuple[str, str]:
    """Return the status of an element that has left no record, and the reason.

    name   its id
    state  Slurm's word for how it ended; empty where Slurm has none
    """
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    lines = [line for line in lines if line.strip()]
    logged = next((word for word, pattern in LOGGED.items() if any(map(pattern.search, lines))), "")
    if status := ENDS.get(state or logged):
        return status
    last = lines[-1] if lines else "its log is empty"
    return "lost", f"its job {name} has left no record{f', Slurm says {state}' if state else ''}; {last}"


JOB, ENDED = "job.json", "ended.json"


def measure_on_node(measure: Measure, part: str) -> None:
    """Measure the job of a part on a node, and write there that it has ended, and by which mistake."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, and `measure` has to end by it
    ended: dict[str, str | None] = {"refused": None}
    try:
        measure((Path(part) / JOB).read_text(encoding="utf-8"), part, None)
    except InUse as error:
        ended["lost"] = str(error)
    except UserError as error:
        ended["refused"] = str(error)
    write_atomically(Path(part) / ENDED, json.dumps(ended))


def write_machine(device: str, part: str) -> None:
    """Write into a file, on a node, the processor or GPU and the threads that timed cells have there."""
    import torch

    from bench.system import environment

    facts = {"processor": environment.name_of_processor(torch.device(device)), "threads": torch.get_num_threads()}
    write_atomically(Path(part) / ENDED, json.dumps(facts))


def read_answer(path: Path) -> dict[str, Any] | None:
    """Return the values of a JSON file; None where there is no such file."""
    try:
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return answer


LOGS = ".slurm"
ELEMENTS = "elements.json"
STUCK = re.compile(r"held|^Partition|NotAllowed|Invalid|PerJob|BadConstraints|ReqNodeNotAvail", re.IGNORECASE)
PROBE = ".machine"  # stands for a key where a node is asked what it is
THREADS = 8  # of a cell outside of timing, unless the user sets them
REFUSED_FOR = 600.0  # seconds for which sbatch may take nothing before a run ends of which nothing is in the queue
MOST = 1000  # elements in the queue at once; an array of Slurm has that many unless the site allows more
MOST_NAMED = 10  # jobs in a message


class SlurmSession:
    """Measures jobs as elements of arrays. Jobs that are submitted before a result is waited for are one array."""

    def __init__(self, engine: Slurm, needs: SessionNeeds, queue: Queue) -> None:
        self._engine, self._needs, self._queue = engine, needs, queue
        self._folder = needs.folder.absolute()
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
        self._messages = set[str]()  # kinds of messages that were printed already

    @functools.cached_property
    def machine(self) -> Machine:
        """Return what the nodes of timed cells are, by a probe on the first free one. Of others nothing is known."""
        threads, device = self._needs.threads, self._needs.device
        if not self._needs.timed:
            return Machine(None, threads or THREADS, self._engine.gpus_per_cell, not self._one_machine)
        say("cells are timed: a node is asked what it is, as soon as one is free")
        needs = Needs(
            threads or 1, self._engine.words_of_gpus(0 if device == "cpu" else self._engine.gpus_per_cell), alone=True
        )
        element = Element(PROBE, self._parts / PROBE, needs, self._ids.ids().get(PROBE))
        if element.id:  # an earlier run was killed while it waited for the probe
            self._withdraw(element)
        self._submit([element])
        while (answer := read_answer(element.part / ENDED)) is None:
            if self._is_over(element):
                raise UserError(f"no node has said what it is, which timed cells need: {self._end(element)[1]}")
            time.sleep(self._queue.pause)
        del self._running[PROBE]
        self._ids.forget(PROBE)
        shutil.rmtree(element.part)
        threads = threads or answer["threads"]
        return Machine(answer["processor"], threads, self._engine.gpus_per_cell, not self._one_machine)

    def threads(self, timed: bool) -> int:
        """Return the threads that each job asks Slurm for."""
        return self._needs.threads or THREADS

    def has_room(self, timed: bool) -> bool:
        """Say whether a job would start now. A timed one is alone on its node, whatever runs on others."""
        beside = [*self._waiting, *self._running.values()]
        alone = self._one_machine and (timed or any(element.needs.alone for element in beside))
        return len(beside) < (1 if alone else self.slots)

    def submit(self, job: Job) -> None:
        """Have the job measured, unless an element of an earlier run measures or has measured it."""
        part = self._parts / job.key
        job = replace(job, folder=part, run=replace(job.run, folder=self._folder))
        needs = Needs(job.threads, self._engine.words_of_gpus(job.gpus), job.is_timed)
        element = Element(job.key, part, needs, self._ids.ids().get(job.key), earlier=True)
        text, before = job.to_json(), read_answer(part / JOB)
        is_same = before is not None and before | {"title": ""} == json.loads(text) | {"title": ""}
        if (is_same and element.id) or (element.is_measured and (is_same or not job.keep_model)):
            say(f"{job.title}: submitted by an earlier run")
            self._running[job.key] = element
            return
        if before and not is_same:
            self._withdraw(element)
        self._ids.forget(job.key)
        write_atomically(part / JOB, text)
        self._waiting.append(Element(job.key, part, needs))

    def next_result(self) -> Result:
        """Submit what waits, and return the result of the next element that ends. Raises UserError for its mistakes."""
        self._say_unasked()
        while True:
            self._submit_waiting()
            for element in list(self._running.values()):
                if result := self._result(element):
                    return result
            time.sleep(self._queue.pause)

    def cancel(self) -> None:
        """Cancel all jobs of the queue, and forget the jobs that were not submitted yet."""
        self._cancel([element.id for element in self._running.values() if element.id])
        self._waiting.clear()
        self._running.clear()

    def __enter__(self) -> SlurmSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what runs, and remove the logs where every cell has a record."""
        self.cancel()
        if all(path.name == LOGS for path in self._parts.glob("*")):
            shutil.rmtree(self._parts, ignore_errors=True)

    def _submit_waiting(self) -> None:
        """Submit what waits. Refused elements wait on as long as others run, or were taken a while ago.

        Raises UserError where nothing was taken yet, and where sbatch has refused for long.
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
        self._waiting = [element for element in self._waiting if element.key not in self._running]

    def _submit(self, elements: Sequence[Element]) -> None:
        """Submit elements, those with equal needs as one array, and write down their ids."""
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
            return write_machine, self._needs.device, str(element.part)
        return measure_on_node, self._needs.measure, str(element.part)

    def _result(self, element: Element) -> Result | None:
        """Return what became of an element, or None as long as it goes on or begins anew."""
        answer = read_answer(element.part / ENDED) or {}
        is_told = answer.get("refused") or answer.get("lost") or (answer and element.is_measured)
        if not is_told and not self._is_over(element):  # a record may come through the file system behind that
            return None
        element.look_anew()
        answer = read_answer(element.part / ENDED) or answer
        del self._running[element.key]
        if element.is_measured:
            return Result(element.key, {}, element.part)
        if answer.get("refused") and not element.earlier:
            raise UserError(answer["refused"])
        status, error = (LOST, answer["lost"]) if answer.get("lost") else self._end(element)
        if element.earlier and (answer or status == LOST):  # it was cancelled with its run, or lost while nobody looked
            self._waiting.append(replace(element, id=None, earlier=False, unseen=0))
            return None
        return Result(element.key, {"status": status, "error": error})

    def _is_over(self, element: Element) -> bool:
        """Say whether an element is neither waiting nor running.

        An element of this run has to be missing twice, since its last files may come late through the file system.
        """
        if time.monotonic() - self._looked > self._queue.look:
            self._looked = time.monotonic()
            if (listed := self._list_waiting()) is not None:
                for running in self._running.values():
                    running.unseen = 0 if running.id in listed else running.unseen + 1
        return element.id is None or element.unseen >= (1 if element.earlier else 2)

    def _list_waiting(self) -> Mapping[str, str] | None:
        """Look at the queue. Say once where it gives no answer, and which jobs may wait there for ever."""
        listed = self._queue.list_waiting()
        if listed is None:
            self._say_once("queue", "squeue gives no answer; until it does, what was submitted counts as running")
        own = {element.id for element in self._running.values()}
        for name, why in (listed or {}).items():
            if name in own and STUCK.search(why):
                self._say_once(why, f"job {name} does not start, and may never: Slurm says {why}")
        return listed

    def _say_unasked(self) -> None:
        """Say once which jobs of earlier runs are in the queue for cells that this run does not have."""
        if "unasked" in self._messages:
            return
        own = {*self._running, *(element.key for element in self._waiting)}
        unasked = {name for key, name in self._ids.ids().items() if key not in own and (self._parts / key).exists()}
        if not unasked:
            return
        if waiting := sorted(unasked & set(self._list_waiting() or ())):
            names = " ".join(waiting[:MOST_NAMED]) + (" ..." if len(waiting) > MOST_NAMED else "")
            what = "in the queue, of an earlier run, for cells that are not asked for so far"
            self._say_once(
                "unasked", f"{len(waiting)} jobs are {what}; they go on unless you end them: scancel {names}"
            )
        self._messages.add("unasked")

    def _say_once(self, kind: str, message: str) -> None:
        if kind not in self._messages:
            self._messages.add(kind)
            say(message)

    def _end(self, element: Element) -> tuple[str, str]:
        """Return the status of an element that has left no record, and the reason."""
        name = element.id or ""
        return status_of_end(name, self._queue.state(name), self._parts / LOGS / f"{name}_0_log.err")

    def _cancel(self, ids: Collection[str]) -> None:
        """Cancel elements, and say so where any of them may go on."""
        if alive := self._queue.cancel(ids):
            arrays = sorted({name.partition("_")[0] for name in alive})
            self._say_once("scancel", f"scancel fails, and jobs may go on: end them with scancel {' '.join(arrays)}")

    def _withdraw(self, element: Element) -> None:
        """End an element of an earlier run that measures another question, and remove what it has.

        Pieces from which another attempt at its cell goes on stay.
        """
        wait = self._queue.pause
        while element.id:
            self._cancel([element.id])
            if (listed := self._list_waiting()) is not None and element.id not in listed:
                break
            time.sleep(wait)
            wait = max(self._queue.pause, min(2 * wait, self._queue.look))
        for path in element.part.glob("*"):
            if path.is_dir() and path.name != "partial":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()
