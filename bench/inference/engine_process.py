"""Starts an inference engine in a process group of its own, ends all that it has started, and finds what it died of.

The Python of an engine gets the packages `bench` and `methods` of this project, and nothing else of this Python. They
lie in a folder beside an entry point, by which each process of vLLM finds the plugin that serves pruned models.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.system import failures

KEPT_LETTERS, SHOWN_LETTERS = 20_000, 300  # of what an engine wrote last, and of the reason that is given
ERROR = re.compile(r"(?:^|\s)(\w*(?:Error|Exception): .*)", re.MULTILINE)
CAUSE_ABOVE = "root cause above"  # is in what vLLM raises in place of the error of a process that it has started
ENTRY_POINT = {
    "METADATA": "Metadata-Version: 2.1\nName: prunebench\nVersion: 0\n",
    "entry_points.txt": "[vllm.general_plugins]\nprunebench = bench.inference.vllm_plugin:register\n",
}


class EngineFailed(Exception):
    """Says that the engine gave no answer: `status` of bench.records.served."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class EngineProcess:
    """Holds a started process and the folder of the packages that it is given.

    environment  of the process, beside PYTHONPATH
    is_logged    whether all that it writes goes into the file `log`, and not into pipes

    Raises EngineFailed where the interpreter cannot be run.
    """

    def __init__(
        self, python: str, words: Sequence[str], environment: Mapping[str, str], *, is_logged: bool = False
    ) -> None:
        self._packages = tempfile.TemporaryDirectory(prefix="engine-")
        self.folder = Path(self._packages.name)
        self.log = self.folder / "log"
        self._kills = failures.count_kills()
        path = os.pathsep.join(filter(None, [str(_link_packages(self.folder)), os.environ.get("PYTHONPATH")]))
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [python, *words],
                    stdin=subprocess.PIPE,
                    stdout=log if is_logged else subprocess.PIPE,
                    stderr=log if is_logged else subprocess.PIPE,
                    bufsize=0,
                    env={**environment, "PYTHONPATH": path},
                    start_new_session=True,
                )
        except OSError as error:
            self._packages.cleanup()
            raise EngineFailed("error", f"{python} cannot be run: {error.strerror}") from None

    def end(self) -> None:
        """End the process and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._packages.cleanup()

    def failure_of_end(self, code: int, written: str, reason: str, engine: str) -> EngineFailed:
        """Return why the process has ended with a code.

        written  what it wrote last
        reason   the part of that which says why
        """
        if code < 0:
            death = failures.failure_of_death(code, "while it ran", self._kills)
            return EngineFailed(death.status, f"{engine} {death.reason}: {reason}")
        return EngineFailed(failures.status_of_error(RuntimeError(written)), f"{engine} ended: {reason}")


def _link_packages(folder: Path) -> Path:
    """Link the packages of this project into a new folder of `folder`, with the entry point, and return it."""
    packages = folder / "packages"
    information = packages / "prunebench-0.dist-info"
    information.mkdir(parents=True)
    for name, text in ENTRY_POINT.items():
        (information / name).write_text(text, encoding="utf-8")
    for home in failures.OURS:
        (packages / home.name).symlink_to(home)
    return packages


def find_cause(written: str) -> str:
    """Return the last error that an engine's processes have written and that points to no other; empty without one."""
    errors = ERROR.findall(written)
    return next((error.strip() for error in reversed(errors) if CAUSE_ABOVE not in error), "")
