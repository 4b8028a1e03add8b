"""Measures cells on the nodes of a running Ray cluster.

    bench.run(spec, engine=bench.engines.Ray(address="10.0.0.1:6379"))

A cell is a task that measures it into a job folder (bench.runs.job). The folder lies in the run's where the node sees
that, so that a second try goes on inside the cell. Otherwise it lies on the node, and the task sends its files back.
A child of the task measures, so that the task sees how a cell ends, also a killed one. Ray tries again only what Ray
lost: a node, or the task itself.

Ray's defaults are replaced where they would do harm: tokens are used, tasks that run out of memory are not tried
without end, a cell on the CPU sees no GPU, and models are never sent.

`connect` refuses within seconds an address where no cluster answers, or one that is not in order. Ray itself would
wait for minutes and then end the process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from bench.engines.engine import (
    PARTS,
    VISIBLE,
    InUse,
    Job,
    Machine,
    Measure,
    Result,
    SessionNeeds,
    Workplace,
    refuse_gpus_of_cpus,
)
from bench.engines.ray_nodes import (
    TIMING,
    Ask,
    Look,
    Node,
    Share,
    Site,
    divide_nodes,
    find_suitable_nodes,
    find_timing_nodes,
    look_at_node,
    node_from_plain,
    refuse_unlike,
)
from bench.system.failures import reason_of_error
from methods.errors import UserError, first_line_of

RETRIES = 2  # of a lost task
WAIT, NO_NODE = 5.0, 60.0  # seconds between two looks at the nodes; without one that could take a cell
NONE_LEFT = "no node is left that can take a cell; the same command goes on once there is one"
CANCEL_SECONDS = 2.0  # seconds for cancelled tasks to end


@dataclass(frozen=True)
class Ray:
    """Runs cells on a Ray cluster. Raises UserError where the package is missing, and for what cannot be.

    address        HOST:PORT; "auto" is the cluster of which this machine is a node
    gpus_per_cell  of one node, for cells on GPUs
    accelerator    the kind of these, as Ray names it: "H100"
    slots          the most cells at once; None: as many as the cluster holds
    """

    address: str = "auto"
    gpus_per_cell: int = 1
    accelerator: str | None = None
    slots: int | None = None
    is_here: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("slots", "gpus_per_cell"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is a positive number; got {value}")
        if importlib.util.find_spec("ray") is None:
            raise UserError("--engine ray needs the package ray: pip install 'prunebench[ray]'")

    def start(self, needs: SessionNeeds) -> RaySession:
        """Begin a session. Raises UserError where there is no cluster, or none whose nodes can measure the cells."""
        on_cpu = not needs.device.startswith("cuda")
        refuse_gpus_of_cpus(needs.device, self.gpus_per_cell, self.accelerator)
        with contextlib.ExitStack() as opened:
            opened.enter_context(connect(self.address))
            ask = Ask(0 if on_cpu else self.gpus_per_cell, self.accelerator, needs.threads or 1)
            nodes = find_suitable_nodes(list_nodes(), ask)
            site = opened.enter_context(Site.make(needs.folder, on_cpu, needs.fresh))
            looks = look_at_nodes(nodes, site, needs.device if needs.timed else None, ask)
            nodes = find_suitable_nodes([node for node in nodes if node.id in looks], ask)
            refuse_unlike(nodes, looks, needs)
            ask, slots = divide_nodes(nodes, ask, self.slots, needs.threads)
            share = Share(ask, slots, (), Machine(None, ask.threads, ask.gpus))
            if needs.timed:
                share = Share(ask, slots, *find_timing_nodes(nodes, looks, ask, needs.threads))
            return RaySession(share, site, needs.measure, opened.pop_all())


class RaySession:
    """Has each job measured by a task of its own.

    share    what each task gets
    site     where the run is
    measure  what a task calls, a function of a module, which nodes import
    opened   is closed at the end
    """

    def __init__(self, share: Share, site: Site, measure: Measure, opened: contextlib.ExitStack) -> None:
        import ray

        self.slots, self.machine, self._timing, self._ask = share.slots, share.machine, share.timing, share.ask
        self._site, self._measure, self._opened = site, measure, opened
        self._task = ray.remote(max_retries=RETRIES, retry_exceptions=False)(_measure_job)
        self._running: dict[Any, Job] = {}

    def threads(self, timed: bool) -> int:
        """Return the threads that each job asks a node for."""
        return self._ask.threads

    def has_room(self, timed: bool) -> bool:
        """Say whether a job could start. Jobs that are timed and others do not run at once."""
        if any(job.is_timed != timed for job in self._running.values()):
            return False  # it could be on the same node
        return len(self._running) < (min(self.slots, len(self._timing)) if timed else self.slots)

    def submit(self, job: Job) -> None:
        """Send a job to a node that has its threads and GPUs, one that is timed to a node for timing."""
        ask = self._ask
        needs: dict[str, Any] = {"num_cpus": job.threads, "num_gpus": ask.gpus, "name": job.title}
        if ask.accelerator:
            needs["accelerator_type"] = ask.accelerator
        if job.is_timed:
            names = ",".join(node.id for node in self._timing)
            needs |= {"resources": {TIMING: 1}, "label_selector": {"ray.io/node-id": f"in({names})"}}
            if not ask.gpus:
                needs["num_cpus"] = self._timing[0].cpus  # all of them, so that nothing computes beside it
        slots = 1 if job.is_timed else self.slots
        text = replace(job, run=replace(job.run, slots=slots)).to_json()
        ref = self._task.options(**needs).remote(self._measure, job.key, text, self._site, ask)
        self._running[ref] = job

    def next_result(self) -> Result:
        """Wait for a job to end, and return its result. Raises UserError where no node is left for it."""
        import ray

        missing = 0.0  # seconds without a node
        while True:
            began = time.monotonic()
            if ready := ray.wait(list(self._running), num_returns=1, timeout=WAIT)[0]:
                return self._result(ready[0], self._running.pop(ready[0]))
            has_node = any(node.holds(self._ask) for node in self._able())
            missing = 0.0 if has_node else missing + time.monotonic() - began
            if missing >= NO_NODE:
                raise UserError(NONE_LEFT)

    def _able(self) -> list[Node]:
        """Return the nodes where running jobs may be; for timed cells only the nodes that this session looked at."""
        if not any(job.is_timed for job in self._running.values()):
            return list_nodes()
        timing = {node.id for node in self._timing}
        return [node for node in list_nodes() if node.id in timing]

    def cancel(self) -> None:
        """End all jobs that run, and wait for them."""
        import ray

        for ref in self._running:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(ref, force=True)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=CANCEL_SECONDS)
        self._running.clear()

    def __enter__(self) -> RaySession:
        return self

    def __exit__(self, *_: object) -> None:
        with self._opened:
            self.cancel()

    def _result(self, ref: Any, job: Job) -> Result:
        """Return what became of a task. Raises UserError for a mistake that is not one cell's."""
        from ray import exceptions

        lost = (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.LocalRayletDiedError,
            exceptions.ObjectLostError,
            exceptions.ObjectReconstructionFailedError,
            exceptions.TaskCancelledError,
        )
        try:
            status, value = _answer_of_task(ref)
        except exceptions.OutOfMemoryError:
            status, value = "out_of_memory", "Ray ended it, since its node ran out of memory"
        except lost as error:
            why = f"its node or its task was lost ({type(error).__name__}), after {RETRIES} more tries"
            status, value = "lost", why
        except exceptions.TaskUnschedulableError:
            raise UserError(NONE_LEFT) from None
        except exceptions.RayError as error:
            raise UserError(f"{job.title} cannot be measured on the cluster: {last_line_of_error(error)}") from None
        if status == "part":
            return Result(job.key, {}, Path(self._site.folder) / PARTS / job.key if value is None else value)
        return Result(job.key, {"status": status, "error": value})


def _measure_job(measure: Measure, key: str, text: str, site: Site, ask: Ask) -> tuple[str, Any]:
    """Measure a job, as a task. Return ("part", the files or None), or "refused" or a status with the reason."""
    with contextlib.suppress(OSError):
        os.chdir(site.directory)  # paths of models and texts are relative to it
    if site.on_cpu:
        os.environ[VISIBLE] = ""  # a task that asked for no GPU sees all of them
    try:
        text = _among_neighbours(text, ask)
        with _place(site) as place:
            if site.is_visible():
                measure(text, str(Path(site.folder) / PARTS / key), place)
                return "part", None
            with tempfile.TemporaryDirectory(prefix="prunebench-", ignore_cleanup_errors=True) as name:
                measure(text, name, place)
                kinds = [Path(name, kind) for kind in ("cells", "samples")]
                files = [path for kind in kinds for path in kind.rglob("*") if path.is_file()]
                return "part", {path.relative_to(name).as_posix(): path.read_bytes() for path in files}
    except InUse as error:
        return "lost", str(error)
    except UserError as error:
        import ray

        return "refused", f"on node {ray.get_runtime_context().get_node_id()[:8]}: {error}"
    except Exception as error:
        return "error", reason_of_error(error)


def _among_neighbours(text: str, ask: Ask) -> str:
    """Return the text of a job with no more slots than this node has for such cells."""
    import ray

    own_node, job = ray.get_runtime_context().get_node_id(), json.loads(text)
    holds = max((node.holds(ask) for node in list_nodes() if node.id == own_node), default=1)
    job["run"]["slots"] = max(1, min(job["run"]["slots"], holds))
    return json.dumps(job)


def _place(site: Site) -> contextlib.AbstractContextManager[Workplace | None]:
    """Return the workplace of a task. On the CPU tasks of one process share it; on GPUs it ends with the task.

    Ray gives a GPU to the next task of whichever process, so that nothing of this task may stay there. The next task of
    this process may get another GPU.
    """
    if site.fresh:
        return contextlib.nullcontext()
    return contextlib.nullcontext(_shared_place(site)) if site.on_cpu else _new_place(site)


def _new_place(site: Site) -> Workplace:
    import ray

    return site.place_of(ray.get_runtime_context().get_node_id()[:8])


@functools.lru_cache(maxsize=1)
def _shared_place(site: Site) -> Workplace:
    """Return the workplace that the tasks of a session share in this process of the cluster."""
    place = _new_place(site)
    atexit.register(place.close)  # before multiprocessing waits for its process
    return place


def _answer_of_task(ref: Any) -> tuple[str, Any]:
    """Return the answer of a task, as `_measure_job` gives it. Raises UserError where the task refused."""
    import ray

    status, value = ray.get(ref)
    if status == "refused":
        raise UserError(value)
    return status, value


OWN = {  # variables that are set before ray is imported, which reads them then, unless the user has set them
    "RAY_AUTH_MODE": "token",
    "RAY_task_oom_retries": "1",  # by default without end
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # lines of which none is printed; by default they come on stdout, among results
}
REACH = 5.0  # seconds for a connection to be accepted
HEALTH = 60.0  # for the health check, a program that a busy machine starts slowly
ANSWER = 120.0  # for a look at the nodes
HOW = "start one with `ray get-auth-token --generate; RAY_AUTH_MODE=token ray start --head`"


@contextlib.contextmanager
def connect(address: str) -> Iterator[None]:
    """Connect to the cluster, unless this process has done so. Raises UserError, within seconds, where none answers."""
    for name, value in OWN.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    resolved = _find_address(address)
    _check(resolved)
    ends = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(resolved, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise UserError(
            f"the Ray cluster at {resolved} takes no connection: {last_line_of_error(error)}; a run begins on one "
            "of its nodes"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ends)  # Ray has replaced the handler
    try:
        yield
    finally:
        ray.shutdown()


def _find_address(address: str) -> str:
    """Return the address as HOST:PORT. Raises UserError where no cluster runs here."""
    from ray._private import services

    try:
        resolved = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        if address != "auto":
            raise UserError(f"--ray-address is auto or HOST:PORT; got {address!r} ({first_line_of(error)})") from None
        resolved = None
    if resolved is None:
        raise UserError(f"no Ray cluster runs here; {HOW}, or name one with --ray-address HOST:PORT")
    return str(resolved)


def _check(address: str) -> None:
    """Refuse an address at which no cluster answers, where Ray would wait for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({first_line_of(error)}); {HOW}, or mend the address"
        ) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"what listens at {address} is no Ray cluster; `ray status` on its head names the port"
        ) from None
    if done.returncode and "oken" in done.stderr:
        raise UserError(
            f"the Ray cluster at {address} does not accept this machine's token; every node needs the same "
            "~/.ray/auth_token or RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token (see docs/reference/machines.md)"
        )
    if done.returncode:
        raise UserError(
            f"the Ray cluster at {address} is not in order: {(done.stderr.strip() or '?').splitlines()[-1]}"
        )


def list_nodes() -> list[Node]:
    """Return the nodes of the cluster."""
    import ray

    return [node_from_plain(plain) for plain in ray.nodes() if plain["Alive"]]


def look_at_nodes(nodes: Sequence[Node], site: Site, device: str | None, ask: Ask) -> Mapping[str, Look]:
    """Look at each node, and return {id: what it says}, without nodes that were lost meanwhile.

    device  of timed cells. Nodes where such cells may run name its processor
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node_by_task = dict[Any, Node]()
    for node in nodes:
        timed = device if node.timing else None
        needs: dict[str, Any] = {"num_cpus": 0, "num_gpus": ask.gpus if timed else 0, "max_retries": 1}
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        node_by_task[ray.remote(look_at_node).options(**needs, scheduling_strategy=strategy).remote(site, timed)] = node
    answered, silent = ray.wait(list(node_by_task), num_returns=len(node_by_task), timeout=ANSWER)
    if silent:
        raise UserError(
            f"{node_by_task[silent[0]].name} has not answered for {ANSWER:g} s; is it taken? (see `ray status`)"
        )
    look_by_node = dict[str, Look]()
    for ref in answered:
        node = node_by_task[ref]
        try:
            look_by_node[node.id] = ray.get(ref)
        except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
            continue
        except ray.exceptions.RayError as error:
            raise UserError(f"{node.name} has no prunebench like this one: {last_line_of_error(error)}") from None
    return look_by_node


def last_line_of_error(error: BaseException) -> str:
    """Return the last line of an error of Ray, behind its traces. It says what happened."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
