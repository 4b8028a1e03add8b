"""What test_ledger.py has another process do: run the same cells again and again, each time in a fork of its own.

The process imports everything once and starts no thread, so that a run costs what it measures. It reads orders from
its input, a JSON list each: [folder, seconds after which it is killed or null]; and answers each in a line of JSON,
{"code": the exit status of the run, "said": what it said on stderr}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

from bench.cli import main as cli_main
from bench.cli import options
from bench.plan import validate
from bench.plan.run_spec import flags, from_flags
from bench.run import runner
from bench.system import interrupt


def cells_of(arguments: list[str]):
    """The cells that `python -m bench` makes of the arguments."""
    return validate.cells(from_flags(options.given(cli_main._parsed(arguments), flags().values())))


def one(cells, folder: str, said: str) -> None:
    """In the fork: one run, as the command does it."""
    with open(said, "w", encoding="utf-8") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        from reports import report

        with interrupt.prompt():
            runner.run(cells, Path(folder), report=report.write)
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    tqdm.monitor_interval = 0  # no thread that watches bars
    tqdm.set_lock(threading.RLock())  # its own is one for all forks, and one that is killed would take it along
    cells = cells_of(sys.argv[1:])
    print(json.dumps({"threads": [thread.name for thread in threading.enumerate()]}), flush=True)
    for order in sys.stdin:
        folder, seconds = json.loads(order)
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as said:
            child = os.fork()
            if child == 0:
                one(cells, folder, said.name)
            if seconds is not None:
                time.sleep(seconds)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": said.read()}), flush=True)


if __name__ == "__main__":
    main()
