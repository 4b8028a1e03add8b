"""Connects to a Ray cluster and looks at its nodes; refuses what is none, or not in order, within seconds.

Ray itself waits for minutes at an address where no cluster answers, and then ends the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.engines.ray_nodes import Ask, Look, Node, Site, look, node
from methods.errors import UserError, first_line

OWN = {  # variables that are set before ray is imported, which reads them then, unless the user has set them
    "RAY_AUTH_MODE": "token",
    "RAY_task_oom_retries": "1",  # by default without end
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # lines of which none is printed; by default they come on stdout, among results
}
REACH = 5.0  # seconds for a connection to be accepted
HEALTH = 60.0  # for what accepts it to say that it is a cluster, by a program that a busy machine starts slowly
ANSWER = 120.0  # for a look at the nodes
HOW = "start one with `ray get-auth-token --generate; RAY_AUTH_MODE=token ray start --head`"


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the cluster, unless this process has. Raises UserError, within seconds, where there is none."""
    for name, value in OWN.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    found = _found(address)
    _check(found)
    ends = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(found, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise UserError(
            f"the Ray cluster at {found} takes no connection: {last_line(error)}; a run begins on one of its nodes"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ends)  # for which Ray has put a handler of its own
    try:
        yield
    finally:
        ray.shutdown()


def _found(address: str) -> str:
    """Return the address as HOST:PORT. Raises UserError where no cluster runs here."""
    from ray._private import services

    try:
        found = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        if address != "auto":
            raise UserError(f"--ray-address is auto or HOST:PORT; got {address!r} ({first_line(error)})") from None
        found = None
    if found is None:
        raise UserError(f"no Ray cluster runs here; {HOW}, or name one with --ray-address HOST:PORT")
    return str(found)


def _check(address: str) -> None:
    """Refuse an address at which no cluster answers, where Ray would wait for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({first_line(error)}); {HOW}, or mend the address"
        ) from None
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=HEALTH, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"what listens at {address} is no Ray cluster; `ray status` on its head names the port"
        ) from None
    if done.returncode and "oken" in done.stderr:
        raise UserError(
            f"the Ray cluster at {address} does not accept this machine's token; every node needs the same "
            "~/.ray/auth_token or RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token (see docs/guides/engines.md)"
        )
    if done.returncode:
        raise UserError(
            f"the Ray cluster at {address} is not in order: {(done.stderr.strip() or '?').splitlines()[-1]}"
        )


def alive() -> list[Node]:
    """Return the nodes of the cluster."""
    import ray

    return [node(plain) for plain in ray.nodes() if plain["Alive"]]


def looks_at(nodes: Sequence[Node], site: Site, device: str | None, ask: Ask) -> Mapping[str, Look]:
    """Look at each node, and return what is there, by its id, without those that have gone meanwhile.

    device  of timed cells, whose processor is asked for where they may run
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = dict[Any, Node]()
    for one in nodes:
        timed = device if one.timing else None
        needs: dict[str, Any] = {"num_cpus": 0, "num_gpus": ask.gpus if timed else 0, "max_retries": 1}
        there = NodeAffinitySchedulingStrategy(one.id, soft=False)
        asked[ray.remote(look).options(**needs, scheduling_strategy=there).remote(site, timed)] = one
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
    if silent:
        raise UserError(f"{asked[silent[0]].name} has not answered for {ANSWER:g} s; is it taken? (see `ray status`)")
    found = dict[str, Look]()
    for ref in answered:
        one = asked[ref]
        try:
            found[one.id] = ray.get(ref)
        except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
            continue
        except ray.exceptions.RayError as error:
            raise UserError(f"{one.name} has no prunebench like this one: {last_line(error)}") from None
    return found


def last_line(error: BaseException) -> str:
    """Return the line of an error of Ray that says what happened: the last one, behind its traces."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
