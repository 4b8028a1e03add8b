"""Makes a Ray cluster of a head without CPUs and two nodes, in a process in which another one may have been.

The GPUs of its nodes are made up, which Ray does not mind.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from bench.engines import Ray, ray
from bench.engines.engine import SessionNeeds
from bench.engines.ray import RaySession

TESTS = Path(__file__).parent
MARK = "PRUNEBENCH_TEST_CLUSTER"  # a variable of all processes of the cluster, which tells them from others


def surround_cluster(patch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set what a cluster and its nodes need, with a token of its own."""
    for name, value in ray.OWN.items():  # before ray is imported, which reads them then
        patch.setenv(name, value)
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    patch.setenv("RAY_process_group_cleanup_enabled", "1")
    patch.setenv("RAY_worker_niceness", "0")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    for name, value in variables.items():
        patch.setenv(name, value)
    from ray._private.authentication_test_utils import reset_auth_token_state

    reset_auth_token_state()  # another test of this process may have looked for a token already


class MadeCluster:
    """The cluster, to which nodes can be added for a while."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address = str(self.made.address)
        for _ in range(2):
            self.made.add_node(num_cpus=2, num_gpus=2, resources={"timing": 1})
        self._connection = ExitStack()

    def connect(self) -> None:
        """Connect as a session does, unless there is a connection, which sessions then use and leave as it is."""
        self._connection.enter_context(ray.connect(self.address))

    def disconnect(self) -> None:
        """End the connection, if there is one."""
        self._connection.close()

    @contextmanager
    def nodes(self, count: int, **what) -> Iterator[dict[str, object]]:
        """Add nodes, by their ids; those that are still there at the end are removed."""
        found = {node.node_id: node for node in (self.made.add_node(**what) for _ in range(count))}
        try:
            yield found
        finally:
            for node in found.values():
                if node in self.made.worker_nodes:
                    self.made.remove_node(node, allow_graceful=False)


@contextmanager
def made_cluster() -> Iterator[MadeCluster]:
    """Start the cluster, and see at its end that no process of it is left."""
    with pytest.MonkeyPatch.context() as patch:
        surround_cluster(patch, **{MARK: (mark := secrets.token_hex(8))})
        made = MadeCluster()
        yield made
        made.disconnect()
        made.made.shutdown()
        assert until(lambda: not cells_of(mark))


def cells_of(mark: str) -> list[psutil.Process]:
    """Processes of the cluster that measure, or could."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            measures = "multiprocessing" in line or (line.startswith("ray::") and "Agent" not in line)  # a node's own
            if measures and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def until(holds, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(holds())


def session(engine: Ray, folder: Path, measure, **how) -> RaySession:
    folder.mkdir(exist_ok=True)
    asked = {"device": "cpu", "timed": False, "threads": 1, "models": False} | how
    return engine.start(SessionNeeds(folder=folder, fresh=False, work=print, measure=measure, **asked))


def measured(started: RaySession, count: int) -> dict[str, dict]:
    """What the next results put down, by their keys."""
    found = {}
    for _ in range(count):
        result = started.next_result()
        assert result.outcome == {}
        found[result.key] = json.loads((result.part / "cells" / f"{result.key}.json").read_text())
    return found
