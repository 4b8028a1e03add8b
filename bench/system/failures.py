"""Says what an error, or the death of a process, makes of a task: out of memory, crashed, or a plain error."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from methods import errors

COUNTERS = Path("/proc/vmstat")  # Linux's; `oom_kill` counts the processes that it has killed for lack of memory

# What lack of memory is called where the error's type does not say it: by the CPU's allocator, by the loader of
# libraries, by CUDA, and by its libraries, whose handles take memory when they are made.
NO_MEMORY = re.compile(
    r"can't allocate memory|failed to map segment|CUDA (error: )?out of memory|CU[A-Z]+_STATUS_ALLOC_FAILED"
    r"|CU[A-Z]+_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR).*\bcu\w+Create\b"
)
LOST_GPU = re.compile(  # errors after which no call of CUDA works any more in a process
    "device-side assert|illegal memory access|illegal instruction|misaligned address|unspecified launch failure"
    "|launch timed out|uncorrectable ECC|invalid program counter|hardware stack error"
)

INSTALLED = {"site-packages", "dist-packages"}  # folders of packages
OURS = (Path(__file__).resolve().parents[1], Path(errors.__file__).resolve().parent)  # bench/ and methods/

CAPTURE = re.compile("captur")  # is in all errors of CUDA by which it refuses to capture a step, which is lost alone


@dataclass(frozen=True)
class Failure:
    """Says why a task did not finish. status: "error", "out_of_memory", "crashed" or "timed_out"."""

    status: str
    reason: str


def is_out_of_memory(error: BaseException) -> bool:
    """Recognise lack of memory by name, since this module imports no torch, and by its words."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or NO_MEMORY.search(str(error)) is not None


def is_full_disk(error: BaseException | str) -> bool:
    """Say whether an error, or another program's text on one, means a full disk.

    The words of an error count too, since writers of weights wrap the system's error in their own.
    """
    words = ("no space left", os.strerror(errno.EDQUOT).lower())
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        word in str(error).lower() for word in words
    )


def words_of_room(folders: Iterable[Path]) -> str:
    """Return a text on how many MB are free on the disk of each folder."""
    return "left are " + " and ".join(
        f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB in {folder}" for folder in folders
    )


def is_loss_of_gpu(error: BaseException) -> bool:
    """Say whether an error leaves the GPU unusable for this process, so that all further cells fail too."""
    is_named = "AcceleratorError" in {kind.__name__ for kind in type(error).__mro__} or LOST_GPU.search(str(error))
    return bool(is_named) and not is_out_of_memory(error) and not CAPTURE.search(str(error))


def status_of_error(error: BaseException) -> str:
    """Return the status of a task that raised the error."""
    return "out_of_memory" if is_out_of_memory(error) else "crashed" if is_loss_of_gpu(error) else "error"


def reason_of_error(error: BaseException) -> str:
    """Return a description of an error in one line."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"out of memory ({text})" if is_out_of_memory(error) else text


def place_in_plugin(error: BaseException, plugins: Iterable[str]) -> str:
    """Return the innermost place in a plugin that an error comes through, as 'mine.py:14 in prune: ', or "".

    plugins  their files. Other modules in the folder of one belong to it, unless an installer has put them there
    """
    files = [Path(plugin).resolve() for plugin in plugins]
    for frame in reversed(traceback.extract_tb(error.__traceback__) if files else []):
        if any(_is_of(Path(frame.filename).resolve(), file) for file in files):
            return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: "
    return ""


def _is_of(file: Path, plugin: Path) -> bool:
    """Say whether a file is the plugin, or lies in its folder and is neither installed nor of this program."""
    folder = plugin.parent
    if file == plugin or not file.is_relative_to(folder) or folder.name in INSTALLED:
        return file == plugin
    return not any(map(file.is_relative_to, OURS)) and not INSTALLED & {*file.relative_to(folder).parts}


def count_kills() -> int | None:
    """Return how many processes the system has killed for lack of memory since it started; None where it does not say.

    The kernel counts before it kills, whether the whole machine or a control group has run out.
    """
    try:
        counters = dict(line.split() for line in COUNTERS.read_text().splitlines())
        return int(counters["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None


def failure_of_death(code: int | None, where: str, kills: int | None) -> Failure:
    """Return the failure of a process that died without a reason.

    code   its exit code, the negative of its signal
    where  what it was about to do
    kills  `count_kills` when its task began
    """
    if code is None or code >= 0:
        return Failure("crashed", f"the process ended with code {code} {where}")
    name, now = signal.Signals(-code).name, count_kills()
    if name != "SIGKILL":
        return Failure("crashed", f"killed by {name} {where}")
    if now is None or kills is None:
        return Failure("out_of_memory", f"killed by {name}, as the system does when memory runs out, {where}")
    if now > kills:
        return Failure("out_of_memory", f"killed by {name} as the system ran out of memory, {where}")
    return Failure("crashed", f"killed by {name}, and not for lack of memory, {where}")
