"""Measures cells on this machine: several at once in processes of their own, or one after the other in this process.

    bench.run(spec, engine=bench.engines.Local(slots=2))

A slot is a process that measures one cell after the other, with a GPU and threads of its own. Each process ends with
the process of the run (bench.system.worker). While a cell is timed no other cell works, and none starts: the others
wait where they come to their own timing (bench.system.worker.Gate).
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from bench.engines.engine import SOUND, VISIBLE, Job, Machine, Result, SessionNeeds, Work, refuse_gpus_of_cpus
from bench.system import environment
from bench.system.worker import Channel, Gate, Worker, end_server
from methods.errors import UserError


@dataclass(frozen=True)
class Local:
    """Runs cells on this machine.

    slots          how many at once; "auto" is as many as its GPUs are enough for, and one on a CPU
    gpus_per_cell  over which the layers of a model are spread
    """

    slots: int | Literal["auto"] = 1
    gpus_per_cell: int = 1
    is_here: ClassVar[bool] = True

    def start(self, needs: SessionNeeds) -> LocalSession:
        """Begin a session. Raises UserError for more slots than GPUs, and for timed cells on GPUs of several kinds."""
        import torch

        gpus = names_of_visible_gpus(torch.cuda.device_count())
        variables = environments_of_slots(self.slots, needs.device, gpus, self.gpus_per_cell)
        if needs.timed and needs.device.startswith("cuda"):
            refuse_unlike(len(variables), self.gpus_per_cell)
        every = torch.get_num_threads()
        shared = threads_of(len(variables), every, needs.threads)
        machine = Machine(environment.name_of_processor(torch.device(needs.device)), every, self.gpus_per_cell)
        work, on_cpu = needs.work, torch.device(needs.device).type == "cpu"
        imported = (work.__module__,) if on_cpu else ()  # a process that has found a GPU may not fork
        session = LocalSession(work, variables, fresh=needs.fresh, imported=imported, threads=shared, machine=machine)
        if needs.soon and needs.is_apart(session.slots):
            session.begin()
        return session


class InThisProcess:
    """Measures one job after the other in this process. Every error reaches the run."""

    slots = 1

    def __init__(self, work: Work, machine: Machine) -> None:
        self._work, self.machine = work, machine
        self._job: Job | None = None
        self._lost = ""  # the cell that no other one can follow here

    def threads(self, timed: bool) -> int:
        """Return the machine's threads, which the only job has."""
        return self.machine.threads

    def has_room(self, timed: bool) -> bool:
        """Say whether no job waits to be measured."""
        return self._job is None

    def submit(self, job: Job) -> None:
        """Take the job that `next_result` measures. Raises UserError once a crash has taken the GPU."""
        if self._lost:
            raise UserError(
                f"{self._lost} has left the GPU unusable for this process; run the same command again without "
                "--no-isolate, and the other cells get a process of their own"
            )
        self._job = job

    def next_result(self) -> Result:
        """Measure the job that was submitted, and return its result."""
        job, self._job = self._job, None
        assert job is not None, "there is no job to wait for"
        outcome: dict[str, Any] = {}
        self._work(_OwnChannel(outcome.update), job)
        if outcome.get("status") == "crashed":
            self._lost = job.title
        return Result(job.key, outcome)

    def cancel(self) -> None:
        """Forget the job that waits."""
        self._job = None

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class _OwnChannel(Channel):
    """Sends messages to this very process."""

    def __init__(self, hear: Callable[[dict[str, Any]], object]) -> None:
        self.cache, self._hear = {}, hear

    def alive(self, where: str) -> None:
        """Say nothing, since nobody waits for a sign of life."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for nobody, since nothing else works."""
        yield

    def send(self, message: dict[str, Any]) -> None:
        self._hear(message)


class LocalSession:
    """Measures as many jobs at once as there are slots, each in a process that may have measured others before.

    work       what the processes do; a function of a module, which they import
    variables  of each slot's environment (`environments_of_slots`)
    fresh      whether every job gets a process of its own
    imported   modules that are imported before a process begins (bench.system.worker)
    threads    of a cell that is not alone
    machine    where they run
    """

    def __init__(
        self,
        work: Work,
        variables: Sequence[Mapping[str, str]],
        *,
        fresh: bool,
        imported: Sequence[str] = (),
        threads: int = 1,
        machine: Machine = Machine(None, 1),  # noqa: B008, which is frozen
    ) -> None:
        self._work, self._fresh, self.slots = work, fresh, len(variables)
        self._threads, self.machine = threads, machine
        self._workers = [Worker(environment, imported) for environment in variables]
        self._idle = list(range(self.slots))
        self._running: dict[int, tuple[Job, threading.Thread]] = {}
        self._ended: queue.SimpleQueue[tuple[int, dict[str, Any] | BaseException]] = queue.SimpleQueue()
        self._gate = Gate()
        self._cancelled = False

    def threads(self, timed: bool) -> int:
        """Return the threads of a job: all of the machine for a single slot, else a slot's share."""
        return self.machine.threads if self.slots == 1 else self._threads

    def has_room(self, timed: bool) -> bool:
        """Say whether a slot is idle, and no job waits to be timed alone."""
        return bool(self._idle) and not self._gate.is_closed

    def begin(self) -> None:
        """Start the processes, which import what they need while the run reads its texts and tasks."""
        for worker in self._workers:
            worker.begin([self._work.__module__])

    def submit(self, job: Job) -> None:
        """Let the worker of the first idle slot measure a job, in a thread that waits for it."""
        slot = self._idle.pop(0)
        self._gate.start(slot)
        thread = threading.Thread(target=self._measure, args=(slot, job), daemon=True)
        self._running[slot] = job, thread
        thread.start()

    def next_result(self) -> Result:
        """Wait for a job to end, and return its result. Raises what its thread has raised."""
        slot, outcome = self._ended.get()
        job, thread = self._running.pop(slot)
        thread.join()
        self._idle = sorted([*self._idle, slot])
        if isinstance(outcome, BaseException):
            raise outcome
        return Result(job.key, outcome)

    def cancel(self) -> None:
        """End all jobs that run, and stop the workers."""
        self._end_running()
        for worker in self._workers:
            worker.stop()

    def _end_running(self) -> None:
        """End what runs, and let no other job start."""
        self._cancelled = True
        self._gate.open()
        for slot in self._running:
            self._workers[slot].kill()
        for slot, (_, thread) in self._running.items():
            while thread.is_alive():  # it may be about to start its process
                self._workers[slot].kill()
                if self._workers[slot].is_starting:  # it may wait for the server to fork it
                    end_server()
                thread.join(0.05)
        self._running.clear()

    def __enter__(self) -> LocalSession:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Let the processes finish. Where the run fails, end them at once, with all that they have started."""
        if kind is not None:
            for worker in self._workers:
                worker.kill()
            self._end_running()
            for worker in self._workers:
                worker.end()
        self.cancel()

    def _measure(self, slot: int, job: Job) -> None:
        """Measure the job in the slot's process, in a thread of its own, and hand over the outcome."""
        answer: dict[str, Any] = {}
        outcome: dict[str, Any] | BaseException = answer
        worker = self._workers[slot]
        try:
            if not self._cancelled:
                alone = partial(self._gate.alone, slot)
                failure = worker.run(self._work, (job,), limits=job.run.limits, hear=answer.update, alone=alone)
                if "refused" in answer:
                    raise UserError(answer["refused"])
                if failure and "status" not in answer:
                    answer |= {"status": failure.status, "error": failure.reason}
                if self._fresh or answer["status"] not in SOUND:
                    worker.stop()
        except BaseException as error:  # the run raises it
            outcome = error
        self._gate.end(slot)
        self._ended.put((slot, outcome))


def environments_of_slots(slots: int | str, device: str, gpus: Sequence[str], each: int = 1) -> list[dict[str, str]]:
    """Return the variables of each slot's environment.

    slots   how many; "auto" for as many as the GPUs are enough for, and one on a CPU
    device  of the cells, as torch writes it
    gpus    what CUDA_VISIBLE_DEVICES calls the GPUs (`names_of_visible_gpus`)
    each    GPUs of a slot

    A single slot sees what the run sees. Of several slots each sees GPUs of its own, and none on the CPU. Raises
    UserError for more slots than GPUs: two cells on one GPU could run out of memory by each other's doing.
    """
    on_gpu = device.startswith("cuda")
    named = on_gpu and ":" in device  # then it is one of them
    refuse_gpus_of_cpus(device, each)
    if each > 1 and named:
        raise UserError(f"--gpus-per-cell {each}: a model is spread over the first GPUs; give --device cuda")
    if each > 1 and any(map(_is_instance, gpus)):
        raise UserError(f"--gpus-per-cell {each}: a process sees one MIG instance, over which no model is spread")
    if each > len(gpus) and on_gpu:
        raise UserError(f"--gpus-per-cell {each} is more than the {len(gpus)} GPUs here")
    count = (len(gpus) // each if on_gpu and not named else 1) if slots == "auto" else int(slots)
    if count == 1:
        return [{}]
    if named:
        raise UserError(f"--slots {slots}: each has a GPU of its own; give --device cuda and not {device}")
    if on_gpu and count * each > len(gpus):
        own = "one of its own" if each == 1 else f"{each} of its own"
        raise UserError(f"--slots {slots} is more than the {len(gpus)} GPUs here allow, of which each has {own}")
    quiet = {"TQDM_DISABLE": "1"}  # bars of several processes would overwrite one another
    return [{VISIBLE: ",".join(gpus[slot * each :][:each]) if on_gpu else ""} | quiet for slot in range(count)]


def refuse_unlike(slots: int, each: int) -> None:
    """Raise UserError where slots have GPUs of several kinds. Each cell is timed in whichever slot is free."""
    import torch

    visible = torch.cuda.device_count()  # torch sees one MIG instance
    names = [
        str(environment.name_of_processor(torch.device("cuda", number))) for number in range(min(visible, slots * each))
    ]
    kinds = {", ".join(names[start:][:each]): None for start in range(0, len(names), each)}
    if slots > 1 and len(kinds) > 1:
        raise UserError(
            f"cells would be timed on unlike GPUs: {'; '.join(kinds)}; name those of one kind in {VISIBLE}, "
            "or say --slots 1, or --speed-rounds 0"
        )


def names_of_visible_gpus(count: int) -> list[str]:
    """Return the names of CUDA_VISIBLE_DEVICES for the `count` GPUs that torch sees.

    A process sees one of several MIG instances, and each instance goes to another process.
    """
    names = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    if count and names and all(map(_is_instance, names)):
        return names
    return names[:count] or [str(number) for number in range(count)]


def _is_instance(name: str) -> bool:
    return name.startswith("MIG-")


def threads_of(slots: int, all_threads: int, given: int | None) -> int:
    """Return how many threads each slot has: its share of all, or the number that the user gave."""
    return all_threads if given else max(1, all_threads // slots)
