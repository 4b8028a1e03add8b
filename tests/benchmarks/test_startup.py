"""How long a command takes that does no work: `--help` and the lists, in a fresh interpreter each.

tox -e bench -- tests/benchmarks/test_startup.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("command", ["--help", "run --help", "list methods", "list tasks", "list profiles"])
def test_startup(command, benchmark):
    def start():
        return subprocess.run(
            [sys.executable, "-m", "bench", *command.split()], cwd=ROOT, capture_output=True, check=True
        )

    assert benchmark.pedantic(start, rounds=10, warmup_rounds=1).stdout
