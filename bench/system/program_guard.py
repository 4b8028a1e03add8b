"""Executes the program on stdin behind a guard: a script of its own, which bench.system.programs starts.

The first line of stdin is the exit code by which the script says that the program has come to its end. Modules of
ALLOWED that the program imports are loaded first. Then the guard is closed, in this order:

    user    of a root the rights go, to those of nobody
    limits  the kernel gives no further file, socket or pipe, no process or thread, no byte of a file, SECONDS of the
            processor and MEMORY bytes of addresses
    trial   a pipe and a process are asked for, and the script ends with OPEN unless the kernel refuses both
    hook    Python itself refuses what is none of EVENTS, as to remove a file by its name

Nothing but the standard library is imported here, since the script runs without packages.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

SECONDS, MEMORY = 6, 2**30
OPEN = 9  # the exit code of a guard that does not hold
NOBODY = 65534
ALLOWED = {  # modules that a program may import: those that compute
    *("__future__", "abc", "array", "bisect", "calendar", "cmath", "collections", "contextlib", "copy", "dataclasses"),
    *("datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math"),
    *("numbers", "operator", "queue", "random", "re", "statistics", "string", "struct", "sys", "textwrap", "time"),
    *("types", "typing", "unicodedata", "zlib"),
}
EVENTS = {  # of Python's table of audit events, those of plain computing
    *("array.__new__", "builtins.id", "code.__new__", "compile", "exec", "function.__new__", "object.__delattr__"),
    *("object.__getattr__", "object.__setattr__", "sys._getframe", "sys._getframemodulename"),
}


def find_imports(program: str) -> Iterator[str]:
    """Yield the modules of ALLOWED that a program imports anywhere, and those that Python loads when it needs them."""
    yield from ("heapq", "unicodedata")  # of Counter.most_common, and of characters by their names
    for node in ast.walk(ast.parse(program)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.partition(".")[0] in ALLOWED:
                yield name
                yield from ("_strptime",) if name in ("datetime", "time") else ()


def lock_process() -> None:
    """Give up the rights to files, sockets, processes and memory. Ends the script where the kernel leaves one."""
    import resource  # which Windows lacks, so that the guard does not hold there

    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    limits = {
        resource.RLIMIT_CPU: SECONDS,
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    with suppress(OSError):
        os.pipe()
        os._exit(OPEN)
    with suppress(OSError):
        os.fork()
        os._exit(OPEN)  # of the new process too
    del os.mkfifo, os.mknod  # of which no event tells
    sys.addaudithook(_refuse_event)


def _refuse_event(event: str, _: tuple[Any, ...]) -> None:
    if event not in EVENTS:
        raise PermissionError(f"{event} is refused")


def main() -> None:
    """Execute the program; the exit code says whether it came to its end."""
    code, _, program = sys.stdin.read().partition("\n")
    end, passed = os._exit, int(code)
    try:
        for name in find_imports(program):
            with suppress(ImportError):  # as of a part that a module does not have
                importlib.import_module(name)
    except BaseException:  # a program that is none
        end(1)
    try:
        lock_process()
    except BaseException:  # a system that has no such limits
        end(OPEN)
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "program"})
    except BaseException:
        end(1)
    end(passed)


if __name__ == "__main__":
    main()
