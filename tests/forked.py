"""Starts processes that are forked from the server of the tests, which has imported torch and the suite (conftest).

They are for tests of what a process does, not of how it starts. What such a process starts in turn is forked as well.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

from bench.system import worker

JOBS = "bench.runs.job"  # what measures a cell in a process
IMPORTED = (JOBS, "bench.inference.llama_cpp", "bench.speed.timed_cell")  # by the server
ADDRESS = ("_forkserver_address", "_forkserver_authkey")  # the last from Python 3.14 on


def start(target: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Call a function of a module in a new process, and return the process. It has the environment of this one."""
    context: Any = multiprocessing.get_context("forkserver")
    with mock.patch.dict(os.environ, worker._environment_of_server(), clear=True):
        worker.begin_server(IMPORTED)
    server = forkserver._forkserver
    address = {name: getattr(server, name) for name in ADDRESS if hasattr(server, name)}
    with worker._without_main():
        process: BaseProcess = context.Process(target=_call, args=(address, dict(os.environ), target, arguments))
        process.start()
    return process


def _call(address: dict[str, Any], variables: dict[str, str], target: Callable[..., object], arguments: Any) -> None:
    """Call the function where further processes are forked from the same server."""
    from bench.engines import engine

    os.environ.clear()
    os.environ.update(variables)
    vars(forkserver._forkserver).update(address)
    forkserver._forkserver.ensure_running = forkserver.ensure_running = resource_tracker.ensure_running
    engine.Worker = functools.partial(worker.Worker, imported=(JOBS,))
    target(*arguments)


def run(code: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run a program, as `python -c` would, and return its exit code and what it wrote.

    variables  of its environment beside those of this process; PYTHONPATH and OMP_NUM_THREADS count too
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(_run, code, list(arguments), dict(variables or {}), out, err)
        process.join()
        return CompletedProcess(arguments, process.exitcode or 0, out.read_text(), err.read_text())


def _run(code: str, arguments: list[str], variables: dict[str, str], out: Path, err: Path) -> None:
    import torch

    for file, handle in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), handle)
    os.environ.update(variables)
    sys.path[:0] = [folder for folder in variables.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if "OMP_NUM_THREADS" in variables:
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
