"""What processes do in tests/engines instead of measuring, and a run of them that can be killed. Imports no torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from made_cells import made_cell

from bench.engines.engine import Job, RunConditions, SearchStart
from bench.plan.protocol import protocol_of_profile
from bench.system.worker import Limits


def job(key: str, seconds: float = 0.0, timed: bool = False, limits: Limits = Limits(), **how) -> Job:  # noqa: B008
    """A job of a made cell, whose search says for how many seconds to sleep."""
    cell = made_cell("shortgpt", 0.3, protocol_of_profile("smoke", speed_rounds=12 if timed else 0))
    run = RunConditions(Path(), limits=limits)
    search = SearchStart(seconds=(seconds,))
    return Job(**({"cell": cell, "key": key, "title": key, "folder": Path(), "run": run, "search": search} | how))


def naps(line, asked: Job) -> None:
    """Sleep for the job's seconds; tell where, and by the machine's clock when, and a timed one a while alone."""
    began = time.monotonic()
    line.send({"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")})
    time.sleep(asked.search.seconds[0])
    if asked.is_timed:
        with line.alone():
            alone = time.monotonic()
            time.sleep(0.1)
            line.send({"alone": [alone, time.monotonic()]})
    line.send({"status": "ok", "error": None, "began": began, "ended": time.monotonic()})


def dies(line, asked: Job) -> None:
    """Be killed in the job `dead`; in any other sleep until there is the file that is its folder, where it has one."""
    if asked.key == "dead":
        os.kill(os.getpid(), signal.SIGSEGV)
    while not asked.folder.exists():
        time.sleep(0.01)
    naps(line, asked)


class AcceleratorError(RuntimeError):
    """Is called what torch's is."""


def loses_its_gpu(line, asked: Job) -> None:
    """Fail in the job `dead` as a kernel does that reads where it must not, and sleep in any other."""
    if asked.key == "dead":
        raise AcceleratorError("CUDA error: an illegal memory access was encountered\nand advice")
    naps(line, asked)


def refuses(line, asked: Job) -> None:
    """Refuse the job `wrong`, and sleep in any other."""
    if asked.key == "wrong":
        line.send({"refused": "there is no such text"})
        return
    naps(line, asked)


def main() -> None:
    """Nap for long in two slots, and say which processes do."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what runs in the background
    import engine_jobs  # the other processes do not have this one's main module

    from bench.engines.local import LocalSession, environments_of_slots

    with LocalSession(engine_jobs.naps, environments_of_slots(2, "cpu", []), fresh=False) as engine:
        for key in ("a", "b"):
            engine.submit(job(key, seconds=0.0))
        print(*(engine.next_result().outcome["pid"] for _ in range(2)), flush=True)
        for key in ("c", "d"):
            engine.submit(job(key, seconds=600.0))
        engine.next_result()


if __name__ == "__main__":
    sys.exit(main())
