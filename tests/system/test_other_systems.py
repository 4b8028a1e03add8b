"""What reads works without modules and functions that Linux has, and Windows or macOS has not."""

from __future__ import annotations

import subprocess
import sys

from pages import ROOT

RUN = ROOT / "docs" / "results" / "experts"
LACKING = """
import os, select, signal, sys
import numpy, pandas, psutil, pyarrow.parquet, subprocess
for module, names in {
    os: "fork geteuid getuid killpg posix_fadvise sched_getaffinity setsid",
    select: "epoll poll",
    signal: "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 pthread_sigmask setitimer",
}.items():
    for name in names.split():
        delattr(module, name)
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
"""
COMMANDS = """
from bench.cli.main import main
from bench.system.memory import peak_bytes_of_process
from bench.system.program_guard import lock_process
for command in ("--help", "run --help", "list methods", "list formats", f"report {RUN} --view cost"):
    try:
        code = main(command.split())
    except SystemExit as end:
        code = end.code
    print(">>>", command.split()[0], code)
from pathlib import Path
Path.read_text = lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError())  # there is no /proc
print(">>> peak", peak_bytes_of_process() > 2**20)
try:
    lock_process()
except ImportError:
    print(">>> no guard")
"""


def test_help_lists_and_reports_need_nothing_that_other_systems_lack():
    script = f"{LACKING}\nRUN = {str(RUN)!r}\n{COMMANDS}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    said = [line.removeprefix(">>> ") for line in done.stdout.splitlines() if line.startswith(">>> ")]
    assert said == ["--help 0", "run 0", "list 0", "list 0", "report 0", "peak True", "no guard"], done.stderr[-2000:]
