"""What tests of killed runs have another process do: run cells again and again, each time in a fork of its own.

The process imports everything once and starts no thread, so that a run costs what it measures. It reads orders from
its input, an object of JSON in a line each, see `Order`, and answers each in a line of JSON: {"code": the exit status
of the run, "said": what it said on stderr, and unless it was killed "writes": how often it flushed a file or a folder
to the disk, and "fails": how many workers it has killed}.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Order:
    """Says which run is to be made, and how it ends.

    more     arguments behind those of all runs
    seconds  after which it is killed; None: never
    deaths   {number of a write: signal that the run gets in front of it}
    fails    numbers of messages of workers behind which one is killed, see `kills_of_workers`
    """

    folder: str
    more: list[str] = field(default_factory=list)
    seconds: float | None = None
    deaths: dict[int, int] = field(default_factory=dict)
    fails: list[int] = field(default_factory=list)


class Runner:
    """Is this file as a process."""

    def __init__(self, arguments: list[str]) -> None:
        root = Path(__file__).parent
        path = os.pathsep.join([str(root.parent), str(root)])
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self._answer() == {"threads": ["MainThread"]}  # else it could not fork safely

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def run(self, folder: Path, seconds: float | None = None) -> tuple[int, str]:
        answer = self.made(Order(str(folder), seconds=seconds))
        return answer["code"], answer["said"]

    def made(self, order: Order) -> dict:
        self.process.stdin.write(json.dumps(asdict(order)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        return json.loads(self.process.stdout.readline())


def cells_of(arguments: list[str]):
    """The cells that `python -m bench` makes of the arguments, and what else they say."""
    from bench import cli
    from bench.cli import main as cli_main
    from bench.plan import validate
    from bench.plan.run_spec import flags_of_run, spec_from_flags

    spec = spec_from_flags(cli.given_flags(cli_main._parse(arguments), flags_of_run().values()))
    return validate.cells_of_spec(spec), spec


def one(asked, order: Order, said: str) -> None:
    """In the fork: one run, as the command does it."""
    from bench import engines
    from bench.runs import runner
    from bench.system import interrupt
    from methods.model import calibration

    with open(said, "w", encoding="utf-8") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what runs in the background
    code = 1
    writes = flushes(order.deaths)
    fails = kills_of_workers(order.fails)
    if order.deaths:
        calibration.SECONDS = 0.0
    try:
        from reports import report

        cells, spec = asked if not order.more else cells_of([*sys.argv[1:], *order.more])
        with interrupt.keep_prompt():
            engine = engines.engine_of_spec(spec) if spec.slots != 1 else None
            how = {"engine": engine, "retry_failed": spec.retry_failed, "isolate": spec.isolate}
            runner.run(cells, Path(order.folder), report=report.write_report, **how)
        code = 0
    except (KeyboardInterrupt, interrupt.EndedBySignal) as ended:
        print(interrupt.message_of_signal(ended), file=sys.stderr)
        code = interrupt.code_of_signal(ended)
    finally:
        if code == 1:
            import traceback

            traceback.print_exc()
        print(json.dumps({"writes": len(writes), "fails": len(fails)}), file=sys.stderr, flush=True)
        os._exit(code)


def flushes(deaths: dict[int, int]) -> list[int]:
    """Grow by one with each flush from now on; this process gets a signal in front of some."""
    flush, done = os.fsync, list[int]()

    def counted(handle: int) -> None:
        done.append(handle)
        if (number := deaths.get(len(done))) is not None:
            os.kill(os.getpid(), number)
        flush(handle)

    os.fsync = counted
    return done


def kills_of_workers(numbers: list[int]) -> list[int]:
    """Grow by one with each worker that is killed, behind some of the messages that this process gets from all.

    Each third time it is what the worker has started, where there is something, as the process that times a model.
    """
    import psutil

    from bench.system import worker

    attend, told, killed = worker._attend, list[int](), list[int]()

    def attended(process, here, *rest, hear, **how):
        def heard(news):
            hear(news)
            told.append(process.pid)
            if len(told) in numbers:
                own = psutil.Process(process.pid)
                (next(iter(own.children(recursive=True)[::-1]), own) if len(told) % 3 == 0 else own).kill()
                killed.append(process.pid)

        return attend(process, here, *rest, hear=heard, **how)

    if numbers:
        worker._attend = attended
    return killed


def main() -> None:
    from tqdm import tqdm

    for name in ("bench.engines", "bench.healing", "bench.runs.runner", "reports.report"):
        importlib.import_module(name)  # so that no fork has to
    tqdm.monitor_interval = 0  # no thread that watches bars
    tqdm.set_lock(threading.RLock())  # its own is one for all forks, and one that is killed would take it along
    asked = cells_of(sys.argv[1:])
    print(json.dumps({"threads": [thread.name for thread in threading.enumerate()]}), flush=True)
    for line in sys.stdin:
        plain = json.loads(line)
        order = Order(**plain | {"deaths": {int(at): number for at, number in plain["deaths"].items()}})
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as said:
            child = os.fork()
            if child == 0:
                one(asked, order, said.name)
            if order.seconds is not None:
                time.sleep(order.seconds)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            *lines, last = said.read().splitlines(keepends=True) or [""]
            found = {"code": os.waitstatus_to_exitcode(status)}
            if last.startswith('{"writes"'):
                found |= {"said": "".join(lines)} | json.loads(last)
            else:  # it was killed
                found |= {"said": "".join([*lines, last])}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
