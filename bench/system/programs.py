"""Executes a program that a model has written, in a process without network, files and further processes.

The process is Python with its standard library alone. bench.system.program_guard says what it may do and how long. It
is a guard against what a model may write by mistake. It is no jail: whoever knows the guard and wants to get out may
find a way through the interpreter, so that programs of strangers belong into a virtual machine.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile

from bench.system import program_guard
from methods.errors import UserError

SILENCE = 60  # seconds of the clock after which a program that does not compute is ended


def is_passed(program: str) -> bool:
    """Say whether a program comes to its end without an exception, within the limits of the guard.

    Raises UserError where this system does not hold the guard.
    """
    passed = program_guard.OPEN + 1 + secrets.randbelow(100)  # so that no exit code of a program is taken for it
    command = [sys.executable, "-P", "-s", "-S", "-W", "ignore", program_guard.__file__]
    with tempfile.TemporaryDirectory(prefix="prunebench-program-") as empty:
        try:
            code = subprocess.run(
                command,
                input=f"{passed}\n{program}".encode(errors="replace"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=empty,
                env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},  # so that sets have the same order every time
                timeout=SILENCE,
                start_new_session=True,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return False
    if code == program_guard.OPEN:
        raise UserError("programs of a model are not executed here, since this system leaves them files or processes")
    return code == passed
